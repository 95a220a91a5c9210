"""How much there is to do in each operation of a computation, counted rather than timed: the same on every run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Workload(NamedTuple):
    """What a computation consists of; views, which compute nothing, do not count."""

    operations: int
    elements: int
    """The numbers that all operations give, together."""

    @property
    def size(self) -> float:
        """The numbers that an operation gives on average."""
        return self.elements / max(1, self.operations)


def workload(function: Callable[[], object]) -> Workload:
    """Run ``function``, and count its tensor operations, those of backward passes in it included.

    >>> import torch
    >>> workload(lambda: torch.ones(2, 3).exp())
    Workload(operations=2, elements=12)
    """
    counter = _Counter()
    with counter:
        function()
    return Workload(counter.operations, counter.elements)


def computes(func: OpOverload) -> bool:
    """Return whether an operation computes something, and is no view."""
    return not any(made.alias_info is not None and not made.alias_info.is_write for made in func._schema.returns)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations, self.elements = 0, 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if computes(func):
            self.operations += 1
            self.elements += sum(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out
