"""The bench as a whole: it goes on where it was, and says what it found."""

import json
from pathlib import Path

import numpy as np
import pytest

from headstart.bench import cells, tables
from headstart.bench.cells import Key, judged, key_of, read_cells
from headstart.bench.panels import read_panel
from headstart.bench.problem import Predicted
from headstart.bench.report import write_report
from headstart.bench.settings import SETTINGS
from headstart.bench.tables import Plan, bench_tables
from headstart.errors import FileError, UnknownNameError, UsageError

CHEAP = ("support_mean", "last_value", "task_linear")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a small sleepstudy."""
    draw = np.random.default_rng(0)
    rows = [f"{t},{d},{250 + 30 * draw.normal() + 10 * d}" for t in range(8) for d in range(6)]
    (tmp_path / "sleepstudy.csv").write_text("\n".join(["Subject,Days,Reaction", *rows]))
    return tmp_path


def plan(folder: Path, **options: object) -> Plan:
    return Plan(sets=("sleepstudy",), support=(3,), splits=2, methods=CHEAP, data=folder)._replace(**options)  # type: ignore[arg-type]


class Notes:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_every_cell_is_kept_and_none_is_done_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, notes = folder / "out", Notes()
    first = bench_tables(plan(folder), out, view=notes)  # type: ignore[arg-type]
    assert len(read_cells(out)) == 6 and len(notes.said) == 3 and "0 cells left" in notes.said[-1]
    monkeypatch.setattr(tables, "run_cell", lambda *_: pytest.fail("a cell that was done is done again"))
    assert bench_tables(plan(folder), out) == first
    # fewer of them are the same numbers
    (table,) = bench_tables(plan(folder, methods=CHEAP[:2]), out).tables
    assert [row.method for row in table.rows] == [row.method for row in first.tables[0].rows if row.method in CHEAP[:2]]


def test_a_bench_that_was_killed_goes_on_and_ends_with_the_same_tables(folder: Path) -> None:
    whole = bench_tables(plan(folder), folder / "whole").tables
    path = folder / "cut" / cells.NAME
    bench_tables(plan(folder), folder / "cut")
    text = path.read_bytes()
    path.write_bytes(text[: text.rfind(b"\n", 0, len(text) // 2) + 20])  # in the middle of a line
    again = bench_tables(plan(folder), folder / "cut").tables
    assert len(path.read_text().splitlines()) == 6 and all(json.loads(line) for line in path.read_text().splitlines())
    for a, b in zip(whole[0].rows, again[0].rows):
        assert (a.method, a.rmse, a.difference, a.nll) == (b.method, b.rmse, b.difference, b.nll)


def test_a_bench_that_is_asked_to_stop_keeps_what_is_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    run = tables.run_cell

    def stopping(*one):
        os.kill(os.getpid(), signal.SIGTERM)
        return run(*one)

    monkeypatch.setattr(tables, "run_cell", stopping)
    found = bench_tables(plan(folder), folder / "out")
    assert found.stopped == signal.SIGTERM and not found.tables and len(read_cells(folder / "out")) == 1


def test_several_processes_find_what_one_does(folder: Path) -> None:
    one, two = (bench_tables(plan(folder, jobs=jobs)).tables[0].rows for jobs in (1, 2))
    assert [row._replace(seconds=0) for row in one] == [row._replace(seconds=0) for row in two]


def test_other_data_or_another_setting_is_another_cell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = read_panel(folder, "sleepstudy")
    key = key_of(panel, 3, "maml", 0)
    assert key == key_of(panel, 3, "maml", 0)
    assert key != key_of(panel._replace(y=panel.y + 1), 3, "maml", 0)
    monkeypatch.setitem(SETTINGS, "maml", SETTINGS["maml"]._replace(steps=7))
    assert key != key_of(panel, 3, "maml", 0)


def test_cells_are_judged_in_the_targets_own_unit() -> None:
    key = Key("a", 3, "b", 0, "x")
    found = judged(key, Predicted(np.zeros(4), np.ones(4)), np.array([1.0, -1.0, 1.0, -3.0]), 10.0, 1.0)
    assert found.rmse == pytest.approx(10 * np.sqrt(3)) and found.coverage == 0.75
    # of N(0, 10²) at ±10 and 30
    assert found.nll == pytest.approx(0.5 * np.log(2 * np.pi * 100) + 0.5 * (1 + 1 + 1 + 9) / 4)
    assert judged(key, Predicted(np.full(4, np.nan)), np.zeros(4), 1.0, 1.0).rmse is None


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"sets": ("sleep",)}, UnknownNameError, "did you mean 'sleepstudy'"),
        ({"methods": ("mixd",)}, UnknownNameError, "did you mean 'mixed'"),
        ({"methods": ()}, UsageError, "--methods must name one or more"),
        ({"support": (3, 3)}, UsageError, "--support must name one or more, each once; got 3, 3"),
        ({"splits": 0}, UsageError, "at least 1"),
        ({"support": (0,)}, UsageError, "at least 1"),
        ({"data": Path("nowhere")}, UsageError, "there is no folder nowhere"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(folder: Path, options: dict[str, object], error: type, told: str) -> None:
    with pytest.raises(error, match=told):
        bench_tables(plan(folder, **options))


def test_a_file_of_something_else_is_refused(folder: Path) -> None:
    (folder / cells.NAME).write_text('{"step": 1}\n')
    with pytest.raises(FileError, match="no cell of a table"):
        bench_tables(plan(folder), folder)


def test_the_report_has_tables_text_and_a_picture(folder: Path) -> None:
    chosen = plan(folder, support=(2, 3))
    found = bench_tables(chosen).tables
    made = write_report(folder, found, chosen)
    assert [path.name for path in made] == ["tables.json", "tables.md", "tables.png"]
    values = json.loads(made[0].read_text())
    assert [table["support"] for table in values["tables"]] == [2, 3] and values["plan"]["splits"] == 2
    best = values["tables"][0]["rows"][0]
    assert f"| {best['method']} (baseline) * | {best['rmse']['mean']:.4g} ±" in made[1].read_text()
    assert "## Over all tables" in made[1].read_text() and made[2].read_bytes().startswith(b"\x89PNG")
