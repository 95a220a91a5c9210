"""A search space around `conv4`: the same four blocks, in which the convolution is yet to be chosen."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from headstart.errors import unknown_name
from headstart.forward.mixture import Mixture, Skip
from headstart.models.conv4 import Downsample, Filters, Norm, four_blocks, normalisation

#: Those that fit every block, and those that need as many channels as there are filters.
_NAMES = ("conv3", "conv5", "pointwise", "separable3", "separable5", "average", "skip")


def searchable4(
    inputs: Sequence[int],
    ways: int | None,
    *,
    filters: Filters = 64,
    downsample: Downsample = "pool",
    norm: Norm = "batch",
    candidates: Sequence[str] | None = None,
) -> nn.Sequential:
    """Return `conv4` with a `Mixture` in place of each convolution; `headstart.derive` makes the choice.

    Each candidate but ``skip`` ends in a normalisation layer of its own, so that they are mixed at one scale; ReLU and
    pooling come behind the mixture. In every block there are

    - ``conv3``, ``conv5``, ``pointwise``: a 3×3 (as in `conv4`), 5×5 or 1×1 convolution;
    - ``separable3``, ``separable5``: each channel by itself, then 1×1 (Howard et al. 2017, arXiv:1704.04861);
    - from the second block on: ``average``, a 3×3 mean of each channel, and with ``downsample="pool"``, ``skip``.

    Args:
        inputs: the shape of an image, ``(channels, height, width)``.
        ways: number of classes; ``None`` leaves the head out, for an embedding.
        filters, downsample, norm: as in `conv4`; whatever is chosen has the stride.
        candidates: the names to choose from, by default all; those that do not fit a block are left out there.

    References: Liu, Simonyan, Yang 2018, arXiv:1806.09055, for the relaxation; the candidates are our own selection.

    >>> import torch
    >>> searchable4((1, 28, 28), ways=5, filters=8)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 5])
    """

    for name in candidates or ():
        if name not in _NAMES:
            raise unknown_name("candidate", name, _NAMES)

    stride = 2 if downsample == "stride" else 1

    def mixture(channels: int) -> dict[str, nn.Module]:
        def conv(size: int, stride: int = stride) -> nn.Module:
            return nn.Conv2d(channels, filters, size, stride, padding=size // 2)

        def separable(size: int) -> nn.Module:
            depthwise = nn.Conv2d(channels, channels, size, stride, padding=size // 2, groups=channels, bias=False)
            return nn.Sequential(OrderedDict[str, nn.Module](depthwise=depthwise, pointwise=conv(1, 1)))

        layers = {"conv3": conv(3), "conv5": conv(5), "pointwise": conv(1)}
        layers |= {"separable3": separable(3), "separable5": separable(5)}
        if channels == filters:
            layers["average"] = nn.AvgPool2d(3, stride, padding=1)
        found: dict[str, nn.Module] = {
            name: nn.Sequential(OrderedDict(layer=layer, norm=normalisation(norm, filters)))
            for name, layer in layers.items()
        }
        if channels == filters and stride == 1:
            found["skip"] = Skip()
        names = found if candidates is None else candidates
        return {"mixture": Mixture({name: found[name] for name in names if name in found})}

    return four_blocks("searchable4", inputs, ways, filters, downsample, mixture)
