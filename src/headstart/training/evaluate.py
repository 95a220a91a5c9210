"""How well a learner adapts to tasks that it was not trained on: the mean over fixed tasks and its interval."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from headstart.core import losses
from headstart.errors import ConfigError, DivergenceError
from headstart.training.loop import check_data, named
from headstart.types import Batch, Episodes, Learner, Meta, Tasks

Metric = Literal["accuracy", "mse"]


class Interval(NamedTuple):
    """A mean over tasks and half the width of its 95 % confidence interval."""

    mean: float
    ci95: float
    """1.96 · standard deviation / √(number of tasks)."""


class Score(NamedTuple):
    """How well a learner does on tasks 0 … N − 1 of a split."""

    metric: Metric
    """'accuracy', the fraction of the query set that is right (more is better), or 'mse' (less is better)."""
    mean: float
    ci95: float
    episodes: int
    """N, the number of tasks."""
    split: str
    values: tuple[float, ...]
    """The metric of each task."""
    by_inner_step: dict[int, Interval]
    """The same by number of inner steps taken; not finite where adaptation diverged on some task."""


def evaluate(
    learner: Learner,
    meta: Meta,
    tasks: Tasks,
    *,
    episodes: int = 600,
    split: str = "test",
    steps: int | Sequence[int] | None = None,
    batch: int = 20,
    on_batch: Callable[[int], None] | None = None,
) -> Score:
    """Adapt to the support set of each of the first ``episodes`` tasks of a split, and judge on its query set.

    The tasks are always the same, dropout is off, and nothing is changed: ``meta`` is bit-equal afterwards.

    Args:
        learner: the method.
        meta: what was meta-learned.
        tasks: where episodes come from.
        episodes: N, at least 2.
        split: 'train', 'validation' or 'test'.
        steps: a number of inner steps in place of the learner's own, or several to be listed in
            ``by_inner_step`` beside the learner's own.
        batch: tasks at a time; it changes speed and memory, and the result by rounding only.
        on_batch: called with the number of tasks done after each batch.

    Raises:
        DataError: a task holds numbers that are not finite.
        DivergenceError: the predictions on some task are not finite.

    >>> import headstart, torch
    >>> from headstart.tasks.sinusoid import sinusoid
    >>> learner = headstart.maml(torch.nn.Linear(1, 1), loss="mse", steps=1, rate=0.01, taskmap="vmap")
    >>> score = evaluate(learner, learner.init(None), sinusoid(shots=5), episodes=50, steps=[0, 5])
    >>> score.metric, score.episodes, sorted(score.by_inner_step)
    ('mse', 50, [0, 1, 5])
    """
    if episodes < 2 or batch < 1:
        raise ConfigError(f"episodes must be at least 2 and batch at least 1, got {episodes} and {batch}")
    metric: Metric = "accuracy" if tasks.kind == "classification" else "mse"
    own, listed = _step_counts(learner, steps)
    values: dict[int | None, list[float]] = {count: [] for count in listed}
    for numbers in _batches(episodes, batch):
        sampled = tasks.sample(split, numbers)
        for count, outputs in _outputs(learner, meta, sampled, listed):
            values[count] += _measured(metric, outputs, sampled.query)
            if count == own:
                _check_finite(values[count][-len(numbers) :], sampled, split, numbers)
        if on_batch is not None:
            on_batch(numbers[-1] + 1)
    by_step = {count: interval(found) for count, found in values.items() if count is not None}
    return Score(metric, *interval(values[own]), episodes, split, tuple(values[own]), by_step)


def _step_counts(learner: Learner, steps: int | Sequence[int] | None) -> tuple[int | None, list[int | None]]:
    """Return the number of inner steps of the score itself, and all to try; ``None`` where there are none."""
    if learner.steps is None:
        return None, [None]
    if isinstance(steps, int):
        return steps, [steps]
    return learner.steps, list(sorted({learner.steps, *(steps or ())}))


def _batches(episodes: int, batch: int) -> Iterator[range]:
    for first in range(0, episodes, batch):
        yield range(first, min(first + batch, episodes))


@torch.no_grad()
def _outputs(
    learner: Learner, meta: Meta, sampled: Episodes, counts: Sequence[int | None]
) -> list[tuple[int | None, Tensor]]:
    return [
        (count, learner.predict(learner.adapt(meta, sampled.support, steps=count)[0], sampled.query.x))
        for count in counts
    ]


def _measured(metric: Metric, outputs: Tensor, query: Batch) -> list[float]:
    """Return the metric of each task, NaN where predictions are not finite; on the CPU, in double precision."""
    outputs, y, mask = outputs.cpu(), query.y.cpu(), None if query.mask is None else query.mask.cpu()
    if metric == "mse":
        return losses.mse(outputs.double(), Batch(query.x, y.double(), mask)).tolist()
    right = (outputs.argmax(-1) == y).double()
    finite = torch.isfinite(outputs).all(-1)
    return losses.masked_mean(torch.where(finite, right, math.nan), mask).tolist()


def _check_finite(values: Sequence[float], sampled: Episodes, split: str, numbers: Sequence[int]) -> None:
    bad = [number for number, value in zip(numbers, values) if not math.isfinite(value)]
    if bad:
        check_data(sampled, split, numbers)
        raise DivergenceError(
            f"adapting to task{'s' * (len(bad) > 1)} {named(bad)} of split {split!r} gives predictions that are"
            " not finite; lower --inner-rate, or take fewer --inner-steps"
        )


def interval(values: Sequence[float]) -> Interval:
    """Return the mean and half the 95 % interval, with the standard deviation of a sample (n − 1).

    >>> interval([2.0, 2.0, 2.0])
    Interval(mean=2.0, ci95=0.0)
    """
    found = torch.tensor(values, dtype=torch.float64)
    return Interval(float(found.mean()), float(1.96 * found.std() / math.sqrt(len(values))))


def better(metric: Metric, new: float, old: float | None) -> bool:
    """Return whether ``new`` is a better value of the metric than ``old``."""
    return old is None or (new > old if metric == "accuracy" else new < old)
