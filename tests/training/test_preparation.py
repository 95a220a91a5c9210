"""What a run keeps of how its data became numbers, and what it says when the data have changed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from headstart.errors import DataError, FileError
from headstart.training.files import read_json
from headstart.training.preparation import PREPARATION
from headstart.training.run import open_run, train
from tests.short import tree

pytestmark = pytest.mark.usefixtures("unrendered")

CONFIG: dict[str, Any] = {
    "method": "gaussian_process", "task_column": "pig", "target": "weight", "shots": 3, "steps": 1, "threads": 1,
}  # fmt: skip
FOLDER: dict[str, Any] = {"method": "nearest", "ways": 2, "shots": 1, "queries": 1, "image_size": 8, "threads": 1}


def _write(path: Path, pigs: int, rows: int = 6) -> Path:
    lines = [f"p{pig},{row},{20 + 5 * row + pig * (row + 1)}" for pig in range(pigs) for row in range(rows)]
    path.write_text("\n".join(["pig,week,weight", *lines]) + "\n")
    return path


def _draw(path: Path, classes: int) -> Path:
    for place in range(classes):
        (path / f"class {place}").mkdir(parents=True, exist_ok=True)
        for image in range(2):
            Image.new("RGB", (4, 4), (place, image, 0)).save(path / f"class {place}" / f"{image}.png")
    return path


@pytest.mark.parametrize(
    ("write", "before", "after", "options", "what"),
    [
        (_write, 8, 13, CONFIG, r"tables are not what they were .* \(column 'weight' differs"),
        (_draw, 12, 20, FOLDER, r"images are not what they were .* \(which classes there are differs"),
    ],
)
def test_a_run_is_not_judged_or_gone_on_with_on_other_data(
    tmp_path: Path, write: Any, before: int, after: int, options: dict[str, Any], what: str
) -> None:
    data = write(tmp_path / "data", before)
    config = tree({**options, "tasks": str(data), "evaluate_tasks": 2, "test_tasks": 2})
    train(config, tmp_path / "run")
    kept = (tmp_path / "run" / PREPARATION).read_bytes()
    open_run(tmp_path / "run")
    write(data, after)  # tasks that were trained on are now for testing
    with pytest.raises(DataError, match=what):
        open_run(tmp_path / "run")
    with pytest.raises(DataError, match="train in another --out"):
        train(config, tmp_path / "run")
    assert (tmp_path / "run" / PREPARATION).read_bytes() == kept
    if data.is_dir():
        shutil.rmtree(data)
    write(data, before)
    open_run(tmp_path / "run")
    # other numbers, of which what is learned from the training data says nothing
    changed = write(data, before)
    one = changed / "class 3" / "1.png" if changed.is_dir() else changed
    if changed.is_dir():
        Image.new("RGB", (4, 4), (9, 200, 9)).save(one)
    else:
        rows = [line.split(",") for line in one.read_text().splitlines()[1:]]
        rows = [[*row[:2], rows[6 * (n // 6) + 5 - n % 6][2]] for n, row in enumerate(rows)]  # others of the same task
        lines = ["pig,week,weight", *map(",".join, rows)]
        one.write_text("\n".join(lines))
    with pytest.raises(DataError, match="tasks hold other numbers"):
        open_run(tmp_path / "run")


def test_a_changed_preparation_is_refused(tmp_path: Path) -> None:
    data = _write(tmp_path / "data", 8)
    train(tree({**CONFIG, "tasks": str(data), "evaluate_tasks": 2, "test_tasks": 2}), tmp_path / "run")
    path = tmp_path / "run" / PREPARATION
    good = path.read_text()
    for bad in (good.replace("mean", "meam", 1), good.replace("1", "2", 1), "{}", "[]"):
        path.write_text(bad)
        with pytest.raises(FileError):
            open_run(tmp_path / "run")


@pytest.mark.parametrize("method", ["gaussian_process", "maml"])
def test_three_tasks_are_enough_for_a_run(method: str, tmp_path: Path) -> None:
    """Of a single validation and test task no interval can be told; all else can."""
    table = _write(tmp_path / "few.csv", 3)
    train(tree({**CONFIG, "method": method, "tasks": str(table)}), tmp_path / "run")
    assert read_json(tmp_path / "run" / "results.json")["ci95"] is None
    card = (tmp_path / "run" / "README.md").read_text()
    assert "on 1 test task, of which alone no interval can be told" in card and "looks at 1 validation task;" in card
    assert (tmp_path / "run" / "results.png").exists()


def test_tasks_keep_their_names_where_some_are_skipped(tmp_path: Path) -> None:
    table = _write(tmp_path / "pigs.csv", 20)
    options = {**CONFIG, "tasks": str(table), "on_short": "skip"}
    train(tree(options), tmp_path / "whole")
    names = [line.split(",")[0] for line in (tmp_path / "whole" / "test.csv").read_text().splitlines()[1:]]
    lines = [line for line in table.read_text().splitlines() if not line.startswith((f"{names[0]},2", f"{names[0]},3"))]
    table.write_text("\n".join(line for line in lines if not line.startswith(f"{names[0]},4")) + "\n")
    train(tree(options), tmp_path / "fewer")
    rows = (tmp_path / "fewer" / "test.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == names[1:]
    assert open_run(tmp_path / "fewer")[0].tasks.details["task_names"]["test"] == names[1:]
    assert "1 tasks with too few rows were skipped" in (tmp_path / "fewer" / "README.md").read_text()
