"""The residual network of few-shot learning."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from headstart.errors import ShapeError, UsageError
from headstart.forward.over_tasks import Composed
from headstart.models.conv4 import Filters, Norm, image_shape, normalisation

#: The slope of the leaky ReLUs below zero.
SLOPE = 0.1


def resnet12(
    inputs: Sequence[int],
    ways: int | None,
    *,
    widths: Sequence[Filters] = (64, 160, 320, 640),
    norm: Norm = "batch",
    pooled: bool = True,
) -> nn.Sequential:
    """Return ResNet-12: four residual blocks of three 3×3 convolutions, the mean over places, and a linear ``head``.

    A block is ``pool(leaky(residual(x) + shortcut(x)))``: convolution and normalisation three times with a leaky ReLU
    of slope 0.1 between them, beside a 1×1 convolution and normalisation; then the 2×2 maximum.

    Args:
        inputs: the shape of an image, ``(channels, height, width)``.
        ways: number of classes; ``None`` leaves the head out, for an embedding.
        widths: channels of the four blocks; (64, 160, 320, 640) in Lee et al., (64, 128, 256, 512) in Oreshkin et al.
        norm: what normalises behind each convolution: ``"batch"``, ``"instance"``, ``"layer"``, ``"group"`` (8 channels
            a group, or all) or ``"none"``.
        pooled: whether the mean over places is taken; Lee et al. leave it out, and keep all values of each place.

    References: Oreshkin, Rodriguez, Lacoste 2018, arXiv:1805.10123; Lee, Maji, Ravichandran, Soatto 2019,
    arXiv:1904.03758. Their networks also drop features in training (DropBlock); this one does not.

    >>> import torch
    >>> resnet12((3, 32, 32), ways=5, widths=(4, 8, 8, 8))(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 5])
    """
    channels, height, width = image_shape(inputs, "resnet12")
    if len(widths) != 4 or min(widths) < 1 or (ways is not None and ways < 1):
        raise UsageError(f"resnet12 needs four positive widths and positive ways, got {tuple(widths)}, ways {ways}")
    if min(height, width) < 16:
        raise ShapeError(f"resnet12 halves an image four times, so it needs 16 x 16 or more; got {tuple(inputs)}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, filters in enumerate(widths, start=1):
        layers[f"block{index}"] = ResidualBlock(channels, filters, norm)
        channels = filters
    if pooled:
        layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    if ways is not None:
        places = 1 if pooled else (height // 16) * (width // 16)
        layers["head"] = nn.Linear(channels * places, ways)
    return nn.Sequential(layers)


class ResidualBlock(Composed):
    """Three convolutions beside a shortcut, then the 2×2 maximum: ``(n, channels, h, w) -> (n, filters, h/2, w/2)``."""

    def __init__(self, channels: int, filters: int, norm: Norm) -> None:
        super().__init__()
        residual: OrderedDict[str, nn.Module] = OrderedDict()
        for index in range(1, 4):
            residual[f"conv{index}"] = _convolution(channels if index == 1 else filters, filters, 3, norm)
            residual[f"norm{index}"] = normalisation(norm, filters)
            if index < 3:
                residual[f"leaky{index}"] = nn.LeakyReLU(SLOPE)
        self.residual = nn.Sequential(residual)
        shortcut = OrderedDict(conv=_convolution(channels, filters, 1, norm), norm=normalisation(norm, filters))
        self.shortcut = nn.Sequential(shortcut)
        self.leaky = nn.LeakyReLU(SLOPE)
        self.pool = nn.MaxPool2d(2)

    def compose(self, run: Callable[[str, Tensor], Tensor], x: Tensor) -> Tensor:
        # the largest of four is taken before the leaky ReLU, which keeps their order
        return run("leaky", run("pool", run("residual", x) + run("shortcut", x)))


def _convolution(channels: int, filters: int, size: int, norm: Norm) -> nn.Conv2d:
    # a bias would be taken out again by the normalisation behind it
    layer = nn.Conv2d(channels, filters, size, padding=size // 2, bias=norm == "none")
    nn.init.kaiming_normal_(layer.weight, a=SLOPE, mode="fan_out", nonlinearity="leaky_relu")
    return layer
