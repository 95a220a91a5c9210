"""States of a long inner loop in a file, for adjoints that need not hold them in memory."""

import tempfile
import weakref
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from headstart.core.adjoint.kept import Fetch, Keep
from headstart.core.adjoint.leaves import pack
from headstart.core.step import Inner
from headstart.errors import FileError


@dataclass(frozen=True)
class OnDisk:
    """Keep the states of inner steps in a temporary file of ``folder``: ``Checkpointed(every=1, place=OnDisk(…))``.

    Memory does not grow with T then, and no step is taken again but to differentiate it. The file has no name, so that
    nothing is left of it however a run ends. The folder should be on a disk: in one that is held in memory, as many
    a ``/tmp``, nothing is gained.

    Raises:
        FileError: when it is used: a folder that cannot be written to, or that is full.
    """

    folder: str | PathLike[str]

    def __call__(self) -> Keep:
        return _File(self.folder)


class _File:
    """A `Keep` with a file of its own, which is gone with it."""

    def __init__(self, folder: str | PathLike[str]) -> None:
        try:
            self.file = tempfile.TemporaryFile(dir=folder, buffering=0)
        except OSError as error:
            raise FileError(f"cannot keep states in {folder}: {error.strerror}; name another folder") from None
        weakref.finalize(self, self.file.close)
        self.end = 0

    def __call__(self, inner: Inner) -> Fetch:
        packed, tensors = pack(inner)
        begin = self.end
        self.file.seek(begin)
        try:
            for tensor in tensors:
                data = memoryview(_bytes(tensor.detach().cpu().contiguous()))
                while data:
                    data = data[self.file.write(data) :]
        except OSError as error:
            raise FileError(f"cannot keep states on disk: {error.strerror}; free some space, or keep fewer") from None
        self.end = self.file.tell()
        kinds = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]

        def fetch() -> Inner:
            self.file.seek(begin)
            return packed.unpack([self._read(*kind) for kind in kinds])

        return fetch

    def _read(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        found = torch.empty(shape, dtype=dtype)
        left = memoryview(_bytes(found))
        while left:
            left = left[self.file.readinto(left) :]
        return found.to(device)


def _bytes(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy()
