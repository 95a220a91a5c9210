"""How well a learner adapts to tasks that it was not trained on: the mean over fixed tasks and its interval."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from statistics import mean
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from headstart.core import losses
from headstart.core.objective import predicted
from headstart.errors import ConfigError, DivergenceError
from headstart.training.calibration import Spread, coverage, gaussian_nll, interval_width, near, spread_of
from headstart.training.distributed import group
from headstart.training.divergence import check_data, named
from headstart.types import Adapted, Batch, Episodes, Gaussian, Learner, Meta, Tasks, Tree

Metric = Literal["accuracy", "mse"]


class Interval(NamedTuple):
    """A mean over tasks and half the width of its 95 % confidence interval."""

    mean: float
    ci95: float
    """t · standard deviation / √(number of tasks), with t of `student` (1.96 for many tasks); NaN for a single task."""


class Calibration(NamedTuple):
    """How well the predicted distributions fit the query set, for learners that predict distributions."""

    nll: Interval
    """The negative log-likelihood of a target value in nats, of the data's own unit (less is better)."""
    coverage: float
    """Which fraction of all query values lies in its central interval of ``level``."""
    width: float
    """The mean width of these intervals over all query values, in the data's own unit."""
    level: float = 0.9


class Errors(NamedTuple):
    """How far predicted numbers are off, as people ask for it, in the data's own unit."""

    rmse: float
    """√ of the mean squared error."""
    mae: float
    """The mean absolute error: the mean over tasks of each task's."""
    r2: float
    """1 − the squared errors of all query values / their squares about their mean; NaN where all are the same."""


class Score(NamedTuple):
    """How well a learner does on tasks 0 … N − 1 of a split."""

    metric: Metric
    """'accuracy', the fraction of the query set that is right (more is better), or 'mse', in the square of the data's
    own unit (less is better)."""
    mean: float
    ci95: float
    """As in `Interval`: NaN for a single task."""
    episodes: int
    """N, the number of tasks."""
    split: str
    values: tuple[float, ...]
    """The metric of each task."""
    by_inner_step: dict[int, Interval]
    """The same by number of inner steps taken; not finite where adaptation diverged on some task."""
    calibration: Calibration | None = None
    """``None`` for learners that predict no distribution."""
    errors: Errors | None = None
    """``None`` in classification."""
    by_domain: dict[str, Interval] | None = None
    """The same for the tasks of each source, where they are of several (`headstart.types.Tasks.domain`)."""

    @property
    def median(self) -> float:
        """The median of the tasks' values."""
        return float(np.median(self.values))

    @property
    def worst(self) -> tuple[int, float]:
        """The number of the worst task, and its value."""
        place = int((np.argmin if self.metric == "accuracy" else np.argmax)(self.values))
        return place, self.values[place]


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

    The tasks are always the same, dropout is off, and nothing is changed: ``meta`` is bit-equal afterwards. Processes
    that work together (`headstart.processes`) take whole batches, so that the score has the same bits in any number of
    them. Errors
    are in the data's own unit (`Tasks.unit`), and predictions kept near the targets of training tasks (`Tasks.limits`).

    Args:
        learner, meta: the method, and what was meta-learned.
        tasks: where episodes come from.
        episodes: N, at least 2; where the split has fewer tasks (`Tasks.counts`), each of them is taken once.
        split: 'train', 'validation' or 'test'.
        steps: a number of inner steps in place of the learner's own, or several, for ``by_inner_step``, beside it.
        batch: tasks at a time; it changes speed and memory, and the result by rounding only.
        on_batch: called with the number of tasks done after each batch.

    Raises:
        ConfigError: fewer than 2 episodes or 1 task at a time, or a split without tasks.
        DataError: a task holds numbers that are not finite.
        DivergenceError: the predictions on some task are not finite.

    >>> import headstart, torch
    >>> from headstart.data.curves.sinusoid import sinusoid
    >>> learner = headstart.maml(torch.nn.Linear(1, 1), loss="mse", steps=1, rate=0.01, taskmap="vmap")
    >>> score = evaluate(learner, learner.init(None), sinusoid(shots=5), episodes=50, steps=[0, 5])
    >>> score.metric, score.episodes, sorted(score.by_inner_step)
    ('mse', 50, [0, 1, 5])
    """
    if episodes < 2 or batch < 1:
        raise ConfigError(f"episodes must be at least 2 and batch at least 1, got {episodes} and {batch}")
    if tasks.counts is not None:
        if not tasks.counts.get(split):
            listed = ", ".join(f"{count} {name}" for name, count in tasks.counts.items())
            raise ConfigError(f"there is no task in split {split!r} of {tasks.name!r} to judge on; it has {listed}")
        episodes = min(episodes, tasks.counts[split])
    metric: Metric = "accuracy" if tasks.kind == "classification" else "mse"
    scale = tasks.unit**2 if metric == "mse" else 1.0
    learner, own = near(learner, tasks), learner.steps
    counts: Sequence[int | None] = [own]
    if own is not None:
        own, counts = (steps, [steps]) if isinstance(steps, int) else (own, sorted({own, *(steps or ())}))
    values: dict[int | None, list[float]] = {count: [] for count in counts}
    looks, offs = list[Tensor](), list[_Off]()
    for first in group().part(range(0, episodes, batch)):
        numbers = range(first, min(first + batch, episodes))
        sampled = tasks.sample(split, numbers)
        for (count, found), adapted in zip(values.items(), adapted_after(learner, meta, sampled.support, counts)):
            with torch.no_grad():
                outputs, distribution = answer(learner, adapted, sampled.query.x, sampled.query.mask)
            now = [scale * value for value in _measured(metric, outputs, sampled.query)]
            found += now
            if count == own:
                _check_finite(now, sampled, split, numbers)
                if metric == "mse":
                    offs += _off(outputs, sampled.query)
                if distribution is not None:
                    looks.append(_looks(distribution, sampled.query))
                    _check_finite(looks[-1][:, 0].tolist(), sampled, split, numbers)
        if on_batch is not None:
            on_batch(numbers[-1] + 1)
    values, looks, offs = _of_all(values, looks, offs)
    by_step = {count: interval(found) for count, found in values.items() if count is not None}
    calibration = _calibration(looks, tasks.unit) if looks else None
    errors = _errors(offs, tasks.unit) if metric == "mse" else None
    found = values[own]
    by_domain = _by_domain(tasks, split, found) if tasks.domain is not None else None
    return Score(metric, *interval(found), episodes, split, tuple(found), by_step, calibration, errors, by_domain)


def _by_domain(tasks: Tasks, split: str, values: Sequence[float]) -> dict[str, Interval]:
    assert tasks.domain is not None
    found: dict[str, list[float]] = {}
    for number, value in enumerate(values):
        found.setdefault(tasks.domain(split, number), []).append(value)
    return {domain: interval(own) for domain, own in found.items()}


def calibrate(learner: Learner, meta: Meta, tasks: Tasks, *, episodes: int = 600, batch: int = 20) -> Spread | None:
    """Return how wide a regressor's intervals have to be, by at most ``episodes`` of the validation tasks.

    ``None`` in classification, where there is no such task, and where predictions are not finite. For a learner without
    distributions all are as wide.
    """
    count = episodes if tasks.counts is None else min(episodes, tasks.counts.get("validation", 0))
    if tasks.kind != "regression" or not count:
        return None
    learner, ratios = near(learner, tasks), list[Tensor]()
    for first in group().part(range(0, count, batch)):
        sampled = tasks.sample("validation", range(first, min(first + batch, count)))
        with torch.no_grad():
            adapted, _ = learner.adapt(meta, sampled.support)
            outputs, distribution = answer(learner, adapted, sampled.query.x, sampled.query.mask)
            if distribution is not None:
                unit = distribution.variance.sqrt()
                outputs, sampled = outputs / unit, sampled._replace(query=_over(sampled.query, unit))
        ratios += [task.off.abs().flatten() for task in _off(outputs, sampled.query)]
    found = spread_of(_joined(ratios))
    return found if math.isfinite(found.factor) else None


def _over(query: Batch, unit: Tensor) -> Batch:
    return query._replace(y=query.y / unit)


class _Off(NamedTuple):
    """Of one task's query examples that are there, ``(n, outputs)``, in double precision."""

    off: Tensor
    y: Tensor


def _off(outputs: Tensor, query: Batch) -> list[_Off]:
    y = query.y.cpu().double().flatten(2)
    off = outputs.cpu().double().reshape(y.shape) - y
    mask = torch.ones(y.shape[:2], dtype=torch.bool) if query.mask is None else query.mask.cpu()
    return [_Off(*(part[place][mask[place]] for part in (off, y))) for place in range(len(y))]


def _joined(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors of all processes, of one type and each with rows of its own number, in their order."""
    if group().size == 1:
        return list(parts)
    rows = torch.tensor([len(part) for part in parts], dtype=torch.int64)
    sent = {"rows": rows} | ({"all": torch.cat(tuple(parts))} if len(parts) else {})
    return [
        part for own in group().gathered(sent) if len(own["rows"]) for part in own["all"].split(own["rows"].tolist())
    ]


def _of_all(
    values: dict[int | None, list[float]], looks: Sequence[Tensor], offs: Sequence[_Off]
) -> tuple[dict[int | None, list[float]], list[Tensor], list[_Off]]:
    """Return what all processes have measured, each of some of the tasks, in the order of these."""
    if group().size == 1:
        return values, list(looks), list(offs)
    columns = [_joined([torch.tensor(found, dtype=torch.float64)]) for found in values.values()]
    found = {count: [value for part in parts for value in part.tolist()] for count, parts in zip(values, columns)}
    both = (_joined([one[place] for one in offs]) for place in range(2))
    return found, _joined(looks), [_Off(*one) for one in zip(*both)]


def _errors(offs: Sequence[_Off], unit: float) -> Errors:
    tasks = [task for task in offs if task.off.numel()]
    squares, absolute = ([float(size(task.off).mean()) for task in tasks] for size in (torch.square, torch.abs))
    off, y = (torch.cat(parts) for parts in zip(*tasks))
    about = float((y - y.mean(0)).square().sum())
    r2 = 1 - float(off.square().sum()) / about if about > 0 else math.nan
    return Errors(unit * math.sqrt(mean(squares)), unit * mean(absolute), r2)


def adapted_after(learner: Learner, meta: Meta, support: Batch, counts: Sequence[int | None]) -> Iterator[Adapted]:
    """Yield what the learner makes of the support sets in each of these numbers of steps, which ascend."""
    if learner.path is None:
        path = (learner.adapt(meta, support, steps=count) for count in counts)
    else:
        path = learner.path(meta, support, [count for count in counts if count is not None])
    for _ in counts:
        with torch.no_grad():  # not around the yield, which would hand it on to the caller
            adapted, _ = next(path)
        yield adapted


def answer(learner: Learner, adapted: Adapted, x: Tree, mask: Tensor | None = None) -> tuple[Tensor, Gaussian | None]:
    """Return the outputs for inputs, as far as they are there, and their distribution where the learner has one."""
    if learner.distribution is None:
        return predicted(learner, adapted, x, mask), None
    distribution = learner.distribution(adapted, x)
    return distribution.mean, distribution


def _looks(distribution: Gaussian, query: Batch) -> Tensor:
    """Return each task's part in `Calibration`, with targets as they are: ``(B, 4)``, the last how many values it has.

    On the CPU, in double precision.
    """
    predicted = Gaussian(*(part.cpu().double() for part in distribution))
    mask = None if query.mask is None else query.mask.cpu()
    batch = Batch(predicted.mean, query.y.cpu().double(), mask)
    rows = torch.full(query.y.shape[:1], query.y.shape[1]) if mask is None else mask.sum(1)
    measures = gaussian_nll(predicted, batch), coverage(predicted, batch), interval_width(predicted, mask=mask)
    return torch.stack((*measures, rows.double() * math.prod(query.y.shape[2:])), 1)


def _calibration(looks: Sequence[Tensor], unit: float) -> Calibration:
    nll, covered, width, values = torch.cat(tuple(looks)).unbind(1)
    covered, width = (float((part * values).sum() / values.sum()) for part in (covered, width))
    # a density of another unit: p(y) dy is the same
    return Calibration(interval((nll + math.log(unit)).tolist()), covered, unit * width)


def _measured(metric: Metric, outputs: Tensor, query: Batch) -> list[float]:
    """Return the metric of each task, NaN where predictions are not finite; on the CPU, in double precision."""
    outputs, y, mask = outputs.cpu(), query.y.cpu(), None if query.mask is None else query.mask.cpu()
    if metric == "mse":
        return losses.mse(outputs.double(), Batch(query.x, y.double(), mask)).tolist()
    right = (outputs.argmax(-1) == y).double()
    # minus infinity is a class that a method says is impossible
    finite = (torch.isfinite(outputs) | (outputs == -torch.inf)).all(-1) & torch.isfinite(outputs).any(-1)
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
    """Return the mean and half the 95 % interval, with the standard deviation of a sample (n − 1); NaN for one value.

    >>> interval([2.0, 2.0, 2.0])
    Interval(mean=2.0, ci95=0.0)
    """
    found = torch.tensor(values, dtype=torch.float64)
    half = student(len(values) - 1) * float(found.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Interval(float(found.mean()), half)


@cache
def student(degrees: int) -> float:
    """Return how many standard errors about a mean hold 95 % of Student's t distribution (Student 1908).

    Its integral is a finite sum for whole degrees of freedom (Abramowitz, Stegun 1964, 26.7.3 and 26.7.4).

    >>> round(student(1), 3), round(student(9), 3), round(student(599), 3)
    (12.706, 2.262, 1.964)
    """

    def within(reach: float) -> float:
        angle, odd = math.atan(reach / math.sqrt(degrees)), degrees % 2
        term, total = math.sin(angle) * (math.cos(angle) if odd else 1.0), 0.0
        for place in range(2 + odd, degrees + 1, 2):
            total += term
            term *= math.cos(angle) ** 2 * (place - 1) / place
        return 2 / math.pi * (angle + total) if odd else total

    if degrees > 10_000:
        return 1.96
    low, high = 0.0, 20.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 0.95 else (low, middle)
    return high
