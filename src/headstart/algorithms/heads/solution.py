"""The derivative of a solution, by the implicit function theorem."""

from collections.abc import Callable

import torch
from torch import Tensor

from headstart.errors import DifferentiationError


def implicit(solution: Tensor, residual: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``solution``, with the derivative that it has as the root of ``residual``.

    Where r(p, θ) = 0 defines p(θ), dp = −(∂r/∂p)⁻¹ ∂r/∂θ dθ, however the root was found.

    Args:
        solution: the root p, found without history.
        residual: r(p, θ) at ``solution``, of its shape, with its history back to θ alone. Its value is not used.
        solve: ``v -> (∂r/∂p)⁻¹ v``, where ∂r/∂p is symmetric, as that of an optimum is.

    Second derivatives are refused.

    >>> import torch
    >>> square = torch.tensor(9.0, requires_grad=True)
    >>> root = torch.tensor(3.0)  # of p² = square
    >>> torch.autograd.grad(implicit(root, root**2 - square, lambda v: v / (2 * root)), square)[0]
    tensor(0.1667)
    """

    def through(slope: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise DifferentiationError(
                "a solution that is differentiated implicitly has a first derivative only; "
                "differentiate without create_graph=True"
            )
        return -solve(slope)

    change = residual - residual.detach()  # 0, with the history of the residual
    if change.requires_grad:
        change.register_hook(through)
    return solution + change
