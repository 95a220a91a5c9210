"""Factors and solutions of linear systems, written out as products and sums: no format but PyTorch's own has others.

They are of matrices of a known size, each step a few operations, without a choice of pivots: right for what is
symmetric and positive definite, as all that heads solve is.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Larger systems would make records of very many operations.
MOST = 256


class TooLargeError(RuntimeError):
    """A system whose size is not known, or is large."""


def _size(matrix: Tensor) -> int:
    size: Any = matrix.shape[-1]
    if not isinstance(size, int) or size > MOST:
        raise TooLargeError(f"a linear system of {size} unknowns; at most {MOST} are written out, and as many always")
    return size


def cholesky(matrix: Tensor) -> Tensor:
    """Return L with L Lᵀ = A ``(…, n, n)``; NaN where A is not positive definite.

    >>> import torch
    >>> cholesky(torch.tensor([[4.0, 2.0], [2.0, 5.0]]))
    tensor([[2., 0.],
            [1., 2.]])
    """
    size, columns = _size(matrix), list[Tensor]()
    for step in range(size):
        column = matrix[..., :, 0] / matrix[..., :1, 0].sqrt()
        columns.append(F.pad(column, (step, 0)))
        below = column[..., 1:]
        matrix = matrix[..., 1:, 1:] - below.unsqueeze(-1) * below.unsqueeze(-2)
    return torch.stack(columns, -1)


def solve_lower(factor: Tensor, right: Tensor) -> Tensor:
    """Return L⁻¹ R for lower triangular L ``(…, n, n)`` and R ``(…, n, k)``."""
    size, rows = _size(factor), list[Tensor]()
    for step in range(size):
        row = right[..., :1, :] / factor[..., step : step + 1, step : step + 1]
        rows.append(row)
        right = right[..., 1:, :] - factor[..., step + 1 :, step : step + 1] * row
    return torch.cat(rows, -2)


def solve_upper(factor: Tensor, right: Tensor) -> Tensor:
    """Return U⁻¹ R for upper triangular U ``(…, n, n)`` and R ``(…, n, k)``."""
    return solve_lower(factor.flip(-1, -2), right.flip(-2)).flip(-2)


def _cholesky_ex(matrix: Tensor, *, upper: bool = False, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    found = cholesky(matrix)
    return (found.mT if upper else found), torch.zeros(matrix.shape[:-2], dtype=torch.int32, device=matrix.device)


def _cholesky_solve(right: Tensor, factor: Tensor, upper: bool = False) -> Tensor:
    lower = factor.mT if upper else factor
    return solve_upper(lower.mT, solve_lower(lower, right))


def _solve_triangular(
    factor: Tensor, right: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    if unitriangular:
        raise TooLargeError("a linear system of a kind that is not written out")
    if not left:  # x U = r is Uᵀ xᵀ = rᵀ
        return _solve_triangular(factor.mT, right.mT, upper=not upper).mT
    return (solve_upper if upper else solve_lower)(factor, right)


#: By what is written out in their place.
WRITTEN_OUT: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.linalg_cholesky_ex.default: _cholesky_ex,
    torch.ops.aten.cholesky_solve.default: _cholesky_solve,
    torch.ops.aten.linalg_solve_triangular.default: _solve_triangular,
}
