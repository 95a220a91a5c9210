"""The tables: tasks are left out, every cell is kept, and means are over the same splits."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import tables
from benchmarks.settings import CLASSIFIERS, SETS, SETTINGS, Plan
from benchmarks.tables import NAME, bench_tables, key_of, leave_out, make, read_cells, read_panel, tasks_of, trained
from benchmarks.tables_report import Cell, Key, overall, table, write_report
from headstart.errors import DataError, FileError, UnknownNameError, UsageError
from headstart.registry import METHODS
from headstart.training.evaluate import evaluate

CHEAP = ("one_model_per_task: mean", "pooled: linear", "task_category: linear")


def lines(tasks: int = 8, rows: int = 6) -> str:
    draw = np.random.default_rng(0)
    found = [f"{t},{d},{250 + 30 * draw.normal() + 10 * d}" for t in range(tasks) for d in range(rows)]
    return "\n".join(["Subject,Days,Reaction", *reversed(found)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a small sleepstudy."""
    (tmp_path / "sleepstudy.csv").write_text(lines())
    return tmp_path


def plan(folder: Path, **options: object) -> Plan:
    chosen = Plan(sets=("sleepstudy",), support=(3,), splits=2, methods=CHEAP, data=folder)
    return chosen._replace(**options)  # type: ignore[arg-type]


def test_rows_are_put_in_order_and_whole_tasks_left_out(folder: Path) -> None:
    panel = read_panel(folder, "sleepstudy")
    assert panel.x[:6, 0].tolist() == [0, 1, 2, 3, 4, 5] and panel.task.tolist() == sorted(panel.task.tolist())
    tasks = tasks_of(panel, 2, seed=3, validation=0.2)
    assert tasks.counts == {"train": 5, "validation": 1, "test": 2}
    kept, held = leave_out(8, 3)
    assert tasks.details["task_names"]["test"] == [str(task) for task in held] and sorted(kept + held) == [*range(8)]
    query = tasks.sample("test", [0]).query
    own = panel.y[panel.task == held[0]][2:]
    np.testing.assert_allclose(np.diff(query.y.flatten() * tasks.unit), np.diff(own), rtol=1e-4)
    everything = torch.cat(
        [b.y.flatten() for s, n in (("train", 5), ("validation", 1)) for b in tasks.sample(s, range(n))]
    )
    assert everything.mean().abs() < 1e-5 and everything.std(correction=0) == pytest.approx(1, abs=1e-5)
    assert tasks_of(panel, 2, seed=3, validation=0.0).counts == {"train": 6, "test": 2}
    assert len({tuple(sorted(leave_out(20, seed)[1])) for seed in range(10)}) > 8


def test_what_cannot_be_read_is_said(folder: Path) -> None:
    with pytest.raises(FileError, match=r"dietox\.csv"):
        read_panel(folder, "dietox")
    (folder / "dietox.csv").write_text("Pig,Weight\n1,2.0\n")
    with pytest.raises(DataError, match="'Time'"):
        read_panel(folder, "dietox")
    with pytest.raises(DataError, match="has 6 rows, too few for 6 support rows"):
        tasks_of(read_panel(folder, "sleepstudy"), 6, 0, 0.2)
    (folder / "sleepstudy.csv").write_text(lines(tasks=4))
    with pytest.raises(DataError, match="4 tasks; leaving out a quarter needs at least 6"):
        tasks_of(read_panel(folder, "sleepstudy"), 2, 0, 0.2)


@pytest.mark.parametrize("name", SETS)
def test_the_shared_panels_are_whole(name: str, shared_data: Path) -> None:
    if not (shared_data / "panel").is_dir():
        pytest.skip("the shared data have no folder 'panel'")
    found = read_panel(shared_data / "panel", name)
    sizes = {"sleepstudy": (18, 180), "dietox": (72, 861), "spruce": (79, 1027), "Cigar": (46, 1380)}
    assert (len(found.names), len(found.y)) == sizes[name]


def test_every_method_of_the_registry_is_in_the_settings_or_classifies() -> None:
    set_here = {setting.method for setting in SETTINGS.values()}
    assert set_here | CLASSIFIERS == {row.name for row in METHODS} and not set_here & CLASSIFIERS


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_makes_a_learner_that_trains_and_predicts(name: str, folder: Path) -> None:
    setting = SETTINGS[name]._replace(steps=min(2, SETTINGS[name].steps))
    tasks = tasks_of(read_panel(folder, "sleepstudy"), 3, 0, setting.validation)
    before = torch.get_rng_state()
    learner = make(setting, tasks)
    assert np.isfinite(evaluate(learner, trained(learner, tasks, setting), tasks).mean)
    assert torch.equal(before, torch.get_rng_state())


def test_every_cell_is_kept_and_none_is_done_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, said = folder / "out", list[str]()
    first = bench_tables(plan(folder), out, said.append)
    assert len(read_cells(out)) == 6 and len(said) == 3 and "0 cells left" in said[-1]
    monkeypatch.setattr(tables, "run_cell", lambda *_: pytest.fail("a cell that was done is done again"))
    assert bench_tables(plan(folder), out) == first
    (again,) = bench_tables(plan(folder, methods=CHEAP[:2]), out)
    assert [row.method for row in again.rows] == [row.method for row in first[0].rows if row.method in CHEAP[:2]]


def test_a_bench_that_was_killed_goes_on_and_ends_with_the_same_tables(folder: Path) -> None:
    (whole,), path = bench_tables(plan(folder), folder / "whole"), folder / "cut" / NAME
    bench_tables(plan(folder), folder / "cut")
    text = path.read_bytes()
    path.write_bytes(text[: text.rfind(b"\n", 0, len(text) // 2) + 20])  # in the middle of a line
    (again,) = bench_tables(plan(folder), folder / "cut")
    assert len(path.read_text().splitlines()) == 6 and all(json.loads(line) for line in path.read_text().splitlines())
    assert [row._replace(seconds=0) for row in whole.rows] == [row._replace(seconds=0) for row in again.rows]


def test_several_processes_find_what_one_does(folder: Path) -> None:
    one, two = (bench_tables(plan(folder, jobs=jobs))[0].rows for jobs in (1, 2))
    assert [row._replace(seconds=0) for row in one] == [row._replace(seconds=0) for row in two]


def test_other_data_or_another_setting_is_another_cell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = read_panel(folder, "sleepstudy")
    key = key_of(panel, 3, "maml", 0)
    assert key == key_of(panel, 3, "maml", 0)
    assert key != key_of(panel._replace(y=panel.y + 1), 3, "maml", 0)
    monkeypatch.setitem(SETTINGS, "maml", SETTINGS["maml"]._replace(steps=7))
    assert key != key_of(panel, 3, "maml", 0)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"sets": ("sleep",)}, UnknownNameError, "did you mean 'sleepstudy'"),
        ({"methods": ("mixd_effects",)}, UnknownNameError, "did you mean 'mixed_effects'"),
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
    (folder / NAME).write_text('{"step": 1}\n')
    with pytest.raises(FileError, match="no cell of a table"):
        bench_tables(plan(folder), folder)


def test_the_report_has_tables_text_and_a_picture(folder: Path) -> None:
    chosen = plan(folder, support=(2, 3))
    made = write_report(folder, bench_tables(chosen), chosen)
    assert [path.name for path in made] == ["tables.json", "tables.md", "tables.png"]
    values = json.loads(made[0].read_text())
    assert [table["support"] for table in values["tables"]] == [2, 3] and values["plan"]["splits"] == 2
    best = values["tables"][0]["rows"][0]
    assert f"| {best['method']} (baseline) * | {best['rmse']['mean']:.4g} ±" in made[1].read_text()
    assert "## Over all tables" in made[1].read_text() and made[2].read_bytes().startswith(b"\x89PNG")


def cells(method: str, *values: float | None, nll: float | None = None) -> list[Cell]:
    return [Cell(Key("a", 3, method, seed, "x"), value, nll, None, 1.0) for seed, value in enumerate(values)]


def test_rows_are_sorted_marked_and_compared_with_the_best_baseline_split_by_split() -> None:
    found = table(
        "a", 3, "ms", {
            "mixed_effects": cells("mixed_effects", 4.0, 5.0, nll=1.5),
            "pooled: linear": cells("pooled: linear", 9.0, 7.0),
            "maml": cells("maml", 3.0, 4.5),
            "anil": cells("anil", 5.0, 5.0),
            "fomaml": cells("fomaml", None, 1.0),
        },
    )  # fmt: skip
    assert [row.method for row in found.rows] == ["maml", "mixed_effects", "anil", "pooled: linear", "fomaml"]
    assert [row.method for row in found.rows if row.best] == ["maml", "mixed_effects"]
    maml, mixed, *_, diverged = found.rows
    assert maml.difference is not None and maml.difference.mean == pytest.approx(-0.75)
    assert maml.difference.ci95 == pytest.approx(12.7062 * 0.25, rel=1e-4)
    assert mixed.nll == (1.5, 0.0) and maml.nll is None and (mixed.baseline, maml.baseline) == (True, False)
    assert diverged.rmse is None and diverged.diverged == 1 and diverged.difference is None


def test_over_all_tables_ratios_are_to_each_tables_best_baseline() -> None:
    mixed, maml = cells("mixed_effects", 2.0, 2.0), cells("maml", 1.0, 1.01)
    one = table("a", 3, "", {"mixed_effects": mixed, "maml": maml})
    others = {"mixed_effects": cells("m", 4.0, 4.0), "boosted_trees": mixed, "maml": cells("maml", 4.0, 4.01)}
    first, second = overall([one, table("b", 3, "", others)])
    assert (first.method, second.method) == ("maml", "mixed_effects")  # boosted_trees is not in every table
    assert first.ratio == pytest.approx(math.sqrt(1.005 / 2 * 4.005 / 2)) and second.ratio == pytest.approx(2**0.5)
    assert (first.better, first.worse, first.tables) == (1, 1, 2)
