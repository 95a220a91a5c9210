"""What a run says of its answers to a new task: probabilities, sets, unknown classes, and tasks that look unlike."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import headstart
from headstart.cli.app import run as command
from headstart.data.images.icons import load_icons
from headstart.errors import ConfigError, FileError
from headstart.training.adapted import AdaptedModel, open_adapted
from headstart.training.files import read_json, to_json, write_together
from headstart.training.predictions import predict
from headstart.training.run import LIKENESS, read_likeness, read_trust, train
from tests.short import tree

SHORT = {"steps": 30, "tasks_per_step": 4, "threads": 1, "evaluate_tasks": 20, "test_tasks": 5, "filters": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **_: file.write(b"\x89PNG"))
        return train(
            tree({"tasks": "icons", "ways": 3, "method": "prototypes", "rotations": False, **SHORT}),
            tmp_path_factory.mktemp("run") / "run",
        ).run


def draw(
    place: Path, classes: range, images: range, spoil: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> Path:
    """Write test icons as images in a folder for each class."""
    icons = load_icons()["test"]
    for number in classes:
        folder = place / icons.names[number]
        folder.mkdir(parents=True, exist_ok=True)
        for image in images:
            pixels = icons.examples[icons.starts[number] + image, 0]
            Image.fromarray((pixels if spoil is None else spoil(pixels)).numpy()).save(folder / f"{image}.png")
    return place


@pytest.fixture(scope="module")
def model(run: Path, tmp_path_factory: pytest.TempPathFactory) -> AdaptedModel:
    place = tmp_path_factory.mktemp("adapted")
    headstart.adapt(run, draw(place / "support", range(3), range(5)), place / "out")
    return open_adapted(place / "out")


def test_a_run_says_how_far_it_can_be_believed_and_its_card_does(run: Path) -> None:
    trust, results = read_trust(run), read_json(run / "results.json")
    assert trust is not None and trust.unknown is not None and len(trust.judged) > 3
    assert (
        results["trusted"]["ways"] == 3
        and results["trusted"]["others"]["auroc"] > 0.6
        and results["unlike"]["of"] == 20
    )
    card = (run / "README.md").read_text()
    for words in ("(reliability.png)", "| Probabilities |", "| Label sets |", "| Other classes |", "| Unlike tasks |"):
        assert words in card
    assert (run / "reliability.png").exists()


def test_answers_are_those_of_the_model_but_calibrated_and_the_folder_keeps_it(
    run: Path, model: AdaptedModel, tmp_path: Path
) -> None:
    assert model.by.trust == read_trust(run)
    queries = draw(tmp_path / "queries", range(3), range(5, 9))
    found, bare = predict(model, queries), predict(model._replace(by=model.by._replace(trust=None)), queries)
    assert [row["prediction"] for row in found] == [row["prediction"] for row in bare]
    assert [row["probability"] for row in found] != [row["probability"] for row in bare]
    for row in found:
        assert sum(row["probabilities"].values()) + row["unknown"] == pytest.approx(1)
        assert row["prediction"] in row["set"] and row["probability"] == row["probabilities"][row["prediction"]]
        assert 0 < row["unknown"] < 1 and "unknown" not in bare[0] and "set" not in bare[0]
    some, none = (predict(model, queries, unknown_share=share) for share in (0.1, 0))
    assert all(one["unknown"] > two["unknown"] > three["unknown"] == 0 for one, two, three in zip(found, some, none))
    for share in (1, -0.1):
        with pytest.raises(ConfigError, match="--unknown-share is a share from 0 to below 1"):
            predict(model, queries, unknown_share=share)


def test_what_looks_less_like_the_classes_is_turned_away(model: AdaptedModel, tmp_path: Path) -> None:
    own = draw(tmp_path / "own", range(3), range(5, 12))
    others = draw(tmp_path / "others", range(10, 30), range(2))
    assert all(row["prediction"] is not None for row in predict(model, others))
    strict = predict(model, others, reject=0.9)
    off = [row["unknown"] for row in strict if row["prediction"] is None]
    # whatever share is expected, those that look least like the classes go first
    assert min(off) >= max([row["unknown"] for row in strict if row["prediction"] is not None], default=0)
    again = predict(model, others, reject=0.9, unknown_share=0.1)
    assert [row["prediction"] for row in again] == [row["prediction"] for row in strict]
    with pytest.raises(ConfigError, match="--reject is a share between 0 and 1.*got 5"):
        predict(model, own, reject=5)


def test_the_command_calls_them_none(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    support, others = draw(tmp_path / "support", range(3), range(5)), draw(tmp_path / "others", range(20, 24), range(2))
    assert command(["adapt", str(run), str(support), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "By leave-one-out, " in told and "On the run's validation tasks of 3 classes accuracy is " in told
    assert command(["predict", str(tmp_path / "out"), str(others), "--reject", "0.9"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    named = [row["prediction"] for row in rows]
    assert "none" in named and all(0 < float(row["unknown"]) < 1 for row in rows)
    assert command(["predict", str(tmp_path / "out"), str(others), "--reject", "0.9", "--json"]) == 0
    assert [row["prediction"] or "none" for row in json.loads(capsys.readouterr().out)] == named


def test_where_nothing_is_known_of_other_classes_none_is_turned_away(model: AdaptedModel, tmp_path: Path) -> None:
    assert model.by.trust is not None
    blind = model._replace(by=model.by._replace(trust=model.by.trust._replace(unknown=None)))
    queries = draw(tmp_path, range(3), range(5, 6))
    assert "unknown" not in predict(blind, queries)[0] and "set" in predict(blind, queries)[0]
    for asked in ({"reject": 0.05}, {"unknown_share": 0.1}):
        with pytest.raises(ConfigError, match="nothing tells examples of other classes"):
            predict(blind, queries, **asked)
    assert predict(blind, queries, unknown_share=0) == predict(blind, queries)


def test_a_task_that_looks_unlike_is_told_and_one_like_the_others_is_not(run: Path, tmp_path: Path) -> None:
    like = headstart.adapt(run, draw(tmp_path / "like", range(3, 6), range(5)), tmp_path / "a")
    assert like.warnings == ()

    def boards(pixels: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(pixels))
        return torch.where((rows[:, None] + rows) % 2 == 0, 255, pixels // 8)

    odd = headstart.adapt(run, draw(tmp_path / "odd", range(3), range(5), boards), tmp_path / "b")
    assert len(odd.warnings) == 1 and "looks unlike those that were trained on (icons)" in odd.warnings[0]
    assert "5 % are told so, too" in odd.warnings[0] and odd.warnings[0] in (tmp_path / "b" / "README.md").read_text()


def test_what_says_so_is_checked(run: Path, model: AdaptedModel, tmp_path: Path) -> None:
    headstart.adapt(run, draw(tmp_path / "support", range(3), range(2)), tmp_path / "out", keep_examples=False)
    folder = tmp_path / "out"
    described = read_json(folder / "config.json")
    described["trust"]["mass"] = None
    weights = (folder / "adapted.safetensors").read_bytes()
    write_together(folder, {"adapted.safetensors": weights, "config.json": to_json(described)})
    with pytest.raises(FileError, match="config.json does not say how far answers can be believed"):
        open_adapted(folder)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / LIKENESS).write_bytes(weights)
    with pytest.raises(FileError, match="does not say what training tasks look like"):
        read_likeness(damaged)
