"""Weights from headstart's PyTorch networks into Keras's of the same layers, and back: conv4, mlp, chains like them.

Layers with weights are paired in their order. Where Keras flattens an image with its channels last, and PyTorch with
them first, the inputs of the layer behind are put in the other's order.
"""

from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from headstart.errors import ShapeError
from headstart.integrations.keras.backend import keras, tf

Grid: TypeAlias = tuple[int, ...]

#: What a layer's arrays are called in PyTorch and in Keras.
KERNEL = {"weight": "kernel", "bias": "bias"}
NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


class Pair(NamedTuple):
    """One array in both."""

    tensor: Tensor
    variable: Any
    grid: Grid | None
    """Of a kernel, ``(out, in, *grid)`` in PyTorch and ``(*grid, in, out)`` in Keras; ``None`` for a vector."""

    def to_keras(self) -> None:
        """Set Keras's."""
        value = self.tensor.detach().cpu().numpy()
        if self.grid is not None:
            value = value.reshape(len(value), -1, *self.grid).transpose(2, 3, 1, 0)
        self.variable.assign(value.reshape(self.variable.shape))

    def to_torch(self) -> None:
        """Set PyTorch's."""
        value = tf.convert_to_tensor(self.variable).numpy()
        if self.grid is not None:
            value = value.reshape(*self.grid, -1, value.shape[-1]).transpose(3, 2, 0, 1)
        with torch.no_grad():
            self.tensor.copy_(torch.tensor(value.reshape(self.tensor.shape)))


def to_keras(module: nn.Module, model: Any) -> Any:
    """Set the weights of a Keras model to those of a PyTorch network of the same layers, and return the model.

    Raises:
        ShapeError: they do not have the same layers; nothing is set then.
    """
    for pair in _pairs(module, model):
        pair.to_keras()
    return model


def to_torch(model: Any, module: nn.Module) -> nn.Module:
    """Set the weights of a PyTorch network to those of a Keras model of the same layers, and return the network.

    Raises:
        ShapeError: they do not have the same layers; nothing is set then.
    """
    for pair in _pairs(module, model):
        pair.to_torch()
    return module


def _pairs(module: nn.Module, model: Any) -> list[Pair]:
    ours = {name: one for name, one in module.named_modules() if one._parameters or one._buffers}
    theirs = _with_weights(model)
    if len(ours) != len(theirs):
        raise ShapeError(
            f"{len(ours)} layers of the PyTorch network have weights ({', '.join(ours)}), and {len(theirs)} of the "
            f"Keras model ({', '.join(layer.name for layer, _ in theirs)}); make both of the same layers in the same "
            "order"
        )
    found = []
    for (name, one), (layer, flattened) in zip(ours.items(), theirs):
        own, other = _of_torch(one), _of_keras(layer)
        if own is None or own != other:
            raise ShapeError(
                f"{name!r} of the PyTorch network is {own or type(one).__name__}, and {layer.name!r} of the Keras "
                f"model {other or type(layer).__name__}; make both of the same layers, among convolution, linear, and "
                "batch and group normalisation"
            )
        grid = tuple(one.kernel_size) if isinstance(one, nn.Conv2d) else flattened
        names = NORM if "normalisation" in own else KERNEL
        found += [
            Pair(tensor, getattr(layer, theirs), grid if theirs == "kernel" else None)
            for ours, theirs in names.items()
            if (tensor := getattr(one, ours, None)) is not None
        ]
    return found


def _with_weights(model: Any) -> list[tuple[Any, Grid]]:
    """Return the layers with weights, and the heights and widths of the images whose flattened pixels they take."""
    found, grid = [], (1, 1)
    for layer in model._flatten_layers(recursive=True, include_self=False):
        if isinstance(layer, keras.layers.Flatten):
            shape = layer.input.shape
            grid = tuple(shape[1:3]) if len(shape) == 4 and layer.data_format == "channels_last" else (1, 1)
        elif layer.weights and not [*layer._flatten_layers(include_self=False)]:
            found.append((layer, grid))
            grid = (1, 1)
    return found


def _of_torch(one: nn.Module) -> str | None:
    """Return what a layer does, and how many arrays of which size it does it with."""
    bias = f"{', no bias' if getattr(one, 'bias', None) is None else ''}"
    if isinstance(one, nn.Linear):
        return f"linear, {one.in_features} to {one.out_features}{bias}"
    if isinstance(one, nn.Conv2d) and one.groups == 1 and one.dilation == (1, 1):
        return f"convolution, {one.in_channels} to {one.out_channels}, {one.kernel_size}, stride {one.stride}{bias}"
    if isinstance(one, nn.BatchNorm2d) and one.affine:
        return f"batch normalisation of {one.num_features} channels, epsilon {one.eps:g}"
    if isinstance(one, nn.InstanceNorm2d) and one.affine and not one.track_running_stats:
        return _groups(one.num_features, one.num_features, one.eps)
    if isinstance(one, nn.GroupNorm) and one.affine:
        return _groups(one.num_channels, one.num_groups, one.eps)
    return None


def _of_keras(layer: Any) -> str | None:
    bias = ", no bias" if getattr(layer, "bias", None) is None else ""
    if isinstance(layer, keras.layers.Dense):
        return f"linear, {layer.kernel.shape[0]} to {layer.units}{bias}"
    if isinstance(layer, keras.layers.Conv2D) and layer.groups == 1 and layer.dilation_rate == (1, 1):
        taken, given = layer.kernel.shape[2:]
        return f"convolution, {taken} to {given}, {layer.kernel_size}, stride {layer.strides}{bias}"
    if isinstance(layer, keras.layers.BatchNormalization) and layer.scale and layer.center:
        return f"batch normalisation of {layer.gamma.shape[0]} channels, epsilon {layer.epsilon:g}"
    if isinstance(layer, keras.layers.GroupNormalization) and layer.scale and layer.center:
        channels = layer.gamma.shape[0]
        return _groups(channels, channels if layer.groups == -1 else layer.groups, layer.epsilon)
    return None


def _groups(channels: int, groups: int, epsilon: float) -> str:
    return f"group normalisation of {channels} channels in {groups} groups, epsilon {epsilon:g}"
