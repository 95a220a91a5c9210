"""The matrix of transfer: what was trained on by what was judged on."""

import csv
import json
import shutil
import signal
from itertools import product

import pytest
from PIL import Image

from headstart.errors import ConfigError, FileError, ShortClassError, UsageError
from headstart.registry import load
from headstart.training import matrix as transfer
from headstart.training.build import build
from headstart.training.config import resolve
from headstart.training.evaluate import evaluate, interval
from headstart.training.matrix import matrix, rows
from headstart.training.progress import View
from headstart.training.run import open_run, read_config

TREE = {
    "tasks": {"ways": 3, "queries": 2, "image_size": 8, "channels": 1},
    "outer": {"steps": 2, "tasks_per_step": 2},
    "model": {"name": "mlp", "hidden": (4,)},
    "run": {"evaluate_tasks": 2, "test_tasks": 6, "threads": 1},
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two folders of classes: one told apart by shades, the other by where a dot is."""
    path = tmp_path_factory.mktemp("data")
    for source, place, number in product(("shades", "dots"), range(15), range(3)):
        image = Image.new("L", (8, 8), 16 * place + 3 * number if source == "shades" else 5 * number)
        if source == "dots":
            image.putpixel((place % 8, place // 8), 255)
        (path / source / f"{source} {place}").mkdir(parents=True, exist_ok=True)
        image.save(path / source / f"{source} {place}" / f"{number}.png")
    return [str(path / "shades"), str(path / "dots")]


@pytest.fixture(scope="module")
def made(tmp_path_factory, sources):
    out = tmp_path_factory.mktemp("matrix")
    return out, matrix(TREE, sources, None, ["prototypes", "scratch"], out)


def test_every_run_is_judged_on_every_source_by_the_same_tasks(made):
    out, found = made
    cells = {(cell.method, cell.trained_on, cell.on): cell for cell in found.cells}
    names = ("shades", "dots")
    runs = {("prototypes", a, b) for a in names for b in names}
    assert set(cells) == runs | {(method, None, on) for method in ("nearest", "scratch") for on in names}
    for on in names:
        own, run = cells["prototypes", on, on], out / on / "prototypes"
        job, checkpoint = open_run(run)
        assert own.values == evaluate(job.learner, checkpoint.best.meta, job.tasks, episodes=6).values
        assert own.own is None and cells["nearest", None, on].untrained is None
        raw = load("method", "nearest")()
        assert cells["nearest", None, on].values == evaluate(raw, raw.init(None), job.tasks, episodes=6).values
        begun = build(resolve(read_config(run).tree() | {"method": {"name": "scratch"}, "outer": None}))
        scratch = evaluate(begun.learner, begun.learner.init(None), begun.tasks, episodes=6)
        assert cells["scratch", None, on].values == scratch.values


def test_differences_are_told_task_by_task_from_the_own_source_and_from_the_best_that_learns_nothing(made):
    _, found = made
    cells = {(cell.method, cell.trained_on, cell.on): cell for cell in found.cells}
    for trained_on, on in (("shades", "dots"), ("dots", "shades")):
        away, own = cells["prototypes", trained_on, on], cells["prototypes", on, on]
        assert away.own == interval([one - other for one, other in zip(away.values, own.values)])
        bar = max((cells[method, None, on] for method in ("nearest", "scratch")), key=lambda cell: cell.score.mean)
        for cell in (away, own):
            assert cell.untrained == interval([one - other for one, other in zip(cell.values, bar.values)])


def test_the_table_is_written_as_json_csv_and_a_picture(made):
    out, found = made
    table = json.loads((out / "matrix.json").read_text())
    assert table == json.loads(json.dumps(rows(found)))
    assert [row["trained_on"] for row in table] == ["shades", "shades", "dots", "dots", *[None] * 4]
    with (out / "matrix.csv").open() as file:
        assert [float(row["accuracy"]) for row in csv.DictReader(file)] == [row["accuracy"] for row in table]
    assert (out / "matrix.png").read_bytes()[:4] == b"\x89PNG"


def test_again_gives_the_same_and_nothing_is_worked_out_twice(made, sources, monkeypatch):
    out, found = made
    files = [*sorted(out.glob("*/*/metrics.jsonl")), *sorted(out.glob("*/*/judged.json"))]
    before = [path.read_bytes() for path in files]
    judging = []
    monkeypatch.setattr(
        transfer, "evaluate", lambda *args, **options: judging.append(args) or evaluate(*args, **options)
    )
    again = matrix(TREE, sources[:1], sources[1:], ["prototypes"], out)
    assert [cell.values for cell in again.cells] == [found.cells[1].values, found.cells[7].values]
    assert before == [path.read_bytes() for path in files]
    assert len(judging) == 1  # nearest, which has no run


def test_other_weights_or_other_tasks_are_judged_anew(made, sources):
    out, found = made
    run = out / "shades" / "prototypes"
    job, checkpoint = open_run(run)
    seen = [
        transfer._judged(run, job._replace(tasks=job.tasks._replace(sample=sample)), checkpoint.best.meta)[1]
        for sample in (job.tasks.sample, lambda split, numbers: job.tasks.sample("train", numbers))
    ]
    assert seen[0] == found.cells[0].values and seen[1] != seen[0]
    kept = json.loads((run / "judged.json").read_text())
    assert len(kept) == 3
    key = next(iter(kept))
    for wrong in ([], {key: ["accuracy"]}, {key: ["mse", ["x"]]}, {name: ["mse", [0.5]] for name in kept}):
        (run / "judged.json").write_text(json.dumps(wrong))
        with pytest.raises(FileError, match="judged.json .*remove it"):
            transfer._judged(run, job, checkpoint.best.meta)
    (run / "judged.json").write_text(json.dumps(kept))


def test_sources_are_made_alike_by_options_that_they_take_as_a_mixture_alone(tmp_path):
    tree = {**TREE, "tasks": {"ways": 3, "image_size": 8, "channels": 3, "rotations": False}}
    found = matrix(tree, ["icons", "flags"], None, ["prototypes"], tmp_path)
    for name in ("icons", "flags"):
        job, _ = open_run(tmp_path / name / "prototypes")
        assert job.tasks.input_shape == (3, 8, 8) and job.tasks.details["queries"] == 4  # the least of 7 and 4
        assert job.config.tasks.options["sources"] == ({"name": name},)
    assert [cell.trained_on for cell in found.cells] == ["icons", "icons", "flags", "flags", None, None]


def test_what_a_source_cannot_do_is_said_before_anything_is_trained(tmp_path):
    tree = {**TREE, "tasks": {"ways": 3, "queries": 5}}
    with pytest.raises(ShortClassError, match="^flags: class"):
        matrix(tree, ["icons"], ["icons", "flags"], ["prototypes"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_two_folders_called_alike_are_not_taken_for_one(sources, tmp_path):
    other = tmp_path / "shades"
    shutil.copytree(sources[0], other)
    with pytest.raises(UsageError, match="two sources are called 'shades', one to train and one to judge on"):
        matrix(TREE, sources[:1], [str(other)], ["nearest"], tmp_path / "out")


def test_a_signal_stops_it(sources, tmp_path):
    class StopIn(View):
        def step(self, record, validation):
            signal.raise_signal(signal.SIGINT)

    found = matrix(TREE, sources, None, ["prototypes"], tmp_path, view=StopIn())
    assert (found.cells, found.stopped) == ([], signal.SIGINT)
    assert not (tmp_path / "matrix.json").exists() and not (tmp_path / "dots").exists()


@pytest.mark.parametrize(
    ("sources", "options", "error", "message"),
    [
        ([], {}, UsageError, "needs one source or more"),
        (["icons", "icons"], {}, UsageError, "two sources are called 'icons'"),
        (["icons"], {"frequency": 3}, ConfigError, "no source takes --tasks.frequency"),
        (["icons", "sinusoid"], {}, ConfigError, "a matrix is of one kind of data"),
    ],
)
def test_what_makes_no_matrix_is_refused(sources, options, error, message, tmp_path):
    run = {"evaluate_tasks": 2, "test_tasks": 2}
    with pytest.raises(error, match=message):
        matrix({"tasks": options, "run": run}, sources, None, ["nearest"], tmp_path)
