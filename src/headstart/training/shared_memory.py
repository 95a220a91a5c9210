"""Sums among the processes of one machine, in memory that all of them see.

A message through sockets wakes a thread in every process, which takes as long as a step of a small network does. Here
each process writes its numbers into a place of its own, says so by counting up, and adds everybody's, in order of
rank, once all have. Memory without a name (``memfd_create``) vanishes with the last process, however it ends, and so do
its locks, by which the others see that it has.
"""

import json
import mmap
import os
import platform
import secrets
import time
import zlib
from contextlib import suppress
from itertools import count
from typing import Any

import torch
from torch import Tensor

from headstart.errors import ProcessError

with suppress(ImportError):
    import fcntl  # not on Windows, which has no such memory, either

#: Bytes of the largest message: of more, every process would read too much of the others'.
LONGEST = 1 << 20
#: How long a process that waits asks again at once, in seconds; afterwards it sleeps in between.
_AWAKE = 0.002
#: Bytes of a cache line, which no two processes write to.
_LINE = 64


class SharedMemory:
    """The memory that processes ``0 … size − 1`` share, as number ``rank`` of them sees it.

    First it holds, a cache line each, how many sums each process has written, and of the last two, what they are of.
    Then come two places for every process, which it takes in turns: whoever writes into a place anew has seen that all
    have counted the sum in between, so that they have read what was there.
    """

    def __init__(self, file: int, rank: int, size: int) -> None:
        self.file, self.rank, self.size, self.turn = file, rank, size, 0
        memory = mmap.mmap(file, _bytes(size))
        self.lines = memoryview(memory)[: _LINE * size].cast("q", [size, _LINE // 8])
        self.places = torch.frombuffer(memory, dtype=torch.uint8)[-2 * size * LONGEST :].view(2, size, LONGEST)
        # as many as want to compute at once have a core each
        self.awake = _AWAKE if size <= len(os.sched_getaffinity(0)) else 0.0
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)

    def takes(self, tensor: Tensor) -> bool:
        return tensor.device.type == "cpu" and tensor.nbytes <= LONGEST

    def sum(self, tensor: Tensor, largest: bool, seconds: float) -> None:
        """Put the sum over all processes, or the largest, in this tensor's place.

        Raises:
            RuntimeError: a process has ended, or not come within so many seconds.
            ProcessError: the processes do not sum the same.
        """
        self.turn += 1
        half, kind = self.turn % 2, zlib.crc32(f"{tensor.dtype} {tensor.numel()} {largest}".encode())
        own = self.places[half, :, : tensor.nbytes].view(tensor.dtype)
        own[self.rank] = tensor.detach().reshape(-1)
        self.lines[self.rank, 1 + half] = kind
        self.lines[self.rank, 0] = self.turn
        self._wait(seconds)
        if any(self.lines[rank, 1 + half] != kind for rank in range(self.size)):
            raise ProcessError(
                "the processes do not sum the same: all have to make the same calls in the same order, for models and"
                " numbers of tasks that are the same"
            )
        total = own[0].clone()
        for other in own[1:]:
            torch.maximum(total, other, out=total) if largest else total.add_(other)
        tensor.copy_(total.view(tensor.shape))

    def _wait(self, seconds: float) -> None:
        """Wait until all have written as many sums as this process."""
        began = time.monotonic()
        for pause in count():
            late = [rank for rank in range(self.size) if self.lines[rank, 0] < self.turn]
            if not late:
                return
            waited = time.monotonic() - began
            if waited < self.awake:
                time.sleep(0)  # lets other threads work
                continue
            if waited > seconds:
                raise RuntimeError(f"process {late[0]} has not come")
            if pause % 64 == 0 and (gone := [rank for rank in late if self._gone(rank)]):
                raise RuntimeError(f"process {gone[0]} has ended")
            time.sleep(min(0.001, waited / 50))

    def _gone(self, rank: int) -> bool:
        """Return whether a process no longer holds its lock and left no sum for this turn, either."""
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
        except OSError:
            return False
        fcntl.lockf(self.file, fcntl.LOCK_UN, 1, rank)
        return self.lines[rank, 0] < self.turn

    def close(self) -> None:
        """Let the others see that this process takes part no more."""
        os.close(self.file)


def _bytes(size: int) -> int:
    pages = -(-_LINE * size // mmap.PAGESIZE)
    return pages * mmap.PAGESIZE + 2 * size * LONGEST


def meet(store: Any, rank: int, size: int) -> SharedMemory | None:
    """Return the memory that all processes share, as far as this one sees; ``None`` where it sees none.

    Whoever gets one has to ask the others whether they have, too.

    Args:
        store: a ``torch.distributed.Store`` where the first process says which memory it is.
        rank: the number of this process.
        size: how many there are.
    """
    # elsewhere a process may see what another writes in another order than that of its writing
    able = hasattr(os, "memfd_create") and platform.machine() == "x86_64"
    with suppress(OSError):
        if rank:
            where, path, name = json.loads(store.get("memory"))
            # by a /proc of other processes than one's own, the path may lead to a file of somebody else
            if able and where == _here() and os.readlink(path) == name:
                return SharedMemory(os.open(path, os.O_RDWR | os.O_CLOEXEC), rank, size)
        elif able:
            file = os.memfd_create(f"headstart-{secrets.token_hex(8)}")
            os.ftruncate(file, _bytes(size))
            found = SharedMemory(file, rank, size)
            name = os.readlink(f"/proc/self/fd/{file}")
            store.set("memory", json.dumps([_here(), f"/proc/{os.getpid()}/fd/{file}", name]))
            return found
    if not rank:
        store.set("memory", json.dumps([None, "", ""]))
    return None


def _here() -> str:
    """Return what processes have in common that know each other by their numbers."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
