"""Inner steps that are differentiated one at a time, all of them remembered or as many as a schedule says.

A loop takes its steps forwards and goes back over them from the last to the first. The derivative of a step goes by
the step alone: from the slopes of the state after it to those of the state before it, and of what all steps are given,
whose slopes are summed up on the way.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from headstart.core.adjoints.pullback import leaf, refuse_second_derivatives, wanted
from headstart.core.inner import Given, Inner, Step, looping_by
from headstart.core.process import Autocast, Draws, autocast_of, casting, draws
from headstart.core.schedules import Keep, Schedule, in_memory, split
from headstart.core.tree import Packed, pack, tensors_of

Tensors: TypeAlias = Sequence[Tensor]


class Graph(NamedTuple):
    """What the derivative of a step that was taken goes by."""

    leaves: Tensors
    """What it was taken from, and there are derivatives of."""
    ends: Sequence[GradientEdge]
    """Where in the graph that is given comes from, as the steps behind see it, and the next state: not its values."""

    def back(self, slopes: Tensors, retain_graph: bool = False) -> Tensors:
        """Return the slopes of the leaves for those of the ends."""
        found: Sequence[Tensor | None] = [None] * len(self.leaves)
        if self.ends:
            found = torch.autograd.grad(self.ends, self.leaves, slopes, retain_graph, allow_unused=True)
        return [torch.zeros_like(one) if slope is None else slope for one, slope in zip(self.leaves, found)]

    def is_closed(self) -> bool:
        """Whether derivatives flow to the leaves alone, not to tensors that a rule or a loss holds by itself."""
        leaves = {id(one) for one in self.leaves}
        left, seen = [end.node for end in self.ends], set[Any]()
        while left:
            node = left.pop()
            if node in seen:
                continue
            seen.add(node)
            if id(getattr(node, "variable", None)) not in leaves and hasattr(node, "variable"):
                return False
            left.extend(behind for behind, _ in node.next_functions if behind is not None)
        return True


class Taken(NamedTuple):
    """A step that was taken."""

    after: Inner
    losses: Tensor
    own: Tensors
    """What it was taken from, without history."""
    graph: Graph


def taken(
    step: Step, packed: Packed, values: Tensors, asked: Sequence[bool], number: int | Tensor, create_graph: bool
) -> Taken:
    """Take a step from ``values``, those of ``packed`` (given, inner), of which there are derivatives where asked."""
    own = [*map(leaf, values, asked)]
    given, inner = packed.unpack(own)
    with torch.enable_grad():
        after, losses = step(given, inner, number, create_graph)
        # behind all that the step does with them, so that the slopes of the steps behind are the first of the sums
        through = [one.view_as(one) for one in tensors_of(given) if one.requires_grad]
    ends = [one for one in tensors_of(after) if one.requires_grad]
    return Taken(after, losses, own, Graph([*compress(own, asked)], [*map(get_gradient_edge, [*through, *ends])]))


class OneStep(Protocol):
    """A step of a loop, and its derivative, on lists of tensors."""

    def forward(self, given: Tensors, inner: Tensors, number: int) -> tuple[Tensors, Tensor, Any]:
        """Return the next state, the losses ``(B,)`` before it, and what `backward` takes first."""
        ...

    def kept(self, inner: Tensors, keep: Keep) -> Callable[[], Tensors]:
        """Keep the last state; the function returns it, so that the steps behind it can be taken again."""
        ...

    def totals(self, given: Tensors) -> Tensors:
        """Return zeros like what is given, where there are derivatives of it."""
        ...

    def backward(self, kept: Any, given: Tensors, number: int, slopes: Tensors) -> Tensors:
        """Return the slopes of what is given and of the state, where there are derivatives of them.

        ``slopes`` are those behind the step: of what is given, which the step adds its own to, and of the next state.
        """
        ...


class Tape(NamedTuple):
    """What going back over a loop goes by."""

    given: Tensors
    left: list[Any]
    """What is remembered of each step, or the states that a schedule keeps in the forward pass: gone past, gone."""
    keep: Keep
    """Where more states are kept on the way back."""


class Steps(NamedTuple):
    """All steps of a loop as two functions: what they lead to, and the derivative of that."""

    step: OneStep
    numbers: range
    held: int
    """How many of the tensors are given."""
    schedule: Schedule | None = None
    """``None``: what each step's derivative needs is remembered."""

    def forward(self, *tensors: Tensor) -> list[Any]:
        """Return the state after all steps, the losses ``(steps, B)``, and the tape that `backward` takes."""
        given, inner, losses = tensors[: self.held], tensors[self.held :], list[Tensor]()
        tape = Tape(given, [], self.schedule.place() if self.schedule else in_memory())
        begins = {segment.start for segment in self.schedule.segments} if self.schedule else ()
        for place, number in enumerate(self.numbers):
            if place in begins:  # the start is there anyway
                tape.left.append(self.step.kept(inner, tape.keep if place else in_memory()))
            inner, loss, kept = self.step.forward(given, inner, number)
            losses.append(loss)
            if self.schedule is None:
                tape.left.append(kept)
            del kept
        return [*inner, torch.stack(losses), tape]

    def backward(self, tape: Tape, *slopes: Tensor) -> list[Tensor]:
        """Return the slopes of what is given and of the first state, for those of the last; the tape is used up."""
        found: Tensors = [*self.step.totals(tape.given), *slopes]
        if self.schedule is None:
            for number in reversed(self.numbers):
                found = self.step.backward(tape.left.pop(), tape.given, number, found)
        else:
            for segment in reversed(self.schedule.segments):
                # popped, so that a state that has been gone past makes room
                found = self._through(tape, tape.left.pop(), *segment, found)
        return [*found]

    def backward_first(self, tape: Tape, *slopes: Tensor) -> list[Tensor]:
        """Return what `backward` does, and leave the tape for another time."""
        return self.backward(tape._replace(left=[*tape.left]), *slopes)

    def _through(
        self, tape: Tape, state: Callable[[], Tensors], start: int, end: int, slots: int, slopes: Tensors
    ) -> Tensors:
        """Go back over the steps ``start … end − 1`` from the state before them, keeping up to ``slots`` more."""
        while end > start + 1:
            middle = start + split(end - start, slots) if slots else end - 1
            between = self._advanced(tape, state, start, middle)
            slopes = self._through(tape, between, middle, end, max(slots - 1, 0), slopes)
            del between
            end = middle
        number = self.numbers[start]
        kept = self.step.forward(tape.given, state(), number)[2]
        return self.step.backward(kept, tape.given, number, slopes)

    def _advanced(self, tape: Tape, state: Callable[[], Tensors], start: int, end: int) -> Callable[[], Tensors]:
        inner = state()
        for number in self.numbers[start:end]:
            inner = self.step.forward(tape.given, inner, number)[0]
        return self.step.kept(inner, tape.keep)


class _OpenError(Exception):
    """Derivatives of a step flow past what it is given, so that they are not all its own."""


class AsItIs:
    """A step that is computed as it is."""

    def __init__(self, step: Step, given: Given, inner: Inner, create_graph: bool, closed: bool) -> None:
        self.step, self.create_graph, self.closed = step, create_graph, closed
        self.given, self.inner = pack(given)[0], pack(inner)[0]
        self.drawn: Draws | None = None
        """Where the generators stood in the state kept last."""

    def forward(self, given: Tensors, inner: Tensors, number: int) -> tuple[Tensors, Tensor, Any]:
        asked, packed = [one.requires_grad for one in (*given, *inner)], Packed((self.given.tree, self.inner.tree))
        with looping_by(None):  # a loop within a step is differentiated twice
            found = taken(self.step, packed, (*given, *inner), asked, number, self.create_graph)
        if not self.closed and not found.graph.is_closed():
            raise _OpenError
        self.closed = True  # as this step is, so are the others
        self.inner, after = pack(found.after)  # which a rule's state may be part of from now on
        return [*map(leaf, after)], found.losses, found.graph

    def kept(self, inner: Tensors, keep: Keep) -> Callable[[], Tensors]:
        packed, asked, now = self.inner, [one.requires_grad for one in inner], draws(inner)
        # thousands of states may be kept: where nothing was drawn between two, they share the record
        drawn = self.drawn if self.drawn is not None and self.drawn == now else now
        self.drawn = drawn
        fetch = keep(packed.unpack(inner))

        def again() -> Tensors:
            drawn.restore()
            self.inner = packed
            return [*map(leaf, tensors_of(fetch()), asked)]

        return again

    def totals(self, given: Tensors) -> Tensors:
        return [torch.zeros_like(one) for one in given if one.requires_grad]

    def backward(self, kept: Any, given: Tensors, number: int, slopes: Tensors) -> Tensors:
        return kept.back(slopes, retain_graph=_is_kept())


def _is_kept() -> bool:
    """Whether what a backward pass that is under way goes by is to be there for another one (``retain_graph``)."""
    return torch._C._autograd._get_current_graph_task_keep_graph()


def one_by_one(
    step: Step, given: Given, inner: Inner, numbers: range, create_graph: bool, schedule: Schedule | None = None
) -> tuple[Inner, Tensor] | None:
    """Take the steps as they are, each with a derivative of its own; second derivatives are refused.

    It is ``None`` where that comes to nothing, or is not all of the derivative; with a schedule it always is done.
    """
    tensors = tensors_of((given, inner))
    if schedule is None and (len(numbers) < 2 or not wanted(tensors) or _within_functorch()):
        return None
    one = AsItIs(step, given, inner, create_graph, closed=schedule is not None)
    try:
        *end, losses = _OneByOne.apply(Steps(one, numbers, len(tensors_of(given)), schedule), *tensors)
    except _OpenError:
        return None
    return one.inner.unpack(end), losses


def _within_functorch() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


class _OneByOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, steps: Steps, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        *found, losses, ctx.tape = steps.forward(*tensors)
        ctx.steps, ctx.asked, ctx.autocast = steps, [one.requires_grad for one in found], autocast_of(tensors)
        end = [one.detach() for one in found]
        # of which PyTorch says what is wrong when they are gone, or changed before steps are taken again
        ctx.save_for_backward(losses, *(tensors if steps.schedule else ()))
        ctx.mark_non_differentiable(losses, *(one for one, asked in zip(end, ctx.asked) if not asked))
        return *end, losses

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        steps, saved = ctx.steps, ctx.saved_tensors
        back = steps.backward_first if _is_kept() else steps.backward
        with _again(saved, ctx.autocast) if steps.schedule else contextlib.nullcontext():
            found = iter(back(ctx.tape, *compress(slopes, ctx.asked)))
        return None, *(next(found) if needed else None for needed in ctx.needs_input_grad[1:])


@contextlib.contextmanager
def _again(tensors: Tensors, autocast: Autocast) -> Iterator[None]:
    """Take steps again inside, as they were taken first; the generators go on as if none had been."""
    before = draws(tensors)
    with casting(autocast):
        yield
    before.restore()
