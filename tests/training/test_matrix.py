"""The matrix of transfer: what was trained on by what was judged on."""

import csv
import json
import signal
from itertools import product

import pytest
from PIL import Image

from headstart.errors import ConfigError, UsageError
from headstart.training.matrix import matrix, rows
from headstart.training.progress import View

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
    return out, matrix(TREE, sources, None, ["prototypes"], out)


def test_every_run_is_judged_on_every_source_by_the_same_tasks(made):
    out, found = made
    scores = {(cell.trained_on, cell.on): cell for cell in found.cells}
    assert set(scores) == {(a, b) for a in ("shades", "dots") for b in ("shades", "dots")}
    for source in ("shades", "dots"):
        results = json.loads((out / source / "prototypes" / "results.json").read_text())
        assert scores[source, source].score.mean == results["mean"]
        assert found.baseline[source].mean == results["nearest"]["mean"]
        assert scores[source, source].own is None
    away = scores["shades", "dots"]
    mean = scores["dots", "dots"].score.mean
    assert away.own.mean == pytest.approx(away.score.mean - mean)
    assert away.raw.mean == pytest.approx(away.score.mean - found.baseline["dots"].mean)
    pairs = zip(away.score.values, scores["dots", "dots"].score.values)
    assert (away.own.ci95 == 0) == (len({round(one - other, 9) for one, other in pairs}) == 1)


def test_the_table_is_written_as_json_csv_and_a_picture(made):
    out, found = made
    table = json.loads((out / "matrix.json").read_text())
    assert table == json.loads(json.dumps(rows(found)))
    assert [row["trained_on"] for row in table] == ["shades", "shades", "dots", "dots", None, None]
    with (out / "matrix.csv").open() as file:
        assert [float(row["accuracy"]) for row in csv.DictReader(file)] == [row["accuracy"] for row in table]
    assert (out / "matrix.png").read_bytes()[:4] == b"\x89PNG"


def test_again_gives_the_same_and_takes_no_more_steps(made, sources):
    out, found = made
    steps = [path.read_bytes() for path in sorted(out.glob("*/*/metrics.jsonl"))]
    again = matrix(TREE, sources[:1], sources[1:], ["prototypes"], out)
    assert [cell.score for cell in again.cells] == [found.cells[1].score]
    assert steps == [path.read_bytes() for path in sorted(out.glob("*/*/metrics.jsonl"))]


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
