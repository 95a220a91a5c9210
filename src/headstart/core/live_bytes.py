"""How much memory a computation needs, by counting what it makes; the same on every device."""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations in its context make, for as long as they live.

    What an operation needs only while it runs is not seen.

    >>> import torch
    >>> with LiveBytes() as live:
    ...     a = torch.zeros(1000, dtype=torch.float64)
    ...     b = (a + 1).sum()
    >>> live.now, live.peak
    (8008, 16008)
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors((args, kwargs)):
            self._known.add(tensor.untyped_storage())
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _freed(self, size: int) -> None:
        self.now -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
