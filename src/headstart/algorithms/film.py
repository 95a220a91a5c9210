"""Feature-wise linear modulation (FiLM): which layers of a module can be scaled and shifted, channel by channel."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from headstart.core.parameters import Leaf, What, choose
from headstart.errors import UsageError
from headstart.forward.surgery import replaced

_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)
#: Where kinds of layers say how many channels they have, and the axis of these.
_COUNTS: tuple[tuple[type[nn.Module], str, int], ...] = (
    (nn.Linear, "out_features", -1),
    (_ConvNd, "out_channels", 1),
    (_BatchNorm, "num_features", 1),
    (_InstanceNorm, "num_features", 1),
    (nn.GroupNorm, "num_channels", 1),
)


class Channels(NamedTuple):
    """The channels of a layer's outputs."""

    count: int
    axis: int
    """Where they are: 1 behind convolutions, −1 (the last) behind linear layers."""


def reachable(module: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that `replaced` can replace, by name, in the order in which the module holds them."""
    found: dict[nn.Module, str] = {}

    def note(path: str, layer: nn.Module) -> None:
        found.setdefault(layer, path)

    replaced(module, note)
    return {path: layer for layer, path in found.items()}


def layers_to_modulate(module: nn.Module, what: What | None = None) -> dict[str, Channels]:
    """Return the layers behind which to modulate, by name, with the channels of their outputs.

    Args:
        module: it is not changed.
        what: names, a type or a predicate that chooses them; by default every linear and convolution layer but the
            last one (the head), or the normalisation behind it, which would undo a scale and a shift in front of it.

    Raises:
        UsageError: the module has no such layer.
        UnknownNameError: ``what`` matches nothing.
    """
    layers = {path: layer for path, layer in reachable(module).items() if not list(layer.children())}
    known = {path: channels for path, layer in layers.items() if (channels := channels_of(layer)) is not None}
    if what is not None:
        leaves = {path: Leaf(path, (found.count,), type(layers[path])) for path, found in known.items()}
        chosen = choose(leaves, what)
        return {path: known[path] for path in known if path in chosen}
    order = [path for path, layer in layers.items() if not isinstance(layer, nn.Identity)]
    weighted = [path for path in order if isinstance(layers[path], (nn.Linear, _ConvNd))]
    if len(weighted) < 2:
        raise UsageError(
            f"{type(module).__name__} has {len(weighted)} linear or convolution layers that can be changed, so none "
            f"comes before its head; name the layers to modulate with what="
        )
    modulated: dict[str, Channels] = {}
    for path in weighted[:-1]:
        after = order[order.index(path) + 1]
        normalised = isinstance(layers[after], _NORMS) and known.get(after) == known[path]
        modulated[after if normalised else path] = known[path]
    return modulated


def channels_of(layer: nn.Module) -> Channels | None:
    """Return the channels of a layer's outputs, or None for a layer of another kind."""
    for kind, name, axis in _COUNTS:
        if isinstance(layer, kind):
            return Channels(getattr(layer, name), axis)
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        return Channels(layer.normalized_shape[0], -1)
    return None


def film(x: Tensor, scale: Tensor, shift: Tensor, axis: int) -> Tensor:
    """Return ``x · (1 + scale) + shift``, channel by channel.

    Args:
        x: outputs of a layer, ``(n, …)``.
        scale, shift: ``(channels,)``; zeros leave ``x`` as it is.
        axis: of the channels.

    Reference: Perez, Strub, de Vries, Dumoulin, Courville 2017, arXiv:1709.07871.
    """
    if axis == 1:
        shape = (-1, *(1,) * (x.ndim - 2))
        scale, shift = scale.view(shape), shift.view(shape)
    return x * (1 + scale) + shift
