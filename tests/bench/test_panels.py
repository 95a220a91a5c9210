"""Reading panels, and leaving tasks out."""

import sys
from pathlib import Path

import numpy as np
import pytest

from headstart.bench.panels import SETS, find_folder, leave_out, read_panel, split
from headstart.errors import DataError, FileError, UnknownNameError, UsageError


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.csv").write_text(text)


def lines(tasks: int = 8, rows: int = 5) -> str:
    """Return a table like sleepstudy's, its rows out of order and with a value missing."""
    table = [f'"{300 + task}",{day},{250 + 10 * task + day * day}' for task in range(tasks) for day in range(rows)]
    return "\n".join(["Subject,Days,Reaction", *reversed(table), '"300",9,'])


def test_rows_are_put_in_order_of_task_and_time_and_incomplete_ones_left_out(tmp_path: Path) -> None:
    write(tmp_path, "sleepstudy", lines())
    found = read_panel(tmp_path, "sleepstudy")
    assert found.names == tuple(str(300 + task) for task in range(8))
    assert found.task.tolist() == sorted(found.task.tolist()) and len(found.y) == 40
    assert found.x[:5, 0].tolist() == [0, 1, 2, 3, 4] and found.y[:3].tolist() == [250, 251, 254]


def test_a_split_gives_the_first_rows_of_tasks_that_are_in_no_training(tmp_path: Path) -> None:
    write(tmp_path, "sleepstudy", lines())
    found = split(read_panel(tmp_path, "sleepstudy"), 2, seed=3)
    problem = found.problem
    assert set(problem.train.task) == set(range(6)) and set(problem.task) == {6, 7} == set(problem.support.task)
    assert (problem.support.x[:, 0].max() < problem.x[:, 0].min()) and len(problem.support.y) == 4
    np.testing.assert_allclose([problem.train.x.mean(), problem.train.y.mean()], 0, atol=1e-12)
    np.testing.assert_allclose([problem.train.x.std(), problem.train.y.std()], 1)
    kept, held = leave_out(8, seed=3)
    assert sorted([*kept, *held]) == list(range(8)) and len(held) == 2
    own = np.array([[250 + 10 * task + day * day for day in (2, 3, 4)] for task in held]).flatten()
    np.testing.assert_allclose(np.diff(found.y * found.unit), np.diff(own))


def test_splits_differ_by_seed_and_are_the_same_each_time() -> None:
    assert leave_out(20, 1) == leave_out(20, 1)
    assert len({tuple(sorted(leave_out(20, seed)[1])) for seed in range(10)}) > 8


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'dietox'"):
        read_panel(tmp_path, "dietoks")
    with pytest.raises(FileError, match=r"no file .*dietox\.csv"):
        read_panel(tmp_path, "dietox")
    write(tmp_path, "dietox", "Pig,Weight\n1,2.0\n")
    with pytest.raises(DataError, match="no column 'Time'; its columns are Pig, Weight"):
        read_panel(tmp_path, "dietox")
    write(tmp_path, "dietox", "Pig,Weight,Time\n1,2.0,morning\n")
    with pytest.raises(DataError, match="column 'Time' must hold numbers"):
        read_panel(tmp_path, "dietox")
    write(tmp_path, "dietox", "Pig,Weight,Time\n1,,1\n")
    with pytest.raises(DataError, match="no row has all values"):
        read_panel(tmp_path, "dietox")


def test_tasks_that_are_too_few_or_too_small_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "sleepstudy", lines())
    with pytest.raises(
        DataError, match="task '300' with its 5 rows has none to predict; give --support between 1 and 4"
    ):
        split(read_panel(tmp_path, "sleepstudy"), 5, 0)
    write(tmp_path, "sleepstudy", lines(tasks=3))
    with pytest.raises(DataError, match="3 tasks; leaving tasks out needs at least 4"):
        split(read_panel(tmp_path, "sleepstudy"), 2, 0)


def test_the_folder_is_the_one_given_or_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "panel").mkdir()
    monkeypatch.setenv("HEADSTART_DATA", str(tmp_path))
    assert find_folder(None) == tmp_path / "panel" and find_folder(tmp_path) == tmp_path
    monkeypatch.setenv("HEADSTART_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"nowhere.*--data DIR, or set HEADSTART_DATA"):
        find_folder(None)
    monkeypatch.delenv("HEADSTART_DATA")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is no folder"):
        find_folder(None)


def test_without_pandas_the_extra_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "sleepstudy", lines())
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match=r"pip install headstart\[bench\]"):
        read_panel(tmp_path, "sleepstudy")


@pytest.mark.parametrize("name", SETS)
def test_the_shared_panels_are_whole(name: str, shared_data: Path) -> None:
    if not (shared_data / "panel").is_dir():
        pytest.skip("the shared data have no folder 'panel'")
    found = read_panel(shared_data / "panel", name)
    tasks, rows = {"sleepstudy": (18, 180), "dietox": (72, 861), "spruce": (79, 1027), "Cigar": (46, 1380)}[name]
    assert (len(found.names), len(found.y)) == (tasks, rows)
