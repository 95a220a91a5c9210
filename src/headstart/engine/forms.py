"""Learners that are the same but in name."""

import threading
from typing import Any, NamedTuple

from headstart.types import Learner

#: So many forms are remembered, those that came last.
REMEMBERED = 8

_NOT_COMPUTED = ("gradient", "during")


class Form(NamedTuple):
    """A learner as one of those that were met."""

    number: int
    """The same for learners of the same functions; never given again to others."""
    settled: bool
    """Whether it may be here to stay: a learner that is annealed has another form at every step."""


class Forms:
    """Tells the forms apart that a learner goes through while it learns."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        # last used first: number, parts, how often it came; what is here is not freed, so that nothing takes its place
        self.known: list[tuple[int, tuple[Any, ...], int]] = []
        self.last: tuple[Learner, Form] | None = None

    def of(self, learner: Learner) -> Form:
        """Return the form of a learner, a new one where none of those remembered has the same functions."""
        last = self.last
        if last is not None and last[0] is learner:
            return last[1]
        parts = tuple(part for name, part in zip(Learner._fields, learner) if name not in _NOT_COMPUTED)
        with self.lock:
            form, again = self._met(parts)
            self.last = (learner, form) if again else None
        return form

    def _met(self, parts: tuple[Any, ...]) -> tuple[Form, bool]:
        """Return the form, and whether it was there before."""
        alone = bool(self.known) and self.known[0][2] == 1
        for place, (number, own, times) in enumerate(self.known):
            if all(_alike(a, b) for a, b in zip(own, parts)):
                self.known.insert(0, (number, own, times + 1))
                del self.known[place + 1]
                return Form(number, True), True
        self.count += 1
        self.known.insert(0, (self.count, parts, 1))
        del self.known[REMEMBERED:]
        return Form(self.count, not alone), False


def _alike(one: Any, other: Any) -> bool:
    # of other objects, being equal may mean anything, or raise
    plain = isinstance(one, (int, float, str)) or hasattr(one, "__func__")
    return one is other or (plain and type(one) is type(other) and bool(one == other))
