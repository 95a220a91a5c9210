"""Settings of the process that several threads need at the same time."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


class Shared:
    """A context that the first thread enters and the last one leaves, for what holds for the whole process.

    There is one for each setting, whoever needs it: two that change the same setting would undo each other.
    """

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


#: Attention from operations that can be differentiated twice.
PLAIN_ATTENTION = Shared(_plain_attention)
#: Recurrent layers from such operations.
WITHOUT_CUDNN = Shared(_without_cudnn)
