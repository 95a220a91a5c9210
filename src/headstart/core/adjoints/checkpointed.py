"""Derivatives through all steps that remember few of them.

The forward pass takes the steps without history and keeps some of the states. The backward pass is a sweep: it takes
the steps between two kept states again, and differentiates one at a time, so that no more than one step's graph exists.

Reference: Griewank, Walther 2000, doi:10.1145/347837.347846 (binomial checkpointing, "revolve").
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_map

from headstart.core.adjoints.pullback import (
    Slopes,
    added,
    differentiable,
    leaf,
    refuse_second_derivatives,
    slopes_of,
    wanted,
)
from headstart.core.counting import Counted, to_bytes, to_text
from headstart.core.inner import Given, Inner, Step, run, stacked
from headstart.core.process import Autocast, Draws, autocast_of, casting, draws
from headstart.core.tree import Packed, mapped, pack, tensors_of
from headstart.errors import UsageError

Fetch: TypeAlias = Callable[[], Inner]
Keep: TypeAlias = Callable[[Inner], Fetch]
"""``state -> a function that returns it``."""
Place: TypeAlias = Callable[[], Keep]
"""Where the states of a chain of steps are kept until the sweep comes back to them; called once for every sweep."""


class Segment(NamedTuple):
    """Steps ``start … end − 1`` from a state that the forward pass keeps; going back keeps up to ``slots`` more."""

    start: int
    end: int
    slots: int


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
            return sweep(step, given, start, periodic(steps, every), self.place() if self.place else None)
        room, needs = to_bytes(self.memory), measured(step, given, start)
        if (steps - 1) * kept_bytes(step, given, start) + needs.backward <= room:
            return run(step, given, start, range(steps), create_graph=True)
        slots = (room - needs.backward) // needs.state - 1
        if slots < 0:
            raise UsageError(
                f"one inner step of these tasks needs about {to_text(needs.backward + needs.state)} of memory, and "
                f"memory={self.memory!r} allows {to_text(room)}; allow more, or take fewer tasks at a time"
            )
        return sweep(step, given, start, binomial(steps, min(slots, steps - 1)))


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


def measured(step: Step, given: Given, start: Inner) -> Needs:
    """Return what a sweep needs, from going back over the first step."""
    drawn = draws(start)
    given, start = tree_map(leaf, (given, start))
    slopes: Slopes = [torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors_of(start)]
    state = sum(slope.nbytes for slope in slopes if slope is not None)
    with Counted() as live:
        _reverse(step, given, start, 0, slopes)
    drawn.restore()
    return Needs(state, live.peak + state)


def kept_bytes(step: Step, given: Given, start: Inner) -> int:
    """Return how many bytes each step keeps in an unrolled loop."""
    drawn = draws(start)
    with Counted() as live, torch.enable_grad():
        after = step(given, start, 0, True)
        size = live.now
    del after
    drawn.restore()
    return size


class _Plan(NamedTuple):
    step: Step
    segments: Sequence[Segment]
    packed: Packed
    """Of (given, start)."""
    keep: Keep
    autocast: Autocast
    drawn: list[Draws]
    """Where the generators stood in the state kept last."""
    end: list[Packed]
    """Filled by the forward pass: of the last state."""


class _Kept(NamedTuple):
    """A state, and where the generators stood in it."""

    number: int
    inner: Fetch
    draws: Draws


def sweep(
    step: Step, given: Given, start: Inner, segments: Sequence[Segment], keep: Keep | None = None
) -> tuple[Inner, Tensor]:
    """Take the steps of ``segments``; their derivative is a sweep back through them. Second ones are refused."""
    packed, tensors = pack((given, start))
    plan = _Plan(step, segments, packed, keep or (lambda inner: lambda: inner), autocast_of(tensors), [], [])
    *end, losses = _Sweep.apply(plan, *tensors)
    return plan.end[0].unpack(end), losses


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        given, start = plan.packed.unpack(tensors)
        ctx.plan, ctx.drawn = plan, draws(start)
        ctx.kept, inner, told = _forward(plan, given, start)
        packed, end = pack(inner)
        plan.end.append(packed)
        # PyTorch notices where one of these is changed in place before the backward pass
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(told, *(tensor for tensor in end if not differentiable(tensor)))
        return *end, told

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        plan, before = ctx.plan, draws(ctx.saved_tensors)
        given, start = plan.packed.unpack(map(leaf, ctx.saved_tensors, ctx.needs_input_grad[1:]))
        first, back = _Kept(0, lambda: start, ctx.drawn), _Backward(plan, given, list(slopes[:-1]))
        kept, ctx.kept = ctx.kept, None
        with casting(plan.autocast):
            if kept is None:  # a second backward pass through a graph that was retained
                ctx.drawn.restore()
                with torch.no_grad():
                    kept = _forward(plan, given, start)[0]
            for segment in reversed(plan.segments):
                # popped, so that a state that has been gone past makes room
                back.through(kept.pop() if segment.start else first, segment.end, segment.slots)
        before.restore()
        return None, *back.totals, *back.slopes


def _forward(plan: _Plan, given: Given, start: Inner) -> tuple[list[_Kept], Inner, Tensor]:
    """Take all steps without history; return the states to keep after the start, the last one, and the losses."""
    kept, inner, losses = [], start, []
    for segment in plan.segments:
        if segment.start:
            kept.append(_keep(plan, segment.start, inner))
        for number in range(segment.start, segment.end):
            inner, loss = plan.step(given, inner, number, False)
            losses.append(loss)
    return kept, inner, stacked(losses, inner)


class _Backward:
    """The reverse sweep: the slopes of the state that it has come to, and the totals of what all steps are given."""

    def __init__(self, plan: _Plan, given: Given, slopes: Slopes) -> None:
        self.plan, self.given, self.slopes = plan, given, slopes
        self.totals: Slopes = [None] * len(tensors_of(given))

    def through(self, kept: _Kept, end: int, slots: int) -> None:
        """Go back from the state after step ``end − 1`` to ``kept``, keeping up to ``slots`` more states."""
        while end > kept.number:
            if end == kept.number + 1:
                self._step(kept)
                return
            middle = kept.number + split(end - kept.number, slots) if slots else end - 1
            self.through(self._advanced(kept, middle), end, max(slots - 1, 0))
            end = middle

    def _advanced(self, kept: _Kept, number: int) -> _Kept:
        kept.draws.restore()
        with torch.no_grad():
            steps = range(kept.number, number)
            return _keep(self.plan, number, run(self.plan.step, self.given, kept.inner(), steps, False)[0])

    def _step(self, kept: _Kept) -> None:
        """Go back over the step that begins at ``kept``."""
        kept.draws.restore()
        inner = kept.inner()
        if kept.number:  # of the start, only what is asked for
            inner = mapped(lambda value: leaf(value, True), inner)
        given, self.slopes = _reverse(self.plan.step, self.given, inner, kept.number, self.slopes)
        self.totals = added(self.totals, given)


def _reverse(step: Step, given: Given, inner: Inner, number: int, slopes: Slopes) -> tuple[Slopes, Slopes]:
    """Return the slopes of the leaves of ``given`` and of ``inner`` for those of the next state."""
    with torch.enable_grad():
        after, _ = step(given, inner, number, True)
    # where the state comes from in the graph is all that is needed of it
    ends = [get_gradient_edge(end) if end.requires_grad else None for end in tensors_of(after)]
    del after
    held, moved = tensors_of(given), tensors_of(inner)
    found = slopes_of(ends, slopes, [*held, *moved])
    return found[: len(held)], found[len(held) :]


def _keep(plan: _Plan, number: int, inner: Inner) -> _Kept:
    drawn = draws(inner)
    # thousands of states may be kept: where nothing was drawn between two, they share the record
    plan.drawn[:] = plan.drawn if plan.drawn and plan.drawn[0] == drawn else [drawn]
    return _Kept(number, plan.keep(inner), plan.drawn[0])
