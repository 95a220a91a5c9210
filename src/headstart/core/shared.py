"""Settings of the process that several threads need at the same time."""

import contextlib
import threading
from collections.abc import Callable, Iterator


class Shared:
    """A context that the first thread enters and the last one leaves, for what holds for the whole process."""

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
