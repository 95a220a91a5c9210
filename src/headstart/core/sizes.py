"""Amounts of memory as people write them."""

import re

from headstart.errors import UsageError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def to_bytes(memory: int | str) -> int:
    """Return a number of bytes: itself, or what a text such as ``"2GiB"`` says.

    Raises:
        UsageError: neither, or nothing.

    >>> to_bytes("1.5 MiB")
    1572864
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(memory), re.IGNORECASE)
    size = 0 if found is None else int(float(found[1]) * _UNITS.get(found[2].upper(), 0))
    if size < 1:
        raise UsageError(
            f"memory must be a number of bytes from 1 up, or a text such as '2GiB' or '500MB'; got {memory!r}"
        )
    return size


def to_text(size: float) -> str:
    """Return a number of bytes in the unit that suits it.

    >>> to_text(1572864)
    '1.5 MiB'
    """
    power = 0
    while size >= 1024 and power < 3:
        size, power = size / 1024, power + 1
    return f"{size:{'.3g' if size < 1000 else '.0f'}} {('B', 'KiB', 'MiB', 'GiB')[power]}"
