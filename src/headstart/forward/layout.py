"""The order in which the numbers of images lie in memory.

On a CPU, convolutions, their derivatives and pooling are up to ten times faster where the channels of a pixel lie
beside each other ("channels last"). It changes nothing but the speed, and rounding.
"""

from collections.abc import Iterable
from math import prod

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from headstart.types import Tree

#: The layers that work on images of a task.
IMAGES = (nn.Conv2d, nn.ConvTranspose2d)


def of_images(kinds: Iterable[type]) -> bool:
    """Return whether a network with weights in layers of these types works on images."""
    return any(issubclass(kind, IMAGES) for kind in kinds)


def channels_last(tensor: Tensor) -> Tensor:
    """Return ``(…, channels, height, width)`` with the channels of a pixel beside each other; as it is off a CPU."""
    if tensor.device.type != "cpu" or tensor.ndim < 4 or _is_last(tensor):
        return tensor
    if tensor.shape[-3] == 1:  # contiguous() would leave the stride of a single channel as it is
        return tensor.squeeze(-3).contiguous().unsqueeze(-1).movedim(-1, -3)
    return tensor.movedim(-3, -1).contiguous().movedim(-1, -3)


def _is_last(tensor: Tensor) -> bool:
    channels, _, width = tensor.shape[-3:]
    return tensor.stride()[-3:] == (1, width * channels, channels)


#: From so many numbers of a task's widest feature map on, a CPU is kept busy by one task.
LARGE = 2**16


def widest(modules: Iterable[nn.Module]) -> float:
    """Return the most numbers that a convolution makes of a pixel: its channels, by the pixels that its stride skips.

    >>> widest([nn.Conv2d(3, 32, 3, stride=2), nn.ReLU()])
    8.0
    """
    made = (
        layer.in_channels if isinstance(layer, nn.ConvTranspose2d) else layer.out_channels / prod(layer.stride)
        for layer in modules
        if isinstance(layer, IMAGES)
    )
    return max(made, default=1.0)


def one_by_one(x: Tree, channels: float) -> bool:
    """Return whether tasks of images (B, n, C, H, W) are better taken in turn: on a CPU, where one fills its caches.

    Together they would need grouped convolutions, which leave the channels of a pixel apart. ``channels`` is `widest`.
    """
    image = next((part for part in tree_leaves(x) if isinstance(part, Tensor) and part.ndim == 5), None)
    if image is None or image.device.type != "cpu":
        return False
    examples, _, height, width = image.shape[1:]
    return examples * height * width * channels >= LARGE
