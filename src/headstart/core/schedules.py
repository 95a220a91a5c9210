"""Which states of a loop are remembered on the way forwards, so that it can be gone back over: by counting alone.

Reference: Griewank, Walther 2000, doi:10.1145/347837.347846 (binomial checkpointing, "revolve").
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from headstart.types import Tree

Fetch: TypeAlias = Callable[[], Tree]
Keep: TypeAlias = Callable[[Tree], Fetch]
"""``state -> a function that returns it``."""
Place: TypeAlias = Callable[[], Keep]
"""Where the states of a chain of steps are kept until the sweep comes back to them; called once for every sweep."""


class Segment(NamedTuple):
    """Steps ``start … end − 1`` from a state that the forward pass keeps; going back keeps up to ``slots`` more."""

    start: int
    end: int
    slots: int


def in_memory() -> Keep:
    """Keep states as they are."""
    return lambda state: lambda: state


class Schedule(NamedTuple):
    """What is remembered of a loop in the place of all its steps."""

    segments: Sequence[Segment]
    place: Place = in_memory


def periodic(steps: int, every: int) -> list[Segment]:
    """Keep every ``every``-th state in the forward pass, and those between when they are needed."""
    return [Segment(start, min(start + every, steps), every - 1) for start in range(0, steps, every)]


def binomial(steps: int, slots: int) -> list[Segment]:
    """Keep at most ``slots`` states at a time, the first one not counted, and take the fewest steps again."""
    segments, start = [], 0
    while start < steps:
        # what follows the steps, such as the query loss, counts as one more: it is differentiated without taking again
        after = min(steps, start + split(steps - start + 1, slots))
        segments.append(Segment(start, after, slots))
        start, slots = after, slots - 1
    return segments


def split(steps: int, slots: int) -> int:
    """Return after how many of ``steps`` steps to keep the next state, if ``slots`` more can be kept.

    With s slots and no step taken more than r times before it is differentiated, a sweep reaches over
    N(s, r) = C(s + 1 + r, r) steps. With the smallest such r, the steps after the kept state may be N(s − 1, r), and
    those before it N(s, r − 1), since they have been taken once by then.
    """
    if slots < 1 or steps < 2:
        return steps
    slots, repeats = min(slots, steps - 1), 0
    while _reach(slots, repeats) < steps:
        repeats += 1
    # the fewest before it; less than N(s, r − 2) would leave the steps after it with repetitions unused
    return max(1, steps - _reach(slots - 1, repeats), _reach(slots, repeats - 2))


def _reach(slots: int, repeats: int) -> int:
    return math.comb(slots + 1 + repeats, repeats) if repeats >= 0 else 0
