"""What a module is made of, as far as meta-learning cares."""

from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from headstart.core.parameters import Context, Structural, role_of

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


class Reading(NamedTuple):
    """The layers of a module by what they are, each by its path."""

    head: str
    """The last layer with weights of its own, or what is called ``head``; empty where nothing stands before it.

    What stands before it may be frozen, or have no weights at all.
    """
    linear_head: bool
    """Whether the head is an ``nn.Linear`` with weights of its own in θ: not tied to others, frozen or in M."""
    layers: tuple[str, ...]
    """Linear and convolutional layers, the head included."""
    norms: tuple[str, ...]
    attention: tuple[str, ...]
    embeddings: tuple[str, ...]
    recurrent: tuple[str, ...]
    structural: tuple[str, ...]
    """What is in M already."""
    context: tuple[str, ...]
    """What is each task's own already."""
    tied: tuple[str, ...]
    """Parameters that stand in more than one place, by the name of the first."""
    size: int
    """The number of trainable values."""
    values: int
    """The number of all values."""


def read(module: nn.Module) -> Reading:
    """Read a module; it is not run.

    >>> from headstart import conv4
    >>> found = read(conv4((1, 28, 28), ways=5, filters=8))
    >>> found.head, len(found.layers), len(found.norms), found.size
    ('head', 5, 4, 1941)
    """
    head = _head(module)

    def paths(*kinds: type[nn.Module]) -> tuple[str, ...]:
        return tuple(name or "the top" for name, layer in module.named_modules() if isinstance(layer, kinds))

    places: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    return Reading(
        head,
        bool(head) and isinstance(module.get_submodule(head), nn.Linear) and not why_not_own(module, head),
        paths(nn.Linear, _ConvNd),
        paths(*NORMS),
        paths(nn.MultiheadAttention),
        paths(nn.Embedding),
        paths(nn.RNNBase),
        paths(Structural),
        paths(Context),
        tuple(names[0] for names in places.values() if len(names) > 1),
        sum(p.numel() for p in module.parameters() if p.requires_grad),
        sum(p.numel() for p in module.parameters()),
    )


def _head(module: nn.Module) -> str:
    own = [
        name
        for name, layer in module.named_modules()
        if name
        and any(
            p.requires_grad and role_of(module, path) == "initial"
            for path, p in layer.named_parameters(prefix=name, recurse=False)
        )
    ]
    first = next((name for name, layer in module.named_modules() if not any(layer.children())), "")
    if not own or own == [first]:
        return ""
    return "head" if any(name.partition(".")[0] == "head" for name in own) else own[-1]


def why_not_own(module: nn.Module, path: str) -> str:
    """Return why a layer's weights are not its own to be set for each task; nothing where they are."""
    layer = module.get_submodule(path)
    for name, parameter in layer.named_parameters(prefix=path, recurse=False):
        if not parameter.requires_grad:
            return f"{name!r} is frozen"
        if role_of(module, name) != "initial":
            return f"{name!r} is not in θ, but inside a Structural or Context module"
        places = [other for other, it in module.named_parameters(remove_duplicate=False) if it is parameter]
        if len(places) > 1:
            return f"{name!r} is tied: {' and '.join(places)} are one"
    return ""
