"""Changing layers of a copy of a module: put others in their place, or put something behind them."""

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from headstart.forward.python_state import copied

#: Modules of PyTorch that read the weights of the layers inside them, which so cannot be changed.
_SEALED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.Transformer)


def replaced(module: nn.Module, make: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    """Return a copy of ``module`` with layers replaced.

    Args:
        module: it is not changed; the copy has tensors of its own.
        make: ``(path, layer of the copy) -> what takes its place, or None``; not asked about layers inside one that was
            replaced, or inside PyTorch's attention and transformers. A layer in two places is replaced once.
    """
    body = copied(module)
    made: dict[nn.Module, nn.Module] = {}

    def replace_inside(path: str, layer: nn.Module) -> None:
        for name, child in list(layer._modules.items()):
            if child is None or isinstance(layer, _SEALED) or isinstance(child, _SEALED):
                continue
            here = f"{path}.{name}".lstrip(".")
            new = made[child] if child in made else make(here, child)
            if new is None:
                replace_inside(here, child)
            else:
                layer._modules[name] = made[child] = made[new] = new

    whole = make("", body)
    if whole is None:
        replace_inside("", body)
    return body if whole is None else whole


def followed(module: nn.Module, make: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    """Return a copy of ``module`` in which ``make(path, layer)`` comes behind each layer that it is not None for.

    The layer's parameters are then called ``path.layer.…``, and those of what follows it ``path.after.…``, so name
    patterns such as ``"head"`` still hold.
    """

    def pair(path: str, layer: nn.Module) -> nn.Module | None:
        after = make(path, layer)
        return None if after is None else nn.Sequential(OrderedDict(layer=layer, after=after))

    return replaced(module, pair)
