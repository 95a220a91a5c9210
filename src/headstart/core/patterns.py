"""Choosing parameters by name pattern, module type or predicate."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeAlias

from torch import nn

from headstart.core.roles import Role
from headstart.errors import UnknownNameError


class Leaf(NamedTuple):
    """One trainable tensor, as a rule sees it before there are values."""

    name: str
    shape: tuple[int, ...]
    module: type[nn.Module]
    """The type of the module that holds it."""
    role: Role = "initial"
    """Whether it is in θ, in M, or each task's own."""


What: TypeAlias = str | type[nn.Module] | Callable[[Leaf], bool]
"""A name pattern (``"head"``, ``"block*.weight"``), a module type, or a predicate on `Leaf`."""


def matches(name: str, pattern: str) -> bool:
    """Whether ``name`` fits the shell ``pattern``, or lies inside a module whose name does.

    >>> matches("head.weight", "head"), matches("head.weight", "*.bias"), matches("heads.weight", "head")
    (True, False, False)
    """
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def choose(leaves: Mapping[str, Leaf], *what: What) -> frozenset[str]:
    """Return the names of the leaves that any of ``what`` chooses; each must choose at least one."""
    names: set[str] = set()
    for one in what:
        hit = {leaf.name for leaf in leaves.values() if _chosen(leaf, one)}
        if not hit:
            raise _nothing(leaves, one)
        names |= hit
    return frozenset(names)


def _chosen(leaf: Leaf, what: What) -> bool:
    if isinstance(what, str):
        return matches(leaf.name, what)
    if isinstance(what, type):
        return issubclass(leaf.module, what)
    return what(leaf)


def _nothing(leaves: Mapping[str, Leaf], what: What) -> UnknownNameError:
    if isinstance(what, str):
        near = get_close_matches(what, _prefixes(leaves), n=3, cutoff=0.3)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        return UnknownNameError(f"no parameter matches {what!r}{hint}. There are: {', '.join(leaves)}")
    if isinstance(what, type):
        kinds = sorted({leaf.module.__name__ for leaf in leaves.values()})
        return UnknownNameError(
            f"no parameter belongs to a {what.__name__}. There are parameters of: {', '.join(kinds)}"
        )
    return UnknownNameError(f"the predicate chooses none of the parameters {', '.join(leaves)}")


def _prefixes(leaves: Mapping[str, Leaf]) -> list[str]:
    found: dict[str, None] = {}
    for name in leaves:
        parts = name.split(".")
        found.update(dict.fromkeys(".".join(parts[:end]) for end in range(1, len(parts) + 1)))
    return list(found)
