"""Ids of tasks: ULIDs, which sort by when they were made."""

import os
import threading
import time
from collections.abc import Callable

_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
PATTERN = "^[0-7][0-9A-HJKMNP-TV-Z]{25}$"
_LARGEST = 2**128 - 1


def ids(last: str | None = None, now: Callable[[], float] = time.time) -> Callable[[], str]:
    """Return what makes ids, each after all before it, also where the clock is set back.

    Args:
        last: the largest id that there is already.
        now: the clock, in seconds.

    >>> make = ids(now=lambda: 0.0)
    >>> first, second = make(), make()
    >>> first < second and len(first) == 26
    True
    """
    lock, largest = threading.Lock(), -1 if last is None else _number(last)

    def make() -> str:
        nonlocal largest
        fresh = (int(now() * 1000) << 80) | int.from_bytes(os.urandom(10))
        with lock:
            # a clock that was set back, or two in the same millisecond: a little more than the largest
            largest = fresh if fresh > largest else largest + 1 + int.from_bytes(os.urandom(4))
            return _text(min(largest, _LARGEST))

    return make


def _text(number: int) -> str:
    return "".join(_LETTERS[(number >> shift) & 31] for shift in range(125, -1, -5))


def _number(text: str) -> int:
    total = 0
    for letter in text:
        total = total * 32 + _LETTERS.index(letter)
    return total
