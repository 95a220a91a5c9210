"""Layers that work on all tasks at once, each with weights of every task or with shared ones.

``torch.func.vmap`` costs a dispatch and a few views for each operation, and as many again in each derivative. Here a
linear layer is one batched product, a convolution is one grouped convolution or one batched product of unfolded
patches, and batch normalisation of B tasks is that of B times as many channels. A chain (``nn.Sequential``) runs layer
by layer; layers that are not known here are mapped by ``vmap``, one by one.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules import module as of_all
from torch.nn.modules.batchnorm import _BatchNorm

from headstart.core import tree
from headstart.forward import derivatives
from headstart.forward.batch_norm import TaskStatistics, normalised
from headstart.forward.dropout import TaskDropout
from headstart.forward.max_pool import MaxPool
from headstart.forward.normalisation import (
    STAND_INS,
    apart,
    as_channels,
    batch_norm_of_tasks,
    layer_norm,
    together,
)
from headstart.forward.python_state import reached
from headstart.forward.task_map import vmap
from headstart.types import Params

Value = TypeVar("Value")
Layer: TypeAlias = Callable[[Any, Params, Tensor], Tensor]
"""``(layer, its tensors by name, x (B, n, *features)) -> (B, n, *outputs)``; tensors have a task axis or are shared."""

#: What works on each number, or on each example's last axes, as it stands.
ELEMENTWISE = (
    nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.Hardtanh, nn.ReLU6, nn.Mish,
    nn.Identity,
)  # fmt: skip

#: Up to so many patch values a task and layer, a convolution of every task's own weights unfolds its input on a GPU.
UNFOLDED = 2**22


class Composed(nn.Module):
    """A module that runs layers of its own, with elementwise operations on what they return in between.

    `compose` says so once for one task and for all tasks at once. It has no tensors besides those of its layers.
    """

    def compose(self, run: Callable[[str, Tensor], Tensor], x: Tensor) -> Tensor:
        """Return the outputs for ``x``, where ``run(name, x)`` is what the layer of that name makes of it."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs ``(n, *outputs)`` for ``(n, *features)``."""
        return self.compose(lambda name, x: self.get_submodule(name)(x), x)


def chained(module: nn.Module) -> bool:
    """Return whether a module is a chain of layers that does nothing but run them in turn."""
    return type(module) is nn.Sequential and not hooked(module)


def native(module: nn.Module) -> bool:
    """Return whether each layer of a chain is of a type that is written here for all tasks, so that none is mapped."""
    return all(
        native(layer) if chained(layer) or _composed(layer) else type(layer) in _KNOWN and not hooked(layer)
        for layer in module._modules.values()
        if layer is not None
    )


def _composed(module: nn.Module) -> bool:
    known = isinstance(module, Composed) and type(module).forward is Composed.forward
    return known and not (hooked(module) or module._parameters or module._buffers)


def entangled(module: nn.Module) -> bool:
    """Return whether a layer holds another one that is no part of it, so that it cannot run without the whole."""
    return any(
        isinstance(held, nn.Module) and held is not layer for layer in module.modules() for held in reached(layer)
    )


def tied(module: nn.Module) -> bool:
    """Return whether two layers share a tensor, which then goes by one of its names only."""
    return any(
        len(list(named())) < len(list(named(remove_duplicate=False)))
        for named in (module.named_parameters, module.named_buffers)
    )


def over_tasks(module: nn.Module, params: Params, shapes: Mapping[str, tuple[int, ...]], x: Tensor) -> Tensor:
    """Return the outputs ``(B, n, *outputs)`` of a chain of layers.

    Args:
        module: `chained`, on any device; its own tensors are not used.
        params: its tensors by name, each of its shape in ``shapes``, or with a task axis in front.
        shapes: the shape of each parameter without a task axis; what is not named here is shared.
        x: ``(B, n, *features)``.
    """
    own, bare = _by_layer(params), _by_layer(shapes)
    for name, layer in _in_order(module, x):
        x = _one(layer, own.get(name, {}), bare.get(name, {}), x)
    return x


def _in_order(module: nn.Module, x: Tensor) -> list[tuple[str, Any]]:
    """Return the layers of a chain; a ReLU comes after a maximum of pixels, which is the same, and has fewer to do."""
    layers: list[Any] = [*module._modules.items()]  # named_children would skip a layer that comes twice
    if not isinstance(x, Tensor) or x.ndim != 5:
        return layers
    for place, ((_, one), (_, other)) in enumerate([*pairwise(layers)]):
        maximum = type(other) in (nn.MaxPool2d, MaxPool) and not other.return_indices
        if maximum and type(one) is nn.ReLU and not (hooked(one) or hooked(other)):
            layers[place : place + 2] = layers[place + 1], layers[place]
    return layers


def _by_layer(named: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """Return what is named ``layer.…`` by layer, and by the rest of its name."""
    found: dict[str, dict[str, Value]] = {}
    for name, value in named.items():
        layer, _, rest = name.partition(".")
        found.setdefault(layer, {})[rest] = value
    return found


def _one(layer: nn.Module, own: Params, shapes: Mapping[str, tuple[int, ...]], x: Tensor) -> Tensor:
    """Run one layer; arguments as for `over_tasks`, by their names in the layer."""
    if chained(layer):
        return over_tasks(layer, own, shapes, x)
    if isinstance(layer, Composed) and _composed(layer):

        def run(name: str, x: Tensor) -> Tensor:
            return _one(layer.get_submodule(name), tree.within(own, name), tree.within(shapes, name), x)

        return layer.compose(run, x)
    known = None if hooked(layer) else _KNOWN.get(type(layer))
    if known is not None and known[0](layer, x):
        return known[1](layer, own, x)
    return _mapped(layer, own, shapes, x)


def _mapped(layer: nn.Module, own: Params, shapes: Mapping[str, tuple[int, ...]], x: Tensor) -> Tensor:
    dims = {name: 0 if name in shapes and value.ndim > len(shapes[name]) else None for name, value in own.items()}
    return vmap(lambda p, x: functional_call(layer, p, (x,)), (dims, 0), (own, x))


def _linear(layer: nn.Linear, own: Params, x: Tensor) -> Tensor:
    weight, bias = own["weight"], own.get("bias")
    if weight.ndim == 2 and (bias is None or bias.ndim == 1):
        return F.linear(x, weight, bias)
    if len(x) == 1:  # a product of two matrices is faster than a batch of one
        alone = weight if weight.ndim == 2 else weight.squeeze(0)
        return F.linear(x.squeeze(0), alone, bias if bias is None else bias.view(-1)).unsqueeze(0)
    flat = x if x.ndim == 3 else x.flatten(1, -2) if x.ndim > 3 else x.unsqueeze(1)
    weight = weight if weight.ndim == 3 else weight.expand(len(x), *weight.shape)
    bias = None if bias is None else bias.expand(len(x), weight.shape[1])
    out = derivatives.bilinear(derivatives.Linear(), flat, weight, bias)
    return out if x.ndim == 3 else out.view(*x.shape[:-1], out.shape[-1])


def _convolution(layer: nn.Conv2d, own: Params, x: Tensor) -> Tensor:
    weight, bias = own["weight"], own.get("bias")
    options = (layer.stride, layer.padding, layer.dilation)
    if weight.ndim == 4:
        # examples first: what batch normalisation wants next, and what grouped convolutions leave
        flat = x.squeeze(0) if len(x) == 1 else x.transpose(0, 1).flatten(0, 1)
        out = _convolved(flat, weight, None if bias is None or bias.ndim > 1 else bias, *options, layer.groups)
        out = out.unsqueeze(0) if len(x) == 1 else out.unflatten(0, (x.shape[1], x.shape[0])).transpose(0, 1)
        return out if bias is None or bias.ndim == 1 else out + bias[:, None, :, None, None]
    bias = None if bias is None else bias.expand(len(x), weight.shape[1])
    if x.is_cuda and layer.groups == 1 and isinstance(layer.padding, tuple):
        if prod(x.shape[1:]) * prod(layer.kernel_size) // prod(layer.stride) <= UNFOLDED:
            return _unfolded(layer, weight, bias, x)
    # each task is a group of channels
    kernels, offsets = together(weight), None if bias is None else together(bias)
    return apart(_convolved(as_channels(x), kernels, offsets, *options, len(x) * layer.groups), len(x))


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    if isinstance(options[1], str):  # "same", which may be more on one side
        return F.conv2d(x, weight, bias, *options)
    return derivatives.bilinear(derivatives.Convolution(*options), x, weight, bias)


def _unfolded(layer: nn.Conv2d, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    size = [
        (x.shape[3 + axis] + 2 * int(layer.padding[axis]) - layer.dilation[axis] * (layer.kernel_size[axis] - 1) - 1)
        // layer.stride[axis]
        + 1
        for axis in (0, 1)
    ]
    padding = tuple(int(width) for width in layer.padding)
    patches = F.unfold(x.flatten(0, 1), layer.kernel_size, layer.dilation, padding, layer.stride)
    # (B, channels · kernel, n · places)
    patches = patches.unflatten(0, x.shape[:2]).transpose(1, 2).flatten(2)
    kernels = weight.flatten(2)
    out = torch.bmm(kernels, patches) if bias is None else torch.baddbmm(bias.unsqueeze(-1), kernels, patches)
    return out.unflatten(2, (x.shape[1], *size)).transpose(1, 2)


def _batch_norm(layer: _BatchNorm, own: Params, x: Tensor) -> Tensor:
    return batch_norm_of_tasks(x, own.get("weight"), own.get("bias"), layer.eps)


def _task_statistics(layer: TaskStatistics, own: Params, x: Tensor) -> Tensor:
    shape = (-1, 1, x.shape[2], *(1,) * (x.ndim - 3))
    statistics = own["running_mean"], own["running_var"]
    return normalised(x, *statistics, own.get("weight"), own.get("bias"), shape, layer.eps)


def _layer_norm(layer: nn.LayerNorm, own: Params, x: Tensor) -> Tensor:
    return layer_norm(x, layer.normalized_shape, own.get("weight"), own.get("bias"), layer.eps)


def _group_norm(layer: nn.GroupNorm, own: Params, x: Tensor) -> Tensor:
    out = F.group_norm(x.flatten(0, 1), layer.num_groups, eps=layer.eps).unflatten(0, x.shape[:2])
    for part, join in ((own.get("weight"), torch.mul), (own.get("bias"), torch.add)):
        if part is not None:  # (channels,) or (B, channels)
            out = join(out, part.view(-1, 1, x.shape[2], *(1,) * (x.ndim - 3)))
    return out


def _each_example(layer: Callable[[Tensor], Tensor], own: Params, x: Tensor) -> Tensor:
    """Run a layer without weights that takes every example by itself."""
    tasks, examples = x.shape[:2]
    if tasks == 1:
        return layer(x.squeeze(0)).unsqueeze(0)
    if x.stride(0) < x.stride(1):  # as grouped convolutions leave it: examples first
        return layer(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (examples, tasks)).transpose(0, 1)
    return layer(x.flatten(0, 1)).unflatten(0, (tasks, examples))


def _as_it_is(layer: Callable[[Tensor], Tensor], own: Params, x: Tensor) -> Tensor:
    return layer(x)


def _relu(layer: nn.ReLU, own: Params, x: Tensor) -> Tensor:
    return derivatives.relu(x) if x.numel() >= derivatives.LARGE else layer(x)


def _leaky_relu(layer: nn.LeakyReLU, own: Params, x: Tensor) -> Tensor:
    return derivatives.leaky_relu(x, layer.negative_slope) if x.numel() >= derivatives.LARGE else layer(x)


def _any(layer: Any, x: Tensor) -> bool:
    return True


def _images(layer: Any, x: Tensor) -> bool:
    return x.ndim == 5


def _by_batch(axes: tuple[int, ...], layer: _BatchNorm, x: Tensor) -> bool:
    return x.ndim in axes and layer.running_mean is None and x.shape[2] == layer.num_features


#: The layers that are written here, each with when it may be; where there are fewer weights than channels, PyTorch
#: spreads one over several.
_KNOWN: dict[type[nn.Module], tuple[Callable[[Any, Tensor], bool], Layer]] = {
    **{kind: (_any, _as_it_is) for kind in ELEMENTWISE},
    nn.ReLU: (_any, _relu),
    nn.LeakyReLU: (_any, _leaky_relu),
    nn.Linear: (_any, _linear),
    nn.Conv2d: (lambda layer, x: x.ndim == 5 and layer.padding_mode == "zeros", _convolution),
    **{
        kind: (partial(_by_batch, axes), _batch_norm)
        for kind, axes in ((nn.BatchNorm1d, (3, 4)), (nn.BatchNorm2d, (5,)), (nn.BatchNorm3d, (6,)))
    },
    TaskStatistics: (lambda layer, x: x.ndim >= 3 and not layer.training, _task_statistics),
    nn.LayerNorm: (_any, _layer_norm),
    nn.GroupNorm: (lambda layer, x: x.ndim >= 3 and x.shape[2] == layer.num_channels, _group_norm),
    nn.MaxPool2d: (_images, _each_example),
    MaxPool: (_images, _each_example),
    nn.AvgPool2d: (_images, _each_example),
    nn.AdaptiveAvgPool2d: (_images, _each_example),
    nn.Flatten: (lambda layer, x: layer.start_dim >= 1, _each_example),
    TaskDropout: (lambda layer, x: not layer.training, _as_it_is),
}


_KNOWN |= {STAND_INS[kind]: how for kind, how in _KNOWN.items() if kind in STAND_INS}


def hooked(module: nn.Module) -> bool:
    """Return whether somebody changed what calling this very module does, or any module at all."""
    own = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return bool(own or of_all._global_forward_hooks or of_all._global_forward_pre_hooks)
