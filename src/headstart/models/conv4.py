"""The field's standard small image network."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Le
from torch import nn

from headstart.errors import ShapeError, UsageError, check_known, pick

Filters: TypeAlias = Annotated[int, Ge(1), Le(1024)]
Downsample = Literal["pool", "stride"]
Norm = Literal["batch", "instance", "layer", "group", "none"]


def conv4(
    inputs: Sequence[int],
    ways: int | None,
    *,
    filters: Filters = 64,
    downsample: Downsample = "pool",
    norm: Norm = "batch",
) -> nn.Sequential:
    """Return four blocks of 3×3 convolution, normalisation, ReLU and halving, and a linear ``head``.

    Args:
        inputs: the shape of an image, ``(channels, height, width)``.
        ways: number of classes; ``None`` leaves the head out, for an embedding.
        filters: channels of every convolution; 64 for Omniglot and 32 for miniImageNet in MAML, 64 in ProtoNet.
        downsample: how a block halves the image: ``"pool"`` (2×2 maximum) or ``"stride"`` (convolution with
            stride 2, as in MAML's Omniglot network: about four times fewer operations).
        norm: what normalises behind each convolution: ``"batch"``, ``"instance"``, ``"layer"``, ``"group"`` (8 channels
            a group, or all) or ``"none"``.

    Reference: Vinyals et al. 2016, arXiv:1606.04080; Finn, Abbeel, Levine 2017, arXiv:1703.03400.

    >>> import torch
    >>> conv4((1, 28, 28), ways=5, filters=8)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 5])
    """

    def convolution(channels: int) -> dict[str, nn.Module]:
        conv = nn.Conv2d(channels, filters, 3, stride=2 if downsample == "stride" else 1, padding=1)
        return {"conv": conv, "norm": normalisation(norm, filters)}

    return four_blocks("conv4", inputs, ways, filters, downsample, convolution)


def four_blocks(
    model: str,
    inputs: Sequence[int],
    ways: int | None,
    filters: int,
    downsample: Downsample,
    convolution: Callable[[int], dict[str, nn.Module]],
) -> nn.Sequential:
    """Return four blocks of what ``convolution(channels)`` makes, ReLU and halving, and a linear ``head``."""
    channels, height, width = image_shape(inputs, model)
    check_known("downsample", downsample, ("pool", "stride"))
    if filters < 1 or (ways is not None and ways < 1):
        raise UsageError(f"{model} needs positive filters and ways, got filters {filters}, ways {ways}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index in range(1, 5):
        block = OrderedDict(convolution(channels), relu=nn.ReLU())
        if downsample == "pool":
            block["pool"] = nn.MaxPool2d(2)
        height, width = (size // 2 if downsample == "pool" else -(-size // 2) for size in (height, width))
        layers[f"block{index}"] = nn.Sequential(block)
        channels = filters
    if min(height, width) < 1:
        raise ShapeError(f"{model} halves an image four times, so it needs 16 x 16 or more; got {tuple(inputs)}")
    layers["flatten"] = nn.Flatten()
    if ways is not None:
        layers["head"] = nn.Linear(filters * height * width, ways)
    return nn.Sequential(layers)


def image_shape(input_shape: Sequence[int], model: str) -> tuple[int, int, int]:
    """Return ``(channels, height, width)``, or raise `ShapeError`: the ``model`` takes no such inputs."""
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ShapeError(f"{model} takes images (channels, height, width); got inputs of shape {tuple(input_shape)}")
    channels, height, width = input_shape
    return channels, height, width


def normalisation(norm: Norm, filters: int) -> nn.Module:
    """Return the normalisation layer of that name for ``filters`` channels."""
    kinds = {
        # momentum 1: a task's own statistics, where asked for, are those of its support set
        "batch": partial(nn.BatchNorm2d, filters, momentum=1.0),
        "instance": partial(nn.InstanceNorm2d, filters, affine=True),
        "layer": partial(nn.GroupNorm, 1, filters),
        "group": partial(nn.GroupNorm, filters // 8 if filters % 8 == 0 else 1, filters),
        "none": nn.Identity,
    }
    return pick("norm", norm, kinds)()
