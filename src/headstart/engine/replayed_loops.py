"""Inner loops of which nobody asks a derivative, as when one new task is adapted to: replayed from a record of a step.

A step of a small network is some dozens of operations of microseconds, and finding out what they are takes longer. They
are written down once for each kind of inputs (`engine.steps`), apart from what follows from the support set alone, and
run T times: with the same bits.
"""

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from headstart.core.counting import Counted
from headstart.core.inner import Given, Inner, Step, run
from headstart.core.process import Settings, generators, settings
from headstart.core.schedules import Schedule
from headstart.core.tree import Packed, mapped, pack, tensors_of
from headstart.core.values import conditions
from headstart.engine.loops import demand_all
from headstart.engine.record import RECORDING, REMEMBERED, Key, Kinds, Way, apart, replayed
from headstart.engine.steps import Demand, Run, constants, undifferentiated
from headstart.forward.task_map import first_line

logger = logging.getLogger("headstart")

#: A record is made after so many steps of a kind, by when it would have paid: it takes as long as they lose without it.
WITHOUT_DERIVATIVES = Way("replayed", replayed, after=400, most=1000, same=True, level=logging.DEBUG)


class _Program(NamedTuple):
    """The steps of a loop for inputs of one kind."""

    settled: Run
    """``(*given) -> found``: what all steps need."""
    step: Run
    """``(*found, *inner, number) -> (*next state, losses)``."""
    numbers: Sequence[Tensor]
    demands: Sequence[Demand]
    inner: Packed
    held: int
    """How many of the inputs are given."""

    def __call__(self, here: Settings, tensors: Sequence[Tensor]) -> tuple[Inner, Tensor] | None:
        """Return what the steps lead to, if the inputs' values are as demanded."""
        with conditions() as noted:
            demand_all(self.demands, tensors)
        if not all(holds for *_, holds in noted.values()):
            return None
        with here.without_autocast():
            found, state, losses = self.settled(*tensors[: self.held]), tensors[self.held :], list[Tensor]()
            for number in self.numbers:
                *state, loss = self.step(*found, *state, number)
                losses.append(loss)
            return self.inner.unpack(state), torch.stack(losses)


class ReplayedLoops:
    """The `Loop` that takes those of one learner, where nobody asks for derivatives.

    What cannot be recorded runs as it is: what goes by values, what draws from generators of the process, and what is
    inside modes and hooks that see every operation. It may be used in several threads.
    """

    def __init__(self, way: Way = WITHOUT_DERIVATIVES) -> None:
        self.way, self.kinds, self.made = way, Kinds(), 0
        """How many records were made: of an endless number of kinds, those that came often first have one."""

    def __call__(
        self, step: Step, given: Given, inner: Inner, numbers: range, create_graph: bool, schedule: Schedule | None
    ) -> tuple[Inner, Tensor] | None:
        """Return what the steps lead to, if there is a record of them."""
        here = settings()
        if here is None or len(numbers) < 2 or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        packed, tensors = pack((given, inner))
        if any(tensor.device.type != "cpu" for tensor in tensors):
            return None
        kinds = ((one.shape, one.stride(), one.dtype) for one in tensors)
        key: Key = (here, torch.get_num_threads(), numbers, step.first, repr(packed.tree), *kinds)
        if self.made >= REMEMBERED and key not in self.kinds.entries:
            return None
        entry = self.kinds[key]
        if entry.done:
            return entry.program and entry.program(here, tensors)
        if not entry.lock.acquire(blocking=False):
            return None
        try:
            entry.calls += len(numbers)
            if entry.done or entry.calls <= self.way.after or RECORDING.locked():
                return None
            found, entry.program = self._first(here, step._replace(loop=None), given, inner, numbers)
            entry.done, self.made = True, self.made + 1
            return found
        finally:
            entry.lock.release()

    def _first(
        self, here: Settings, step: Step, given: Given, inner: Inner, numbers: range
    ) -> tuple[tuple[Inner, Tensor], _Program | None]:
        """Return what the steps lead to, computed as they are, and a program that gives the same, if there is one."""
        before = generators()
        found = run(step, given, inner, numbers, create_graph=False)
        start = time.perf_counter()
        try:
            if generators() != before:
                raise RuntimeError("it draws from a generator of the process")
            with Counted(memory=False) as counted:
                step(given, inner, numbers[0], create_graph=False)
            if counted.operations > self.way.most:
                raise RuntimeError(f"it takes {counted.operations} operations, more than {self.way.most}")
            program = self._program(here, step, given, found[0], numbers)
            again = program(here, tensors_of((given, inner)))
            if again is None or not all(map(_same, tensors_of(again), tensors_of(found))):
                raise RuntimeError("it gives something else, so that it depends on more than tensors")
        except Exception as error:  # whatever PyTorch may raise, the usual way is there
            text = "inner step without derivatives not %s, running as it is: %s: %s"
            logger.log(self.way.level, text, self.way.name, type(error).__name__, first_line(error))
            return found, None
        text = "inner step without derivatives %s: %d operations in %.2f s"
        logger.log(self.way.level, text, self.way.name, counted.operations, time.perf_counter() - start)
        return found, program

    def _program(self, here: Settings, step: Step, given: Given, inner: Inner, numbers: range) -> _Program:
        """Return the program of steps; ``inner`` is what they led to, which is laid out as they leave it."""
        (packed, tensors), held = pack((given, inner)), len(tensors_of(given))
        mode, of_steps = FakeTensorMode(allow_non_fake_inputs=True), [*map(torch.tensor, numbers)]
        with RECORDING:
            record = undifferentiated(step, *mapped(lambda tensor: mode.from_tensor(tensor.detach()), (given, inner)))
            if record is None:
                raise RuntimeError("its steps are not one over again, of the tensors that it is given")
            settled, one, demands = record
            with here.without_autocast():
                first, going = self.way.translate(settled), self.way.translate(one)
                ends = going(*first(*tensors[:held]), *tensors[held:], of_steps[0])
        going = apart(going, ends, [*constants(settled), *constants(one), *of_steps])
        return _Program(first, going, of_steps, demands, Packed(packed.tree[1]), held)


def _same(one: Tensor, other: Tensor) -> bool:
    alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return alike and (torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))
