"""From rows to tasks: rows with the name of their task, or rows that are dealt out to tasks."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from headstart.data.random import below, bits
from headstart.data.rows import Rows, row_tasks
from headstart.data.tables.read import Table
from headstart.data.tables.schema import (
    FarTargetWarning,
    Feature,
    Shown,
    copies,
    encode_features,
    far_targets,
    learn_features,
    moments,
)
from headstart.data.tables.table import LeftOutWarning, TargetAmongFeaturesWarning
from headstart.errors import DataError
from headstart.integrations.sklearn.frames import is_missing, number_table
from headstart.integrations.sklearn.options import Options
from headstart.types import Episodes, Tasks

Array = NDArray[Any]


class Examples(NamedTuple):
    """Rows as an estimator gets them."""

    x: Table
    y: Array
    """Targets ``(n,)`` or ``(n, outputs)``, or places of labels in ``classes``."""
    classes: Array | None
    """The labels, in order; ``None`` in regression."""

    @property
    def labels(self) -> Array | None:
        """Return ``y`` where it holds classes."""
        return None if self.classes is None else self.y

    def among(self, classes: Array) -> "Examples":
        """Return the rows with their labels as places in ``classes``, the network's outputs, or raise `DataError`."""
        assert self.classes is not None
        places = {label: place for place, label in enumerate(classes.tolist())}
        new = [label for label in self.classes.tolist() if label not in places]
        if new:
            raise DataError(
                f"label {new[0]!r} is not among the {len(classes)} classes of fit, and this method has one output each;"
                " take a method that learns new classes, such as method='prototypes'"
            )
        own = np.array([places[label] for label in self.classes.tolist()], dtype=np.int64)
        return Examples(self.x, own[self.y], classes)


class Encoding(NamedTuple):
    """How rows become inputs and targets, learned from those of `fit`."""

    columns: tuple[str, ...]
    """All columns of X, in order."""
    plain: bool
    """Whether X was an array of numbers, which are standardised and no more; else it is read as files are."""
    features: tuple[Feature, ...]
    limits: tuple[float, float] | None
    """The least and the largest standardised target, near which predictions are kept; none where X is ``plain``."""
    y_mean: Tensor
    y_scale: Tensor

    @property
    def inputs(self) -> int:
        """The number of inputs of a row."""
        return sum(len(feature.inputs) for feature in self.features)

    def encode(self, table: Table) -> Tensor:
        """Return the inputs of rows, ``(n, inputs)`` float64."""
        with _own_terms():
            return encode_features(self.features, table, torch.float64)

    def targets(self, rows: Examples) -> Tensor:
        """Return standardised targets ``(n, outputs)``, or the places of labels."""
        if rows.classes is not None:
            return torch.from_numpy(rows.y)
        return (torch.tensor(rows.y, dtype=torch.float64).reshape(len(rows.y), -1) - self.y_mean) / self.y_scale


def encoding(rows: Examples, plain: bool, task: Tensor) -> Encoding:
    """Learn how rows become numbers; what cannot is a `DataError`, what may surprise a warning.

    Args:
        rows: those of training.
        plain: whether X is an array of numbers.
        task: the number of each row's task.
    """
    table = rows.x
    found = Encoding(table.header, plain, (), None, torch.zeros(1).double(), torch.ones(1).double())
    if rows.classes is None:
        columns = rows.y.reshape(len(rows.y), -1)
        targets = number_table(columns, [f"y{place}" for place in range(columns.shape[1])])._replace(path="y")
        numbers = [_standardised(targets, name) for name in targets.header]
        mean, scale = ([getattr(number, part) for number in numbers] for part in ("mean", "scale"))
        for target, number in zip(targets.header, numbers):
            for message in far_targets(targets, target, (targets.columns[target] - number.mean) / number.scale):
                warnings.warn(message, FarTargetWarning, stacklevel=4)
        found = found._replace(y_mean=torch.tensor(mean).double(), y_scale=torch.tensor(scale).double())
    with _own_terms():
        if plain:
            return found._replace(features=tuple(_standardised(table, name) for name in table.header))
        y = found.targets(rows)
        ends = None if rows.classes is not None else (float(y.min()), float(y.max()))
        shown = Shown((one_hot(y) if ends is None else y).double().numpy(), task.numpy())
        learned = learn_features(table, table.header, strict=False, shown=shown)
        told = [(message, LeftOutWarning) for message in learned.warnings]
        if ends is None or y.shape[1] == 1:
            told += [(message, TargetAmongFeaturesWarning) for message in copies(table, learned.features, shown)]
    for message, kind in told:
        warnings.warn(_plainly(message), kind, stacklevel=4)
    return found._replace(features=learned.features, limits=ends)


def _standardised(table: Table, name: str) -> Feature:
    """Return a number feature that is taken as it is; a column that does not vary is kept."""
    values = table.columns[name]
    there = ~np.isnan(values)
    if not there.any():
        raise DataError(f"{table.path}, column {name!r}: it has no value; leave it out")
    mean, scale = moments(table, name, values[there])
    return Feature(name, "number", mean, scale or 1.0, missing=not there.all())


@contextmanager
def _own_terms() -> Iterator[None]:
    """Say errors about a table without options of the command line."""
    try:
        yield
    except DataError as error:
        raise DataError(_plainly(str(error))) from error


def _plainly(message: str) -> str:
    message = message.replace(" or say that it means that (--na-values)", "")
    return re.sub(r" \(--[a-z-]+\)", "", message)


class Grouped(NamedTuple):
    """Which task each row belongs to."""

    task: Tensor
    names: tuple[str, ...]


def grouped(groups: object, rows: int) -> Grouped:
    """Number the tasks that ``groups`` names; `DataError` unless each row has one name, and they compare."""
    names = np.asarray(groups)
    if names.shape != (rows,):
        raise DataError(f"groups must name one task a row, so have shape ({rows},); got shape {names.shape}")
    missing = [place for place, name in enumerate(names.tolist()) if is_missing(name)]
    if missing:
        raise DataError(f"groups names no task for row {missing[0]} ({len(missing)} such rows); leave them out")
    try:
        found, task = np.unique(names, return_inverse=True)
    except TypeError as error:
        raise DataError("groups must be all numbers or all strings, so that they can be compared") from error
    return Grouped(torch.from_numpy(task.astype(np.int64)), tuple(str(name) for name in found.tolist()))


def spread(labels: Array | None, rows: int, seed: int) -> Tensor:
    """Return the rows in a random order that begins with one row of each class and then keeps their proportions."""
    order = np.random.default_rng(seed).permutation(rows)
    if labels is None:
        return torch.from_numpy(order)
    place = np.empty(rows)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        place[own] = np.arange(len(own)) / len(own)
    return torch.from_numpy(order[np.argsort(place[order], kind="stable")])


def dealt(labels: Array | None, rows: int, most: int, seed: int) -> Grouped:
    """Deal the rows of one task out to tasks of about twice ``most`` support rows (a class, if labelled)."""
    classes = 1 if labels is None else len(np.unique(labels))
    count = max(1, rows // (2 * most * classes))
    task = torch.empty(rows, dtype=torch.int64)
    task[spread(labels, rows, seed)] = torch.arange(rows) * count // rows
    return Grouped(task, tuple(f"part {number + 1}" for number in range(count)))


class Families(NamedTuple):
    """The tasks with each number of support rows."""

    members: tuple[Tasks, ...]
    block: int
    """So many task numbers in a row have the same number of support rows."""
    seed: int

    def train(self) -> Tasks:
        """Return tasks whose number of support rows is drawn anew for every block."""

        def sample(split: str, numbers: Sequence[int]) -> Episodes:
            words = bits(self.seed, split, [numbers[0] // self.block], stream=2, count=1)
            return self.members[int(below(words, len(self.members)))].sample(split, numbers)

        return self.members[0]._replace(sample=sample)

    def validation(self) -> list[Episodes]:
        """Return every validation task, once for each number of support rows."""
        counts = [(tasks, (tasks.counts or {}).get("validation", 0)) for tasks in self.members]
        return [tasks.sample("validation", range(count)) for tasks, count in counts if count]


def families(rows: Rows, options: Options, named: bool, seed: int) -> Families | None:
    """Return the training and validation tasks, with each number of support rows that is asked for.

    ``None`` where no task has rows enough; that is an error where the user ``named`` the tasks.
    """
    count, (low, high) = len(rows.names), options.supports
    held_out = min(max(round(count * options.validation_fraction), options.validation_fraction > 0), count - 1)
    order = np.random.default_rng(seed).permutation(count).tolist()
    splits: dict[str, Sequence[int]] = {"train": sorted(order[held_out:]), "validation": sorted(order[:held_out])}
    if not held_out:
        del splits["validation"]
    members = [_tasks(rows, splits, low, options, seed)] if named else []
    for support in range(low + named, high + 1):
        # a range asks for its least number only; tasks with fewer rows than a larger one sit that out
        try:
            members.append(_tasks(rows, splits, support, options._replace(on_short="skip"), seed))
        except DataError:
            break
    return Families(tuple(members), options.tasks_per_step, seed) if members else None


def judged(rows: Rows, options: Options, seed: int) -> Tasks:
    """Return named tasks as the split 'test', each with the most support rows that are asked for."""
    return _tasks(rows, {"test": range(len(rows.names))}, options.supports[1], options, seed)


def _tasks(rows: Rows, splits: dict[str, Sequence[int]], support: int, options: Options, seed: int) -> Tasks:
    try:
        return row_tasks(rows, splits, support=support, order=options.order, on_short=options.on_short, seed=seed)
    except DataError as error:  # in the terms of an estimator
        text = str(error).replace("skip such tasks (--on-short skip)", "skip such tasks (on_short='skip')")
        raise DataError(text) from error
