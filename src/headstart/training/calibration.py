"""How well predicted normal distributions of B tasks' targets fit what came: one number a task.

Each is the mean over a task's examples and target values; masked examples count nowhere.
"""

import math

import torch
from torch import Tensor

from headstart.algorithms.gaussians import marginal_loss
from headstart.core.losses import masked_mean, present
from headstart.errors import ShapeError, UsageError
from headstart.types import Batch, Gaussian


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
