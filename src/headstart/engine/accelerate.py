"""The same meta-gradient in less time or less memory: in parts, in threads, from a record, compiled.

L(θ, M) is a mean over tasks, and its gradient the mean of those of parts of the tasks. Parts that follow one another
need the memory of one; parts in threads use a processor's cores better than operations that are split among them.
"""

import functools
import gc
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from headstart.core.counting import Counted, to_bytes, to_text
from headstart.core.objective import at, backprop
from headstart.core.process import Settings, generators, one_thread, pool, put_back, settings
from headstart.core.tree import mapped, tensors_of
from headstart.engine import record
from headstart.engine.compiled import compiled
from headstart.engine.graphed import Graphs
from headstart.engine.loops import as_it_is, counted, in_steps
from headstart.engine.record import SEEN, Forms, Inputs, Key, Recorded, Way, inputs_of, throughout, with_gradient
from headstart.errors import OutOfMemoryError, UsageError, asked_for, is_out_of_memory
from headstart.forward.task_map import rounded
from headstart.kernels.library import has_compiler
from headstart.types import Batch, Episodes, Info, Learner, Meta

logger = logging.getLogger("headstart")

Threads: TypeAlias = int | Literal["auto"]
Part: TypeAlias = tuple[Meta, Info]
Gradient: TypeAlias = Callable[[Inputs], Part]

#: A record is made after so many steps: it costs about a hundred of them.
REPLAYED = Way("replayed", record.replayed, after=50, most=5000, same=True, level=logging.INFO)
COMPILED = Way("compiled", compiled, after=0, most=20_000, same=False, level=logging.WARNING)


def graphed(graphs: Graphs) -> Way:
    """Return the way by graphs of a GPU that share memory."""
    return Way("graphed", graphs.graphed, after=10, most=20_000, same=True, level=logging.WARNING)


#: From so many numbers an operation on, on average, threads pay: below, their operations wait for the interpreter.
LARGE = 2**14
#: So many examples of a large task are enough to see that it is.
FEW = 2

#: So many times as often large operations are computed as they are before they are recorded, which takes longer.
PATIENCE = 8

#: What compiling saves for each operation of a replayed record, and what it takes for the first one and for each, in
#: seconds on a slow processor; it has to save so many times as much as it takes.
SAVED, COMPILING, TRANSLATING, MARGIN = 3e-6, 0.2, 0.004, 1.5
#: Fewer outer steps are not looked at: they take less time than that would.
FEW_STEPS = 200

#: Where in meta-training the needs of a learner that changes are looked at, in fractions of the outer steps.
STAGES = (0.0, 0.25, 0.5, 0.75, 1.0)

#: So many plans are remembered.
REMEMBERED = 256


def accelerate(
    learner: Learner,
    *,
    compile: bool = False,
    threads: Threads = "auto",
    chunk: int | None = None,
    memory: int | str | None = None,
    replay: bool = True,
    graphs: bool = False,
) -> Learner:
    """Return the learner with a meta-gradient that is the same to rounding, and computed otherwise.

    Only learners whose meta-gradient is by back-propagation change. Decisions go by counting, not by timing, so that
    every run decides the same. On a CPU, operations are replayed from a record after some steps, with the same bits
    (see `engine.record`). What draws from generators of the process is neither recorded nor threaded, nor is what runs
    inside PyTorch's hooks and modes that see every operation.

    Args:
        learner: the method.
        compile: whether to compile the record, for a CPU (see `engine.compiled`), and use it from the first step on.
        threads: on a CPU, how many parts of the tasks to work on at the same time, each with one thread; 1: one part
            after another, in operations that PyTorch splits where they are large. ``"auto"``:
            ``torch.get_num_threads()`` where operations are large, and one where they are small; fewer where ``memory``
            has no room for so many.
        chunk: the most tasks that are worked on together; parts follow one another.
        memory: in place of ``chunk``: the most that the graphs of the tasks worked on together may take, in bytes or
            as ``"2GiB"``, measured on one task.
        replay: False computes every step anew: for a model or a loss that goes by more than its tensors and its own
            random numbers, such as a Python number that changes during training. Adaptation is then not replayed
            either (see `engine.replayed_loops`).
        graphs: whether a CUDA GPU runs the record as graphs (see `engine.graphed`), with the same bits. They take the
            memory of about two more inner steps. Not yet measured on a GPU.

    Raises:
        UsageError: an option out of its range, two that exclude each other, or one task that needs more than
            ``memory``.

    The gradient raises `OutOfMemoryError` where memory runs out. It says how many tasks at a time fit, which it tries.
    """
    for name, value, other in (("threads", threads, "auto"), ("chunk", chunk, None)):
        if value != other and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UsageError(f"{name} must be a whole number from 1 up or {other!r}, got {value!r}")
    if chunk is not None and memory is not None:
        raise UsageError(f"accelerate takes chunk= or memory=, not both; got {chunk} and {memory!r}")
    if compile and graphs:
        raise UsageError("accelerate takes compile=True or graphs=True, not both")
    room = None if memory in (None, "auto") else to_bytes(memory)
    if not replay:
        learner = throughout(learner, as_it_is)
    if learner.gradient is not backprop:
        if compile or graphs:
            way = "compiled" if compile else "graphed"
            logger.warning("not %s: this learner's meta-gradient is not by back-propagation", way)
        return learner
    return with_gradient(
        learner, _InParts(learner, _Options(compile, threads, chunk, room, replay, memory == "auto", graphs))
    )


def repays(learner: Learner, meta: Meta, episodes: Iterable[Episodes], steps: int) -> bool:
    """Return whether compiling the meta-gradient takes less time than it saves in so many outer steps, by counting.

    Args:
        learner: the method.
        meta: where it starts.
        episodes: those of some outer steps; where their shapes differ, programs would be many.
        steps: how many outer steps there will be.
    """
    if steps < FEW_STEPS or learner.gradient is not backprop or learner.during is not None or not has_compiler():
        return False
    here, (first, *others) = settings(), episodes
    kind = inputs_of(meta, first).kind
    if here is None or first.query.y.device.type != "cpu" or any(inputs_of(meta, one).kind != kind for one in others):
        return False
    plan = _InParts(learner, _Options(False, "auto", None, None, True, False))._plan(here, meta, first)
    if not plan.counted:
        return False
    part = next(_parts(first, plan.size))
    with put_back():
        once = counted(learner, meta, part)
        with Counted(memory=False) as every:
            backprop(learner, meta, part)
    times = len(first.query.y) / (plan.size * plan.workers)
    return steps * times * SAVED * every.operations > MARGIN * (COMPILING + once * TRANSLATING)


class _Options(NamedTuple):
    compile: bool
    threads: Threads
    chunk: int | None
    room: int | None
    replay: bool
    yielding: bool
    """Whether to go on with fewer tasks at a time where memory runs out."""
    graphs: bool = False


class _Plan(NamedTuple):
    """How to work on a number of tasks: in parts of ``size``, so many ``workers`` at the same time.

    Operations that are ``small`` run in one thread; a record of those that were ``counted`` may be replayed.
    """

    size: int
    workers: int
    small: bool
    counted: bool = True


class _InParts:
    def __init__(self, learner: Learner, options: _Options) -> None:
        self.options, self.stages = options, _stages(learner)
        self.recorded = Recorded(REPLAYED)
        if options.compile or options.graphs:
            way = COMPILED if options.compile else graphed(Graphs())
            self.recorded = Recorded(way, self.recorded if options.replay else None)
        self.plans: dict[Key, _Plan] = {}
        self.plan: _Plan | None = None
        """The one at work."""

    def __call__(self, learner: Learner, meta: Meta, episodes: Episodes) -> Part:
        self.plan = None
        try:
            return self._computed(learner, meta, episodes)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            told = asked_for(error)
        # outside of that block: an error holds on to its frames, and so to what was made until then
        return self._leaner(told, learner, meta, episodes)

    def _leaner(self, told: str, learner: Learner, meta: Meta, episodes: Episodes) -> Part:
        """Compute with half as many tasks at a time, and so on until that fits; then stay with it, or say what fits."""
        given, tasks = self.options, len(episodes.query.y)
        plan, found = self.plan, None
        if plan is None:  # it ran out in the looks that a plan is made from
            plan = _Plan(given.chunk or tasks, 1 if given.threads == "auto" else given.threads, False)
        before = at_once = min(tasks, plan.size * plan.workers)
        if not given.yielding:  # a trial is not worth a record
            self.options = given._replace(compile=False, replay=False, graphs=False)
        try:
            while found is None and at_once > 1:
                at_once = -(-at_once // 2)
                workers = min(plan.workers, at_once)
                self.options = self.options._replace(chunk=at_once // workers, threads=workers, room=None)
                found = self._fitting(learner, meta, episodes)
            if found is not None and given.yielding:
                given = self.options
                logger.warning("out of memory with %d tasks at a time (%s); from now on %d", before, told, at_once)
                return found
        finally:
            self.options = given
            self.plans.clear()
        fits = "not even one at a time fits; take an adjoint that remembers less, where there are inner steps"
        fits += " (--adjoint checkpointed), else fewer or smaller examples, or a smaller model"
        if found is not None:
            result = sum(value.nbytes for part in meta for value in part.values())
            fewer = max(1, at_once * 9 // 10)  # what is free comes in pieces, of other sizes another time
            size = to_text(1.01 * (fewer * self._needed(meta, episodes) + 2 * result)).replace(" ", "")
            fits = f"{at_once} at a time fit: take --memory auto, which finds that, or --memory {size}"
            fits += f" (in Python accelerate(learner, memory=...) or chunk={at_once})"
        raise OutOfMemoryError(f"out of memory with {before} task{'s' * (before != 1)} at a time ({told}); {fits}")

    def _fitting(self, learner: Learner, meta: Meta, episodes: Episodes) -> Part | None:
        """Return the gradient, or ``None`` where there is no memory for it."""
        self.plans.clear()
        self.recorded.forget()  # graphs hold memory, and are of more tasks
        gc.collect()  # errors hold on to their frames in circles
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        try:
            return self._computed(learner, meta, episodes)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _computed(self, learner: Learner, meta: Meta, episodes: Episodes) -> Part:
        here, given = settings(), inputs_of(meta, episodes)
        key = here, torch.get_num_threads(), given.kind
        plan = self.plans.get(key) or self._remembered(key, lambda: self._alike(here, meta, episodes))
        self.plan = plan
        gradient = self._gradient(here, plan, learner)
        if plan.size >= len(episodes.query.y):
            with one_thread(plan.small):
                return gradient(given)
        parts = (inputs_of(meta, part) for part in _parts(episodes, plan.size))
        several = here is not None and plan.workers > 1
        with one_thread(plan.small or several):  # threads of this one would wait in the way of the others
            if several:
                return _joined(_at_once(gradient, parts, plan.workers, here), len(episodes.query.y))
            return _joined(map(gradient, parts), len(episodes.query.y))

    def _alike(self, here: Settings | None, meta: Meta, episodes: Episodes) -> _Plan:
        """Return the plan for tasks like these: each new number of examples, or length of texts, would be looked at."""
        if self.options.room is not None:  # which is for so many examples and no more
            return self._plan(here, meta, episodes)
        like = _rounded(episodes)
        key = "like", here, torch.get_num_threads(), inputs_of(meta, like).kind
        try:
            return self.plans.get(key) or self._remembered(key, lambda: self._plan(here, meta, like))
        except Exception:  # a learner may not take an example twice
            return self._plan(here, meta, episodes)

    def _remembered(self, key: Key, plan: Callable[[], _Plan]) -> _Plan:
        found = plan()
        if len(self.plans) >= REMEMBERED:
            self.plans.pop(next(iter(self.plans)), None)
        self.plans[key] = found
        return found

    def _gradient(self, here: Settings | None, plan: _Plan, learner: Learner) -> Gradient:
        asked = self.options.compile or self.options.graphs
        if here is not None and (asked or (plan.counted and self.options.replay)):
            form, patience = self.recorded.forms.of(learner), 1 if plan.small else PATIENCE
            return functools.partial(self.recorded.run, form, here, learner, patience)
        if asked:
            self.recorded.say(SEEN)
        return lambda given: in_steps(learner, given.meta, given.episodes)

    def _plan(self, here: Settings | None, meta: Meta, episodes: Episodes) -> _Plan:
        """Return a plan that goes by the learner and the shapes alone, not by how far a run is."""
        options, tasks = self.options, len(episodes.query.y)
        counted = here is not None and episodes.query.y.device.type == "cpu"
        with put_back():
            result = sum(value.nbytes for part in meta for value in part.values())
            room = None if options.room is None else _Room(options.room, self._needed(meta, episodes), result)
            size = min(tasks, options.chunk or tasks) if room is None else room.tasks(tasks, 1)
            if not counted or (options.threads == 1 and not options.replay):
                return _Plan(size, 1, False, counted)
            one = next(_parts(episodes, 1))
            found = _large(self.stages, meta, one) or [_looked_at(stage, meta, one) for stage in self.stages]
            if all(each >= LARGE for each, _ in found):
                size = 1  # nothing is gained by more at a time, which take more memory
            elif size > 1:
                found = [_looked_at(stage, meta, next(_parts(episodes, size))) for stage in self.stages]
            small, draws = all(each < LARGE for each, _ in found), any(drawn for _, drawn in found)
        asked = torch.get_num_threads() if options.threads == "auto" else options.threads
        workers = 1 if small and options.threads == "auto" else asked
        if workers > 1 and draws:  # threads would draw from one generator in any order
            logger.info("one thread: the model draws from a generator of the process")
            workers = 1
        if room is not None and options.threads == "auto":
            workers = max(count for count in range(1, workers + 1) if count == 1 or room.fits(count))
        if room is not None:
            size = min(size, room.tasks(tasks, workers))
        size = min(size, -(-tasks // workers))
        return _Plan(size, min(workers, -(-tasks // size)), small)

    def _needed(self, meta: Meta, episodes: Episodes) -> int:
        one, peaks = next(_parts(episodes, 1)), []
        for stage in self.stages:
            in_steps(stage, meta, one)  # trials of the task map are no part of it
            with Counted() as found:
                in_steps(stage, meta, one)
            peaks.append(found.peak)
        return max(1, *peaks)


class _Room(NamedTuple):
    """A budget of memory in bytes, what one task needs of it, and what the result, a gradient."""

    bytes: int
    needed: int
    result: int

    def left(self, workers: int) -> int:
        """Return what is left beside the sum of the parts, and a part that waits to be added to it."""
        return self.bytes - self.result * (1 if workers == 1 else 2)

    def fits(self, workers: int) -> bool:
        return self.left(workers) >= self.needed * workers

    def tasks(self, tasks: int, workers: int) -> int:
        """Return the number of tasks of a part."""
        if workers == 1 and self.needed * tasks <= self.bytes:
            return tasks
        if not self.fits(workers):
            raise UsageError(
                f"the graph of one task needs about {to_text(self.needed)} of memory, and {workers} at a time with "
                f"their sum more than {to_text(self.bytes)}; allow more, take threads=1, or an adjoint that remembers "
                f"less, such as Checkpointed(memory=...)"
            )
        return min(tasks, self.left(workers) // (self.needed * workers))


def _stages(learner: Learner) -> list[Learner]:
    """Return the learner as it is at first, later and at last; one that does not change once."""
    forms, stages = Forms(), [at(learner, done) for done in STAGES]
    different = {forms.of(stage).number: stage for stage in stages if stage.gradient is backprop}
    return list(different.values()) or [learner]


def _looked_at(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[float, bool]:
    """Return the numbers that an operation gives on average, and whether any draws from generators of the process."""
    before = generators()
    with Counted(memory=False) as counted:
        backprop(learner, meta, episodes)
    return counted.size, generators() != before


def _large(stages: Sequence[Learner], meta: Meta, one: Episodes) -> list[tuple[float, bool]]:
    """Return what there is to see where a task is large with a few of its examples already, or nothing."""
    if max(batch.y.shape[1] for batch in one) <= FEW or tensors_of(one.query.x)[0][0, :FEW].numel() < LARGE:
        return []
    few = Episodes(*(mapped(lambda leaf: leaf[:, :FEW], batch._replace(seed=None)) for batch in one))
    few = Episodes(*(part._replace(seed=batch.seed) for part, batch in zip(few, one)))
    try:
        found = [_looked_at(stage, meta, few) for stage in stages]
    except Exception:  # a learner may need more
        return []
    return found if all(each >= LARGE for each, _ in found) else []


def _rounded(episodes: Episodes) -> Episodes:
    """Return the tasks with some of their examples, and of their tokens, once more, so that all sizes are `rounded`."""
    return Episodes(*(_longer(_repeated(batch, batch.y.shape[1])) for batch in episodes))


def _longer(batch: Batch) -> Batch:
    """Return a batch whose texts ``(B, n, length)`` of integers are of a `rounded` length; others stay."""
    x = batch.x
    if not isinstance(x, Tensor) or x.is_floating_point() or x.ndim != 3 or rounded(x.shape[2]) == x.shape[2]:
        return batch
    return batch._replace(x=x[..., torch.arange(rounded(x.shape[2]), device=x.device) % x.shape[2]])


def _repeated(batch: Batch, examples: int) -> Batch:
    if rounded(examples) == examples:
        return batch
    index = torch.arange(rounded(examples), device=batch.y.device) % examples
    more: Batch = mapped(lambda leaf: leaf[:, index], batch._replace(seed=None))
    return more._replace(seed=batch.seed)


def _parts(episodes: Episodes, size: int) -> Iterator[Episodes]:
    for start in range(0, len(episodes.query.y), size):
        yield mapped(itemgetter(slice(start, start + size)), episodes)


def _at_once(gradient: Gradient, parts: Iterator[Inputs], workers: int, here: Settings) -> Iterator[Part]:
    """Yield the gradients of parts in their order, computed in threads; at most one of them waits."""

    def alone(given: Inputs) -> Part:
        with here.entered():
            return gradient(given)

    threads, ahead = pool(workers), deque[Any]()
    try:
        for part in parts:
            ahead.append(threads.submit(alone, part))
            if len(ahead) > workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:  # after an error
            future.cancel() or future.exception()


def _joined(parts: Iterable[Part], tasks: int) -> Part:
    """Return the mean over all tasks of means over parts of them, and what is told of the tasks in their order."""
    total: Meta | None = None
    told: list[Info] = []
    for gradient, info in parts:
        told.append(info)
        count = info.support_loss.shape[1]
        if total is None and count == tasks:
            return gradient, info
        total = _with(total, gradient, count / tasks)
    assert total is not None
    query = [info.query_loss for info in told if info.query_loss is not None]
    return total, Info(torch.cat([info.support_loss for info in told], 1), torch.cat(query) if query else None)


def _with(total: Meta | None, gradient: Meta, share: float) -> Meta:
    """Return the sum with a share of a gradient added to it, in its place."""
    if total is None:
        return Meta(*({name: share * value for name, value in part.items()} for part in gradient))
    for sums, part in zip(total, gradient):
        for name, value in part.items():
            sums[name].add_(share * value)
    return total
