"""Images of tasks made another shape, colour or polarity: on their device, as they are sampled."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from headstart.types import Batch, Episodes, Tasks

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, by which Pillow makes grey of colour


def resized(x: Tensor, channels: int, size: int) -> Tensor:
    """Return images ``(*, C, H, W)`` of 1 or 3 channels as ``(*, channels, size, size)``, scaled with antialiasing.

    Grey becomes colour by repetition, colour grey by its luma.

    >>> resized(torch.full((2, 5, 1, 8, 8), 0.5), 3, 4).shape
    torch.Size([2, 5, 3, 4, 4])
    """
    if x.shape[-3] == 3 and channels == 1:
        x = (x * torch.tensor(_LUMA, dtype=x.dtype, device=x.device).view(3, 1, 1)).sum(-3, keepdim=True)
    if x.shape[-2:] != (size, size):
        flat = x.reshape(-1, *x.shape[-3:])
        x = interpolate(flat, (size, size), mode="bilinear", antialias=True).view(*x.shape[:-2], size, size)
    return x.expand(*x.shape[:-3], channels, size, size).contiguous()


def light_on_dark(x: Tensor) -> Tensor:
    """Return images ``(*, C, H, W)`` in [0, 1], those that are dark on light as negatives: their border tells."""
    border = torch.cat([x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]], -1)
    return torch.where(border.mean((-2, -1))[..., None, None, None] > 0.5, 1 - x, x)


def converted(tasks: Tasks, channels: int, size: int, light: bool = False) -> Tasks:
    """Return the tasks with images of so many channels and pixels; where ``light``, all are light on dark."""
    turned = light and not tasks.details.get("light_on_dark", False)
    if tasks.input_shape == (channels, size, size) and not turned:
        return tasks

    def batch(kept: Batch) -> Batch:
        x = resized(kept.x, channels, size)
        return kept._replace(x=light_on_dark(x) if turned else x)

    return tasks._replace(
        sample=lambda split, numbers: Episodes(*map(batch, tasks.sample(split, numbers))),
        input_shape=(channels, size, size),
        details={**tasks.details, "light_on_dark": tasks.details.get("light_on_dark", False) or light},
    )
