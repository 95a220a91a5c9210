"""The meta-gradient as a list of tensor operations, recorded once and run again.

The inner steps with their derivatives and the outer derivative are recorded for inputs of certain shapes
(`engine.tracing`). Running the record computes the same, operation by operation, without finding out what to compute.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx

from headstart.core.objective import at, backprop
from headstart.core.process import Settings, generators, settings
from headstart.core.tree import mapped
from headstart.engine.loops import counted, in_steps
from headstart.engine.rewrite import call_directly, fold, shorten, writes
from headstart.engine.steps import Run, constants
from headstart.engine.tracing import Program, layout, recorded, tensors_of, without_notes
from headstart.forward.task_map import first_line
from headstart.types import Episodes, Info, Learner, Meta, Params

logger = logging.getLogger("headstart")

#: So many kinds of inputs are remembered.
REMEMBERED = 32
#: So many forms of a learner are remembered, those that came last.
FORMS = 8
#: What is not computed in a meta-gradient, by its name in a learner.
_NOT_COMPUTED = ("gradient", "during")
#: How far a tensor of a compiled program may be from that of the computation that it was made of, relative to its
#: length, by the coarsest type of numbers in the program.
TOLERANCES = {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float32: 1e-3, torch.float64: 1e-6}
#: What counts as the length of a tensor that is nearly zero, relative to that of all together.
LEAST = 0.01
#: A program is tried with θ and M multiplied by these, too. At the kink of a ReLU a rounding error may turn a
#: derivative, so one that is too far off gets other chances.
RETRIED = (0.99, 0.97)

#: Why nothing is recorded inside certain modes.
SEEN = "hooks for saved tensors or a mode of PyTorch are on, which have to see every operation"

#: Held while a record is made: PyTorch puts functions in the place of modules' own meanwhile, those of one thread only.
RECORDING = threading.Lock()

Key: TypeAlias = tuple[Any, ...]

_kind = attrgetter("shape", "dtype", "device")


class Way(NamedTuple):
    """What becomes of a record."""

    name: str
    """As a participle: ``"compiled"``."""
    translate: Callable[[fx.GraphModule], Run]
    """``record -> a function of tensors like its inputs``."""
    after: int
    """How often to compute as it is before recording pays."""
    most: int
    """Of the operations of a computation that is worth recording."""
    same: bool
    """Whether the function gives the same bits."""
    level: int
    """Of the line of the log that says why it cannot be done."""


def replayed(record: fx.GraphModule) -> Run:
    """Return the record itself, its operations called in the least time."""
    if not writes(record):
        fold(record)
    call_directly(record.graph)
    run: Run = without_notes(record).forward
    return run


class Inputs(NamedTuple):
    """What a meta-gradient is computed of."""

    meta: Meta
    episodes: Episodes
    tensors: list[Tensor]
    kind: Key
    """What a program is made for: the names, the shapes, types and devices of all tensors, and their places."""


def inputs_of(meta: Meta, episodes: Episodes) -> Inputs:
    """Return the inputs with what is read off them once a step."""
    tensors = tensors_of(meta, episodes)
    support, query = episodes
    kind = tuple(meta[0]), tuple(meta[1]), layout(support), layout(query), *map(_kind, tensors)
    return Inputs(meta, episodes, tensors, kind)


class Form(NamedTuple):
    """A learner as one of those that were met, by a number for all of the same functions and for no others.

    ``settled``: whether it may be here to stay; a learner that is annealed has another form at every step.
    """

    number: int
    settled: bool


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
        del self.known[FORMS:]
        return Form(self.count, not alone), False


def _alike(one: Any, other: Any) -> bool:
    # of other objects, being equal may mean anything, or raise
    plain = isinstance(one, (int, float, str)) or hasattr(one, "__func__")
    return one is other or (plain and type(one) is type(other) and bool(one == other))


@dataclass
class Entry:
    """What is known of inputs of one kind; the thread that records holds the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    calls: int = 0
    done: bool = False
    program: Any = None


class Kinds:
    """What is known of the kinds of inputs that were met; of so many, those with a program before others."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entries: dict[Key, Entry] = {}

    def __getitem__(self, key: Key) -> Entry:
        """Return what is known of a kind, which may be a new one."""
        entry = self.entries.get(key)
        if entry is not None:
            return entry
        with self.lock:
            if len(self.entries) >= REMEMBERED:
                idle = (known for known, entry in self.entries.items() if entry.program is None)
                del self.entries[next(idle, next(iter(self.entries)))]
            return self.entries.setdefault(key, Entry())


class Recorded:
    """The `MetaGradient` that records `backprop` for every kind of inputs that it meets.

    A record is made of tensors without values, and must give for the first inputs what `backprop` gives; it is
    computed as it is where it cannot be recorded.
    """

    def __init__(self, way: Way, otherwise: "Recorded | None" = None) -> None:
        self.way, self.otherwise = way, otherwise
        """Where there is no program, it is computed as it is, or as the other one does it."""
        self.forms, self.kinds = Forms(), Kinds()
        self.said: set[str] = set()

    @property
    def programs(self) -> dict[Key, Program | None]:
        """The programs by kind of inputs; ``None`` where there is none, and will be none."""
        return {key: entry.program for key, entry in self.kinds.entries.items() if entry.done}

    def __call__(self, learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Meta, Info]:
        here = settings()
        if here is None:
            self.say(SEEN)
            return in_steps(learner, meta, episodes)
        return self.run(self.forms.of(learner), here, learner, 1, inputs_of(meta, episodes))

    def run(self, form: Form, here: Settings, learner: Learner, patience: int, given: Inputs) -> tuple[Meta, Info]:
        """Compute for a learner of that form by these settings; ``patience`` times as often as it is at first."""
        key: Key = (form.number, here, torch.get_num_threads(), given.kind)
        if self.way.same:  # even by the strides of axes of size 1 a convolution chooses how it goes on
            key += (*map(Tensor.stride, given.tensors),)
        entry = self.kinds[key]
        program: Program | None = entry.program
        if program is None:
            if entry.done:
                return self._otherwise(form, here, learner, patience, given)
            return self._first(entry, form, here, learner, given, patience)
        found = _ran(program.run, here, given.tensors)
        if program.conditional and not found[-1]:
            return in_steps(learner, given.meta, given.episodes)  # which says what is wrong with the values
        return _named(program, given.meta, found)

    def _otherwise(
        self, form: Form, here: Settings, learner: Learner, patience: int, given: Inputs
    ) -> tuple[Meta, Info]:
        if self.otherwise is None:
            return in_steps(learner, given.meta, given.episodes)
        return self.otherwise.run(form, here, learner, patience, given)

    def _first(
        self, entry: Entry, form: Form, here: Settings, learner: Learner, given: Inputs, patience: int
    ) -> tuple[Meta, Info]:
        """Compute as it is, and record when it is time; what a program gives has its own bits from the start."""
        if not entry.lock.acquire(blocking=not self.way.same):
            return in_steps(learner, given.meta, given.episodes)
        try:
            if entry.done:  # by the thread that was waited for
                return self.run(form, here, learner, patience, given)
            before = generators()
            found = in_steps(learner, given.meta, given.episodes)
            entry.calls += 1
            if not form.settled:
                self.say("the learner changes from step to step, so far")
            elif entry.calls > self.way.after * patience:
                if generators() != before:
                    self.say("the model draws from a generator of the process")
                else:
                    entry.program, found = self._program(here, learner, given, found)
                entry.done = True
            return found
        finally:
            entry.lock.release()

    def _program(
        self, here: Settings, learner: Learner, given: Inputs, expected: tuple[Meta, Info]
    ) -> tuple[Program | None, tuple[Meta, Info]]:
        """Return the program, if there is one, and what it gives where that has bits of its own."""
        start = time.perf_counter()
        try:
            found = counted(learner, given.meta, given.episodes)
            if found > self.way.most:
                self.say(f"it takes {found} operations, more than {self.way.most}")
                return None, expected
            logger.debug("meta-gradient of %d operations: recording", found)
            program, again, gap = self._tried(here, learner, given, expected, at_once=True)
            if gap and program.steps and self.way.same:
                # what a rule makes of a number that is a tensor may be rounded otherwise
                program, again, gap = self._tried(here, learner, given, expected, at_once=False)
        except Exception as error:  # whatever PyTorch or a compiler may raise, the usual way is there
            self.say(f"{type(error).__name__}: {first_line(error)}")
            return None, expected
        if gap:
            self.say(f"it gives something else ({gap}), so that what the model computes depends on more than tensors")
            return None, expected
        seconds = time.perf_counter() - start
        logger.info("meta-gradient %s: %d operations in %.1f s", self.way.name, program.operations, seconds)
        return program, expected if self.way.same else again

    def _tried(
        self, here: Settings, learner: Learner, given: Inputs, expected: tuple[Meta, Info], at_once: bool
    ) -> tuple[Program, tuple[Meta, Info], str]:
        """Return a program, what it gives, and how that differs from what is expected, if it does."""
        meta, episodes, tensors, _ = given
        with RECORDING:
            program = self._translated(recorded(learner, meta, episodes, self.way.most, at_once), here, tensors)
        tolerance = 0.0 if self.way.same else max(TOLERANCES.get(dtype, 0.0) for dtype in program.dtypes)
        again = _named(program, meta, _ran(program.run, here, tensors))
        gap = differing(again, expected, tolerance)

        def elsewhere(factor: float) -> str:
            other: Meta = mapped(lambda value: factor * value, meta)
            ours = _named(program, meta, _ran(program.run, here, tensors_of(other, episodes)))
            return differing(ours, in_steps(learner, other, episodes), tolerance)

        if self.way.same:  # what was read when it was recorded, and no more, is right for the same values
            gap = gap or elsewhere(RETRIED[0])
        else:
            for factor in RETRIED:
                gap = gap and elsewhere(factor)
        return program, again, gap

    def _translated(self, record: Program, here: Settings, tensors: list[Tensor]) -> Program:
        tensors = _plain(tensors)
        with torch.no_grad(), here.without_autocast():
            for step in record.steps:
                step.translate(lambda graph: self.way.translate(_shortened(graph)))
            run = self.way.translate(_shortened(record.run))
            run = apart(run, run(*tensors), [*tensors, *constants(record.run)])
        return record._replace(run=run)

    def forget(self) -> None:
        """Let go of all programs."""
        self.kinds = Kinds()

    def say(self, why: str) -> None:
        """Say once why the meta-gradient runs as it is."""
        if why not in self.said:
            self.said.add(why)
            logger.log(self.way.level, "meta-gradient not %s, running as it is: %s", self.way.name, why)


def _shortened(record: fx.GraphModule) -> fx.GraphModule:
    if not writes(record):
        shorten(record.graph)
    return record


def with_gradient(learner: Learner, gradient: Any) -> Learner:
    """Return the learner with another way to compute `backprop`, throughout meta-training."""
    return throughout(learner, lambda one: one._replace(gradient=gradient) if one.gradient is backprop else one)


def throughout(learner: Learner, change: Callable[[Learner], Learner]) -> Learner:
    """Return the learner with a change that it has at all stages of meta-training."""
    during = learner.during
    return change(learner)._replace(during=None if during is None else lambda done: change(at(learner, done)))


def _plain(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [(tensor.detach() if tensor.requires_grad else tensor).contiguous() for tensor in tensors]


def _ran(run: Run, here: Settings, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    with torch.no_grad():
        if here.autocast:
            with here.without_autocast():
                return run(*_plain(tensors))
        return run(*_plain(tensors))


def apart(run: Run, found: Sequence[Tensor], held: Sequence[Tensor]) -> Run:
    """Return a function whose outputs lie in no memory of what is ``held``, and none where another one does.

    ``found`` is what it gives.
    """
    seen = {tensor.untyped_storage().data_ptr() for tensor in held}
    places = []
    for place, tensor in enumerate(found):
        where = tensor.untyped_storage().data_ptr()
        if where and where in seen:
            places.append(place)
        seen.add(where)

    def copied(*tensors: Tensor) -> Sequence[Tensor]:
        found = list(run(*tensors))
        for place in places:
            found[place] = found[place].clone()
        return found

    return copied if places else run


def _named(program: Program, meta: Meta, found: Sequence[Tensor]) -> tuple[Meta, Info]:
    first, second = len(meta.params), len(meta.params) + len(meta.structure)
    left = iter(found[second:])
    told = [next(left) if there else None for there in program.told]
    return Meta(dict(zip(meta[0], found)), dict(zip(meta[1], found[first:second]))), Info(*told)  # pyrefly: ignore


def differing(got: tuple[Meta, Info], expected: tuple[Meta, Info], tolerance: float) -> str:
    """Return the tensor in which two results differ by more than ``tolerance`` of its length, and by how much.

    Numbers that are not finite have to be the same in both.
    """

    def by_name(meta: Meta, info: Info) -> Params:
        told = {name: value for name, value in info._asdict().items() if value is not None}
        return {**{f"θ.{n}": v for n, v in meta[0].items()}, **{f"M.{n}": v for n, v in meta[1].items()}, **told}

    ours, theirs = by_name(*got), by_name(*expected)
    whole = math.hypot(*(float(torch.linalg.vector_norm(v[v.isfinite()])) for v in theirs.values()))
    for name, value in theirs.items():
        own = ours[name]
        finite = value.isfinite()
        if own.shape != value.shape or own.dtype != value.dtype:
            return f"{name}: {tuple(own.shape)} of {own.dtype}"
        if not torch.allclose(own[~finite], value[~finite], equal_nan=True) or not own[finite].isfinite().all():
            return f"{name}: other numbers are not finite"
        length = max(float(torch.linalg.vector_norm(value[finite])), LEAST * whole)
        gap = float(torch.linalg.vector_norm(own[finite] - value[finite]))
        if gap > tolerance * length:
            return f"{name}: off by {gap / length if length else math.inf:.1e} of its length"
    return ""
