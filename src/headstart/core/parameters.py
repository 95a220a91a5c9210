"""What a module's parameters are to meta-learning, and choosing them by name pattern, module type or predicate.

A parameter is part of θ, unless it lies inside a module that says something else.

- θ: where adaptation starts from; the outer loop learns them, a rule decides which of them adaptation moves.
- M (`Structural`): the outer loop learns them, no adaptation moves them.
- context (`Context`): the tasks' own; each task starts from the module's values, and nothing is learned across tasks.
"""

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Literal, NamedTuple, TypeAlias

from torch import nn

from headstart.errors import UnknownNameError
from headstart.types import Params

Role: TypeAlias = Literal["initial", "structure", "context"]


class Structural(nn.Module):
    """A module whose parameters are part of M: the outer loop learns them, and no inner step moves them.

    Derive from it, or wrap layers in it as ``Structural(layer)``: warp layers, gates, modulators.
    """

    def __init__(self, layer: nn.Module | None = None) -> None:
        super().__init__()
        if layer is not None:
            self.layer = layer

    def forward(self, *args: object, **kwargs: object) -> object:
        """Do what the wrapped layer does."""
        return self.layer(*args, **kwargs)

    def shown(self, own: Params) -> Params:
        """Return this module's part of M, its own parameters by name, in the units in which it acts, for reports."""
        return own


class Context(nn.Module):
    """A module whose parameters are each task's own, from the same values in every task; nothing learns those."""


class Stepped(nn.Module):
    """A module that does something else at every inner step: ``self.step`` is the number of steps taken so far."""

    step: int = 0


def role_of(module: nn.Module, name: str) -> Role:
    """Return what the parameter ``name`` of ``module`` is: the innermost module that says so decides."""
    path = name.split(".")[:-1]
    for end in range(len(path), -1, -1):
        holder = module.get_submodule(".".join(path[:end]))
        if isinstance(holder, Structural):
            return "structure"
        if isinstance(holder, Context):
            return "context"
    return "initial"


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
    return any(fnmatchcase(path, pattern) for path in _paths(name))


def _paths(name: str) -> Iterator[str]:
    """Return the modules that a name lies in, from the outermost on, and the name itself."""
    return accumulate(name.split("."), "{}.{}".format)


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
        near = get_close_matches(what, dict.fromkeys(path for name in leaves for path in _paths(name)), 3, cutoff=0.3)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        return UnknownNameError(f"no parameter matches {what!r}{hint}. There are: {', '.join(leaves)}")
    if isinstance(what, type):
        kinds = ", ".join(sorted({leaf.module.__name__ for leaf in leaves.values()}))
        return UnknownNameError(f"no parameter belongs to a {what.__name__}. There are parameters of: {kinds}")
    return UnknownNameError(f"the predicate chooses none of the parameters {', '.join(leaves)}")
