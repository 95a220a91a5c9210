"""Normal distributions of B tasks at once: Cholesky factors with masks, log densities, conditioning."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from headstart.core.losses import masked_mean, present
from headstart.types import Episodes, Gaussian, Info, Learner, Meta

LOG_TWO_PI = math.log(2 * math.pi)
#: What is added to the diagonal of a covariance at first, relative to its mean; each further try multiplies it by 100.
JITTER = {torch.float64: 1e-12, torch.float32: 1e-7}
TRIES = 4


class Conditioner(NamedTuple):
    """What conditioning on observations needs."""

    factor: Tensor
    """L ``(B, n, n)``, lower triangular, of the observations' covariance K = L Lᵀ."""
    weights: Tensor
    """K⁻¹ (y − m) ``(B, n, o)``, zero where there is no observation."""


def masked_covariance(matrix: Tensor, mask: Tensor | None) -> Tensor:
    """Return ``(B, n, n)`` with the rows and columns of absent examples replaced by those of the unit matrix.

    They then are independent of everything, and have no part in determinants (log 1 = 0) and solutions.
    """
    if mask is None:
        return matrix
    pairs = mask.unsqueeze(2) & mask.unsqueeze(1)
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.where(pairs, matrix, unit * (~mask).unsqueeze(-1))


def cholesky(matrix: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the lower Cholesky factors of ``(B, n, n)`` symmetric positive semi-definite matrices.

    A little is added to the diagonal of each, relative to the mean of its diagonal, and more to one that does not
    factorise then. One that never does gives NaN.

    Args:
        matrix: the matrices; with a ``mask``, those of `masked_covariance`.
        mask: ``(B, n)``, false where there is no example, so that the mean is that of the others.
    """
    size = matrix.shape[-1]
    unit = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    mean = masked_mean(matrix.detach().diagonal(dim1=-2, dim2=-1), mask)
    jitter = JITTER.get(matrix.dtype, 1e-6) * mean
    factor, failed = torch.linalg.cholesky_ex(matrix + jitter[..., None, None] * unit)
    for _ in range(TRIES - 1):
        if not bool(failed.any()):
            return factor
        jitter = torch.where(failed > 0, 100 * jitter, jitter)
        factor, failed = torch.linalg.cholesky_ex(matrix + jitter[..., None, None] * unit)
    return torch.where((failed > 0)[..., None, None], torch.nan, factor)


def solve_lower(factor: Tensor, right: Tensor) -> Tensor:
    """Return L⁻¹ R for lower triangular L ``(B, n, n)`` and R ``(B, n, m)``."""
    return torch.linalg.solve_triangular(factor, right, upper=False)


def condition(factor: Tensor, residual: Tensor, mask: Tensor | None) -> Conditioner:
    """Return what predicting from observations needs.

    Args:
        factor: of their covariance, noise included, ``(B, n, n)``.
        residual: observations less their prior means, ``(B, n, o)``.
        mask: ``(B, n)``, which of them are there.
    """
    whitened = solve_lower(factor, zeroed(residual, mask))
    return Conditioner(factor, torch.linalg.solve_triangular(factor.transpose(1, 2), whitened, upper=True))


def posterior(known: Conditioner, cross: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the posterior (mean − prior mean) ``(B, m, o)`` and variance ``(B, m)`` at new inputs.

    Args:
        known: see `condition`.
        cross: covariances with the observations ``(B, m, n)``, zero for those that are not there.
        variance: prior variances ``(B, m)``.
    """
    explained = solve_lower(known.factor, cross.transpose(1, 2)).square().sum(1)
    # rounding may explain a little more than there is
    return cross @ known.weights, (variance - explained).clamp(min=0)


def log_density(factor: Tensor, residual: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return log N(residual; 0, L Lᵀ) ``(B,)``, summed over the columns of ``residual`` ``(B, n, o)``.

    The covariance must be masked (`masked_covariance`); absent examples then have no part in it.
    """
    residual = zeroed(residual, mask)
    whitened = solve_lower(factor, residual).square().sum((1, 2))
    half_determinant = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    outputs = residual.shape[-1]
    return -0.5 * whitened - outputs * (half_determinant + 0.5 * LOG_TWO_PI * count(residual, mask))


def joint_loss(factor: Tensor, residual: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return −log N(residual; 0, L Lᵀ) for each target value, ``(B,)``: jointly, divided by their number."""
    values = residual.shape[-1] * count(residual, mask).clamp(min=1)
    return -log_density(factor, residual, mask) / values


def foreseen(factor: Tensor, residual: Tensor, mask: Tensor | None, first: int) -> Tensor:
    """Return the conditional mean of the later values given the ``first``, ``(B, n − first, o)``.

    The factor of all has that of the first in its corner: K₂₁ K₁₁⁻¹ r₁ = L₂₁ L₁₁⁻¹ r₁.
    """
    known = zeroed(residual, mask)[:, :first]
    return factor[:, first:, :first] @ solve_lower(factor[:, :first, :first], known)


def marginal_loss(gaussian: Gaussian, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return −log N(y; mean, variance), averaged over a task's target values one by one, ``(B,)``."""
    square = (y - gaussian.mean).square() / gaussian.variance
    losses = 0.5 * (square + gaussian.variance.log() + LOG_TWO_PI)
    return masked_mean(losses.flatten(2).mean(2), mask)


def predictive(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Tensor, Info]:
    """The `Objective` −log p(y | support set), averaged over the query set's target values one by one."""
    adapted, info = learner.adapt(meta, episodes.support)
    query = present(episodes.query)
    assert learner.distribution is not None
    predicted = learner.distribution(adapted, query.x)
    errors = learner.loss(predicted.mean.detach(), query)
    return marginal_loss(predicted, query.y, query.mask), info._replace(query_loss=errors)


def count(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return how many examples of each task are there, ``(B,)``."""
    return values.new_full(values.shape[:1], values.shape[1]) if mask is None else mask.sum(1).to(values.dtype)


def zeroed(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return ``(B, n, o)`` with zeros where there is no example."""
    return values if mask is None else torch.where(mask.unsqueeze(-1), values, 0)
