"""The same meta-gradient in less time or less memory: in parts, in threads, compiled.

L(θ, M) is a mean over tasks, so its gradient is the mean of those of parts of the tasks. Parts that follow one
another need the memory of one; parts at the same time, each in a thread of its own, use the cores of a processor
better than operations that are each split among the cores.
"""

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from headstart.core.compiled import COMPILED
from headstart.core.live_bytes import LiveBytes
from headstart.core.objective import backprop
from headstart.core.record import Recorded, Way, replayed, tensors_of
from headstart.core.sizes import to_bytes, to_text
from headstart.core.workload import workload
from headstart.errors import UsageError
from headstart.types import Batch, Episodes, Info, Learner, Meta

logger = logging.getLogger("headstart")

Threads: TypeAlias = int | Literal["auto"]

#: A record is made after so many steps: it costs about a hundred of them.
REPLAYED = Way("replayed", replayed, after=50, same=True, level=logging.INFO)

#: From so many numbers an operation on, on average, threads pay: below, their operations wait for the interpreter.
LARGE = 2**14


def accelerate(
    learner: Learner,
    *,
    compile: bool = False,
    threads: Threads = "auto",
    chunk: int | None = None,
    memory: int | str | None = None,
) -> Learner:
    """Return the learner with a meta-gradient that is the same to rounding, and computed otherwise.

    Only learners whose meta-gradient is by back-propagation change; tasks do not see each other in it, so they can be
    taken in parts. What is decided is decided by counting, not by timing, so that every run decides the same.

    Args:
        learner: the method.
        compile: whether to compile (see `core.compiled.compiled`). Without it, small operations are replayed from a
            record after some steps, which gives the same bits (see `core.record`).
        threads: on a CPU, how many parts of the tasks to work on at the same time, each with one thread; 1: all tasks
            together, in operations that PyTorch splits among its threads. ``"auto"``: PyTorch's number of threads
            (``torch.get_num_threads()``) where operations are large, and one where they are so small that splitting
            them costs more than it gains.
        chunk: the most tasks that are worked on together; parts follow one another.
        memory: in place of ``chunk``: the most that the graphs of the tasks worked on together may take, in bytes or
            as ``"2GiB"``, measured on one task.

    Raises:
        UsageError: an option out of its range, or one task that needs more than ``memory``.
    """
    for name, value in (("threads", threads), ("chunk", chunk)):
        if value is not None and value != "auto" and not (isinstance(value, int) and value >= 1):
            raise UsageError(f"{name} must be a whole number from 1 up, got {value!r}")
    if chunk is not None and memory is not None:
        raise UsageError(f"accelerate takes chunk= or memory=, not both; got {chunk} and {memory!r}")
    room = None if memory is None else to_bytes(memory)
    if learner.gradient is not backprop:
        if compile:
            logger.warning("not compiled: this learner's meta-gradient is not by back-propagation")
        return learner
    gradient, during = _InParts(compile, threads, chunk, room), learner.during

    def own(stage: Learner) -> Learner:
        return stage._replace(gradient=gradient) if stage.gradient is backprop else stage

    return own(learner)._replace(during=None if during is None else lambda done: own(during(done)))


class _Plan(NamedTuple):
    """How to work on a number of tasks."""

    size: int
    """The most tasks of a part."""
    workers: int
    """How many parts to work on at the same time."""
    small: bool
    """Whether operations are so small that what is around them counts: they run in one thread, from a record."""


class _InParts:
    """The `MetaGradient` that takes the tasks in parts."""

    def __init__(self, compile: bool, threads: Threads, chunk: int | None, room: int | None) -> None:
        self.threads, self.chunk, self.room = threads, chunk, room
        self.small, self.large = (Recorded(COMPILED),) * 2 if compile else (Recorded(REPLAYED), backprop)
        self.plans: dict[Any, _Plan] = {}

    def __call__(self, learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Meta, Info]:
        key = tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in tensors_of(Meta({}, {}), episodes))
        if key not in self.plans:
            self.plans[key] = self._plan(learner, meta, episodes)
        plan, tasks = self.plans[key], len(episodes.query.y)
        parts = [_part(episodes, start, start + plan.size) for start in range(0, tasks, plan.size)]
        gradient = functools.partial(self.small if plan.small else self.large, learner, meta)
        if plan.workers > 1:
            with _kept_threads():
                return _joined(list(_pool(plan.workers).map(gradient, parts)), tasks)
        with one_thread() if plan.small else contextlib.nullcontext():
            return _joined([gradient(part) for part in parts], tasks)

    def _plan(self, learner: Learner, meta: Meta, episodes: Episodes) -> _Plan:
        tasks, one = len(episodes.query.y), _part(episodes, 0, 1)
        workers, small = 1 if self.threads == "auto" else self.threads, False
        if self.threads == "auto" and episodes.query.y.device.type == "cpu":
            before = torch.get_rng_state()
            small = workload(lambda: backprop(learner, meta, episodes)).size < LARGE
            drawn = not torch.equal(before, torch.get_rng_state())
            torch.set_rng_state(before)
            if not small and not drawn:  # threads would draw from one generator in any order
                workers = torch.get_num_threads()
        size = self.chunk or tasks
        if self.room is not None:
            with LiveBytes() as live:
                backprop(learner, meta, one)
            needed = live.peak
            size = self.room // max(1, needed * workers)
            if size < 1:
                raise UsageError(
                    f"the graph of one task needs about {to_text(needed)} of memory, and {workers} at a time more than "
                    f"{to_text(self.room)}; allow more, take threads=1, or an adjoint that remembers less, such as "
                    f"Checkpointed(memory=...)"
                )
        size = min(size, -(-tasks // workers))
        return _Plan(size, min(workers, -(-tasks // size)), small)


def _part(episodes: Episodes, start: int, end: int) -> Episodes:
    def cut(leaf: Any) -> Any:
        return leaf if leaf is None else leaf[start:end]

    return Episodes(*(Batch(*(tree_map(cut, part) for part in batch)) for batch in episodes))


def _joined(parts: Sequence[tuple[Meta, Info]], tasks: int) -> tuple[Meta, Info]:
    """Return the mean over all tasks of means over parts of them, and what is told of the tasks in their order."""
    if len(parts) == 1:
        return parts[0]
    shares = [len(info.query_loss if info.query_loss is not None else info.support_loss.T) / tasks for _, info in parts]
    gradient = Meta(
        *(
            {name: sum_of([share * part[which][name] for share, (part, _) in zip(shares, parts)]) for name in own}
            for which, own in enumerate(parts[0][0])
        )
    )
    support = torch.cat([info.support_loss for _, info in parts], 1)
    query = [info.query_loss for _, info in parts if info.query_loss is not None]
    return gradient, Info(support, torch.cat(query) if query else None)


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape, in their order."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let the operations of this thread run in it alone."""
    with _kept_threads():
        torch.set_num_threads(1)
        yield


@contextlib.contextmanager
def _kept_threads() -> Iterator[None]:
    """Put the number of threads back, which a thread that starts later takes from where it was set last."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "headstart", initializer=_alone)


def _alone() -> None:
    """Let the operations of this thread run in it alone, from now on."""
    torch.get_num_threads()  # a thread's first look sets the number that was set last in any thread
    torch.set_num_threads(1)
