"""How well predicted normal distributions of B tasks' targets fit what came: one number a task.

Each is the mean over a task's examples and target values; masked examples count nowhere.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headstart.algorithms.gaussians import marginal_loss
from headstart.core.losses import masked_mean, present
from headstart.core.values import bounded
from headstart.errors import FileError, ShapeError, UsageError
from headstart.types import Adapted, Batch, Gaussian, Learner, Tasks, Tree

#: What share of observations intervals are to hold.
LEVEL = 0.9


class Spread(NamedTuple):
    """How wide intervals have to be, by validation tasks."""

    factor: float
    """By what standard deviations are multiplied; the distributions' own, or 1 where a learner has none."""
    tasks: int
    """How many validation tasks said so."""

    @classmethod
    def from_json(cls, value: Any, where: str) -> "Spread | None":
        """Return what JSON says, ``None`` for null.

        Raises:
            FileError: something else.
        """
        if value is None:
            return None
        known = isinstance(value, dict) and value.keys() == set(cls._fields)
        if not known or [type(part) for part in value.values()] != [float, int] or not 0 < value["factor"] < 1e30:
            raise FileError(f"{where} does not say how wide intervals are; got {str(value)[:80]}")
        return cls(**value)


def spread_of(ratios: Sequence[Tensor]) -> Spread:
    """Return by what standard deviations are to be multiplied, so that intervals hold `LEVEL` of a new task's values.

    Conformal prediction by task: each of K tasks, and the one to come, weighs 1 / (K + 1), however many values it has.
    Were the new one's errors taken for infinite, coverage would be guaranteed, but intervals of 10 tasks be as wide as
    the largest error; they are taken for those of the worst task instead. (Of 326 validation tasks of twelve panels,
    each judged by the others, 91 % of values are held; 94 % with infinity, 78 % before.)

    Args:
        ratios: |y − mean| in standard deviations, of each task.

    References: Dunn, Wasserman, Ramdas 2023, "Distribution-free prediction sets for two-layer hierarchical models";
    Lee, Barber, Willett 2023, arXiv:2306.06342.

    >>> spread_of([torch.full((5,), 2.0)] * 20).factor * reach(LEVEL)
    2.0
    """
    tasks = [task.double().cpu() for task in ratios if len(task)]
    worst = max(tasks, key=lambda task: float(task.quantile(LEVEL)))
    values = torch.cat([*tasks, worst])
    weights = torch.cat([torch.full((len(part),), 1 / len(part), dtype=torch.float64) for part in (*tasks, worst)])
    order = values.argsort()
    held = weights[order].cumsum(0) >= LEVEL * (len(tasks) + 1) - 1e-9
    found = float(values[order][held.int().argmax()]) / reach(LEVEL)
    # errors of 0 have no interval
    return Spread(max(found, 1e-6), len(tasks))


def calibrated(learner: Learner, spread: Spread | None) -> Learner:
    """Return a regressor whose distributions are as wide as validation tasks say, also where it had none."""
    if spread is None:
        return learner

    def distribution(adapted: Adapted, x: Tree) -> Gaussian:
        if learner.distribution is None:
            mean = learner.predict(adapted, x)
            return Gaussian(mean, torch.full_like(mean, spread.factor**2))
        found = learner.distribution(adapted, x)
        return found._replace(variance=found.variance * spread.factor**2)

    return learner._replace(distribution=distribution)


def near(learner: Learner, tasks: Tasks) -> Learner:
    """Return a learner whose predictions are drawn near the targets of training tasks, where these have limits."""
    limits, tell = tasks.limits, learner.distribution
    if limits is None:
        return learner

    def distribution(adapted: Adapted, x: Tree) -> Gaussian:
        assert tell is not None
        found = tell(adapted, x)
        return found._replace(mean=bounded(found.mean, limits))

    learner = learner._replace(predict=lambda adapted, x, plain=learner.predict: bounded(plain(adapted, x), limits))
    return learner if tell is None else learner._replace(distribution=distribution)


def gaussian_nll(distribution: Gaussian, batch: Batch) -> Tensor:
    """Return −log N(y; mean, variance) in nats per target value, averaged over each task's, ``(B,)``.

    ½ (log 2πσ² + (y − μ)² / σ²): of densities, so it may be negative, and it depends on the unit of y.

    Args:
        distribution: ``(B, n, *outputs)``.
        batch: ``y`` of the same shape, floating.

    >>> import torch
    >>> y = torch.zeros(1, 3, 1)
    >>> gaussian_nll(Gaussian(y, torch.ones_like(y)), Batch(y, y))
    tensor([0.9189])
    """
    return marginal_loss(distribution, _targets(distribution, batch), batch.mask)


def coverage(distribution: Gaussian, batch: Batch, level: float = 0.9) -> Tensor:
    """Return which fraction of each task's target values lies in the central interval of ``level``, ``(B,)``.

    Where the distributions are right, it is ``level`` on average.

    Args:
        distribution: ``(B, n, *outputs)``.
        batch: ``y`` of the same shape, floating.
        level: in (0, 1).
    """
    mean, variance = distribution
    inside = (_targets(distribution, batch) - mean).abs() <= reach(level) * variance.sqrt()
    return masked_mean(inside.to(mean.dtype).flatten(2).mean(2), batch.mask)


def interval_width(distribution: Gaussian, level: float = 0.9, mask: Tensor | None = None) -> Tensor:
    """Return the mean width of each task's central intervals of ``level``, ``(B,)``, in units of y.

    Args:
        distribution: ``(B, n, *outputs)``.
        level: in (0, 1).
        mask: ``(B, n)``, false where there is no such example.
    """
    return masked_mean(2 * reach(level) * distribution.variance.sqrt().flatten(2).mean(2), mask)


def reach(level: float) -> float:
    """Return how many standard deviations a normal distribution's central interval of ``level`` reaches to each side.

    >>> round(reach(0.95), 2)
    1.96
    """
    if not 0 < level < 1:
        raise UsageError(f"the level of an interval must lie between 0 and 1, got {level}")
    return math.sqrt(2) * torch.erfinv(torch.tensor(level, dtype=torch.float64)).item()


def _targets(distribution: Gaussian, batch: Batch) -> Tensor:
    y = present(batch).y
    if not y.is_floating_point() or not distribution.mean.shape == distribution.variance.shape == y.shape:
        mean, variance = (tuple(part.shape) for part in distribution)
        raise ShapeError(
            "a distribution needs means, variances and floating targets of one shape; "
            f"got mean {mean}, variance {variance} and y {tuple(y.shape)} of {y.dtype}"
        )
    return y
