"""Convolutions whose second derivative is made of the kernels that are tuned for the first.

For slopes g of the outputs, a convolution gives back g * w to its inputs and g * x to its kernels. Both are linear in
what they are made of, so the derivative in the direction (h of the inputs, v of the kernels) is two convolutions,
h * w + x * v, and one pass back, with h and v in the places of x and w. PyTorch takes the last one for another
convolution with kernels as large as images, which is several times slower.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.core.unread import is_unread, without_numbers
from headstart.forward.transforms import plain


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Return ``F.conv2d`` of the same arguments, with a faster second derivative."""
    if x.ndim != 4 or x.is_complex() or isinstance(padding, str) or not plain(x, weight, bias):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)  # type: ignore[arg-type]
    how = _How(tuple(stride), tuple(padding), tuple(dilation), groups)
    out: Tensor = _Convolved.apply(x, weight, bias, how)
    return out


class _How(NamedTuple):
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: _How) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return F.conv2d(x, weight, bias, *how)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        (g,), (x, weight), needed = slopes, ctx.saved_tensors, ctx.needs_input_grad[:3]
        back = _Slopes.apply if plain(g) else _back
        return *back(g, x, weight, ctx.how, needed), None


class _Slopes(torch.autograd.Function):
    """What comes back to x, w and b."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Any:  # type: ignore[override]
        ctx.how, needed = rest
        ctx.save_for_backward(g, x, weight)
        ctx.set_materialize_grads(False)
        if not (needed[1] and is_unread()):
            return _back(g, x, weight, ctx.how, needed)
        to_x, _, to_bias = _back(g, x, weight, ctx.how, (needed[0], False, needed[2]))
        return to_x, without_numbers(weight), to_bias

    @staticmethod
    def backward(ctx: Any, *towards: Tensor | None) -> Any:
        h, v, to_bias = towards
        g, x, weight = ctx.saved_tensors
        to_g, to_x, to_weight = None, None, None
        if h is not None:
            to_g = F.conv2d(h, weight, to_bias, *ctx.how)
        if v is not None:
            part = F.conv2d(x, v, None if h is not None else to_bias, *ctx.how)
            to_g = part if to_g is None else to_g.add_(part)
        if h is None and v is None and to_bias is not None:
            to_g = to_bias.view(-1, *(1,) * (g.ndim - 2)).expand_as(g)
        _, wants_x, wants_weight = ctx.needs_input_grad[:3]
        needed = (wants_x and v is not None, wants_weight and h is not None, False)
        if any(needed):
            to_x, to_weight, _ = _back(g, x if h is None else h, weight if v is None else v, ctx.how, needed)
        return to_g, to_x, to_weight, None, None


def _back(g: Tensor, x: Tensor, weight: Tensor, how: _How, needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    outputs = [weight.shape[0]]
    found: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
        g, x, weight, outputs, *how[:3], False, [0, 0], how.groups, list(needed)
    )
    return tuple(part if wanted else None for part, wanted in zip(found, needed))
