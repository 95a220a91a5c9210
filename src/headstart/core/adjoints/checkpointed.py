"""Derivatives through all steps that remember few of them.

The forward pass takes the steps without history and keeps some of the states. The backward pass is a sweep: it takes
the steps between two kept states again, and differentiates one at a time, so that no more than one step's graph exists.

Reference: Griewank, Walther 2000, doi:10.1145/347837.347846 (binomial checkpointing, "revolve").
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from headstart.core.adjoints.pullback import wanted
from headstart.core.adjoints.steps import AsItIs, one_by_one
from headstart.core.counting import Counted, to_bytes, to_text
from headstart.core.inner import Given, Inner, Step, looping, run
from headstart.core.process import put_back
from headstart.core.schedules import Place, Schedule, binomial, in_memory, periodic
from headstart.core.tree import tensors_of
from headstart.core.values import conditions
from headstart.errors import UsageError


class Needs(NamedTuple):
    """The bytes that a sweep needs for a state between two steps, and for going back over one, at the most."""

    state: int
    backward: int


@dataclass(frozen=True, kw_only=True)
class Checkpointed:
    """Remember the state of every ``every``-th step and compute the steps between again: exact, less memory.

    ``every="sqrt"``, the default, takes √T: memory for 2 √T states and the graph of one step, at about one more
    gradient a step. ``every=1`` remembers each state, and takes each step once more only to differentiate it.

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
        if self.every != "sqrt" and not (isinstance(self.every, int) and self.every > 0):
            raise UsageError(
                f"Checkpointed(every=...) must be a positive number of steps or 'sqrt', got {self.every!r}"
            )
        if self.place is not None and not callable(self.place):
            raise UsageError(
                f"Checkpointed(place=...) must say how states are kept, got {self.place!r}; for files in a folder, "
                "Checkpointed(every=1, place=headstart.OnDisk(folder))"
            )
        if self.memory is not None:
            to_bytes(self.memory)
            if self.every != "sqrt":
                raise UsageError(f"Checkpointed takes every= or memory=, not both; got {self.every} and {self.memory}")
            if self.place is not None:
                raise UsageError(f"Checkpointed takes memory= or place=, not both; got {self.memory} and {self.place}")

    def __call__(self, step: Step, given: Given, start: Inner, steps: int) -> tuple[Inner, Tensor]:
        if not wanted((given, start)) or steps == 0:
            return run(step, given, start, range(steps), create_graph=False)
        if self.memory is None:
            every = max(1, math.isqrt(steps)) if self.every == "sqrt" else self.every
            return sweep(step, given, start, Schedule(periodic(steps, every), self.place or in_memory))
        room, needs = to_bytes(self.memory), measured(step, given, start)
        if (steps - 1) * kept_bytes(step, given, start) + needs.backward <= room:
            return run(step, given, start, range(steps), create_graph=True)
        slots = (room - needs.backward) // needs.state - 1
        if slots < 0:
            raise UsageError(
                f"one inner step of these tasks needs about {to_text(needs.backward + needs.state)} of memory, and "
                f"memory={self.memory!r} allows {to_text(room)}; allow more, or take fewer tasks at a time"
            )
        return sweep(step, given, start, Schedule(binomial(steps, min(slots, steps - 1))))


def measured(step: Step, given: Given, start: Inner) -> Needs:
    """Return what a sweep needs, from going back over the first step."""
    held, moved = tensors_of(given), tensors_of(start)
    one = AsItIs(step, given, start, create_graph=True, closed=True)
    with _trial(), Counted() as live:
        after, _, graph = one.forward(held, moved, 0)
        slopes = [*one.totals(held), *(torch.zeros_like(end) for end in after if end.requires_grad)]
        del after
        one.backward(graph, held, 0, slopes)
    return Needs(sum(tensor.nbytes for tensor in moved), live.peak)


def kept_bytes(step: Step, given: Given, start: Inner) -> int:
    """Return how many bytes each step keeps in an unrolled loop."""
    with _trial(), Counted() as live, torch.enable_grad():
        after = step(given, start, 0, True)
        size = live.now
    del after
    return size


@contextlib.contextmanager
def _trial() -> Iterator[None]:
    """Compute something that is no part of what is computed: it draws nothing, is not recorded, and demands nothing."""
    with put_back(), disable_proxy_modes_tracing(), conditions():
        yield


def sweep(step: Step, given: Given, start: Inner, schedule: Schedule) -> tuple[Inner, Tensor]:
    """Take the steps of the schedule; their derivative is a sweep back through them. Second ones are refused."""
    loop, numbers = looping.get(), range(schedule.segments[-1].end)
    found = None if loop is None else loop(step, given, start, numbers, True, schedule)
    found = found or one_by_one(step, given, start, numbers, True, schedule)
    assert found is not None
    return found
