"""Trees of tensors: arithmetic on `Params`, dictionaries with the same names, and taking any tree apart."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from headstart.types import Params

Value = TypeVar("Value")


def subtract(left: Params, right: Params) -> Params:
    """Return ``left − right``; names that ``right`` lacks are kept."""
    return {name: value - right[name] if name in right else value for name, value in left.items()}


def zeros_like(params: Params) -> Params:
    """Return zeros of the same shapes."""
    return {name: torch.zeros_like(value) for name, value in params.items()}


def detached(params: Params) -> Params:
    """Return copies without history that require gradients."""
    return {name: value.detach().clone().requires_grad_() for name, value in params.items()}


def per_task_norm(params: Params) -> Tensor:
    """Return the Euclidean norm ``(B,)`` of each task's tensors taken together; its gradient at zero is zero."""
    return safe_sqrt(torch.stack([value.reshape(len(value), -1).square().sum(1) for value in params.values()]).sum(0))


def safe_sqrt(square: Tensor) -> Tensor:
    """Return the square root with derivative 0, not infinity, at 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)


def over_tasks(values: Tensor, like: Tensor) -> Tensor:
    """Reshape ``(B, *first axes)``, such as ``(B,)``, so that it multiplies ``like`` ``(B, *shape)`` task by task."""
    return values.view(*values.shape, *(1,) * (like.ndim - values.ndim))


def within(params: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    """Return the values named ``prefix.…``, by the rest of their names.

    >>> sorted(within({"rate.a.b": 1, "rate": 2, "rates.c": 3}, "rate"))
    ['a.b']
    """
    return {name[len(prefix) + 1 :]: value for name, value in params.items() if name.startswith(f"{prefix}.")}


def prefixed(prefix: str, params: Params) -> Params:
    """Return the tensors under the names ``prefix.…``; `within` undoes it."""
    return {f"{prefix}.{name}": value for name, value in params.items()}


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
    """Return a tree with ``function`` of its tensors in their places: a ``tree_map`` that is many times faster."""
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
