"""How far a task's values at the nodes of a forest go from those of all tasks: conditioning, and empirical Bayes."""

from typing import NamedTuple

import torch
from torch import Tensor

from headstart.algorithms import gaussians

#: Bounds of a variance ratio, so that its logarithm is finite.
SMALLEST, LARGEST = 1e-8, 1e8


class Posterior(NamedTuple):
    """What the rows of tasks say of y = μ + Φ u + ε with u ~ N(0, σ² diag(ratio)), ε ~ N(0, σ²)."""

    mean: Tensor
    """E[u | y] ``(B, D, outputs)``."""
    explained: Tensor
    """E ``(B, n, D)``: Var[u_d | y] = σ² ratio_d (1 − Σ_n E_nd²)."""


class Strength(NamedTuple):
    """Variances."""

    ratio: Tensor
    """``(D,)``, those of the deviations over the noise's: small is strong shrinkage."""
    noise: Tensor
    """``(outputs,)``"""


def posterior(held: Tensor, residual: Tensor, ratio: Tensor) -> Posterior:
    """Return E[u | y] = Λ Φᵀ (Φ Λ Φᵀ + I)⁻¹ (y − μ) with Λ = diag(ratio), from one n × n system a task.

    Args:
        held: Φ ``(B, n, D)``, zero in rows that are not there.
        residual: y − μ ``(B, n, outputs)``, zero in rows that are not there.
        ratio: ``(D,)``.
    """
    root = ratio.sqrt()
    scaled = held * root
    unit = torch.eye(held.shape[1], dtype=held.dtype, device=held.device)
    factor = gaussians.cholesky(scaled @ scaled.transpose(1, 2) + unit)
    explained = gaussians.solve_lower(factor, scaled)
    whitened = gaussians.solve_lower(factor, residual)
    return Posterior(root.unsqueeze(-1) * (explained.transpose(1, 2) @ whitened), explained)


def strengths(
    held: Tensor, residual: Tensor, there: Tensor, level: Tensor, *, rounds: int = 10, pseudo: float = 5.0
) -> Strength:
    """Return variances that make the rows of B tasks likely.

    MacKay's fixed point of the marginal likelihood, all tasks together: a node's variance becomes Σᵢ E[uᵢ]² / Σᵢ γᵢ,
    where γᵢ = 1 − Var[uᵢ | y] / Var[uᵢ] is how far task i's rows determine its value, and the noise's the squared
    residuals / (rows − Σ γ). A node that few rows reach says little of its own variance, so both sums are joined by
    those of its level, at the weight of ``pseudo`` tasks: a method of our own.

    Args:
        held, residual: as for `posterior`.
        there: ``(B, n)`` bool, which rows are there.
        level: ``(D,)`` int64, the depth of each node.
        rounds: how often.
        pseudo: 0 leaves each node to itself.

    References: MacKay 1992, doi:10.1162/neco.1992.4.3.415; Tipping 2001, "Sparse Bayesian learning and the relevance
    vector machine", where each weight has a variance of its own.
    """
    rows, levels = there.sum(), int(level.max()) + 1
    total = (residual.square().sum((0, 1)) / rows).clamp(min=1e-12)
    noise, ratio = total / 2, torch.full_like(held[0, 0], 1 / levels)
    tasks, sizes = len(held), level.bincount(minlength=levels)

    def by_level(values: Tensor) -> Tensor:
        return torch.zeros(levels, dtype=values.dtype, device=values.device).index_add(0, level, values)

    for _ in range(rounds):
        found = posterior(held, residual, ratio)
        known = found.explained.square().sum((0, 1))
        squares = (found.mean.square() / noise).mean(2).sum(0)
        left = (residual - held @ found.mean).square().sum((0, 1))
        joined = pseudo / tasks * by_level(known) / sizes
        ratio_of_level = by_level(squares) / by_level(known).clamp(min=1e-12)
        ratio = (squares + (joined * ratio_of_level)[level]) / (known + joined[level]).clamp(min=1e-12)
        new_noise = (left / (rows - known.sum()).clamp(min=1)).clamp(min=1e-6 * total)
        ratio = (ratio * (noise / new_noise).mean()).clamp(SMALLEST, LARGEST)
        noise = new_noise
    return Strength(ratio, noise)
