"""Train, and keep the weights that do best on the validation tasks."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from headstart.training.distributed import group
from headstart.training.divergence import OnNonfinite
from headstart.training.loop import Schedule, State, StepRecord, copied, fit
from headstart.types import Learner, Meta, Tasks

Judge = Callable[[Meta], float]
"""How well weights do on the validation tasks, as one number."""


class Best(NamedTuple):
    """The best weights so far, by what was said of the validation tasks."""

    step: int
    """After which step they were."""
    value: float
    """NaN where nobody judged them."""
    meta: Meta


class Look(NamedTuple):
    """An outer step, and what is best after it."""

    record: StepRecord
    value: float | None
    """What the validation tasks say of the weights after it; ``None`` where they were not asked."""
    best: Best


def first(meta: Meta, judge: Judge | None) -> Best:
    """Return the weights to begin with as the best so far, judged where anybody judges."""
    return Best(0, math.nan if judge is None else judge(meta), copied(meta))


def renewed(learner: Learner, meta: Meta, tasks: Tasks, seed: int) -> Meta:
    """Return the weights with what is read off the training tasks by them, where the learner reads such."""
    prepare = learner.prepare
    if prepare is None or not learner.renewed:
        return meta
    return group().by_first(lambda: prepare(copied(meta), tasks, seed), meta)


def fit_best(
    learner: Learner,
    tasks: Tasks,
    *,
    state: State,
    best: Best,
    judge: Judge | None,
    steps: int,
    every: int,
    larger: bool = False,
    tasks_per_step: int = 16,
    schedule: Schedule = "constant",
    seed: int = 0,
    on_nonfinite: OnNonfinite = "stop",
    same_bits: bool = False,
) -> Iterator[Look]:
    """Meta-train as `headstart.training.loop.fit` does, and tell after every step which weights have been best so far.

    A run that was cut off goes on exactly by handing back its state and the best weights that it had.

    Args:
        learner, tasks, steps, tasks_per_step, schedule, seed, on_nonfinite, same_bits: as `fit` takes them.
        state: where to start; it is changed.
        best: the best weights so far: `first` of those to start from.
        judge: asked after ``every`` steps and after the last; ``None``: the last weights are the best.
        larger: whether larger is better. What is as good as the best, or no number, is not better.

    Raises:
        DivergenceError, DataError: as `fit`.

    >>> import headstart, torch
    >>> from headstart.core.objective import meta_loss
    >>> from headstart.data.curves.sinusoid import sinusoid
    >>> from headstart.training.loop import start
    >>> learner, tasks = headstart.maml(torch.nn.Linear(1, 1), loss="mse", steps=1, taskmap="vmap"), sinusoid(shots=5)
    >>> state, held_out = start(learner), tasks.sample("validation", range(20))
    >>> judge = lambda meta: float(meta_loss(learner, meta, held_out)[0])
    >>> best = first(state.meta, judge)
    >>> looks = list(fit_best(learner, tasks, state=state, best=best, judge=judge, steps=5, every=2))
    >>> [look.record.step for look in looks if look.value is not None]
    [2, 4, 5]
    """
    given: Any = {"tasks_per_step": tasks_per_step, "schedule": schedule, "seed": seed}
    for record in fit(
        learner, tasks, steps=steps, state=state, on_nonfinite=on_nonfinite, same_bits=same_bits, **given
    ):
        value = None
        if judge is not None and (record.step % every == 0 or record.step == steps):
            meta = renewed(learner, state.meta, tasks, seed)
            value = judge(meta)
            if value > best.value if larger else value < best.value:
                best = Best(record.step, value, copied(meta))
        elif judge is None and record.step == steps:
            best = Best(record.step, math.nan, copied(renewed(learner, state.meta, tasks, seed)))
        yield Look(record, value, best)
