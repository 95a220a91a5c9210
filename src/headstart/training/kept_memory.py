"""Memory that is freed in one step stays at hand for the next one.

The C library gives the megabytes of a feature map back to the system as soon as they are freed, and the system clears
every page when it is asked for again: with convolutions a tenth of the time, and more where several threads ask.
"""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator

from headstart.core.process import Shared

#: Parameters of ``mallopt``, from malloc.h of the GNU C library.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENAS = -1, -2, -3, -8

#: The most that the library allows: larger pieces are always asked of the system.
_LARGEST = 2**25

#: While a run goes on: free memory is kept, in one pool for all threads, which grows by large pieces.
_KEEPING = {_MMAP_THRESHOLD: _LARGEST, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26, _ARENAS: 1}
#: Afterwards: where the library's own adjustments end up. The limit of one pool may outlast the block, since the
#: library settles on a limit when a thread first asks for a pool: threads that come later then share that pool, too.
_USUAL = {_MMAP_THRESHOLD: _LARGEST, _TRIM_THRESHOLD: 2 * _LARGEST, _TOP_PAD: 2**17, _ARENAS: 0}


@contextlib.contextmanager
def _keeping() -> Iterator[None]:
    library = _library()
    if library is None:
        yield
        return
    for option, value in _KEEPING.items():
        library.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _USUAL.items():
            library.mallopt(option, value)
        library.malloc_trim(0)


def _library() -> ctypes.CDLL | None:
    """Return the C library if it is GNU's, and nobody has told it what to do by environment variables."""
    told = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    try:
        ours = not told and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
        return ctypes.CDLL(None) if ours else None
    except (AttributeError, OSError, ValueError):  # not Linux
        return None


#: Hold freed memory for the rest of a block, in all threads; at its end the system gets what is free. Where the C
#: library is not GNU's, or environment variables (``MALLOC_…``, ``GLIBC_TUNABLES``) say what to do, nothing changes.
kept_memory: Callable[[], contextlib.AbstractContextManager[None]] = Shared(_keeping).held
