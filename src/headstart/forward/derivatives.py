"""Layers whose second derivatives take few passes over feature maps: products, ReLU and pools.

Second-order MAML differentiates the derivative of every layer, and there PyTorch spends most of the time of a
convolutional network in passes that are not needed. The values are PyTorch's own, with its bits; each layer here is a
function for its values and one for its slopes, which both know their own derivative.

- Linear layers and convolutions: ``⟨g, x ∗ w⟩`` is linear in each of the three. Its derivative in g is the layer
  itself, those in x and w are its slopes; so the derivatives of the slopes are the same two functions again, of other
  arguments, by the products that are fast. PyTorch takes the second derivative in a kernel by a convolution with
  kernels as large as the images, and one group after another; and of a linear layer by a product of two transposed
  matrices. Both are slower.
- ReLU and the maximum of pixels are linear between kinks: their derivative depends on x only in where these are, and so
  has none in x. PyTorch makes that zero, as large as the feature map, and adds it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad

ATEN = torch.ops.aten

Slopes: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of x, w and b, where they are needed."""
Along: TypeAlias = Callable[..., Tensor]
"""``(slopes, *kept) -> slopes``, linear in the slopes."""

#: From so many numbers on, passes over them take longer than calls of Python.
LARGE = 2**14


def plain(*tensors: Tensor | None) -> bool:
    """Return whether tensors are of one type, without what only PyTorch's functions know.

    These are tangents, axes of ``vmap``, autocast, and complex numbers, whose slopes are conjugated.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    if not given:
        return True
    first = given[0]
    if first.is_complex() or first.is_meta or torch.is_autocast_enabled(first.device.type):  # no device "meta" there
        return False
    for tensor in given:
        if tensor.dtype != first.dtype:
            return False
    return bare(*given)


def bare(*tensors: Tensor | None) -> bool:
    """Return whether tensors have no tangents and no axes of ``vmap``, and go through no transform of functions."""
    if torch._C._are_functorch_transforms_active():  # also where none of these tensors goes through them
        return False
    tangents = forward_ad._current_level >= 0
    for tensor in tensors:
        if tensor is None:
            continue
        if is_legacy_batchedtensor(tensor) or (tangents and forward_ad.unpack_dual(tensor).tangent is not None):
            return False
    return True


def asked(ctx: Any, large: bool) -> tuple[bool, ...]:
    """Return for which of its inputs this backward pass asks the derivative of a function.

    ``ctx.needs_input_grad`` says for which some pass may. Whether a leaf is asked for is told by an error, which takes
    a few microseconds, and so is asked where the derivative is ``large`` only; else it is made.
    """
    nodes = (node for node, _ in ctx.next_functions if node is not None)
    return tuple(needed and _is_asked(next(nodes), large) for needed in ctx.needs_input_grad)


def _is_asked(node: Any, large: bool) -> bool:
    if not large and hasattr(node, "variable"):
        return True
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # so it says of a leaf, and where nobody runs the graph
        return True


class Bilinear(Protocol):
    """A function that is linear in x and in w, and adds b: ``x ∗ w + b``."""

    def values(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """Return it."""

    def slopes(self, g: Tensor, x: Tensor, w: Tensor, needed: tuple[bool, ...]) -> Slopes:
        """Return the slopes of x, w and b, as far as needed, for slopes g of the values."""

    def constant(self, b: Tensor, shape: torch.Size) -> Tensor:
        """Return b as values of that shape."""

    def kept(self, x: Tensor, w: Tensor, needed: tuple[bool, ...]) -> tuple[Tensor | None, Tensor | None]:
        """Return x and w, as far as `slopes` reads them where so much is needed."""


class Convolution(NamedTuple):
    """``F.conv2d(x, w, b, *kernel)``."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def values(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.conv2d(x, w, b, *self)

    def slopes(self, g: Tensor, x: Tensor, w: Tensor, needed: tuple[bool, ...]) -> Slopes:
        biases = [w.shape[0]] if needed[2] else None
        still, *moves = [0] * len(self.stride), self.stride, self.padding, self.dilation
        return ATEN.convolution_backward(g, x, w, biases, *moves, False, still, self.groups, needed)

    def constant(self, b: Tensor, shape: torch.Size) -> Tensor:
        return b.view(-1, *(1,) * (len(shape) - 2)).expand(shape)

    def kept(self, x: Tensor, w: Tensor, needed: tuple[bool, ...]) -> tuple[Tensor | None, Tensor | None]:
        return x, w  # of which PyTorch reads the shapes and the order in memory, too


class Linear(NamedTuple):
    """``x wᵀ + b`` of x (B, n, in), w (B, out, in) and b (B, out): a linear layer of B tasks.

    PyTorch's second derivative multiplies a transposed weight by transposed inputs, for which there is no fast way.
    """

    def values(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return torch.bmm(x, w.mT) if b is None else torch.baddbmm(b.unsqueeze(1), x, w.mT)

    def slopes(self, g: Tensor, x: Tensor, w: Tensor, needed: tuple[bool, ...]) -> Slopes:
        to_x, to_w, to_b = needed
        return torch.bmm(g, w) if to_x else None, torch.bmm(g.mT, x) if to_w else None, g.sum(1) if to_b else None

    def constant(self, b: Tensor, shape: torch.Size) -> Tensor:
        return b.unsqueeze(1).expand(shape)

    def kept(self, x: Tensor, w: Tensor, needed: tuple[bool, ...]) -> tuple[Tensor | None, Tensor | None]:
        to_x, to_w, _ = needed
        return x if to_w else None, w if to_x else None


def bilinear(function: Bilinear, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """Return ``x ∗ w + b``, with a faster second derivative."""
    if not torch.is_grad_enabled() or not x.numel() or not plain(x, w, b):
        return function.values(x, w, b)
    out: Tensor = _Values.apply(function, x, w, b)
    return out


def _slopes(function: Bilinear, g: Tensor, x: Any, w: Any, needed: tuple[bool, ...]) -> Slopes:
    if not torch.is_grad_enabled() or not plain(g, x, w):
        return function.slopes(g, x, w, needed)
    found: Slopes = _Slopes.apply(function, g, x, w, needed)
    return found


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Bilinear, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.function = function
        ctx.save_for_backward(*function.kept(x, w, ctx.needs_input_grad[1:]))
        return function.values(x, w, b)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        (g,), (x, w) = slopes, ctx.saved_tensors
        return None, *_slopes(ctx.function, g, x, w, asked(ctx, g.numel() >= LARGE)[1:])


class _Slopes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Bilinear, g: Tensor, x: Tensor, w: Tensor, needed: Any) -> Slopes:  # type: ignore[override]
        ctx.function, ctx.shape = function, g.shape
        _, _, moves_x, moves_w, _ = ctx.needs_input_grad
        read = (moves_x and needed[1]) or (moves_w and needed[0])
        ctx.save_for_backward(g if read else None, *function.kept(x, w, needed))
        ctx.set_materialize_grads(False)
        return function.slopes(g, x, w, needed)

    @staticmethod
    def backward(ctx: Any, *towards: Tensor | None) -> Any:
        """Return the slopes of ⟨g, h ∗ w + x ∗ v + u⟩ for g, x and w."""
        function, (g, x, w), (h, v, u) = ctx.function, ctx.saved_tensors, towards
        _, needs_g, needs_x, needs_w, _ = asked(ctx, ctx.shape.numel() >= LARGE)
        to_g = to_x = to_w = None
        for one, other in ((h, w), (x, v)) if needs_g else ():
            if one is not None and other is not None:
                values = bilinear(function, one, other, u if to_g is None else None)
                to_g = values if to_g is None else to_g + values
        if needs_g and to_g is None and u is not None:
            to_g = function.constant(u, ctx.shape)
        needed = needs_x and v is not None, needs_w and h is not None, False
        if any(needed):
            to_x, to_w, _ = _slopes(function, g, x if h is None else h, w if v is None else v, needed)
        return None, to_g, to_x, to_w, None


class _Kinks(NamedTuple):
    """A function that is linear between kinks."""

    there: Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]]
    """``x -> the function's value, and what says where the kinks are``."""
    back: Along
    """From slopes of the value to those of x."""
    forth: Along
    """The other way: the transpose of ``back``."""

    def __call__(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad and plain(x)):
            return self.there(x)[0]
        found: Tensor = _Kinked.apply(x, self)
        return found


class _Kinked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: _Kinks) -> Tensor:  # type: ignore[override]
        value, kept = function.there(x)
        ctx.function = function
        ctx.save_for_backward(*kept)
        return value

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        kept = tuple(one.detach() for one in ctx.saved_tensors)  # no derivatives flow to them
        return _along(slopes[0], ctx.function.back, ctx.function.forth, kept), None


class _Along(torch.autograd.Function):
    """One of two linear functions, each of which is the other's derivative."""

    @staticmethod
    def forward(ctx: Any, slopes: Tensor, one: Along, other: Along, *kept: Tensor) -> Tensor:  # type: ignore[override]
        ctx.pair = one, other
        ctx.save_for_backward(*kept)
        return one(slopes, *kept)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        (one, other), kept = ctx.pair, ctx.saved_tensors
        return _along(slopes[0], other, one, kept), None, None, *(None for _ in kept)


def _along(slopes: Tensor, one: Along, other: Along, kept: tuple[Tensor, ...]) -> Tensor:
    if not plain(slopes):
        return one(slopes, *kept)
    found: Tensor = _Along.apply(slopes, one, other, *kept)
    return found


def _positive(slopes: Tensor, value: Tensor) -> Tensor:
    return ATEN.threshold_backward(slopes, value, 0)


def _relu(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    value = torch.relu(x)
    return value, (value,)


_RELU = _Kinks(_relu, _positive, _positive)


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0)."""
    return _RELU(x)


def leaky_relu(x: Tensor, slope: float) -> Tensor:
    """Return x where it is positive, and ``slope`` of it elsewhere."""

    def there(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return F.leaky_relu(x, slope), (x,)

    def both(slopes: Tensor, x: Tensor) -> Tensor:
        return ATEN.leaky_relu_backward(slopes, x, slope, False)

    return _Kinks(there, both, both)(x)


def max_pool(x: Tensor, *options: Any) -> Tensor:
    """Return the maxima ``(n, C, H', W')`` of ``(n, C, H, W)``.

    ``options``: size, stride, padding and dilation, each a pair, and whether what is left at the end counts.
    """

    def there(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        value, places = ATEN.max_pool2d_with_indices(x, *options)
        return value, (x, places)

    def back(slopes: Tensor, x: Tensor, places: Tensor) -> Tensor:
        return ATEN.max_pool2d_with_indices_backward(slopes, x, *options, places)

    return _Kinks(there, back, lambda slopes, x, places: _at(slopes, places))(x)


def _at(slopes: Tensor, places: Tensor) -> Tensor:
    """Return the slopes ``(n, C, H', W')`` of ``(n, C, H, W)`` at those places, with their order in memory."""
    if not places.is_contiguous(memory_format=torch.channels_last):
        # of slopes in batches, PyTorch reshapes axes, and does not flatten them
        return slopes.reshape(*places.shape[:2], -1).gather(2, places.flatten(2)).view(places.shape)
    slopes, places = slopes.permute(0, 2, 3, 1), places.permute(0, 2, 3, 1)
    flat = slopes.reshape(len(places), -1, places.shape[3])
    return flat.gather(1, places.flatten(1, 2)).view(places.shape).permute(0, 3, 1, 2)
