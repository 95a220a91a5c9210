"""What a computation does and needs, counted rather than timed: the same on every run and on every device."""

import re
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import UntypedStorage, strided
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from headstart.core.tree import tensors_of
from headstart.errors import UsageError


class Counted(TorchDispatchMode):
    """Counts the operations in its context, backward passes included, and the bytes of what they make while it lives.

    Views are no operations. What one needs only while it runs is not seen. With ``memory=False`` bytes are not counted,
    which takes less time.

    >>> import torch
    >>> with Counted() as counted:
    ...     a = torch.zeros(1000, dtype=torch.float64)
    ...     b = (a + 1).sum()
    >>> counted.operations, counted.elements, counted.now, counted.peak
    (3, 2001, 8008, 16008)
    """

    def __init__(self, *, memory: bool = True) -> None:
        super().__init__()
        self.memory = memory
        self.operations, self.elements = 0, 0
        """The operations, and the numbers that all of them give, together."""
        self.now, self.peak = 0, 0
        """The bytes that live, and the most that ever did."""
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def size(self) -> float:
        """The numbers that an operation gives on average."""
        return self.elements / max(1, self.operations)

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if computes(func):
            self.operations += 1
            self.elements += sum(tensor.numel() for tensor in tensors_of(out))
        if not self.memory:
            return out
        self._known.update(_storages((args, kwargs)))
        for storage in _storages(out):
            if storage not in self._known:
                self._known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _freed(self, size: int) -> None:
        self.now -= size


def _storages(tree: Any) -> list[UntypedStorage]:
    return [tensor.untyped_storage() for tensor in tensors_of(tree) if tensor.layout == strided]


def computes(func: OpOverload) -> bool:
    """Return whether an operation computes something, and is no view."""
    return not any(made.alias_info is not None and not made.alias_info.is_write for made in func._schema.returns)


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def to_bytes(memory: int | str) -> int:
    """Return a number of bytes: itself, or what a text such as ``"2GiB"`` says.

    Raises:
        UsageError: neither, or nothing.

    >>> to_bytes("1.5 MiB")
    1572864
    """
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d+)?)\s*([a-z]*)\s*", str(memory), re.IGNORECASE)
    size = 0 if found is None else int(float(found[1]) * _UNITS.get(found[2].upper(), 0))
    if size < 1:
        raise UsageError(
            f"memory must be a number of bytes from 1 up, or a text such as '2GiB', '500MB'; got {memory!r}"
        )
    return size


def to_text(size: float) -> str:
    """Return a number of bytes in the unit that suits it.

    >>> to_text(1572864)
    '1.5 MiB'
    """
    power = 0
    while size >= 1024 and power < 3:
        size, power = size / 1024, power + 1
    return f"{size:{'.3g' if size < 1000 else '.0f'}} {('B', 'KiB', 'MiB', 'GiB')[power]}"
