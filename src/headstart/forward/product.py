"""Linear layers whose weights' gradient is not computed where it is only differentiated (see `core.unread`)."""

from typing import Any

import torch
from torch import Tensor

from headstart.core.unread import is_unread, without_numbers
from headstart.forward.transforms import plain


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x wᵀ + b.

    Args:
        x: ``(n, in)`` or ``(B, n, in)``.
        weight: ``(out, in)`` or ``(B, out, in)``.
        bias: ``(out,)`` or ``(B, out)``.
    """
    out: Tensor = _Product.apply(x, weight, bias)
    return out


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return x @ weight.mT
    return torch.addmm(bias, x, weight.mT) if x.ndim == 2 else torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)


def _slopes(g: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    to_x, to_weight, to_bias = needed
    return g @ weight if to_x else None, g.mT @ x if to_weight else None, g.sum(-2) if to_bias else None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        (g,), (x, weight) = slopes, ctx.saved_tensors
        back = _Slopes.apply if plain(g) else _slopes
        return back(g, x, weight, ctx.needs_input_grad[:3])


class _Slopes(torch.autograd.Function):
    """(g w, gᵀ x, Σ g): what comes back to x, w and b."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, ...]) -> Any:  # type: ignore[override]
        ctx.save_for_backward(g, x, weight)
        ctx.set_materialize_grads(False)
        if not (needed[1] and is_unread()):
            return _slopes(g, x, weight, needed)
        to_x, _, to_bias = _slopes(g, x, weight, (needed[0], False, needed[2]))
        return to_x, without_numbers(weight), to_bias

    @staticmethod
    def backward(ctx: Any, *towards: Tensor | None) -> Any:
        h, v, to_bias = towards
        (g, x, weight), (wants_g, wants_x, wants_weight) = ctx.saved_tensors, ctx.needs_input_grad[:3]
        to_g = _towards_slopes(h, v, to_bias, g, x, weight) if wants_g else None
        to_x = g @ v if wants_x and v is not None else None
        to_weight = g.mT @ h if wants_weight and h is not None else None
        return to_g, to_x, to_weight, None


def _towards_slopes(
    h: Tensor | None, v: Tensor | None, to_bias: Tensor | None, g: Tensor, x: Tensor, weight: Tensor
) -> Tensor | None:
    """Return h wᵀ + x vᵀ + u, of what is there."""
    if h is None and v is None:
        return None if to_bias is None else to_bias.unsqueeze(-2).expand_as(g)
    if h is None:
        return None if v is None else _product(x, v, to_bias)
    total = _product(h, weight, to_bias)
    if v is not None:  # in its place: it is as large as the outputs
        total = total.addmm_(x, v.mT) if x.ndim == 2 else total.baddbmm_(x, v.mT)
    return total
