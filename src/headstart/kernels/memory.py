"""Where in a block of memory buffers lie that are needed one after the other: what is not needed makes room."""

from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

#: Buffers begin at multiples of so many bytes.
ALIGNED = 64

Name = TypeVar("Name", bound=Hashable)


class Need(NamedTuple):
    """How many bytes are needed, from when on, and until before when."""

    size: int
    start: int
    end: int


def arranged(needs: Mapping[Name, Need]) -> tuple[dict[Name, int], int]:
    """Return where each begins, and how many bytes all of them take."""
    found: dict[Name, int] = {}
    there: list[tuple[int, int, int]] = []  # from where to where, until when
    most = 0
    for name, (size, start, end) in sorted(needs.items(), key=lambda item: item[1].start):
        there = sorted(one for one in there if one[2] > start)
        place, size = 0, -(-size // ALIGNED) * ALIGNED
        for begins, ends, _ in there:
            if begins >= place + size:
                break
            place = max(place, ends)
        there.append((place, place + size, end))
        found[name], most = place, max(most, place + size)
    return found, most
