"""Linear systems of K blocks that share one matrix and are coupled by their sum.

They are what the Newton steps and the derivatives of classifiers are made of, when each example spreads a total of
1 over K classes: cost K n³ for n examples, in place of (K n)³.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Coupled(NamedTuple):
    """The factors of (Q + W⁻¹) for each class, and of their sum; `coupled` makes them."""

    half: Tensor
    """``(B, K, n, n)``; halfᵀ half is (Q + W⁻¹)⁻¹."""
    total: Tensor
    """``(B, n, n)``, the Cholesky factor of the sum of these inverses over the classes."""

    def solve(self, right: Tensor, sums: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x ``(B, K, n)`` and λ ``(B, n)`` with (Q + W⁻¹) x_k − λ = right_k and Σ_k x_k = sums, 0 by default."""
        own = self._inverse(right)
        short = -own.sum(1) if sums is None else sums - own.sum(1)
        shift = torch.cholesky_solve(short.unsqueeze(-1), self.total).squeeze(-1)
        return own + self._inverse(shift.unsqueeze(1).expand_as(right)), shift

    def _inverse(self, right: Tensor) -> Tensor:
        return (self.half.mT @ (self.half @ right.unsqueeze(-1))).squeeze(-1)


def coupled(shared: Tensor, weights: Tensor) -> Coupled:
    """Factor the blocks Q + W_k⁻¹.

    Args:
        shared: Q, positive semidefinite ``(B, n, n)``.
        weights: the diagonals of W ``(B, K, n)``, at least 0; where one is 0, x is 0.
    """
    root = weights.sqrt()
    scaled = root.unsqueeze(-1) * shared.unsqueeze(1) * root.unsqueeze(-2)
    lower = torch.linalg.cholesky_ex(scaled + torch.eye(scaled.shape[-1]).to(scaled))[0]
    # as a product with its own transpose, the inverse stays positive semidefinite whatever the rounding
    half = torch.linalg.solve_triangular(lower, torch.diag_embed(root), upper=False)
    stacked = half.flatten(1, 2)
    total = stacked.mT @ stacked
    diagonal = total.diagonal(dim1=1, dim2=2)
    lifted = torch.where(diagonal == 0, 1, 1e-15 * diagonal)
    return Coupled(half, torch.linalg.cholesky_ex(total + torch.diag_embed(lifted))[0])
