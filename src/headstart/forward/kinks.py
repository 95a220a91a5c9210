"""Functions that are linear between kinks, ReLU and the maximum of pixels, without the zeros of their derivatives.

Their derivative in direction g depends on x only in where the kinks are, so its own derivative in x is zero. PyTorch
makes that zero, as large as the feature map, and adds it: two passes of five for each layer of a second-order gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from headstart.core.process import watched
from headstart.forward.batch_norm import plain

ATEN = torch.ops.aten
Linear: TypeAlias = Callable[..., Tensor]
"""``(slopes, *kept) -> slopes``, linear in the slopes."""

#: From so many numbers on, passes over them take longer than calls of Python.
LARGE = 2**14


class Kinked(NamedTuple):
    """A function that is linear between kinks."""

    there: Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]]
    """``x -> the function's value, and what says where the kinks are``."""
    back: Linear
    """From slopes of the value to those of x."""
    forth: Linear
    """The other way: the transpose of ``back``."""

    def __call__(self, x: Tensor) -> Tensor:
        found: Tensor = _Kinked.apply(x, self)
        return found


def pays(x: Tensor) -> bool:
    """Return whether a derivative in x may be asked for, and by PyTorch's own functions alone."""
    return torch.is_grad_enabled() and x.requires_grad and plain(x)


class _Kinked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Kinked) -> Tensor:  # type: ignore[override]
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
    def forward(ctx: Any, slopes: Tensor, one: Linear, other: Linear, *kept: Tensor) -> Tensor:  # type: ignore[override]
        ctx.pair = one, other
        ctx.save_for_backward(*kept)
        return one(slopes, *kept)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        (one, other), kept = ctx.pair, ctx.saved_tensors
        return _along(slopes[0], other, one, kept), None, None, *(None for _ in kept)


def _along(slopes: Tensor, one: Linear, other: Linear, kept: tuple[Tensor, ...]) -> Tensor:
    if not plain(slopes):
        return one(slopes, *kept)
    found: Tensor = _Along.apply(slopes, one, other, *kept)
    return found


def _positive(slopes: Tensor, value: Tensor) -> Tensor:
    return ATEN.threshold_backward(slopes, value, 0)


def _relu(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    value = torch.relu(x)
    return value, (value,)


_RELU = Kinked(_relu, _positive, _positive)


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0)."""
    return _RELU(x) if pays(x) else torch.relu(x)


def leaky_relu(x: Tensor, slope: float) -> Tensor:
    """Return x where it is positive, and ``slope`` of it elsewhere."""

    def there(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return torch.nn.functional.leaky_relu(x, slope), (x,)

    def both(slopes: Tensor, x: Tensor) -> Tensor:
        return ATEN.leaky_relu_backward(slopes, x, slope, False)

    return Kinked(there, both, both)(x) if pays(x) else there(x)[0]


class MaxPool(nn.MaxPool2d):
    """Stands in for PyTorch's own.

    Where nobody asks for a derivative, the maximum of 2 × 2 pixels takes a tenth of the time on a CPU: PyTorch also
    notes where each one was, pixel by pixel.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the maxima ``(*, C, H', W')`` of ``(*, C, H, W)``."""
        if input.dim() == 4 and not self.return_indices and input.numel() >= LARGE and pays(input):
            return self._kinked()(input)
        other = torch.is_grad_enabled() or input.device.type != "cpu" or watched() or not _is_halving(self)
        if other or input.dim() not in (3, 4) or not input.numel():  # what PyTorch refuses is refused
            return super().forward(input)
        height, width = (size // 2 * 2 for size in input.shape[-2:])
        # rows first: what is left of two of them lies beside each other
        rows = torch.maximum(input[..., 0:height:2, :width], input[..., 1:height:2, :width])
        return torch.maximum(rows[..., 0::2], rows[..., 1::2])

    def _kinked(self) -> Kinked:
        pair = [
            [own] if isinstance(own, int) else list(own)
            for own in (self.kernel_size, self.stride, self.padding, self.dilation)
        ]

        def there(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            value, places = ATEN.max_pool2d_with_indices(x, *pair, self.ceil_mode)
            return value, (x, places)

        def back(slopes: Tensor, x: Tensor, places: Tensor) -> Tensor:
            return ATEN.max_pool2d_with_indices_backward(slopes, x, *pair, self.ceil_mode, places)

        return Kinked(there, back, lambda slopes, x, places: _at(slopes, places))


def _at(slopes: Tensor, places: Tensor) -> Tensor:
    """Return the slopes ``(n, C, H', W')`` of ``(n, C, H, W)`` at those places, with their order in memory."""
    if not places.is_contiguous(memory_format=torch.channels_last):
        return slopes.flatten(2).gather(2, places.flatten(2)).view(places.shape)
    slopes, places = slopes.permute(0, 2, 3, 1), places.permute(0, 2, 3, 1)
    return slopes.flatten(1, 2).gather(1, places.flatten(1, 2)).view(places.shape).permute(0, 3, 1, 2)


def _is_halving(layer: nn.MaxPool2d) -> bool:
    given = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    plain = all(own in (size, (size, size)) for own, size in zip(given, (2, 2, 0, 1)))
    return plain and not layer.ceil_mode and not layer.return_indices
