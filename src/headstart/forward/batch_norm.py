"""Batch normalisation whose second derivative takes a few passes over the feature maps.

Second-order MAML differentiates the derivative of every layer. For batch normalisation PyTorch does so in more than
twenty operations as large as the feature maps, and nearly half of the time of conv4 goes into them.

With x̂ = (x − mean) · r and r = 1 / √(variance + eps), the derivative is a projection P: slopes g of the outputs become
slopes w · r · P g of the inputs, where P g = g − mean(g) − x̂ · mean(x̂ · g) in each channel. P is symmetric, so the
derivative of that in g is the same function again, and the derivative in x is a sum of x̂, P g and P h, each weighed by
channel (h: the slopes of w · r · P g). So once the sums of g, h, x̂ · g, x̂ · h and g · h are known, of which the first
derivative has those of g, all is a sum of x̂, g and h, weighed by channel.

`TaskStatistics` is batch normalisation whose running statistics belong to the task and can be differentiated:
``nn.BatchNorm`` updates its own in place and without gradients. A query set that is normalised by what the support set
left behind depends on θ through them, so leaving that path out would make the meta-gradient wrong.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm

from headstart.core.process import watched
from headstart.errors import DifferentiationError


def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return ``F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)``, with a faster second derivative.

    ``x``: ``(n, channels, …)``, normalised over all axes but the channels; ``weight`` and ``bias``: ``(channels,)``.
    """
    if x.numel() <= x.shape[1] or not plain(x, weight, bias):
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    out: Tensor = _Normalised.apply(x, weight, bias, eps)
    return out


class _Inputs(NamedTuple):
    """What a forward pass keeps; ``scale`` is r."""

    x: Tensor
    weight: Tensor | None
    mean: Tensor
    scale: Tensor


class _Normalised(torch.autograd.Function):
    """w · x̂ + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, *rest: Any) -> Tensor:  # type: ignore[override]
        bias, ctx.eps = rest
        out, mean, scale = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, ctx.eps)
        ctx.save_for_backward(x, weight, mean, scale)
        return out

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        (g,), (x, weight, mean, scale), needed = slopes, ctx.saved_tensors, ctx.needs_input_grad[:3]
        if plain(g):
            return *_Slopes.apply(g, x, weight, mean, scale, ctx.eps, needed), None
        made = _by_means(g, x, weight, ctx.eps)
        return *(part if wanted else None for part, wanted in zip(made, needed)), None


class _Sums(NamedTuple):
    """Of a tensor like x, by channel."""

    along: Tensor
    """Σ x̂ · g"""
    total: Tensor
    """Σ g"""


class _Slopes(torch.autograd.Function):
    """(w · r · P g, Σ x̂ · g, Σ g): what comes back to x, w and b."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor | None, *rest: Any) -> Any:  # type: ignore[override]
        mean, scale, ctx.eps, needed = rest
        back, *sums = _slopes(g, _Inputs(x, weight, mean, scale), needed[0])
        ctx.save_for_backward(g, x, weight, mean, scale, *sums)
        ctx.set_materialize_grads(False)
        return tuple(part if wanted else None for part, wanted in zip((back, *sums), needed))

    @staticmethod
    def backward(ctx: Any, *towards: Tensor | None) -> Any:
        g, x, weight, mean, scale, *sums = ctx.saved_tensors
        of = _Inputs(x, weight, mean, scale)
        if torch.is_grad_enabled() or not plain(*towards):
            found = _differentiable(towards, g, of, ctx.eps)
        else:
            found = _second(towards, g, of, _Sums(*sums))
        return *found, None, None, None, None


def _slopes(g: Tensor, of: _Inputs, back: bool) -> tuple[Tensor, ...]:
    """Return w · r · P g if it is wanted, and the sums of g."""
    x, weight, mean, scale = of
    # on a GPU, the sums come only where there is a weight; its eps would count with statistics of its own only
    weight, mask = torch.ones_like(mean) if weight is None else weight, [back, True, True]
    found: tuple[Tensor, ...] = torch.ops.aten.native_batch_norm_backward(
        g, x, weight, None, None, mean, scale, True, 0.0, mask
    )
    return found


def _second(towards: tuple[Tensor | None, ...], g: Tensor, of: _Inputs, g_sums: _Sums) -> tuple[Tensor | None, ...]:
    """Return the slopes for g, x and w of ⟨h, w · r · P g⟩ + ⟨to_w, Σ x̂ · g⟩ + ⟨to_b, Σ g⟩.

    Each is a sum of x̂, h and g, weighed by channel, once the sums over the channels are known.
    """
    x, weight, mean, scale = of
    h, to_w, to_b = towards
    count, w = x.numel() / x.shape[1], 1.0 if weight is None else weight
    to_w = torch.zeros_like(mean) if to_w is None else to_w
    to_b = torch.zeros_like(mean) if to_b is None else to_b
    if h is None:
        own = scale * to_w
        to_x = _weighed(of, -own * g_sums.along / count, -own * g_sums.total / count, (g, own))
        return _weighed(of, to_w, to_b), to_x, None
    h_sums = _Sums(*_slopes(h, of, False)[1:])
    # Σ h · g in one pass: what comes back to the weight of numbers that are normalised already
    unit = _Inputs(g, None, torch.zeros_like(mean), torch.ones_like(mean))
    both = _slopes(h, unit, False)[1] - (g_sums.total * h_sums.total + g_sums.along * h_sums.along) / count
    along_both = scale * both  # Σ h · r · P g
    own = scale * w
    to_g = _weighed(of, to_w - own * h_sums.along / count, to_b - own * h_sums.total / count, (h, own))
    of_h, of_g = -scale * own * g_sums.along / count, scale * (to_w - own * h_sums.along / count)
    of_x = (-own * along_both - of_h * h_sums.along - of_g * g_sums.along) / count
    constant = (-of_h * h_sums.total - of_g * g_sums.total) / count
    to_x = _weighed(of, of_x, constant, (h, of_h), (g, of_g))
    return to_g, to_x, None if weight is None else along_both


def _weighed(of: _Inputs, along: Tensor, constant: Tensor, *others: tuple[Tensor, Tensor]) -> Tensor:
    """Return along · x̂ + constant + Σ weight · part, with one number for each channel."""
    slope = along * of.scale
    found = torch.addcmul(_facing(constant - slope * of.mean, of.x), of.x, _facing(slope, of.x))
    for part, weight in others:
        found.addcmul_(part, _facing(weight, of.x))
    return found


def _facing(channels: Tensor, x: Tensor) -> Tensor:
    return channels.view(-1, *(1,) * (x.ndim - 2))


def _differentiable(
    towards: tuple[Tensor | None, ...], g: Tensor, of: _Inputs, eps: float
) -> tuple[Tensor | None, ...]:
    """Return the same by means and squares, which can be differentiated as often as one likes.

    PyTorch's own second derivative of batch normalisation takes the statistics for constants when it is differentiated.
    """
    parts = (g, of.x, of.weight)
    with torch.enable_grad():
        # views, since g may have come from x, and a slope of x itself would go through g as well
        g, x, weight = g.view_as(g), of.x.view_as(of.x), None if of.weight is None else of.weight.view_as(of.weight)
        pairs = zip(_by_means(g, x, weight, eps), towards)
    given = [(slope, way) for slope, way in pairs if way is not None and slope.requires_grad]
    if not given:
        return None, None, None
    slopes, ways = zip(*given)
    moved = [part for part in (g, x, weight) if part is not None and part.requires_grad]
    found = iter(torch.autograd.grad(slopes, moved, ways, create_graph=torch.is_grad_enabled(), allow_unused=True))
    return tuple(next(found) if part is not None and part.requires_grad else None for part in parts)


def _by_means(g: Tensor, x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return w · r · P g, Σ x̂ · g and Σ g from operations that take tangents and axes of ``vmap`` along."""
    axes = [axis for axis in range(x.ndim) if axis != 1]
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    scale = torch.rsqrt(variance + eps)
    normalised = (x - mean) * scale
    along = normalised * g
    back = (g - g.mean(axes, keepdim=True) - normalised * along.mean(axes, keepdim=True)) * scale
    return back if weight is None else back * _facing(weight, x), along.sum(axes), g.sum(axes)


def plain(*tensors: Tensor | None) -> bool:
    """Return whether tensors are of one type, without what only PyTorch's functions know: tangents, vmap, autocast."""
    given = [tensor for tensor in tensors if tensor is not None]
    if not given:
        return True
    first = given[0]
    if first.is_meta or torch.is_autocast_enabled(first.device.type):  # which knows no device "meta"
        return False
    if torch._C._are_functorch_transforms_active():  # also where none of these tensors goes through them
        return False
    tangents = forward_ad._current_level >= 0
    for tensor in given:
        if tensor.dtype != first.dtype or is_legacy_batchedtensor(tensor):
            return False
        if tangents and forward_ad.unpack_dual(tensor).tangent is not None:
            return False
    return True


def normalised(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int], eps: float
) -> Tensor:
    """Return x normalised by statistics that are given, in one pass; in ``shape``, each tensor faces ``x``.

    Where derivatives are asked for, or operations are written down, they are those of the definition, with its bits in
    a record, too, in which a weight is to be found.
    """
    scale, mean = (var + eps).rsqrt().view(shape), mean.view(shape)
    weight, bias = (None if part is None else part.view(shape) for part in (weight, bias))
    if torch.is_grad_enabled() or watched():
        found = (x - mean) * scale
        found = found if weight is None else found * weight
        return found if bias is None else found + bias
    slope = scale if weight is None else scale * weight
    return torch.addcmul(-mean * slope if bias is None else bias - mean * slope, x, slope)


class TaskStatistics(nn.Module):
    """Stands in for a batch normalisation layer whose statistics every task has a copy of.

    In training mode (the support set) it normalises by the batch, and leaves
    ``running ← (1 − momentum) · running + momentum · batch``; otherwise (the query set) it normalises by ``running``.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__()
        if layer.momentum is None:
            raise DifferentiationError(
                "buffers='task' needs a momentum; use momentum=1.0 for the support set's own statistics"
            )
        self.momentum = float(layer.momentum)
        self.eps = layer.eps
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("running_mean", layer.running_mean)
        self.register_buffer("running_var", layer.running_var)
        #: The statistics after the last pass, for the caller to take.
        self.updated: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` ``(n, channels, *space)``."""
        alone = not (torch.is_grad_enabled() or watched()) and plain(x, self.weight, self.running_mean)
        if self.training and alone and x.numel() > x.shape[1]:
            # one pass, which notes the statistics; the biased variance is what it normalises by
            mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
            out, *_ = torch.native_batch_norm(x, self.weight, self.bias, mean, var, True, 1.0, self.eps)
            self._update("running_mean", mean)
            self._update("running_var", var)
            return out
        if self.training:
            axes = [axis for axis in range(x.ndim) if axis != 1]
            count = x.numel() // x.shape[1]
            var, mean = torch.var_mean(x, axes, correction=0)
            self._update("running_mean", mean)
            # as nn.BatchNorm: normalise by the biased variance, remember the unbiased one
            self._update("running_var", var * count / max(count - 1, 1))
        else:
            mean, var = self.running_mean, self.running_var
        return normalised(x, mean, var, self.weight, self.bias, (-1, *(1,) * (x.ndim - 2)), self.eps)

    def _update(self, name: str, value: Tensor) -> None:
        # a layer that is used twice in a pass updates twice
        before = self.updated.get(name, getattr(self, name))
        self.updated[name] = (1 - self.momentum) * before + self.momentum * value
