"""Normal distributions of B tasks at once: Cholesky factors with masks, conditioning, regression learned by them."""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from headstart.algorithms.heads.head import Embedding, shown
from headstart.core import losses
from headstart.core.losses import masked_mean, present, there
from headstart.core.objective import backprop
from headstart.errors import ShapeError
from headstart.types import Adapted, Episodes, Gaussian, Info, Learner, Meta, Objective, Params, Tree

Likelihood: TypeAlias = Literal["joint", "predictive"]
View: TypeAlias = Callable[[Meta, Tree, Params, Tensor | None, int], tuple[Tensor, Tensor, Params]]
"""``(meta, x, buffers, seed, draw) -> (features (B, n, d), prior means (B, n, outputs), buffers)``."""

LOG_TWO_PI = math.log(2 * math.pi)
#: What is added to the diagonal of a covariance at first, relative to its mean; each further try multiplies it by 100.
JITTER = {torch.float64: 1e-12, torch.float32: 1e-7}
TRIES = 4


def cholesky(matrix: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the lower Cholesky factors of ``(B, n, n)`` symmetric positive semi-definite matrices.

    A little is added to each diagonal, relative to its mean, and more where that is not enough; at last, NaN.

    Args:
        matrix: the matrices.
        mask: ``(B, n)``, false where there is no example: its row and column become those of the unit matrix, so that
            it is independent of everything, and has no part in determinants (log 1 = 0) and solutions.
    """
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    mean = masked_mean(matrix.detach().diagonal(dim1=-2, dim2=-1), mask)
    if mask is not None:
        matrix = torch.where(mask.unsqueeze(2) & mask.unsqueeze(1), matrix, unit * (~mask).unsqueeze(-1))
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


def condition(factor: Tensor, residual: Tensor, mask: Tensor | None) -> Tensor:
    """Return K⁻¹ (y − m) ``(B, n, o)`` for `posterior`, zero where there is no observation.

    Args:
        factor: L of the observations' covariance K = L Lᵀ, noise included, ``(B, n, n)``.
        residual: observations less their prior means, ``(B, n, o)``.
        mask: ``(B, n)``, which of them are there.
    """
    return torch.cholesky_solve(zeroed(residual, mask), factor)


def posterior(factor: Tensor, weights: Tensor, cross: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the posterior (mean − prior mean) ``(B, m, o)`` and variance ``(B, m)`` at new inputs.

    Args:
        factor, weights: see `condition`.
        cross: covariances with the observations ``(B, m, n)``, zero for those that are not there.
        variance: prior variances ``(B, m)``.
    """
    explained = solve_lower(factor, cross.mT).square().sum(1)
    # rounding may explain a little more than there is
    return cross @ weights, (variance - explained).clamp(min=0)


def joint_loss(factor: Tensor, residual: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return −log N(residual; 0, L Lᵀ) of ``(B, n, o)``, divided by the number of values that are there, ``(B,)``."""
    residual = zeroed(residual, mask)
    count = residual.new_full((1,), residual.shape[1]) if mask is None else mask.sum(1).to(residual)
    outputs, half_determinant = residual.shape[-1], factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    whitened = 0.5 * solve_lower(factor, residual).square().sum((1, 2))
    return (whitened + outputs * (half_determinant + 0.5 * LOG_TWO_PI * count)) / (outputs * count.clamp(min=1))


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


def joint(view: View, covariance: Callable[[Meta, Tensor], tuple[Tensor, Tensor]], network: Embedding) -> Objective:
    """Return the `Objective` −log p(y_support, y_query), for each target value.

    Args:
        view: the prior means of inputs, by ``network``.
        covariance: ``(meta, features) -> (covariance of observations (B, n, n), log of the unit of each target)``.
    """

    def objective(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Tensor, Info]:
        support, query = (present(batch) for batch in episodes)
        losses.refuse_padding(support, network.batch_statistics)
        ahead, means_ahead, own = view(meta, support.x, network.of_tasks(support), support.seed, 0)
        # as in prediction, the query set goes by the support set's seed
        behind, means_behind, _ = view(meta, query.x, own, support.seed, 1)
        masked = support.mask is not None or query.mask is not None
        mask = torch.cat([there(support), there(query)], 1) if masked else None
        matrix, log_unit = covariance(meta, torch.cat([ahead, behind], 1))
        factor, unit = cholesky(matrix, mask), log_unit.exp()
        left = torch.cat([residual(support.y, means_ahead), residual(query.y, means_behind)], 1) / unit
        with torch.no_grad():
            predicted = means_behind + unit * foreseen(factor, left, mask, ahead.shape[1])
            info = Info(left.new_zeros(0, len(left)), learner.loss(predicted, query))
        return joint_loss(factor, left, mask) + log_unit.mean(), info

    return objective


def regressor(
    init: Callable[..., Meta],
    adapt: Callable[..., tuple[Adapted, Info]],
    distribution: Callable[[Adapted, Tree], Gaussian],
    objective: Objective,
    batch_statistics: str = "",
) -> Learner:
    """Return the learner that predicts the mean of its ``distribution``, and is judged by its squared error."""
    return Learner(
        init,
        adapt,
        lambda adapted, x: distribution(adapted, x).mean,
        losses.without_padding(losses.mse, batch_statistics),
        backprop,
        objective=objective,
        distribution=distribution,
        shown=shown,
    )


def residual(y: Tensor, means: Tensor) -> Tensor:
    """Return y − m(x), or raise `ShapeError` where they do not fit."""
    if not y.is_floating_point() or y.shape != means.shape:
        raise ShapeError(
            f"the targets must be floating, (tasks, examples, outputs) = {tuple(means.shape)}; "
            f"got y {tuple(y.shape)} of {y.dtype}. Make the learner with outputs= the number of target values"
        )
    return y - means


def zeroed(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return ``(B, n, o)`` with zeros where there is no example."""
    return values if mask is None else torch.where(mask.unsqueeze(-1), values, 0)
