"""The derivative of T steps by going through them backwards from kept states.

The forward pass takes the steps without history and keeps some of the states. The backward pass takes the steps
between two kept states again, and differentiates one step at a time, so that no more than one step's graph exists.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from headstart.core.adjoints.kept import Fetch, Keep, in_memory
from headstart.core.adjoints.leaves import (
    Draws,
    Packed,
    Slopes,
    added,
    draws,
    leaf,
    mapped,
    pack,
    slopes_of,
    tensors_of,
)
from headstart.core.adjoints.precision import Autocast, autocast
from headstart.core.adjoints.schedule import Segment, split
from headstart.core.step import Given, Inner, Step
from headstart.core.unread import unread_later
from headstart.errors import DifferentiationError

Pullback: TypeAlias = Callable[[Step, Given, Inner, int, Slopes], tuple[Slopes, Slopes]]
"""``(step, given, inner, number, slopes of the leaves of the next state) -> slopes of the leaves of (given, inner)``;
the leaves of ``given`` and ``inner`` that matter require gradients."""


class _Plan(NamedTuple):
    """What a sweep is told besides its tensors."""

    step: Step
    segments: Sequence[Segment]
    pullback: Pullback
    packed: Packed
    """Of (given, start)."""
    keep: Keep
    autocast: Autocast
    """What the forward pass found."""
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
    step: Step, given: Given, start: Inner, segments: Sequence[Segment], pullback: Pullback, keep: Keep | None = None
) -> tuple[Inner, list[Tensor]]:
    """Take the steps of ``segments``; their derivative is a sweep back through them. Second ones are refused."""
    packed, tensors = pack((given, start))
    plan = _Plan(step, segments, pullback, packed, keep or in_memory(), autocast(tensors), [], [])
    *end, losses = _Sweep.apply(plan, *tensors)
    return plan.end[0].unpack(end), list(losses.unbind())


def refuse_second_derivatives() -> None:
    """Raise `DifferentiationError` in a backward pass that is to be differentiated again."""
    if torch.is_grad_enabled():
        raise DifferentiationError(
            "the inner steps are differentiated by an adjoint that gives first derivatives only; differentiate "
            "without create_graph=True, or use adjoint=Unrolled()"
        )


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        given, start = plan.packed.unpack(tensors)
        ctx.plan, ctx.drawn = plan, draws(start)
        ctx.kept, inner, losses = _forward(plan, given, start)
        packed, end = pack(inner)
        plan.end.append(packed)
        # PyTorch notices where one of these is changed in place before the backward pass
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        told = torch.stack(losses)
        ctx.mark_non_differentiable(told, *(tensor for tensor in end if not tensor.is_floating_point()))
        return *end, told

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        plan, before = ctx.plan, draws(ctx.saved_tensors)
        given, start = plan.packed.unpack(map(leaf, ctx.saved_tensors, ctx.needs_input_grad[1:]))
        first, back = _Kept(0, lambda: start, ctx.drawn), _Backward(plan, given, list(slopes[:-1]))
        kept, ctx.kept = ctx.kept, None
        with plan.autocast.restored():
            if kept is None:  # a second backward pass through a graph that was retained
                ctx.drawn.restore()
                with torch.no_grad():
                    kept = _forward(plan, given, start)[0]
            for segment in reversed(plan.segments):
                # popped, so that a state that has been gone past makes room
                back.through(kept.pop() if segment.start else first, segment.end, segment.slots)
        before.restore()
        return None, *back.totals, *back.slopes


def _forward(plan: _Plan, given: Given, start: Inner) -> tuple[list[_Kept], Inner, list[Tensor]]:
    """Take all steps without history; return the states to keep after the start, the last one, and the losses."""
    kept, inner, losses = [], start, []
    for segment in plan.segments:
        if segment.start:
            kept.append(_keep(plan, segment.start, inner))
        for number in range(segment.start, segment.end):
            inner, loss = plan.step(given, inner, number, False)
            losses.append(loss)
    return kept, inner, losses


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
        inner = kept.inner()
        with torch.no_grad():
            for taken in range(kept.number, number):
                inner, _ = self.plan.step(self.given, inner, taken, False)
        return _keep(self.plan, number, inner)

    def _step(self, kept: _Kept) -> None:
        """Go back over the step that begins at ``kept``."""
        kept.draws.restore()
        inner = kept.inner()
        if kept.number:  # of the start, only what is asked for
            inner = mapped(lambda value: leaf(value, True), inner)
        given, self.slopes = self.plan.pullback(self.plan.step, self.given, inner, kept.number, self.slopes)
        self.totals = added(self.totals, given)


def reverse(step: Step, given: Given, inner: Inner, number: int, slopes: Slopes) -> tuple[Slopes, Slopes]:
    """The `Pullback` that differentiates the step's own backward pass: reverse over reverse."""
    # detecting anomalies takes what has no numbers for one
    spared = step.direct and step.rule.affine and not torch.is_anomaly_enabled()
    with unread_later(spared):  # to the end: a module that computes its activations again has to do the same
        with torch.enable_grad():
            after, _ = step(given, inner, number, True, read=not spared)
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
