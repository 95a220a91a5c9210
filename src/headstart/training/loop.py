"""The outer loop: sample tasks, take the meta-gradient, step, and hand out a record."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from operator import itemgetter
from os import PathLike
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from headstart.core.inference import out_of_inference_mode
from headstart.core.objective import at, meta_gradient
from headstart.core.process import put_back
from headstart.engine.accelerate import accelerate, repays
from headstart.errors import ConfigError, OutOfMemoryError, UsageError, asked_for, check_known, is_out_of_memory
from headstart.training.distributed import COMPARED_EVERY, distributed, group, share
from headstart.training.divergence import LeftOut, OnNonfinite, finite_gradient, lost_in_a_row
from headstart.training.kept_memory import kept_memory
from headstart.types import Episodes, Info, Learner, Meta, Params, Pool, Tasks

#: Of so many first steps, tasks are looked at to see whether all have one shape.
_LOOKED_AT = 4

MakeOptimizer: TypeAlias = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
Schedule: TypeAlias = Literal["constant", "linear", "cosine"]

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}
"""By what the outer rate is multiplied when a fraction ``done`` of the steps has been taken."""


def fused(kind: Callable[..., torch.optim.Optimizer], **options: Any) -> MakeOptimizer:
    """Return what makes an optimiser of ``torch.optim`` that steps in one operation, where its tensors allow it."""

    def make(tensors: Iterable[Tensor]) -> torch.optim.Optimizer:
        own = list(tensors)
        one = all(tensor.device.type in ("cpu", "cuda") and tensor.is_floating_point() for tensor in own)
        return kind(own, **options, fused=one)

    return make


@dataclass
class State:
    """All that a run needs to go on exactly where it is; the optimiser changes ``meta`` in place."""

    meta: Meta
    optimizer: torch.optim.Optimizer | None
    """``None`` for a learner that learns nothing across tasks."""
    step: int = 0
    """Outer steps taken."""
    lost: int = 0
    """In how many steps in a row, up to this one, at least half of the tasks were left out."""


class StepRecord(NamedTuple):
    """What happened in an outer step."""

    step: int
    """Number of steps taken, this one included."""
    loss: float
    """The mean query loss of its tasks, after adaptation and before the step; NaN where all of them were left out."""
    gradient_norm: float
    """The length of the meta-gradient; NaN where all tasks were left out, and the weights stayed as they were."""
    rate: float
    """The outer step size."""
    state: State
    """What to go on from: do not change it."""
    left_out: tuple[LeftOut, ...] = ()
    """The tasks that were left out, since their loss or meta-gradient was not finite (``on_nonfinite="skip"``)."""


@out_of_inference_mode
def start(
    learner: Learner,
    *,
    optimizer: MakeOptimizer = fused(torch.optim.Adam, lr=1e-3),
    seed: int = 0,
    meta: Meta | None = None,
    tasks: Tasks | None = None,
    folder: PathLike[str] | None = None,
) -> State:
    """Return the state before the first step.

    Args:
        learner: the method.
        optimizer: makes the outer optimiser of a list of tensors; any of ``torch.optim`` will do.
        seed: decides what ``learner.init`` draws.
        meta: weights to start from, in place of the learner's own.
        tasks: where the learner reads off what it wants to know before (``learner.prepare``), if anything.
        folder: where that may keep what it can go on from.

    Raises:
        UsageError: a learner that has a gradient, but neither θ nor M.
    """
    own = learner.init(Generator().manual_seed(seed)) if meta is None else meta
    own = copied(group().by_first(lambda: _prepared(learner, own, tasks, seed, folder), own))
    if learner.gradient is not None and not tensors_of(own):
        raise UsageError(
            "there is nothing to learn: neither the model nor the method has a number of its own; give the method a "
            "network, or take a method that learns nothing across tasks, such as nearest"
        )
    return State(own, None if learner.gradient is None else optimizer(tensors_of(own)))


def _prepared(learner: Learner, meta: Meta, tasks: Tasks | None, seed: int, folder: PathLike[str] | None) -> Meta:
    if learner.prepare is None or tasks is None:
        return meta
    return learner.prepare(copied(meta), tasks, seed, folder)


def copied(meta: Meta) -> Meta:
    """Return copies of the tensors, without history."""
    return Meta(*({name: value.detach().clone() for name, value in part.items()} for part in meta))


def tensors_of(meta: Meta) -> list[Tensor]:
    """Return the tensors that the outer loop learns, in the order in which the optimiser has them."""
    return [*meta.params.values(), *meta.structure.values()]


@out_of_inference_mode
def fit(
    learner: Learner,
    tasks: Tasks,
    *,
    steps: int,
    tasks_per_step: int = 16,
    state: State | None = None,
    optimizer: MakeOptimizer = fused(torch.optim.Adam, lr=1e-3),
    schedule: Schedule = "constant",
    seed: int = 0,
    on_nonfinite: OnNonfinite = "stop",
    same_bits: bool = False,
) -> Iterator[StepRecord]:
    """Meta-train: yield a record of every outer step, up to step number ``steps``.

    Step s (from 0) takes the tasks ``s·B … s·B + B − 1`` of the split 'train': it depends on the state and the seed
    alone, and a run that was cut off goes on exactly by handing its state back in. Within `headstart.processes` each
    process works on its share of them, and all yield the same records; their number may change whenever a run goes on.
    On Linux the process keeps the memory that it frees until the last step (`training.kept_memory`).

    Args:
        learner: the method. On a CPU a step is compiled first, where the steps to come repay it (`accelerate` says
            how), or its operations are recorded after some steps; both go on with the Python numbers that they had:
            where those change during training, hand in ``accelerate(learner, replay=False)``.
        tasks: where episodes come from.
        steps: the number of steps after which to stop, those in ``state`` included.
        tasks_per_step: B.
        state: where to start; by default `start` (learner, optimizer=…, seed=…, tasks=tasks). It is changed.
        optimizer: makes the outer optimiser, where ``state`` is not given.
        schedule: how the outer rate goes over the steps: constant, or down to 0 after ``steps``.
        seed: decides dropout, and where ``state`` is not given, what the learner's start draws.
        on_nonfinite: what to do where a loss or a meta-gradient is not finite: ``"stop"``, or ``"skip"``: take the step
            without the tasks to which that is due. Weights are then, bit for bit, those of a run that never had them.
        same_bits: whether the result is to have the same bits with any number of processes (see
            `headstart.training.distributed.distributed`), which is slower: tasks are worked on one at a time.

    Raises:
        DivergenceError: the loss or the meta-gradient is not finite, or many tasks were left out in many steps in a row
            (`training.divergence.MOST_LOST`); the weights are as before that step.
        DataError: a task holds numbers that are not finite, and ``on_nonfinite`` is ``"stop"``.
        OutOfMemoryError: there is not enough memory for a step; it says what fits.
        ProcessError: another process has ended, does not answer, or has other weights.

    >>> import headstart, torch
    >>> from headstart.data.curves.sinusoid import sinusoid
    >>> learner = headstart.maml(torch.nn.Linear(1, 1), loss="mse", steps=1, taskmap="vmap")
    >>> [record.step for record in fit(learner, sinusoid(shots=5), steps=3)]
    [1, 2, 3]
    """
    check_known("schedule", schedule, SCHEDULES)
    check_known("on_nonfinite", on_nonfinite, get_args(OnNonfinite))
    if steps < 0 or tasks_per_step < 1:
        raise ConfigError(f"steps must be at least 0 and tasks_per_step at least 1, got {steps} and {tasks_per_step}")
    state = start(learner, optimizer=optimizer, seed=seed, tasks=tasks) if state is None else state
    plain = not same_bits and on_nonfinite == "stop"  # else there are other numbers of tasks, too
    compile = plain and compiling_repays(learner, tasks, state.meta, steps, tasks_per_step, seed)
    learner = accelerate(learner, compile=compile)
    if compile:
        compiled_at_first(learner, tasks, start(learner, seed=seed).meta, tasks_per_step, seed)
    if state.optimizer is None:
        raise UsageError("this learner learns nothing across tasks, so there is nothing to fit; evaluate it as it is")
    everyone, groups = group(), state.optimizer.param_groups
    rates = [own.setdefault("initial_lr", own["lr"]) for own in groups]

    @cache
    def among(tasks: int) -> Learner:
        return distributed(learner, tasks_per_step=tasks, same_bits=same_bits)

    with kept_memory():
        everyone.compare(state.step, _all_of(state))
        while state.step < steps:
            numbers = range(state.step * tasks_per_step, (state.step + 1) * tasks_per_step)
            done = state.step / steps
            now = at(learner, done)
            sampled = partial(training_tasks, now, tasks, seed)
            gradient, loss, norm, left_out = finite_gradient(
                partial(_gradient, among, done, state, seed, sampled),
                numbers,
                now,
                state.meta,
                sampled,
                step=state.step,
                on_nonfinite=on_nonfinite,
            )
            state.lost = lost_in_a_row(state.lost, left_out, tasks_per_step, state.step)

            factor = SCHEDULES[schedule](done)
            for own, rate in zip(groups, rates):
                own["lr"] = rate * factor
            if gradient is not None:
                for part, grads in zip(state.meta, gradient):
                    for name, value in part.items():
                        value.grad = grads[name]
                state.optimizer.step()
                state.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            if state.step % COMPARED_EVERY == 0 or state.step == steps:
                everyone.compare(state.step, _all_of(state))
            yield StepRecord(state.step, loss, norm, rates[0] * factor, state, left_out)


def compiling_repays(learner: Learner, tasks: Tasks, meta: Meta, steps: int, tasks_per_step: int, seed: int) -> bool:
    """Return whether `fit` compiles a step first: what it looks at is the same whenever a run goes on."""
    numbers = (range(step * tasks_per_step, (step + 1) * tasks_per_step) for step in range(_LOOKED_AT))
    return repays(learner, meta, (training_tasks(learner, tasks, seed, each) for each in numbers), steps)


def compiled_at_first(learner: Learner, tasks: Tasks, meta: Meta, tasks_per_step: int, seed: int) -> None:
    """Let an accelerated learner compile for the start and the first tasks, wherever its run is.

    A program is compared with the uncompiled step when it is made, so that it is taken or not whenever a run goes on.
    """
    with put_back(), contextlib.suppress(Exception):  # what is wrong with the tasks is said by the step itself
        meta_gradient(learner, meta, training_tasks(learner, tasks, seed, share(range(tasks_per_step))))


def training_tasks(learner: Learner, tasks: Tasks, seed: int, numbers: Sequence[int]) -> Episodes:
    """Return training tasks as the learner is to see them."""
    sampled = tasks.sample("train", numbers)
    return seeded(pooled(sampled, tasks, numbers) if learner.pooled else sampled, seed, numbers)


def _gradient(
    among: Callable[[int], Learner],
    done: float,
    state: State,
    seed: int,
    sampled: Callable[[Sequence[int]], Episodes],
    numbers: Sequence[int],
) -> tuple[Meta, Info]:
    """Return the meta-gradient of tasks of a step, of which each process has its share, with the draws of that step."""
    learner, episodes = at(among(len(numbers)), done), sampled(share(numbers))
    # for models that draw from PyTorch's own generator; processes do not draw the same for different tasks
    drawn = state.step + (group().rank << 40)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(_mixed(seed, np.array([drawn], dtype=np.uint64))[0]))
        try:
            return meta_gradient(learner, state.meta, episodes)
        except (MemoryError, RuntimeError) as error:  # of a gradient that is not taken in parts, as others are
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"out of memory in step {state.step + 1} ({asked_for(error)}); take fewer --tasks-per-step, fewer or"
                " smaller examples, or a smaller model"
            ) from error


def _all_of(state: State) -> list[Tensor]:
    """Return the tensors that decide how a run goes on."""
    held = {} if state.optimizer is None else state.optimizer.state_dict()["state"]
    own = [
        (place, key, one) for place, values in held.items() for key, one in values.items() if isinstance(one, Tensor)
    ]
    return [*tensors_of(state.meta), *(one for _, _, one in sorted(own, key=itemgetter(0, 1)))]


def pooled(episodes: Episodes, tasks: Tasks, numbers: Sequence[int]) -> Episodes:
    """Return these training tasks with labels that are numbers among the classes of all of them.

    Raises:
        ConfigError: tasks whose classes mean nothing beyond their task.
    """
    pool = pool_of(tasks)
    if pool is None:
        raise ConfigError(
            f"this method is pre-trained on the classes of all training tasks pooled, but those of {tasks.name!r} are"
            " each task's own; take a method that learns from tasks, such as prototypes, or classes that mean the same"
            " in all tasks"
        )
    classes = pool.classes(numbers).to(episodes.query.y.device)
    return Episodes(*(batch._replace(y=classes.gather(1, batch.y)) for batch in episodes))


def pool_of(tasks: Tasks) -> Pool | None:
    """Return the classes of the training tasks together; where a class id means the same in all tasks, it is that."""
    if not tasks.shared_classes:
        return tasks.pool
    count = tasks.output_size
    return Pool(count, lambda numbers: torch.arange(count).expand(len(numbers), count))


def seeded(episodes: Episodes, seed: int, numbers: Sequence[int]) -> Episodes:
    """Give every task the seed that its dropout goes by, a function of the run's seed and the task's number."""
    device = episodes.query.y.device
    seeds = torch.from_numpy(_mixed(seed, np.asarray(numbers, dtype=np.uint64))).to(device)
    return Episodes(*(batch._replace(seed=seeds) for batch in episodes))


def _mixed(seed: int, numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Mix two numbers into 63 random-looking bits (the finaliser of SplitMix64; Steele, Lea, Flood 2014)."""
    word = np.uint64(seed * 0x9E3779B97F4A7C15 + 1 & 0xFFFFFFFFFFFFFFFF) + numbers  # wraps around
    for multiplier, shift in ((0xBF58476D1CE4E5B9, 30), (0x94D049BB133111EB, 27)):
        word = (word ^ (word >> np.uint64(shift))) * np.uint64(multiplier)
    return ((word ^ (word >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)


def flat(meta: Meta) -> Params:
    """Return θ and M in one dict, named ``params.…`` and ``structure.…``."""
    return {f"{part}.{name}": value for part, values in meta._asdict().items() for name, value in values.items()}
