"""Panels: tables in which many units, the tasks, were each measured several times."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headstart.bench.problem import Array, Ids, Problem, Sample, taken
from headstart.data.random import bits
from headstart.errors import DataError, FileError, UsageError, unknown_name

FRACTION = 0.25
"""The share of the tasks that a split holds out."""


class Columns(NamedTuple):
    """Which columns of a file make a panel."""

    task: str
    target: str
    time: str
    """The feature by which a task's rows are put in order."""
    others: tuple[str, ...] = ()
    """More features."""
    unit: str = ""
    """Of the target."""
    about: str = ""


#: What is predicted from what, by the name of the file.
SETS = {
    "sleepstudy": Columns("Subject", "Reaction", "Days", unit="ms", about="reaction times of sleep-deprived people"),
    "dietox": Columns("Pig", "Weight", "Time", unit="kg", about="weights of growing pigs"),
    "spruce": Columns("id", "logsize", "time", unit="log size", about="sizes of Sitka spruces over two seasons"),
    "Cigar": Columns("state", "sales", "year", ("price", "ndi"), "packs a head", "cigarette sales of US states"),
}


class Panel(NamedTuple):
    """A table whose rows are sorted by task, then by time."""

    name: str
    x: Array
    """``(N, features)``, time first."""
    y: Array
    """``(N,)``."""
    task: Ids
    """``(N,)`` from 0."""
    names: tuple[str, ...]
    """What the tasks are called."""
    columns: Columns


class Split(NamedTuple):
    """A problem with its answer, in the units of the training tasks."""

    problem: Problem
    y: Array
    """Targets of the query rows ``(Q,)``."""
    unit: float
    """What 1 is in the data's own units."""


def find_folder(given: Path | None) -> Path:
    """Return the folder of the panels' files: the one given, else ``panel`` in that of HEADSTART_DATA, or in
    ``../shared/data``.

    Raises:
        UsageError: there is no such folder.
    """
    variable = os.environ.get("HEADSTART_DATA")
    places = [given] if given else [Path(variable, "panel")] if variable else [Path("..", "shared", "data", "panel")]
    for place in places:
        if place.is_dir():
            return place
    raise UsageError(
        f"there is no folder {places[0]}; give the one that holds {', '.join(f'{name}.csv' for name in SETS)} "
        "with --data DIR, or set HEADSTART_DATA to the folder that has it as 'panel'"
    )


def read_panel(folder: Path, name: str) -> Panel:
    """Read ``folder/name.csv``; rows without one of the values are left out.

    Raises:
        UnknownNameError: a name that `SETS` does not have.
        FileError: the file is not there.
        DataError: a column is missing, or is not of numbers.
    """
    if name not in SETS:
        raise unknown_name("data set", name, SETS)
    columns, path = SETS[name], folder / f"{name}.csv"
    if not path.is_file():
        raise FileError(f"there is no file {path}; --sets names those to use, --data their folder")
    frame = _pandas().read_csv(path, dtype={columns.task: str})
    wanted = [columns.time, *columns.others, columns.target]
    missing = [column for column in (columns.task, *wanted) if column not in frame.columns]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}; its columns are {', '.join(map(str, frame.columns))}")
    frame = frame[[columns.task, *wanted]].dropna()
    wrong = [column for column in wanted if frame[column].dtype.kind not in "iuf"]
    if wrong or not len(frame):
        raise DataError(f"{path}: " + (f"column {wrong[0]!r} must hold numbers" if wrong else "no row has all values"))
    frame = frame.sort_values([columns.task, columns.time], kind="stable")
    names, task = np.unique(frame[columns.task].to_numpy(str), return_inverse=True)
    values = frame[wanted].to_numpy(np.float64)
    return Panel(name, values[:, :-1], values[:, -1], task.astype(np.int64), tuple(map(str, names)), columns)


def _pandas() -> Any:
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise UsageError("reading tables needs pandas: pip install headstart[bench]") from error
    return pandas


def split(panel: Panel, shots: int, seed: int) -> Split:
    """Hold out a quarter of the tasks, and give away the first ``shots`` rows of each.

    Features and target are standardised by the rows of the training tasks.

    Raises:
        DataError: a task with no row left to predict, or too few tasks.
    """
    sizes = np.bincount(panel.task)
    if shots < 1 or sizes.min() <= shots:
        short = panel.names[int(sizes.argmin())]
        raise DataError(
            f"{panel.name}: with {shots} support rows, task {short!r} with its {sizes.min()} rows has none to predict; "
            f"give --support between 1 and {sizes.min() - 1}"
        )
    if len(sizes) < 4:
        raise DataError(f"{panel.name} has {len(sizes)} tasks; leaving tasks out needs at least 4")
    kept, held = leave_out(len(sizes), seed)
    train, unseen = _taken(panel, kept, first=0), _taken(panel, held, first=len(kept))
    (x_mean, x_scale), (y_mean, y_scale) = _standard(train.x), _standard(train.y)
    train, unseen = (Sample((s.x - x_mean) / x_scale, (s.y - y_mean) / y_scale, s.task) for s in (train, unseen))
    given = np.concatenate([np.arange(n) < shots for n in np.bincount(unseen.task)[len(kept) :]])
    support, query = taken(unseen, given), taken(unseen, ~given)
    return Split(Problem(train, support, query.x, query.task, 0, shots), query.y, float(y_scale))


def leave_out(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Return which of ``count`` tasks are for training and which are held out, both in random order."""
    order = bits(seed, "test", [0], stream=0, count=count)[0].argsort(stable=True).tolist()
    held = max(1, round(FRACTION * count))
    return order[held:], order[:held]


def _taken(panel: Panel, tasks: Sequence[int], first: int) -> Sample:
    """Return the rows of some tasks, which are numbered anew from ``first``."""
    rows = [np.flatnonzero(panel.task == task) for task in tasks]
    numbers = np.repeat(np.arange(first, first + len(tasks)), [len(found) for found in rows])
    places = np.concatenate(rows)
    return Sample(panel.x[places], panel.y[places], numbers)


def _standard(values: Array) -> tuple[Array, Array]:
    """Return the mean and the scale of every column; that of a constant is 1."""
    scale = values.std(0)
    return values.mean(0), np.where(scale > 0, scale, 1.0)


def panels(folder: Path, names: Sequence[str]) -> Iterator[Panel]:
    """Read several panels."""
    return (read_panel(folder, name) for name in names)
