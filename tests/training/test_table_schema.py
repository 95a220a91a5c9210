"""What a run keeps of its table, and what it says when the table has changed."""

from pathlib import Path
from typing import Any

import pytest

from headstart.errors import DataError
from headstart.training.config import make_config
from headstart.training.files import read_json
from headstart.training.run import open_run, train
from headstart.training.table_schema import SCHEMA, refuse_other_table

CONFIG: dict[str, Any] = {
    "method": "gaussian_process", "task_column": "pig", "target": "weight", "shots": 3, "steps": 1, "threads": 1,
}  # fmt: skip


def _write(path: Path, pigs: int, rows: int = 6) -> Path:
    lines = [f"p{pig},{row},{20 + 5 * row + pig * (row + 1)}" for pig in range(pigs) for row in range(rows)]
    path.write_text("\n".join(["pig,week,weight", *lines]) + "\n")
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return _write(tmp_path / "pigs.csv", 8)


def test_a_run_is_not_judged_or_gone_on_with_on_another_table(table: Path, tmp_path: Path) -> None:
    config = make_config({**CONFIG, "tasks": str(table)})
    train(config, tmp_path / "run")
    kept = (tmp_path / "run" / SCHEMA).read_bytes()
    open_run(tmp_path / "run")
    _write(table, 13)  # tasks that were trained on are now for testing
    with pytest.raises(DataError, match=r"the table is not what it was .* \(column 'weight' differs"):
        open_run(tmp_path / "run")
    with pytest.raises(DataError, match="train in another --out"):
        train(config, tmp_path / "run")
    assert (tmp_path / "run" / SCHEMA).read_bytes() == kept


def test_rounding_is_no_other_table_and_other_categories_are(table: Path, tmp_path: Path) -> None:
    train(make_config({**CONFIG, "tasks": str(table)}), tmp_path / "run")
    schema = read_json(tmp_path / "run" / SCHEMA)
    refuse_other_table(tmp_path / "run", {**schema, "mean": schema["mean"] * (1 + 1e-13)})
    refuse_other_table(tmp_path / "elsewhere", schema)
    with pytest.raises(DataError, match="column 'weight' differs"):
        refuse_other_table(tmp_path / "run", {**schema, "mean": schema["mean"] * (1 + 1e-6)})
    [week] = schema["features"]
    with pytest.raises(DataError, match="column 'week' differs"):
        refuse_other_table(tmp_path / "run", {**schema, "features": [{**week, "missing": True}]})
    with pytest.raises(DataError, match="which columns are features differs"):
        refuse_other_table(tmp_path / "run", {**schema, "features": [{**week, "column": "day"}]})


@pytest.mark.parametrize("method", ["gaussian_process", "maml"])
def test_three_tasks_are_enough_for_a_run(method: str, tmp_path: Path) -> None:
    """Of a single validation and test task no interval can be told; all else can."""
    table = _write(tmp_path / "few.csv", 3)
    train(make_config({**CONFIG, "method": method, "tasks": str(table)}), tmp_path / "run")
    assert read_json(tmp_path / "run" / "results.json")["ci95"] is None
    card = (tmp_path / "run" / "README.md").read_text()
    assert "on 1 test task, of which alone no interval can be told" in card and "looks at 1 validation task;" in card
    assert (tmp_path / "run" / "results.png").exists()


def test_tasks_keep_their_names_where_some_are_skipped(tmp_path: Path) -> None:
    table = _write(tmp_path / "pigs.csv", 20)
    options = {**CONFIG, "tasks": str(table), "on_short": "skip"}
    train(make_config(options), tmp_path / "whole")
    names = [line.split(",")[0] for line in (tmp_path / "whole" / "test.csv").read_text().splitlines()[1:]]
    lines = [line for line in table.read_text().splitlines() if not line.startswith((f"{names[0]},2", f"{names[0]},3"))]
    table.write_text("\n".join(line for line in lines if not line.startswith(f"{names[0]},4")) + "\n")
    train(make_config(options), tmp_path / "fewer")
    rows = (tmp_path / "fewer" / "test.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == names[1:]
    assert open_run(tmp_path / "fewer")[0].tasks.details["task_names"]["test"] == names[1:]
    assert "1 tasks with too few rows were skipped" in (tmp_path / "fewer" / "README.md").read_text()
