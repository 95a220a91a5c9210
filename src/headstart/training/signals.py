"""Stopping when asked to, between two steps; and one writer to a run folder."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from headstart.errors import ConfigError
from headstart.training.files import explained

#: Those that ask for a stop; SIGHUP, of a terminal that is closed, where there is such, and `nohup` does not ignore it.
SIGNALS = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class Stop:
    """Whether a signal has asked the run to stop."""

    asked: signal.Signals | None = None
    """The one that came to this process."""
    number: signal.Signals | None = None
    """The one that the run stops for: that same, or where several processes share the run, one of theirs."""
    shared = False
    """Whether they do: then they agree on it (`headstart.training.distributed.Group.heed`)."""

    @property
    def requested(self) -> bool:
        """Whether to stop after the step at hand."""
        return self.number is not None


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Within it, SIGTERM, SIGINT and SIGHUP ask for a stop after the step at hand; the second one stops at once.

    Outside the main thread, where Python hands out no signals, nothing is changed.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if before.get(SIGNALS[-1]) == signal.SIG_IGN and SIGNALS[-1].name == "SIGHUP":
        del before[SIGNALS[-1]]

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = signal.Signals(number)
        if not stop.shared:
            stop.number = stop.asked
        put_back()

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        put_back()


@contextlib.contextmanager
def only_writer(run: Path) -> Iterator[Callable[[], Path | None]]:
    """Hold a run folder's lock; the system lets go of it when the process ends, however it ends.

    Yields:
        What tells where the folder is now, which somebody may move or delete: ``None`` where that is not known.

    Raises:
        ConfigError: another process is training in this folder.
    """
    if os.name != "posix":  # elsewhere a folder with open files stays
        yield lambda: run
        return
    with locked(run / ".lock", f"another process is training in {run}; wait for it, or choose another --out"):
        folder = os.open(run, os.O_RDONLY)
        try:
            yield lambda: _place(run, folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def locked(path: Path, refused: str) -> Iterator[None]:
    """Hold a lock, a file of its own; the system lets go of it when the process ends, however it ends.

    Raises:
        ConfigError: another process holds it, with ``refused`` as what it says.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    with explained("write", path):
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(refused) from None
        yield
    finally:
        os.close(handle)


def _place(run: Path, handle: int) -> Path | None:
    """Return where an open folder is: where it was, or where Linux says."""
    held = os.fstat(handle)
    for link in (run, Path(f"/proc/self/fd/{handle}")):
        with contextlib.suppress(OSError):
            path = Path(os.readlink(link)) if link != run else run
            if os.path.samestat(os.stat(path), held):
                return path
    return None
