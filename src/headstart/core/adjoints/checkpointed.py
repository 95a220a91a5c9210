"""Derivatives through all steps that remember few of them."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from headstart.core.adjoints.adjoint import run
from headstart.core.adjoints.kept import Place
from headstart.core.adjoints.leaves import wanted
from headstart.core.adjoints.needs import Needs, kept_bytes, measured
from headstart.core.adjoints.schedule import Segment, binomial, periodic
from headstart.core.adjoints.sweep import Pullback, reverse, sweep
from headstart.core.sizes import to_bytes, to_text
from headstart.core.step import Given, Inner, Step
from headstart.errors import UsageError


@dataclass(frozen=True)
class Checkpointed:
    """Remember the state of every ``every``-th step and compute the steps between again: exact, less memory.

    The backward pass holds the T / every states, those of ``every`` steps, and the graph of one step; the steps that
    are not remembered are taken once more. ``every="sqrt"``, the default, takes √T: memory for 2 √T states at about
    one more gradient a step. ``every=1`` remembers each state, and takes each step once more only to
    differentiate it.

    With ``memory`` in its place, it keeps as many states as that much memory has room for, where they save the most
    (binomial checkpointing), so that any T fits; where there is room for everything, it takes no step again.

    Args:
        every: a number of steps, or ``"sqrt"``.
        place: where to keep the states: in memory, or in a file (`headstart.OnDisk`), so that with ``every=1`` memory
            does not grow with T.
        memory: for the states and the graph of a step, in bytes or as ``"2GiB"``; the model's parameters, the data
            and the query loss come on top of it.

    Reference: Griewank, Walther 2000, doi:10.1145/347837.347846; Chen et al. 2016, arXiv:1604.06174.
    """

    every: int | Literal["sqrt"] = "sqrt"
    memory: int | str | None = None
    place: Place | None = None

    exact = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.every != "sqrt" and not (isinstance(self.every, int) and self.every > 0):
            raise UsageError(f"{name}(every=...) must be a positive number of steps or 'sqrt', got {self.every!r}")
        if self.place is not None and not callable(self.place):
            raise UsageError(
                f"{name}(place=...) must say how states are kept, got {self.place!r}; for files in a folder, "
                f"{name}(every=1, place=headstart.OnDisk(folder))"
            )
        if self.memory is not None:
            to_bytes(self.memory)
            if self.every != "sqrt":
                raise UsageError(f"{name} takes every= or memory=, not both; got {self.every} and {self.memory}")
            if self.place is not None:
                raise UsageError(f"{name} takes memory= or place=, not both; got {self.memory} and {self.place}")

    def __call__(self, step: Step, given: Given, start: Inner, steps: int) -> tuple[Inner, list[Tensor]]:
        if not wanted((given, start)) or steps == 0:
            return run(step, given, start, range(steps), create_graph=False)
        if self.memory is None:
            keep = self.place() if self.place else None
            return sweep(step, given, start, self._periodic(steps), self._pullback(), keep)
        needs = measured(step, given, start, self._pullback())
        if (steps - 1) * kept_bytes(step, given, start) + needs.backward <= to_bytes(self.memory):
            return run(step, given, start, range(steps), create_graph=True)
        return sweep(step, given, start, self._binomial(steps, needs), self._pullback())

    def _pullback(self) -> Pullback:
        """Return what goes back over the steps of a sweep."""
        return reverse

    def _periodic(self, steps: int) -> list[Segment]:
        return periodic(steps, max(1, math.isqrt(steps)) if self.every == "sqrt" else self.every)

    def _binomial(self, steps: int, needs: Needs) -> list[Segment]:
        """Return the segments for which ``memory`` has room besides going back over one step."""
        room = to_bytes(self.memory or 0)
        slots = (room - needs.backward) // needs.state - 1
        if slots < 0:
            raise UsageError(
                f"one inner step of these tasks needs about {to_text(needs.backward + needs.state)} of memory, and "
                f"memory={self.memory!r} allows {to_text(room)}; allow more, or take fewer tasks at a time"
            )
        return binomial(steps, min(slots, steps - 1))
