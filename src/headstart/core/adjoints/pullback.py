"""Going back: slopes of what an ``autograd.Function`` gave become slopes of what it was given."""

from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from headstart.core.tree import tensors_of
from headstart.errors import DifferentiationError

Slopes: TypeAlias = list[Tensor | None]
"""Derivatives with respect to a list of tensors; ``None`` is zero."""


def wanted(tree: Any) -> bool:
    """Whether a derivative with respect to any of a tree's tensors is asked for."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_of(tree))


def leaf(value: Any, needed: bool | None = None) -> Any:
    """Return a tensor without history, requiring gradients where needed (by default as it does); others as they are."""
    if not isinstance(value, Tensor):
        return value
    needed = value.requires_grad if needed is None else needed
    return value.detach().requires_grad_(needed and differentiable(value))


def differentiable(value: Tensor) -> bool:
    """Whether there are derivatives of tensors of its type."""
    return value.is_floating_point() or value.is_complex()


def slopes_of(
    ends: Iterable[Tensor | GradientEdge | None], slopes: Iterable[Tensor | None], leaves: list[Tensor], **options: bool
) -> Slopes:
    """Return Σ ∂end/∂leaf · slope for each leaf, ``None`` for one that requires no gradient or has no part in it."""
    pairs: list[tuple[Any, Tensor]] = [
        (end, slope) for end, slope in zip(ends, slopes) if slope is not None and _differentiable(end)
    ]
    asked = [one for one in leaves if one.requires_grad]
    if not pairs or not asked:
        return [None] * len(leaves)
    found = iter(torch.autograd.grad([e for e, _ in pairs], asked, [s for _, s in pairs], allow_unused=True, **options))
    return [next(found) if one.requires_grad else None for one in leaves]


def _differentiable(end: Tensor | GradientEdge | None) -> bool:
    return end.requires_grad if isinstance(end, Tensor) else end is not None


def added(total: Slopes, more: Slopes) -> Slopes:
    """Return the sums of two lists of slopes."""
    return [b if a is None else a if b is None else a + b for a, b in zip(total, more)]


def refuse_second_derivatives() -> None:
    """Raise `DifferentiationError` in a backward pass that is to be differentiated again."""
    if torch.is_grad_enabled():
        raise DifferentiationError(
            "the inner steps are differentiated by an adjoint that gives first derivatives only; differentiate "
            "without create_graph=True, or use adjoint=Unrolled()"
        )
