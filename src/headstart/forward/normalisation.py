"""Normalisation by the numbers at hand, whose derivatives are right however often they are taken, and fast twice.

With x̂ = (x − mean) · r and r = 1 / √(variance + eps), slopes a of x̂ become slopes r · P a of x, where
P a = a − mean(a) − x̂ · mean(x̂ · a) is a projection. P is symmetric, so the derivative of that in a is the same function
again, and the derivative in x is a sum of x̂, P a and P h (h: the slopes of r · P a). That takes few passes.

PyTorch's second derivatives of batch, instance and layer normalisation take more than twenty, and take the statistics
for constants: what is differentiated once more is wrong, without a word, and so are tangents of tangents. Here values
and slopes are PyTorch's own, with its bits, each as a function that knows its derivative. Where somebody may
differentiate the second derivative, it is made of means and squares; so is all that goes through tangents, or through
transforms of functions other than ``vmap``. Group and RMS normalisation are right in PyTorch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack

from headstart.core.process import ONCE
from headstart.forward.derivatives import LARGE, asked, bare

ATEN = torch.ops.aten

Parts: TypeAlias = tuple[Tensor | None, ...]
"""Of slopes g, of x and of w, or of x, w and b, where they are needed."""


def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return ``F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)``.

    ``x``: ``(n, channels, …)``, normalised over all axes but the channels; ``weight`` and ``bias``: ``(channels,)``.
    """
    misfits = any(part is not None and part.shape != x.shape[1:2] for part in (weight, bias))
    if misfits or x.numel() <= x.shape[1] or not _has_numbers(x):  # PyTorch says what is wrong
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    clear = bare(x, weight, bias)
    mapped = not clear and _is_mapped_alone()
    if (clear or mapped) and (ONCE.get() or not torch.is_grad_enabled()):
        return torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)[0]
    if clear:
        out: Tensor = _OfChannels.apply(x, weight, bias, eps)
        return out
    if mapped:
        return _of_all(batch_norm_of_tasks, x, weight, bias, eps)
    return _by_means(x, weight, bias, eps, _of_channels(x.ndim))


def batch_norm_of_tasks(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return the same of each task's x ``(B, n, channels, …)``, with weights ``(channels,)`` or ``(B, channels)``."""
    weight, bias = (None if p is None else together(p.expand(len(x), p.shape[-1])) for p in (weight, bias))
    return apart(batch_norm(as_channels(x), weight, bias, eps), len(x))  # of which every one has its own statistics


def as_channels(x: Tensor) -> Tensor:
    """Return ``(B, n, channels, …)`` as ``(n, B · channels, …)``."""
    # of one task the view is taken that keeps the strides of axes of size 1, by which a convolution chooses its layout
    return x.squeeze(0) if len(x) == 1 else x.transpose(0, 1).flatten(1, 2)


def apart(out: Tensor, tasks: int) -> Tensor:
    """Return ``(n, B · channels, …)`` as ``(B, n, channels, …)``."""
    return out.unsqueeze(0) if tasks == 1 else out.unflatten(1, (tasks, -1)).transpose(0, 1)


def together(part: Tensor) -> Tensor:
    """Return ``(B, channels, …)`` as ``(B · channels, …)``."""
    return part.squeeze(0) if len(part) == 1 else part.flatten(0, 1)


def instance_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return ``F.instance_norm(x, weight=weight, bias=bias, eps=eps)`` of x ``(n, channels, …)``."""
    if x.shape[2:].numel() <= 1 or not x.numel():
        return F.instance_norm(x, weight=weight, bias=bias, eps=eps)
    weight, bias = (None if part is None else part.repeat(len(x)) for part in (weight, bias))
    return batch_norm(x.reshape(1, -1, *x.shape[2:]), weight, bias, eps).view(x.shape)


def layer_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return ``F.layer_norm(x, shape, weight, bias, eps)``: normalised over the last axes, which are of that shape.

    Weights may have axes in front, such as that of tasks, which are then the first ones of x.
    """
    last = len(shape)
    own = max((part.ndim - last for part in (weight, bias) if part is not None), default=0)
    if own:
        full = (*x.shape[:own], *shape)
        weight, bias = (p if p is None or p.shape == full else p.expand(full) for p in (weight, bias))
    axes = _of_examples(x.ndim, last, own)
    clear, twice = bare(x, weight, bias), torch.is_grad_enabled() and not ONCE.get()
    if clear and twice and _has_numbers(x):
        if x.is_cuda and torch.is_autocast_enabled("cuda"):  # which casts it so
            x = x.float()
            weight, bias = (part if part is None else part.float() for part in (weight, bias))
        out: Tensor = _OfExamples.apply(x, weight, bias, eps, axes)
        return out
    if own:
        normal = torch.layer_norm(x, shape, None, None, eps) if clear else layer_norm(x, shape, None, None, eps)
        return axes.scaled(normal, weight, bias)
    mapped = not clear and _is_mapped_alone()
    if mapped and twice:
        return _of_all(layer_norm, x, shape, weight, bias, eps)
    misfits = x.shape[x.ndim - last :] != tuple(shape)
    if clear or mapped or misfits or not _has_numbers(x):
        return torch.layer_norm(x, shape, weight, bias, eps, torch.backends.cudnn.enabled)
    return _by_means(x, weight, bias, eps, axes)


def _has_numbers(x: Tensor) -> bool:
    return x.is_floating_point() and not x.is_meta


def _is_mapped_alone() -> bool:
    """Return whether ``vmap`` is the only transform of functions that goes on."""
    active = functorch.get_interpreter_stack()
    return bool(active) and all(one.key() == functorch.TransformType.Vmap for one in active)


def _of_all(of_tasks: Callable[..., Tensor], *given: Any) -> Tensor:
    """Return what a function of all tasks' x and the rest is inside of ``vmap``, where it sees one task.

    So what is differentiated outside is the function, not what ``vmap`` makes of PyTorch's own.
    """
    here = functorch.peek_interpreter_stack()
    level, tasks = here.level(), functorch.CVmapInterpreterPtr(here).batchSize()
    with temporarily_pop_interpreter_stack():
        x, *rest = (_opened(part, level) if isinstance(part, Tensor) else part for part in given)
        x = x if functorch.maybe_get_level(given[0]) == level else x.expand(tasks, *x.shape)
        return functorch._add_batch_dim(of_tasks(x, *rest), 0, level)


def _opened(part: Tensor, level: int) -> Tensor:
    whole, axis = functorch._unwrap_batched(part, level)
    return whole if axis is None else whole.movedim(axis, 0)


class _Axes(NamedTuple):
    """Along which axes there are means, and along which others, or the same, weights stay the same."""

    means: tuple[int, ...]
    sums: tuple[int, ...]

    def facing(self, part: Tensor, x: Tensor) -> Tensor:
        """Give weights the axes of x."""
        return part.view([1 if axis in self.sums else size for axis, size in enumerate(x.shape)])

    def scaled(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return w · x + b."""
        x = x if weight is None else x * self.facing(weight, x)
        return x if bias is None else x + self.facing(bias, x)

    def summed(self, x: Tensor) -> Tensor:
        """Return what comes back to weights from x."""
        return x.sum(self.sums) if self.sums else x


@functools.cache
def _of_channels(ndim: int) -> _Axes:
    others = tuple(axis for axis in range(ndim) if axis != 1)
    return _Axes(others, others)


@functools.cache
def _of_examples(ndim: int, last: int, own: int) -> _Axes:
    return _Axes(tuple(range(ndim - last, ndim)), tuple(range(own, ndim - last)))


def _by_means(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, axes: _Axes) -> Tensor:
    """Return w · x̂ + b from operations that take tangents and axes of ``vmap`` along, as do `_slopes_by_means`."""
    variance, mean = torch.var_mean(x, axes.means, correction=0, keepdim=True)
    return axes.scaled((x - mean) * torch.rsqrt(variance + eps), weight, bias)


def _slopes_by_means(g: Tensor, x: Tensor, weight: Tensor | None, eps: float, axes: _Axes) -> tuple[Tensor, ...]:
    """Return r · P (w · g), Σ x̂ · g and Σ g."""
    variance, mean = torch.var_mean(x, axes.means, correction=0, keepdim=True)
    scale = torch.rsqrt(variance + eps)
    normalised = (x - mean) * scale
    slopes = g if weight is None else g * axes.facing(weight, x)
    along = (normalised * slopes).mean(axes.means, keepdim=True)
    back = (slopes - slopes.mean(axes.means, keepdim=True) - normalised * along) * scale
    return back, axes.summed(normalised * g), axes.summed(g)


def _differentiable(
    towards: Parts, g: Tensor, x: Tensor, weight: Tensor | None, needed: Sequence[bool], eps: float, axes: _Axes
) -> Parts:
    """Return the slopes for g, x and w of slopes by means, which can be differentiated as often as one likes."""
    with torch.enable_grad():
        # views, since g may have come from x, and a slope of x itself would go through g as well
        g, x, weight = g.view_as(g), x.view_as(x), None if weight is None else weight.view_as(weight)
        pairs = zip(_slopes_by_means(g, x, weight, eps, axes), towards)
    given = [(slope, way) for slope, way in pairs if way is not None and slope.requires_grad]
    moved = [part for part, wanted in zip((g, x, weight), needed) if part is not None and wanted]
    if not (given and moved):
        return None, None, None
    slopes, ways = zip(*given)
    found = iter(torch.autograd.grad(slopes, moved, ways, create_graph=torch.is_grad_enabled(), allow_unused=True))
    return tuple(next(found) if wanted else None for wanted in needed)


def _where(needed: Sequence[bool], parts: Sequence[Tensor | None]) -> Parts:
    return tuple(part if wanted else None for part, wanted in zip(parts, needed))


class _OfChannels(torch.autograd.Function):
    """w · x̂ + b, with one w for each channel, over which there are means."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, *rest: Any) -> Tensor:  # type: ignore[override]
        bias, ctx.eps = rest
        out, mean, scale = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, ctx.eps)
        ctx.save_for_backward(x, weight, mean, scale)
        return out

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        (g,), (x, weight, mean, scale), needed = slopes, ctx.saved_tensors, asked(ctx, slopes[0].numel() >= LARGE)[:3]
        if not bare(g):
            found = _where(needed, _slopes_by_means(g, x, weight, ctx.eps, _of_channels(x.ndim)))
        elif torch.is_grad_enabled():
            found = _SlopesOfChannels.apply(g, x, weight, mean, scale, ctx.eps, needed)
        else:
            found = _where(needed, _slopes_of_channels(g, _Normal(x, weight, mean, scale), needed))
        return *found, None


class _SlopesOfChannels(torch.autograd.Function):
    """(w · r · P g, Σ x̂ · g, Σ g): what comes back to x, w and b."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor | None, *rest: Any) -> Any:  # type: ignore[override]
        mean, scale, ctx.eps, needed = rest
        back, *sums = _slopes_of_channels(g, _Normal(x, weight, mean, scale), (needed[0], True, True))
        ctx.save_for_backward(g, x, weight, mean, scale, *sums)
        ctx.set_materialize_grads(False)
        return _where(needed, (back, *sums))

    @staticmethod
    def backward(ctx: Any, *towards: Tensor | None) -> Any:
        g, x, weight, mean, scale, *sums = ctx.saved_tensors
        needed = asked(ctx, g.numel() >= LARGE)[:3]
        if torch.is_grad_enabled() or not bare(*towards):
            found = _differentiable(towards, g, x, weight, needed, ctx.eps, _of_channels(x.ndim))
        else:
            found = _second_of_channels(towards, g, _Normal(x, weight, mean, scale), sums, needed)
        return *found, None, None, None, None


class _Normal(NamedTuple):
    """What a forward pass keeps; ``scale`` is r."""

    x: Tensor
    weight: Tensor | None
    mean: Tensor
    scale: Tensor


def _slopes_of_channels(g: Tensor, of: _Normal, needed: Sequence[bool]) -> tuple[Tensor, ...]:
    """Return w · r · P g and the sums of g, where they are needed."""
    x, weight, mean, scale = of
    # on a GPU, the sums come only where there is a weight; its eps would count with statistics of its own only
    weight = torch.ones_like(mean) if weight is None else weight
    found: tuple[Tensor, ...] = ATEN.native_batch_norm_backward(
        g, x, weight, None, None, mean, scale, True, 0.0, needed
    )
    return found


def _second_of_channels(
    towards: Parts, g: Tensor, of: _Normal, sums: Sequence[Tensor], needed: Sequence[bool]
) -> Parts:
    """Return the slopes for g, x and w of ⟨h, w · r · P g⟩ + ⟨to_w, Σ x̂ · g⟩ + ⟨to_b, Σ g⟩.

    Each is a sum of x̂, h and g, weighed by channel, once the means over the channels are known: those of g, h, x̂ · g,
    x̂ · h and g · h, of which the first derivative has those of g.
    """
    x, weight, mean, scale = of
    h, to_w, to_b = towards
    needs_g, needs_x, needs_w = needed
    count = x.numel() / x.shape[1]
    along = torch.zeros_like(mean) if to_w is None else to_w
    constant = torch.zeros_like(mean) if to_b is None else to_b
    g_along, g_mean = (each / count for each in sums)
    if h is None:
        of_g = scale * along
        to_g = _weighed(of, along, constant) if needs_g else None
        to_x = _weighed(of, -of_g * g_along, -of_g * g_mean, (g, of_g)) if needs_x else None
        return to_g, to_x, None
    own = scale if weight is None else scale * weight
    h_along, h_mean = (each / count for each in _slopes_of_channels(h, of, (False, True, True))[1:])
    along = torch.addcmul(along, own, h_along, value=-1)
    constant = torch.addcmul(constant, own, h_mean, value=-1)
    # mean(g · h) in one pass: what comes back to the weight of numbers that are normalised already
    unit = _Normal(g, None, torch.zeros_like(mean), torch.ones_like(mean))
    both = _slopes_of_channels(h, unit, (False, True, False))[1] / count
    both = scale * both.addcmul_(g_mean, h_mean, value=-1).addcmul_(g_along, h_along, value=-1)  # mean(h · r · P g)
    of_g, of_h = scale * along, -scale * own * g_along
    of_x = -own * both - of_g * g_along - of_h * h_along
    to_g = _weighed(of, along, constant, (h, own)) if needs_g else None
    to_x = _weighed(of, of_x, -of_g * g_mean - of_h * h_mean, (h, of_h), (g, of_g)) if needs_x else None
    return to_g, to_x, both * count if needs_w else None


def _weighed(of: _Normal, along: Tensor, constant: Tensor, *others: tuple[Tensor, Tensor]) -> Tensor:
    """Return along · x̂ + constant + Σ weight · part, with one number for each channel."""
    axes, slope = _of_channels(of.x.ndim), along * of.scale
    start = torch.addcmul(constant, slope, of.mean, value=-1)
    found = torch.addcmul(axes.facing(start, of.x), of.x, axes.facing(slope, of.x))
    for part, weight in others:
        found.addcmul_(part, axes.facing(weight, of.x))
    return found


class _OfExamples(torch.autograd.Function):
    """w · x̂ + b, with one w for each of the numbers of an example, over which there are means."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, *rest: Any) -> Tensor:  # type: ignore[override]
        bias, ctx.eps, ctx.axes = rest
        shape = x.shape[ctx.axes.means[0] :]
        own = any(part is not None and part.ndim > len(shape) for part in (weight, bias))
        given = (None, None) if own else (weight, bias)  # PyTorch knows no weights with more axes
        out, mean, scale = torch.native_layer_norm(x, shape, *given, ctx.eps)
        ctx.save_for_backward(x, weight, bias, mean, scale, out if own else None)
        return ctx.axes.scaled(out, weight, bias) if own else out

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        (g,), (x, weight, *_), needed = slopes, ctx.saved_tensors, asked(ctx, slopes[0].numel() >= LARGE)[:3]
        if not bare(g):
            found = _where(needed, _slopes_by_means(g, x, weight, ctx.eps, ctx.axes))
        elif torch.is_grad_enabled():
            found = _SlopesOfExamples.apply(g, *ctx.saved_tensors, ctx.eps, ctx.axes, needed)
        else:
            found = _slopes_of_examples(g, ctx.saved_tensors, ctx.axes, needed)
        return *found, None, None


class _SlopesOfExamples(torch.autograd.Function):
    """(r · P (w · g), Σ x̂ · g, Σ g): what comes back to x, w and b."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor | None, *rest: Any) -> Any:  # type: ignore[override]
        bias, mean, scale, normalised, ctx.eps, ctx.axes, needed = rest
        ctx.save_for_backward(g, x, weight, mean, scale, normalised)
        ctx.set_materialize_grads(False)
        return _slopes_of_examples(g, (x, weight, bias, mean, scale, normalised), ctx.axes, needed)

    @staticmethod
    def backward(ctx: Any, *towards: Tensor | None) -> Any:
        g, x, weight, mean, scale, normalised = ctx.saved_tensors
        needed = asked(ctx, g.numel() >= LARGE)[:3]
        if torch.is_grad_enabled() or not bare(*towards):
            found = _differentiable(towards, g, x, weight, needed, ctx.eps, ctx.axes)
        else:
            of = _Normal(x, weight, mean, scale)
            found = _second_of_examples(towards, g, of, normalised, ctx.axes, needed)
        return *found, *(None,) * 7


def _slopes_of_examples(g: Tensor, kept: tuple[Any, ...], axes: _Axes, needed: Sequence[bool]) -> Parts:
    x, weight, bias, mean, scale, normalised = kept
    if normalised is None:  # else weights have more axes than PyTorch knows of
        shape = x.shape[axes.means[0] :]
        found: Parts = ATEN.native_layer_norm_backward(g, x, shape, mean, scale, weight, bias, needed)
        return found
    to_x, to_w, to_b = needed
    return (
        _back(_times(g, weight, axes), _Normal(x, weight, mean, scale), axes) if to_x else None,
        axes.summed(g * normalised) if to_w else None,
        axes.summed(g) if to_b else None,
    )


def _back(slopes: Tensor, of: _Normal, axes: _Axes) -> Tensor:
    """Return r · P of slopes, of which each example has its own."""
    given = of.x, of.x.shape[axes.means[0] :], of.mean, of.scale, None, None, [True, False, False]
    found: Tensor = ATEN.native_layer_norm_backward(slopes.to(of.x.dtype), *given)[0]
    return found


def _times(slopes: Tensor, weight: Tensor | None, axes: _Axes) -> Tensor:
    return slopes if weight is None else slopes * axes.facing(weight, slopes)


def _second_of_examples(
    towards: Parts, g: Tensor, of: _Normal, normalised: Tensor | None, axes: _Axes, needed: Sequence[bool]
) -> Parts:
    """Return the slopes for g, x and w of ⟨h, r · P (w · g)⟩ + ⟨to_w, Σ x̂ · g⟩ + ⟨to_b, Σ g⟩."""
    x, weight, mean, scale = of
    h, to_w, to_b = towards
    needs_g, needs_x, needs_w = needed

    def mean_of(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).mean(axes.means, keepdim=True)

    of_g = of_x = of_w = None
    if normalised is None:
        reads = (needs_x and h is not None) or (needs_g and to_w is not None)
        normalised = (x - mean) * scale if reads else x
    if h is not None:
        way = _back(h, of, axes)
        of_g = _times(way, weight, axes) if needs_g else None
        of_w = axes.summed(g * way) if needs_w else None
        if needs_x:
            slopes = _times(g, weight, axes)
            back = _back(slopes, of, axes)
            of_x = normalised * mean_of(h, back)
            of_x.addcmul_(way, mean_of(normalised, slopes)).addcmul_(back, mean_of(normalised, h)).mul_(-scale)
    if to_w is not None:
        ways = axes.facing(to_w, x)
        of_g = _added(of_g, normalised * ways) if needs_g else None
        of_x = _added(of_x, _back(g * ways, of, axes)) if needs_x else None
    if to_b is not None and needs_g:
        of_g = _added(of_g, axes.facing(to_b, x).expand(g.shape))
    return of_g, of_x, of_w


def _added(one: Tensor | None, other: Tensor) -> Tensor:
    return other if one is None else one + other


class _Batch(nn.modules.batchnorm._BatchNorm):
    def forward(self, input: Tensor) -> Tensor:
        if self.running_mean is not None:
            return super().forward(input)
        self._check_input_dim(input)
        return batch_norm(input, self.weight, self.bias, self.eps)


class _Instance(nn.modules.instancenorm._InstanceNorm):
    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        if self.running_mean is not None:
            return super()._apply_instance_norm(input)
        return instance_norm(input, self.weight, self.bias, self.eps)


class _Layer(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


#: Layers of PyTorch, and those that stand in for them.
STAND_INS: dict[type[nn.Module], type[nn.Module]] = {
    kind: type(kind.__name__, (ours, kind), {"__module__": __name__})
    for ours, kinds in (
        (_Batch, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)),
        (_Instance, (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)),
        (_Layer, (nn.LayerNorm,)),
    )
    for kind in kinds
}


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training or running_mean is not None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return batch_norm(input, weight, bias, eps)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats or running_mean is not None:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return instance_norm(input, weight, bias, eps)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return layer_norm(input, normalized_shape, weight, bias, eps)


#: Functions of PyTorch, and those that stand in for them.
FUNCTIONS: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
}
#: The functions of autograd that are made here.
OWN = (_OfChannels, _OfExamples)
