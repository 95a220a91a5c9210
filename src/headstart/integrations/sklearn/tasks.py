"""Tasks out of arrays: rows with the name of their task, or rows that are dealt out to tasks."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.data.random import below, bits
from headstart.data.rows import Rows, row_tasks
from headstart.errors import DataError
from headstart.integrations.sklearn.options import Options
from headstart.types import Episodes, Tasks


class Grouped(NamedTuple):
    """Which task each row belongs to."""

    task: NDArray[np.int64]
    names: tuple[str, ...]


class Families(NamedTuple):
    """The tasks with each number of support rows."""

    members: tuple[Tasks, ...]
    block: int
    """So many task numbers in a row have the same number of support rows."""
    seed: int

    def train(self) -> Tasks:
        """Return tasks whose number of support rows is drawn anew for every block."""
        first = self.members[0]
        return first if len(self.members) == 1 else first._replace(sample=self._sample)

    def _sample(self, split: str, numbers: Sequence[int]) -> Episodes:
        words = bits(self.seed, split, [numbers[0] // self.block], stream=2, count=1)
        return self.members[int(below(words, len(self.members)))].sample(split, numbers)

    def validation(self) -> list[Episodes]:
        """Return every validation task, once for each number of support rows."""
        counts = [(tasks, (tasks.counts or {}).get("validation", 0)) for tasks in self.members]
        return [tasks.sample("validation", range(count)) for tasks, count in counts if count]


def grouped(groups: object, rows: int) -> Grouped:
    """Number the tasks that ``groups`` names, one name a row.

    Raises:
        DataError: not one name a row, a missing name, or names of kinds that do not compare.
    """
    names = np.asarray(groups)
    if names.ndim != 1 or len(names) != rows:
        raise DataError(f"groups must name one task a row, so have shape ({rows},); got shape {names.shape}")
    missing = [place for place, name in enumerate(names.tolist()) if name is None or name != name]
    if missing:
        raise DataError(f"groups names no task for row {missing[0]} ({len(missing)} such rows); leave them out")
    try:
        found, task = np.unique(names, return_inverse=True)
    except TypeError as error:
        raise DataError("groups must be all numbers or all strings, so that they can be compared") from error
    return Grouped(task.astype(np.int64), tuple(str(name) for name in found.tolist()))


def spread(labels: NDArray[np.int64] | None, rows: int, seed: int) -> NDArray[np.int64]:
    """Return the rows in a random order that begins with one row of each class and then keeps their proportions."""
    order = np.random.default_rng(seed).permutation(rows)
    if labels is None:
        return order
    place = np.empty(rows)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        place[own] = np.arange(len(own)) / len(own)
    return order[np.argsort(place[order], kind="stable")]


def dealt(labels: NDArray[np.int64] | None, rows: int, most: int, seed: int) -> Grouped:
    """Deal rows that belong to one task out to tasks of about twice ``most`` support rows (a class, if labelled)."""
    classes = 1 if labels is None else len(np.unique(labels))
    count = max(1, rows // (2 * most * classes))
    task = np.empty(rows, dtype=np.int64)
    task[spread(labels, rows, seed)] = np.arange(rows) * count // rows
    return Grouped(task, tuple(f"part {number + 1}" for number in range(count)))


def own_labels(labels: NDArray[np.int64], groups: Grouped) -> NDArray[np.int64]:
    """Number the classes of each task from 0."""
    own = np.empty_like(labels)
    for task in range(len(groups.names)):
        rows = groups.task == task
        own[rows] = np.unique(labels[rows], return_inverse=True)[1]
    return own


def families(x: Tensor, y: Tensor, groups: Grouped, options: Options, named: bool, seed: int) -> Families | None:
    """Return the training and validation tasks, with each number of support rows that is asked for.

    Args:
        x, y: rows, as in `Rows`.
        groups: their tasks.
        options: decides supports, the share of validation tasks, and what becomes of tasks with too few rows.
        named: whether the user named the tasks; where rows were merely dealt out, too few of them are no error.
        seed: decides which tasks validate, and all that is drawn from tasks.

    Returns:
        ``None`` where no task has rows enough, and none was named.
    """
    table = Rows(x, y, torch.from_numpy(groups.task), groups.names)
    make = partial(row_tasks, table, _splits(len(groups.names), options.validation_fraction, seed), seed=seed)
    low, high = options.support
    members = []
    for support in range(low, high + 1):
        # a range asks for its least number only; tasks with fewer rows than a larger one sit that out
        strict = named and support == low
        try:
            on_short = options.on_short if strict else "skip"
            members.append(make(support=support, order=options.order, on_short=on_short))
        except DataError as error:
            if strict:
                raise _in_parameters(error) from error
    return Families(tuple(members), options.tasks_per_step, seed) if members else None


def judged(x: Tensor, y: Tensor, groups: Grouped, options: Options, seed: int) -> Tasks:
    """Return named tasks as the split 'test', each with the most support rows that are asked for."""
    table = Rows(x, y, torch.from_numpy(groups.task), groups.names)
    everything = {"test": range(len(groups.names))}
    try:
        return row_tasks(
            table, everything, support=options.support[1], order=options.order, on_short=options.on_short, seed=seed
        )
    except DataError as error:
        raise _in_parameters(error) from error


def _splits(tasks: int, fraction: float, seed: int) -> dict[str, Sequence[int]]:
    held_out = min(round(tasks * fraction), tasks - 1)
    if fraction and not held_out and tasks > 1:
        held_out = 1
    order = np.random.default_rng(seed).permutation(tasks)
    splits: dict[str, Sequence[int]] = {"train": sorted(order[held_out:].tolist())}
    if held_out:
        splits["validation"] = sorted(order[:held_out].tolist())
    return splits


def _in_parameters(error: DataError) -> DataError:
    """Return the error in the terms of an estimator."""
    text = str(error).replace("skip such tasks (--on-short skip)", "skip such tasks (on_short='skip')")
    return DataError(text)
