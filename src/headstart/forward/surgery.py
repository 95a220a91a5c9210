"""Changing layers of a copy of a module: put others in their place, or put something behind them."""

import copy
from collections import OrderedDict
from collections.abc import Callable

from torch import nn

#: Modules of PyTorch that read the weights of the layers inside them, which so cannot be changed.
_SEALED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.Transformer)


def replaced(module: nn.Module, make: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    """Return a copy of ``module`` with layers replaced.

    Args:
        module: it is not changed; the copy has tensors of its own.
        make: ``(path, layer of the copy) -> what takes its place, or None``; not asked about layers inside one that
            was replaced, nor about those inside PyTorch's attention and transformer layers. A layer that is used in
            two places is replaced once.
    """
    body = copy.deepcopy(module)
    found = make("", body)
    if found is not None or isinstance(body, _SEALED):
        return body if found is None else found
    made: dict[nn.Module, nn.Module] = {}
    closed: list[str] = []
    for path, layer in list(body.named_modules(remove_duplicate=False)):
        if not path or any(path.startswith(f"{above}.") for above in closed):
            continue
        if isinstance(layer, _SEALED):
            closed.append(path)
            continue
        if layer not in made:
            new = make(path, layer)
            if new is None:
                continue
            made[layer] = new
        body.set_submodule(path, made[layer])
        closed.append(path)
    return body


def followed(module: nn.Module, make: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    """Return a copy of ``module`` in which ``make(path, layer)`` comes behind each layer that it is not None for.

    The layer's parameters are then called ``path.layer.…``, and those of what follows it ``path.after.…``, so name
    patterns such as ``"head"`` still hold.
    """

    def pair(path: str, layer: nn.Module) -> nn.Module | None:
        after = make(path, layer)
        return None if after is None else nn.Sequential(OrderedDict(layer=layer, after=after))

    return replaced(module, pair)
