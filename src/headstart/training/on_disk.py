"""States of a long inner loop in a file, for adjoints that need not hold them in memory."""

import errno
import tempfile
import weakref
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart.core.inner import Inner
from headstart.core.schedules import Fetch, Keep
from headstart.core.tree import pack
from headstart.training.files import explained


@dataclass(frozen=True)
class OnDisk:
    """Keep the states of inner steps in a temporary file of ``folder``: ``Checkpointed(every=1, place=OnDisk(…))``.

    Memory does not grow with T then, and no step is taken again but to differentiate it. Each adaptation has a file
    without a name, of which nothing is left however a run ends, open until its derivative is taken or let go. In a
    folder that is held in memory, as many a ``/tmp``, nothing is gained.

    Raises:
        FileError: when it is used: a folder that cannot be written to, or that is full; too many files open; a state
            that cannot be read back.
    """

    folder: str | PathLike[str]

    def __call__(self) -> Keep:
        return _File(self.folder)


class _File:
    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)
        with explained("keep states in", self.folder):
            self.file = tempfile.TemporaryFile(dir=folder, buffering=0)
        weakref.finalize(self, self.file.close)
        self.end = 0

    def __call__(self, inner: Inner) -> Fetch:
        packed, tensors = pack(inner)
        begin = self.end
        with explained("keep states in", self.folder):
            self.file.seek(begin)
            for tensor in tensors:
                data = memoryview(_bytes(tensor.detach().cpu().contiguous()))
                while data:
                    data = data[self.file.write(data) :]
            self.end = self.file.tell()
        kinds = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]

        def fetch() -> Inner:
            with explained("read a state back that was kept in", self.folder):
                self.file.seek(begin)
                return packed.unpack([self._read(*kind) for kind in kinds])

        return fetch

    def _read(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        found = torch.empty(shape, dtype=dtype)
        left = memoryview(_bytes(found))
        while left:
            count = self.file.readinto(left)
            if not count:
                raise OSError(errno.EIO, f"the file ends {len(left)} bytes too early")
            left = left[count:]
        return found.to(device)


def _bytes(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy()
