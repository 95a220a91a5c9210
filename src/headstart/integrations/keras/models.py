"""headstart's small networks as Keras models, the same functions of the same weights (`weights.to_keras`).

An input's shape is as Keras counts it: images are ``(height, width, channels)``, or ``(channels, height, width)`` where
``keras.config.image_data_format()`` is ``"channels_first"``.
"""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

from headstart.errors import ShapeError, UsageError, check_known, pick
from headstart.integrations.keras.backend import keras
from headstart.models.conv4 import Downsample, Filters, Norm
from headstart.schema import Sizes

#: What PyTorch's normalisation adds to a variance; Keras's own is 1e-3.
EPSILON = 1e-5


def conv4(
    shape: Sequence[int],
    ways: int | None,
    *,
    filters: Filters = 64,
    downsample: Downsample = "pool",
    norm: Norm = "batch",
) -> Any:
    """Return four blocks of 3×3 convolution, normalisation, ReLU and halving, and a dense ``head``.

    Args:
        shape: that of an image, as Keras counts it.
        ways: number of classes; ``None`` leaves the head out, for an embedding.
        filters: channels of every convolution; 64 for Omniglot and 32 for miniImageNet in MAML, 64 in ProtoNet.
        downsample: how a block halves the image: ``"pool"`` (2×2 maximum) or ``"stride"`` (convolution with
            stride 2, as in MAML's Omniglot network: about four times fewer operations).
        norm: what normalises behind each convolution: ``"batch"``, ``"instance"``, ``"layer"``, ``"group"`` (8 channels
            a group, or all) or ``"none"``.

    Raises:
        ShapeError: no image, or one of fewer than 16 × 16 where blocks pool.

    Reference: Vinyals et al. 2016, arXiv:1606.04080; Finn, Abbeel, Levine 2017, arXiv:1703.03400.
    """
    check_known("downsample", downsample, ("pool", "stride"))
    first = keras.config.image_data_format() == "channels_first"
    if len(shape) != 3 or min(shape) < 1:
        order = "channels, height, width" if first else "height, width, channels"
        raise ShapeError(f"conv4 takes images ({order}); got inputs of shape {tuple(shape)}")
    if filters < 1 or (ways is not None and ways < 1):
        raise UsageError(f"conv4 needs positive filters and ways, got filters {filters}, ways {ways}")
    if downsample == "pool" and min(shape[1:] if first else shape[:2]) < 16:
        raise ShapeError(f"conv4 halves an image four times, so it needs 16 x 16 or more; got {tuple(shape)}")
    layers = [keras.Input(tuple(shape))]
    for block in (f"block{index}" for index in range(1, 5)):
        if downsample == "stride":
            # Keras's "same" padding puts all of an even image's on its far sides
            layers.append(keras.layers.ZeroPadding2D(1, name=f"{block}_pad"))
        how = {"strides": 2} if downsample == "stride" else {"padding": "same"}
        layers.append(keras.layers.Conv2D(filters, 3, name=f"{block}_conv", **how))
        layers += _normalisation(norm, filters, 1 if first else -1, f"{block}_norm")
        layers.append(keras.layers.ReLU(name=f"{block}_relu"))
        if downsample == "pool":
            layers.append(keras.layers.MaxPooling2D(2, name=f"{block}_pool"))
    layers.append(keras.layers.Flatten(name="flatten"))
    if ways is not None:
        layers.append(keras.layers.Dense(ways, name="head"))
    return keras.Sequential(layers, name="conv4")


def _normalisation(norm: Norm, filters: int, axis: int, name: str) -> list[Any]:
    """Return the normalisation layer of that name, or none."""
    group = partial(keras.layers.GroupNormalization, axis=axis, epsilon=EPSILON, name=name)
    kinds: dict[str, Any] = {
        # momentum 0: a task's own statistics, where asked for, are those of its support set
        "batch": lambda: [keras.layers.BatchNormalization(axis=axis, momentum=0.0, epsilon=EPSILON, name=name)],
        "instance": lambda: [group(-1)],
        "layer": lambda: [group(1)],
        "group": lambda: [group(filters // 8 if filters % 8 == 0 else 1)],
        "none": list,
    }
    return pick("norm", norm, kinds)()


def mlp(shape: int | Sequence[int], outputs: int | None, *, hidden: Sizes = (40, 40)) -> Any:
    """Return dense layers with ReLU between them; the last one is called ``head``.

    Args:
        shape: number of input values, or the shape of an input, which is flattened.
        outputs: number of output values; ``None`` leaves the head out, for an embedding.
        hidden: widths of the hidden layers; (40, 40) is the sine network of Finn, Abbeel, Levine 2017.
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if min([prod(shape), *hidden, 1 if outputs is None else outputs]) < 1:
        raise UsageError(f"mlp needs positive widths, got inputs {shape}, hidden {tuple(hidden)}, outputs {outputs}")
    layers = [keras.Input(shape)]
    if len(shape) > 1:
        layers.append(keras.layers.Flatten(name="flatten"))
    for index, width in enumerate(hidden, start=1):
        layers.append(keras.layers.Dense(width, activation="relu", name=f"hidden{index}"))
    if outputs is not None:
        layers.append(keras.layers.Dense(outputs, name="head"))
    return keras.Sequential(layers, name="mlp")
