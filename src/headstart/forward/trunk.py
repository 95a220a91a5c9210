"""A module cut in two: the layers before anything that moves, and the rest.

What does not move gives the same features at every inner step, so it need only be computed once for the support set and
once for the query set: all of the body where only a head moves, the layers below the first adapter of a frozen network.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from headstart.core.parameters import Context, Stepped, Structural
from headstart.errors import check_known
from headstart.forward.over_tasks import entangled

#: Layers that draw random numbers at each pass.
_RANDOM = (nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)

#: What a subclass of `nn.Sequential` must not have of its own to be run layer by layer.
_FLOW = ("forward", "__call__", "__iter__")


#: A layer of a sequence, or of a sequence inside it, behind its path.
_Layer: TypeAlias = tuple[tuple[str, ...], nn.Module]


def split(module: nn.Module, moving: Collection[str]) -> tuple[nn.Sequential, nn.Sequential] | None:
    """Return ``(trunk, rest)`` with ``rest(trunk(x)) = module(x)``, where the trunk holds nothing that moves.

    The trunk is the longest run of first layers, also inside nested sequences, that hold none of ``moving`` and give
    the same features at every pass: a layer that draws random numbers, or is `Stepped`, ends it. Layers of your own
    kind, and normalisation by the batch, are taken to be functions of their inputs and tensors; name running
    statistics that are updated in ``moving``.

    Args:
        module: it is not changed. The two parts share its layers, and every tensor keeps its name.
        moving: names of parameters or buffers that differ from one pass to the next.

    Returns:
        The two parts (`torch.func.functional_call` wants each part's own names only), or None where the module is not
        an `nn.Sequential`, or has a ``forward`` or hooks of its own, or no layer with parameters is in the trunk.

    Raises:
        UnknownNameError: the module has no tensor of that name.

    >>> net = nn.Sequential(OrderedDict(body=nn.Linear(3, 8), relu=nn.ReLU(), head=nn.Linear(8, 2)))
    >>> trunk, rest = split(net, {"head.weight", "head.bias"})
    >>> list(trunk.state_dict()), list(rest.state_dict())
    (['body.weight', 'body.bias'], ['head.weight', 'head.bias'])
    """
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors |= module.named_buffers(remove_duplicate=False)
    for name in moving:
        check_known("tensor", name, tensors)
    if not _is_plain(module) or entangled(module):
        return None
    layers = _flattened(module)
    # a tied tensor moves under each of its names
    moved = {id(tensors[name]) for name in moving}
    drops = any(isinstance(layer, _DropoutNd) and layer.p > 0 for layer in module.modules())
    changing = (i for i, layer in enumerate(layers) if _tensors([layer]) & moved or _changes(layer, drops))
    count = next(changing, len(layers))
    # and it is handed in by one name, its first, so both of its layers must be on one side
    while _tensors(layers[:count]) & _tensors(layers[count:]):
        count -= 1
    if not any(True for _, layer in layers[:count] for _ in layer.parameters()):
        return None
    return _assembled(layers[:count]), _assembled(layers[count:])


def _is_plain(module: nn.Module) -> bool:
    """Whether a module runs its children one after the other and does nothing else."""
    return (
        isinstance(module, nn.Sequential)
        # these say what the tensors inside them are
        and not isinstance(module, (Structural, Context, Stepped))
        and all(getattr(type(module), name) is getattr(nn.Sequential, name) for name in _FLOW)
        and "forward" not in vars(module)
        and not any((module._parameters, module._buffers, module._forward_hooks, module._forward_pre_hooks))
        and not any((module._backward_hooks, module._backward_pre_hooks))
    )


def _flattened(module: nn.Module, path: tuple[str, ...] = ()) -> list[_Layer]:
    layers: list[_Layer] = []
    for name, child in module._modules.items():  # named_children leaves out those that are used again
        if child is not None:
            here = (*path, name)
            layers += _flattened(child, here) if _is_plain(child) else [(here, child)]
    return layers


def _changes(layer: _Layer, drops: bool) -> bool:
    """Whether a layer gives other features at every pass; if any ``drops``, all do: masks go by their number."""
    for inside in layer[1].modules():
        dropout = getattr(inside, "dropout", 0.0)
        if isinstance(inside, (*_RANDOM, Stepped)) or (drops and isinstance(inside, _DropoutNd)):
            return True
        if isinstance(dropout, (int, float)) and dropout > 0:
            return True
    return any(map(is_lazy, layer[1].parameters()))


def _tensors(layers: Sequence[_Layer]) -> set[int]:
    return {id(t) for _, layer in layers for t in (*layer.parameters(), *layer.buffers())}


def _assembled(layers: Sequence[_Layer]) -> nn.Sequential:
    inside: dict[str, list[_Layer]] = {}
    for (name, *below), layer in layers:
        inside.setdefault(name, []).append((tuple(below), layer))
    children = {name: _assembled(own) if own[0][0] else own[0][1] for name, own in inside.items()}
    return nn.Sequential(OrderedDict(children))
