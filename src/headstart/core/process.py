"""Settings of the process and its threads: PyTorch's kernels, precision and threads, and where generators stand."""

import contextlib
import functools
import os
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint as checkpointing
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import get_device_states, set_device_states

from headstart.core.tree import tensors_of
from headstart.types import Tree


class Shared:
    """A context that the first thread enters and the last one leaves, one for each setting of the whole process."""

    def __init__(self, context: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self.context, self.lock, self.holders = context, threading.Lock(), 0
        self.stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the context."""
        with self.lock:
            if self.holders == 0:
                self.stack.enter_context(self.context())
            self.holders += 1
        try:
            yield
        finally:
            with self.lock:
                self.holders -= 1
                if self.holders == 0:
                    self.stack.close()


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    fused = torch.backends.mha.get_fastpath_enabled()
    with sdpa_kernel(SDPBackend.MATH):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)


@contextlib.contextmanager
def _without_cudnn() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=False) if torch.backends.cudnn.is_available() else contextlib.nullcontext():
        yield


class _Plain:
    """In the place of PyTorch's `CheckpointFunction`."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


def _around(*args: Any, **kwargs: Any) -> Iterator[None]:
    yield


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    own = checkpointing.CheckpointFunction, checkpointing._checkpoint_without_reentrant_generator
    checkpointing.CheckpointFunction = _Plain  # pyrefly: ignore
    checkpointing._checkpoint_without_reentrant_generator = _around  # pyrefly: ignore
    try:
        yield
    finally:
        checkpointing.CheckpointFunction, checkpointing._checkpoint_without_reentrant_generator = own


#: What modules checkpoint by ``torch.utils.checkpoint`` is kept instead: when it would be computed again, the tensors
#: that a pass lent to the module are gone; and one kind has no derivative with respect to weights (``use_reentrant``).
KEPT = Shared(_kept)
#: Attention from operations that can be differentiated twice.
PLAIN_ATTENTION = Shared(_plain_attention)
#: Recurrent layers from such operations.
WITHOUT_CUDNN = Shared(_without_cudnn)

Autocast: TypeAlias = tuple[tuple[str, torch.dtype, bool], ...]
"""For kinds of devices, to which type PyTorch's autocast casts, and whether it is on."""


@contextlib.contextmanager
def casting(autocast: Autocast) -> Iterator[None]:
    """Compute in this precision inside, whatever is on around it."""
    with contextlib.ExitStack() as stack:
        for kind, dtype, on in autocast:
            # without its cache, which would hand the weights of one inner step to the next
            stack.enter_context(torch.autocast(kind, dtype, on, cache_enabled=False))
        yield


def autocast_of(tensors: Iterable[Tensor]) -> Autocast:
    """Return what autocast does now on the devices of these tensors."""
    kinds = sorted({tensor.device.type for tensor in tensors})
    kinds = [kind for kind in kinds if torch.amp.is_autocast_available(kind)]
    return tuple((kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in kinds)


class Settings(NamedTuple):
    """What PyTorch keeps for each thread and a computation inside goes by; to be compared, and handed to threads."""

    dtype: torch.dtype
    """The default type of numbers, which is that of all threads."""
    device: torch.device | None = None
    """The default device, where one is set."""
    autocast: Autocast = ()
    """Where it is on."""
    kernels: tuple[Any, ...] = ()
    """What decides which kernels a GPU runs, such as TF32, where one is in use: graphs hold those of their capture."""

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Compute by these settings, in a thread that has none."""
        with self.device or contextlib.nullcontext(), casting(self.autocast):
            yield

    def without_autocast(self) -> contextlib.AbstractContextManager[None]:
        """Compute by all but autocast, for operations in which its casts are already."""
        return casting(tuple((kind, dtype, False) for kind, dtype, _ in self.autocast))


def settings() -> Settings | None:
    """Return this thread's settings; ``None`` inside hooks for saved tensors, and modes that see every operation.

    There, a computation can neither be recorded nor leave the thread. It takes about a microsecond.
    """
    functions = torch._C._len_torch_function_stack()
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if hooks is not None or torch._C._len_torch_dispatch_stack() or functions > 1 or torch.is_inference_mode_enabled():
        return None
    if not functions and not torch._C._is_any_autocast_enabled():
        return Settings(torch.get_default_dtype(), kernels=_kernels())
    device = None
    if functions:  # a default device is such a mode, too
        mode = torch._C._get_function_stack_at(0)
        if not isinstance(mode, DeviceContext):
            return None
        device = mode.device
    kinds = [kind for kind in ("cpu", "cuda", "mps", "xpu") if torch.is_autocast_enabled(kind)]
    autocast = tuple((kind, torch.get_autocast_dtype(kind), True) for kind in kinds)
    return Settings(torch.get_default_dtype(), device, autocast, _kernels())


def _kernels() -> tuple[Any, ...]:
    if not torch.cuda.is_initialized():
        return ()
    own: Any = torch._C
    precision = [own._get_fp32_precision_getter("cuda", kind) for kind in ("matmul", "conv", "rnn")]
    reduced = own._get_cublas_allow_fp16_reduced_precision_reduction(), own._get_cublas_allow_fp16_accumulation()
    cudnn = own._get_cudnn_enabled(), own._get_cudnn_benchmark(), own._get_cudnn_deterministic()
    same = own._get_deterministic_algorithms(), own._get_deterministic_fill_uninitialized_memory()
    return *precision, *reduced, own._get_cublas_allow_bf16_reduced_precision_reduction(), *cudnn, *same


@dataclass(frozen=True, eq=False)
class Draws:
    """Where the generators stand that a computation may draw from (the others: Python's, numpy's); to be compared."""

    cpu: Tensor
    devices: tuple[list[int], list[Tensor]]
    others: tuple[Any, ...] = ()

    def restore(self) -> None:
        """Let the generators draw again what they drew from here on."""
        torch.set_rng_state(self.cpu)
        set_device_states(*self.devices)
        if self.others:
            random.setstate(self.others[0])
            if self.others[1] is not None:
                sys.modules["numpy"].random.set_state(self.others[1])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Draws):
            return NotImplemented
        (ids, states), (others, theirs) = self.devices, other.devices
        same = torch.equal(self.cpu, other.cpu) and ids == others and all(map(torch.equal, states, theirs))
        return same and self.others == other.others


def draws(tree: Tree) -> Draws:
    """Return where PyTorch's generators stand, that of the CPU and those of the devices of a tree's tensors."""
    return Draws(torch.get_rng_state(), get_device_states(*tensors_of(tree)))


def generators() -> Draws:
    """Return where all of PyTorch's, Python's and numpy's generators stand."""
    numpy, theirs = sys.modules.get("numpy"), None
    if numpy is not None:
        kind, keys, *rest = numpy.random.get_state()
        theirs = (kind, keys.tolist(), *rest)  # a list can be compared
    states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return Draws(torch.get_rng_state(), (list(range(len(states))), states), (random.getstate(), theirs))


@contextlib.contextmanager
def put_back() -> Iterator[None]:
    """Put the generators back at the end, so that a trial takes no random numbers from what counts."""
    before = generators()
    try:
        yield
    finally:
        before.restore()


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


def watched() -> bool:
    """Return whether somebody writes down which operations there are: then plain ones are wanted, not fast ones."""
    return torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None


#: Whether the graph that is made is differentiated once: it is dropped then, and nobody else has it.
ONCE: ContextVar[bool] = ContextVar("once", default=False)


@contextlib.contextmanager
def differentiated_once(once: bool) -> Iterator[None]:
    """Let layers know that no derivative of their derivatives is taken, where that is so."""
    token = ONCE.set(once)
    try:
        yield
    finally:
        ONCE.reset(token)


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
        for future in [threads.submit(lambda: None) for _ in range(workers)]:
            future.result()
    finally:
        torch.set_num_threads(before)
    return threads


if hasattr(os, "register_at_fork"):  # a process that was forked has no threads but one
    os.register_at_fork(after_in_child=pool.cache_clear)
