"""Trees of tensors as an ``autograd.Function`` takes them, and the random numbers that a step draws."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import get_device_states, set_device_states

Slopes: TypeAlias = list[Tensor | None]
"""Derivatives with respect to a list of tensors; ``None`` is zero."""


class Packed(NamedTuple):
    """A tree whose tensors have been taken out."""

    tree: Any
    """With ``Tensor`` itself in the place of each tensor."""

    def unpack(self, tensors: Iterable[Tensor]) -> Any:
        """Return the tree with these tensors in it."""
        left = iter(tensors)
        return mapped(lambda _: next(left), self.tree)


def pack(tree: Any) -> tuple[Packed, list[Tensor]]:
    """Take the tensors out of a tree."""
    tensors: list[Tensor] = []

    def out(tensor: Tensor) -> type[Tensor]:
        tensors.append(tensor)
        return Tensor

    return Packed(mapped(out, tree)), tensors


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return a tree with ``function`` of its tensors in their places.

    It is ``tree_map``, which takes many times longer to find out what it is given: a state has few tensors.
    """
    kind = type(tree)
    if isinstance(tree, Tensor) or tree is Tensor:
        return function(tree)
    if tree is None or kind in (int, float, bool, str):
        return tree
    if kind is dict:
        return {name: mapped(function, value) for name, value in tree.items()}
    if kind is list or kind is tuple:
        return kind([mapped(function, value) for value in tree])
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return kind(*[mapped(function, value) for value in tree])
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) or leaf is Tensor else leaf, tree)


def tensors_of(tree: Any) -> list[Tensor]:
    """Return the tensors of a tree."""
    return pack(tree)[1]


def wanted(tree: Any) -> bool:
    """Whether a derivative with respect to any of a tree's tensors is asked for."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_of(tree))


def leaf(value: Any, needed: bool | None = None) -> Any:
    """Return a tensor without history, requiring gradients where they are needed and exist; what is none as it is.

    By default they are needed where the tensor itself requires them.
    """
    if not isinstance(value, Tensor):
        return value
    needed = value.requires_grad if needed is None else needed
    return value.detach().requires_grad_(needed and value.is_floating_point())


def slopes_of(
    ends: Iterable[Tensor | GradientEdge | None], slopes: Iterable[Tensor | None], leaves: list[Tensor], **options: bool
) -> Slopes:
    """Return Σ ∂end/∂leaf · slope for each leaf, ``None`` for one that requires no gradient or has no part in it."""
    pairs: list[tuple[Any, Tensor]] = [
        (end, slope) for end, slope in zip(ends, slopes) if slope is not None and _differentiable(end)
    ]
    asked = [one for one in leaves if one.requires_grad]
    if not pairs or not asked:
        return [None] * len(leaves)
    found = iter(torch.autograd.grad([e for e, _ in pairs], asked, [s for _, s in pairs], allow_unused=True, **options))
    return [next(found) if one.requires_grad else None for one in leaves]


def _differentiable(end: Tensor | GradientEdge | None) -> bool:
    return end.requires_grad if isinstance(end, Tensor) else end is not None


def added(total: Slopes, more: Slopes) -> Slopes:
    """Return the sums of two lists of slopes."""
    return [b if a is None else a if b is None else a + b for a, b in zip(total, more)]


class Draws(NamedTuple):
    """Where the generators stand that a module may draw from."""

    cpu: Tensor
    devices: tuple[list[int], list[Tensor]]

    def restore(self) -> None:
        """Let the generators draw again what they drew from here on."""
        torch.set_rng_state(self.cpu)
        set_device_states(*self.devices)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Draws):
            return NotImplemented
        (ids, states), (others, theirs) = self.devices, other.devices
        return torch.equal(self.cpu, other.cpu) and ids == others and all(map(torch.equal, states, theirs))


def draws(tree: Any) -> Draws:
    """Return where the generators of the CPU and of the tensors' devices stand."""
    return Draws(torch.get_rng_state(), get_device_states(*tensors_of(tree)))
