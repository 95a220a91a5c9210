"""Inner loops that are differentiated step by step, so that a record holds a step once, however often it is taken.

An inner step is the same computation T times. A loop takes its steps forwards, keeps of each what its derivative needs,
and goes back over them; a step is computed as it is, or by a record of it (`engine.steps`). In the record of a
meta-gradient a loop is one operation, and its derivative another, so neither a record nor the time to make it grows
with T.
"""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import compress, count
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from headstart.core.adjoints.pullback import leaf, refuse_second_derivatives, wanted
from headstart.core.counting import Counted
from headstart.core.inner import Given, Inner, Loop, Step, looping
from headstart.core.objective import backprop
from headstart.core.tree import Packed, pack, tensors_of
from headstart.core.values import all_true, demand
from headstart.engine.steps import RecordedStep, recorded_step, taken
from headstart.errors import DifferentiationError
from headstart.types import Episodes, Info, Learner, Meta

Tensors: TypeAlias = Sequence[Tensor]


def in_steps(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Meta, Info]:
    """Compute `backprop` with loops that are differentiated step by step: a record of it has the same bits."""
    try:
        with step_by_step():
            return backprop(learner, meta, episodes)
    except DifferentiationError:  # it may be the objective that takes second derivatives of the steps
        return backprop(learner, meta, episodes)


def step_by_step() -> contextlib.AbstractContextManager[None]:
    """Differentiate the loops that are run inside step by step."""
    return _taking(_one_by_one)


@contextlib.contextmanager
def _taking(loop: Loop | None) -> Iterator[None]:
    token = looping.set(loop)
    try:
        yield
    finally:
        looping.reset(token)


def counted(learner: Learner, meta: Meta, episodes: Episodes) -> int:
    """Return how many operations `backprop` would take if every loop took one step."""

    def first(
        step: Step, given: Given, inner: Inner, numbers: range, create_graph: bool
    ) -> tuple[Inner, Tensor] | None:
        if len(numbers) < 2:
            return None
        after, losses = step(given, inner, numbers[0], create_graph)
        return after, losses.expand(len(numbers), *losses.shape)

    with Counted(memory=False) as found, _taking(first):
        backprop(learner, meta, episodes)
    return found.operations


class OneStep(Protocol):
    """A step of a loop, and its derivative, on lists of tensors."""

    def forward(self, given: Tensors, inner: Tensors, number: int) -> tuple[Tensors, Tensor, Any]:
        """Return the next state, the losses ``(B,)`` before it, and what `backward` takes first."""
        ...

    def totals(self, given: Tensors) -> Tensors:
        """Return zeros like what is given, where there are derivatives of it."""
        ...

    def backward(self, kept: Any, given: Tensors, number: int, slopes: Tensors) -> Tensors:
        """Return the slopes of what is given and of the state, where there are derivatives of them.

        ``slopes`` are those behind the step: of what is given, which the step adds its own to, and of the next state.
        """
        ...


class Steps(NamedTuple):
    """All steps of a loop as two functions: what they lead to, and the derivative of that."""

    step: OneStep
    numbers: range
    held: int
    """How many of the tensors are given."""

    def forward(self, *tensors: Tensor) -> list[Any]:
        """Return the state after all steps, the losses ``(steps, B)``, and the tape that `backward` takes."""
        given, inner = tensors[: self.held], tensors[self.held :]
        losses, tape = [], []
        for number in self.numbers:
            inner, loss, kept = self.step.forward(given, inner, number)
            losses.append(loss)
            tape.append(kept)
        return [*inner, torch.stack(losses), (given, tape)]

    def backward(self, tape: tuple[Tensors, list[Any]], *slopes: Tensor) -> list[Tensor]:
        """Return the slopes of what is given and of the first state, for those of the last; the tape is used up."""
        given, kept = tape
        found: Tensors = [*self.step.totals(given), *slopes]
        for number in reversed(self.numbers):
            found = self.step.backward(kept.pop(), given, number, found)
        return [*found]

    def backward_first(self, tape: tuple[Tensors, list[Any]], *slopes: Tensor) -> list[Tensor]:
        """Return what `backward` does, and leave the tape for another time."""
        given, kept = tape
        return self.backward((given, [*kept]), *slopes)


class _OpenError(Exception):
    """Derivatives of a step flow past what it is given, so that they are not all its own."""


class _AsItIs:
    """A step that is computed as it is."""

    def __init__(self, step: Step, given: Given, inner: Inner, create_graph: bool) -> None:
        self.step, self.create_graph, self.closed = step, create_graph, False
        self.given, self.inner = pack(given)[0], pack(inner)[0]

    def forward(self, given: Tensors, inner: Tensors, number: int) -> tuple[Tensors, Tensor, Any]:
        asked, packed = [one.requires_grad for one in (*given, *inner)], Packed((self.given.tree, self.inner.tree))
        with _taking(None):  # a loop within a step is differentiated twice
            found = taken(self.step, packed, (*given, *inner), asked, number, self.create_graph)
        if not self.closed and not found.graph.is_closed():
            raise _OpenError
        self.closed = True  # as this step is, so are the others
        self.inner, after = pack(found.after)  # which a rule's state may be part of from now on
        return [*map(leaf, after)], found.losses, found.graph

    def totals(self, given: Tensors) -> Tensors:
        return [torch.zeros_like(one) for one in given if one.requires_grad]

    def backward(self, kept: Any, given: Tensors, number: int, slopes: Tensors) -> Tensors:
        return kept.back(slopes, retain_graph=_is_kept())


def _is_kept() -> bool:
    """Whether what a backward pass that is under way goes by is to be there for another one (``retain_graph``)."""
    return torch._C._autograd._get_current_graph_task_keep_graph()


def _one_by_one(
    step: Step, given: Given, inner: Inner, numbers: range, create_graph: bool
) -> tuple[Inner, Tensor] | None:
    """Take the steps as they are, each with a derivative of its own."""
    tensors = tensors_of((given, inner))
    if len(numbers) < 2 or not wanted(tensors) or torch._C._functorch.peek_interpreter_stack() is not None:
        return None
    one = _AsItIs(step, given, inner, create_graph)
    try:
        *end, losses = _Taken.apply(Steps(one, numbers, len(tensors_of(given))), *tensors)
    except _OpenError:
        return None
    return one.inner.unpack(end), losses


class _Taken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, steps: Steps, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        *found, losses, ctx.tape = steps.forward(*tensors)
        ctx.steps, ctx.asked = steps, [one.requires_grad for one in found]
        end = [one.detach() for one in found]
        ctx.save_for_backward(losses)  # of which PyTorch says what is wrong when they are gone
        ctx.mark_non_differentiable(losses, *(one for one, asked in zip(end, ctx.asked) if not asked))
        return *end, losses

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        assert ctx.saved_tensors
        back = ctx.steps.backward_first if _is_kept() else ctx.steps.backward
        found = iter(back(ctx.tape, *compress(slopes, ctx.asked)))
        return None, *(next(found) if needed else None for needed in ctx.needs_input_grad[1:])


class Recording:
    """Takes the loops of a computation that is recorded, each as one operation."""

    def __init__(self, most: int, at_once: bool = True) -> None:
        self.most, self.at_once = most, at_once
        """Operations of a loop whose steps are recorded one by one; whether any are recorded at once."""
        self.loops: dict[int, Steps] = {}

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the loops that are run inside."""
        with _taking(self):
            try:
                yield
            finally:
                for number in self.loops:
                    del _LOOPS[number]

    def __call__(
        self, step: Step, given: Given, inner: Inner, numbers: range, create_graph: bool
    ) -> tuple[Inner, Tensor] | None:
        """Return what the steps lead to."""
        if len(numbers) < 2:
            return None
        if not self.at_once:
            return _one_by_one(step, given, inner, numbers, create_graph)
        with disable_proxy_modes_tracing(), _taking(None):
            one = recorded_step(step, given, inner, numbers, create_graph)
        if isinstance(one, int):  # they are not one step over again
            if one * len(numbers) > self.most:
                raise RuntimeError(f"it takes {one * len(numbers)} operations, more than {self.most}")
            return _one_by_one(step, given, inner, numbers, create_graph)
        packed, tensors = pack((given, inner))
        for place, bound in one.demands:
            demand(tensors[place], bound) if bound else all_true(tensors[place])
        number = next(_NUMBERS)
        self.loops[number] = _LOOPS[number] = Steps(one, numbers, len(tensors_of(given)))
        *end, losses = _Recorded.apply(number, *tensors)
        return Packed(packed.tree[1]).unpack(end), losses

    def link(self, record: fx.GraphModule) -> None:
        """Put the loops themselves in the places of their names in a record, and hand tapes to the derivatives."""
        tapes, graph = dict[int, fx.Node](), record.graph
        nodes = [node for node in graph.nodes if node.target is torch.ops.headstart.inner_loop.default]
        last = {node.args[0]: node for node in nodes}  # of those that are differentiated several times
        for node in nodes:
            number, back, tensors = node.args
            loop = self.loops[number]
            node.target = loop.forward if not back else loop.backward if last[number] is node else loop.backward_first
            node.args = (tapes[number], *tensors) if back else tuple(tensors)
            if not back:
                with graph.inserting_after(node):
                    tapes[number] = graph.call_function(_last, (node,))
        record.recompile()


def _last(found: list[Any]) -> Any:
    return found[-1]


#: Those that are recorded now.
_LOOPS: dict[int, Steps] = {}
_NUMBERS = count()


@torch.library.custom_op("headstart::inner_loop", mutates_args=())
def inner_loop(number: int, back: bool, tensors: list[Tensor]) -> list[Tensor]:
    """Stand for a loop, or its derivative, while what it is part of is recorded."""
    raise RuntimeError("an inner loop stands in a record only until it is linked")


@inner_loop.register_fake
def _(number: int, back: bool, tensors: list[Tensor]) -> list[Tensor]:
    step, times = _LOOPS[number].step, len(_LOOPS[number].numbers)
    assert isinstance(step, RecordedStep)
    if back:
        return [*map(torch.empty_like, step.inputs)]
    return [*map(torch.empty_like, step.state), step.losses.new_empty(times, *step.losses.shape)]


class _Recorded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, number: int, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        step = _LOOPS[number].step
        assert isinstance(step, RecordedStep)
        ctx.number, ctx.asked = number, step.asked
        *end, losses = torch.ops.headstart.inner_loop(number, False, list(tensors))
        ctx.mark_non_differentiable(losses, *(one for one, asked in zip(end, ctx.asked[1]) if not asked))
        return *end, losses

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        found = iter(torch.ops.headstart.inner_loop(ctx.number, True, list(compress(slopes, ctx.asked[1]))))
        return None, *(next(found) if asked else None for part in ctx.asked for asked in part)
