"""Threads whose operations run in them alone."""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch


@contextlib.contextmanager
def one_thread(wanted: bool = True) -> Iterator[None]:
    """Let the operations of this thread run in it alone, where ``wanted``."""
    before = torch.get_num_threads()
    if not wanted or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def pool(workers: int) -> ThreadPoolExecutor:
    """Return so many threads, all of them started, each of which runs its operations in it alone."""
    # the number that a thread sets is that of threads that start later, so all start before it is put back
    before, together = torch.get_num_threads(), threading.Barrier(workers)

    def alone() -> None:
        torch.get_num_threads()  # a thread's first look sets the number that was set last in any thread
        torch.set_num_threads(1)
        together.wait()  # no thread does any work before all have set theirs

    threads = ThreadPoolExecutor(workers, "headstart", initializer=alone)
    try:
        for future in [threads.submit(_nothing) for _ in range(workers)]:
            future.result()
    finally:
        torch.set_num_threads(before)
    return threads


def _nothing() -> None:
    pass


if hasattr(os, "register_at_fork"):  # a process that was forked has no threads but one
    os.register_at_fork(after_in_child=pool.cache_clear)
