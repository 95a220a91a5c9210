"""Inner loops that are differentiated step by step, so that a record holds a step once, however often it is taken.

An inner step is the same computation T times. A loop takes its steps forwards, keeps of each what its derivative needs,
and goes back over them; a step is computed as it is, or by a record of it (`engine.steps`). In the record of a
meta-gradient a loop is one operation, and its derivative another, so neither a record nor the time to make it grows
with T.
"""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import compress, count
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from headstart.core.adjoints.pullback import refuse_second_derivatives
from headstart.core.adjoints.steps import Steps, one_by_one
from headstart.core.counting import Counted
from headstart.core.inner import Given, Inner, Step, looping, looping_by
from headstart.core.objective import backprop
from headstart.core.schedules import Schedule
from headstart.core.tree import Packed, pack, tensors_of
from headstart.core.values import all_true, demand
from headstart.engine.steps import Demand, RecordedStep, like, recorded_step
from headstart.errors import DifferentiationError
from headstart.types import Episodes, Info, Learner, Meta


def in_steps(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Meta, Info]:
    """Compute `backprop` with loops that are differentiated step by step: a record of it has the same bits."""
    try:
        with step_by_step():
            return backprop(learner, meta, episodes)
    except DifferentiationError:  # it may be the objective that takes second derivatives of the steps
        return backprop(learner, meta, episodes)


def step_by_step() -> contextlib.AbstractContextManager[None]:
    """Differentiate the loops that are run inside step by step."""
    return looping_by(one_by_one)


def as_it_is(learner: Learner) -> Learner:
    """Return the learner with the inner steps of its adaptation computed anew each time, none of them by a record."""

    def computing() -> contextlib.AbstractContextManager[None]:
        return looping_by(looping.get() or (lambda *_: None))

    def adapt(*args: Any, **options: Any) -> Any:
        with computing():
            return learner.adapt(*args, **options)

    def path(*args: Any, **options: Any) -> Iterator[Any]:
        assert learner.path is not None
        stops = learner.path(*args, **options)
        while True:
            with computing():
                found = next(stops, None)
            if found is None:
                return
            yield found

    return learner._replace(adapt=adapt, path=None if learner.path is None else path)


def counted(learner: Learner, meta: Meta, episodes: Episodes) -> int:
    """Return how many operations `backprop` would take if every loop took one step."""

    def first(
        step: Step, given: Given, inner: Inner, numbers: range, create_graph: bool, schedule: Schedule | None
    ) -> tuple[Inner, Tensor] | None:
        if len(numbers) < 2:
            return None
        after, losses = step(given, inner, numbers[0], create_graph)
        return after, losses.expand(len(numbers), *losses.shape)

    with Counted(memory=False) as found, looping_by(first):
        backprop(learner, meta, episodes)
    return found.operations


def demand_all(demands: Sequence[Demand], tensors: Sequence[Tensor]) -> None:
    """Demand of the inputs of a loop what its step does."""
    for place, mask, bound in demands:
        about, counting = tensors[place], None if mask is None else tensors[mask]
        demand(about, bound, counting) if bound else all_true(about)


class Recording:
    """Takes the loops of a computation that is recorded, each as one operation."""

    def __init__(self, most: int, at_once: bool = True) -> None:
        self.most, self.at_once = most, at_once
        """Operations of a loop whose steps are recorded one by one; whether any are recorded at once."""
        self.loops: dict[int, Steps] = {}

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the loops that are run inside."""
        with looping_by(self):
            try:
                yield
            finally:
                for number in self.loops:
                    del _LOOPS[number]

    def __call__(
        self,
        step: Step,
        given: Given,
        inner: Inner,
        numbers: range,
        create_graph: bool,
        schedule: Schedule | None,
    ) -> tuple[Inner, Tensor] | None:
        """Return what the steps lead to."""
        if len(numbers) < 2:
            return None
        if not self.at_once:
            return one_by_one(step, given, inner, numbers, create_graph, schedule)
        with disable_proxy_modes_tracing(), looping_by(None):
            one = recorded_step(step, given, inner, numbers, create_graph)
        if isinstance(one, int):  # they are not one step over again
            if one * len(numbers) > self.most:
                raise RuntimeError(f"it takes {one * len(numbers)} operations, more than {self.most}")
            return one_by_one(step, given, inner, numbers, create_graph, schedule)
        packed, tensors = pack((given, inner))
        demand_all(one.demands, tensors)
        number = next(_NUMBERS)
        self.loops[number] = _LOOPS[number] = Steps(one, numbers, len(tensors_of(given)), schedule)
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
    # what does not move may still be shared by the tasks
    return [*map(like, step.state), step.losses.new_empty(times, *step.losses.shape)]


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
