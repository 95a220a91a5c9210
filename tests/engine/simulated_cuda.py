"""CUDA as far as graphs need it, on the CPU, so that a mistake that would give wrong numbers there does here.

A capture runs the function once and notes its operations; what they gave is lost. A replay runs them again, into the
same memory, after all that graphs of the same pool have made is lost. Lost floats are NaN.
"""

import contextlib
import threading
import time
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Stream:
    def __init__(self, device=None):
        self.device, self.waited = device, []

    def wait_stream(self, other):
        self.waited.append(other)


class SimulatedCuda:
    """What is used of ``torch.cuda``."""

    def __init__(self):
        self.default, self.here = Stream(), threading.local()
        self.pools, self.captures, self.cleared = {}, 0, 0
        self.capturing: Graph | None = None
        self.refused = set()
        """Operations that invalidate a capture."""
        self.loaded = _Noted(self)
        """Those that ran on streams for captures, which libraries have to load before."""

    def Stream(self, device):
        return Stream(device)

    def CUDAGraph(self):
        return Graph(self)

    def current_stream(self, device=None):
        return getattr(self.here, "stream", self.default)

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.here.stream = self.current_stream(), stream
        try:
            with self.loaded if stream.device is not None else contextlib.nullcontext():
                yield
        finally:
            self.here.stream = before

    def graph_pool_handle(self):
        pool = object()
        self.pools[pool] = None
        return pool

    def synchronize(self, device=None):
        assert self.capturing is None or self.capturing.thread != threading.get_ident(), "waits while it captures"

    def empty_cache(self):
        self.synchronize()

    def clear_workspaces(self):
        self.synchronize()
        self.cleared += 1

    @property
    def graphs(self):
        return [graph for pool in self.pools.values() for graph in pool or ()]

    @property
    def replays(self):
        return sum(graph.replays for graph in self.graphs)


class Graph:
    def __init__(self, cuda):
        self.cuda, self.replays, self.running = cuda, 0, False

    def capture_begin(self, pool, capture_error_mode="global"):
        assert capture_error_mode == "thread_local"
        if self.cuda.current_stream() is self.cuda.default:
            raise RuntimeError("graphs must be captured on a stream of their own")
        if self.cuda.capturing is not None:
            raise RuntimeError("another graph is being captured")
        if self.cuda.pools[pool] is not None and not self.cuda.pools[pool]:
            raise RuntimeError("all graphs of that pool are gone")
        if self.cuda.pools[pool] is None:
            self.cuda.pools[pool] = weakref.WeakSet()
        self.pool, self.mode, self.thread = self.cuda.pools[pool], _Noted(self.cuda, self), threading.get_ident()
        self.cuda.capturing = self
        time.sleep(0.001)  # so that another thread comes in between
        self.mode.__enter__()

    def capture_end(self):
        self.mode.__exit__(None, None, None)
        self.cuda.capturing, mode = None, self.mode
        self.notes = mode.notes
        if mode.invalid:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.memory = {}
        for _, args, _, found in self.notes:
            read = {_where(one) for one in _tensors(args)}
            self.memory.update({_where(one): one for one in _tensors(found) if _where(one) not in read})
        self.bytes = [one.new_empty(0).set_(one.untyped_storage()).view(torch.uint8) for one in self.memory.values()]
        self.pool.add(self)
        self.cuda.captures += 1
        self.lose()

    def lose(self):
        for one in self.bytes:
            one.fill_(255)

    def replay(self):
        assert self.cuda.capturing is not self
        assert not any(other.running for other in self.pool), "two graphs run in the same memory"
        self.running, self.replays = True, self.replays + 1
        try:
            for other in self.pool:
                other.lose()
            for call, args, kwargs, found in self.notes:
                again = call(*args, **kwargs)
                for old, new in zip(_tensors(found), _tensors(again), strict=True):
                    if _where(old) in self.memory and _where(old) != _where(new):
                        old.copy_(new)
        finally:
            self.running = False


class _Noted(TorchDispatchMode):
    """Notes operations: all of those that a graph captures, or which there are."""

    def __init__(self, cuda, graph=None):
        super().__init__()
        self.cuda, self.graph, self.notes, self.known, self.invalid = cuda, graph, [], set(), False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.graph is None:
            if self.cuda.capturing is None or self.cuda.capturing.thread != threading.get_ident():
                self.known.add(func)
            return func(*args, **(kwargs or {}))
        loaded = func.is_view or func in self.cuda.loaded.known
        if func in self.cuda.refused or not loaded or self.invalid:
            self.invalid = True
            raise RuntimeError(f"{func} is not permitted when a stream is capturing")
        found = func(*args, **(kwargs or {}))
        self.notes.append((func, args, kwargs or {}, found))
        return found


def _tensors(tree):
    return [one for one in torch.utils._pytree.tree_leaves(tree) if isinstance(one, torch.Tensor)]


def _where(tensor):
    return tensor.untyped_storage().data_ptr()
