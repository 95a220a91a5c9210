"""What a method is given and what it answers: rows of training tasks, a few rows of unseen ones, and questions."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Ids: TypeAlias = NDArray[np.int64]


class Sample(NamedTuple):
    """Rows with their targets; the rows of a task are together and in order of time."""

    x: Array
    """Features ``(N, features)``."""
    y: Array
    """Targets ``(N,)``."""
    task: Ids
    """The number of each row's task ``(N,)``."""


class Problem(NamedTuple):
    """Everything that a prediction may rest on. The targets of the query rows are not in it."""

    train: Sample
    """All rows of the training tasks, which are numbered from 0 in random order."""
    support: Sample
    """The first rows of the unseen tasks, whose numbers follow those of the training tasks."""
    x: Array
    """Features of the query rows, the later rows of the unseen tasks, ``(Q, features)``."""
    task: Ids
    """Their tasks ``(Q,)``, in order."""
    time: int
    """Which feature is time."""
    shots: int
    """The number of support rows of each unseen task."""


class Predicted(NamedTuple):
    """An answer to a problem, one value a query row."""

    mean: Array
    """``(Q,)``."""
    variance: Array | None = None
    """Of an observation, noise included; ``None`` where the method says nothing of it."""
    counts: Mapping[str, int] = {}
    """What happened on the way, such as fits that fell back to a simpler model."""


Predict: TypeAlias = Callable[[Problem], Predicted]


def joined(first: Sample, second: Sample) -> Sample:
    """Return the rows of both."""
    x, y = np.concatenate([first.x, second.x]), np.concatenate([first.y, second.y])
    return Sample(x, y, np.concatenate([first.task, second.task]))


def taken(sample: Sample, rows: NDArray[np.bool_] | Ids) -> Sample:
    """Return some rows, by their numbers or by a mask."""
    return Sample(sample.x[rows], sample.y[rows], sample.task[rows])


def of_task(sample: Sample, task: int) -> Sample:
    """Return the rows of one task."""
    return taken(sample, sample.task == task)


def by_place(problem: Problem) -> Ids:
    """Return for each query row the place of its task among the unseen ones ``(Q,)``, and so a row of `summaries`."""
    return np.unique(problem.task, return_inverse=True)[1]
