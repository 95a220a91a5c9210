"""headstart itself: the meta-gradient and the step of the outer optimiser that `headstart.fit` takes.

As with every contender, what a training loop does besides (sampling, checks, records) is left out. What headstart does
in its first steps alone, recording and compiling, is done before anything is timed, and a note tells how long it took.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.peers.case import Case, batched, case_of, module, moved, outer_optimizer
from benchmarks.peers.prepared import Arrays, Prepared
from headstart.algorithms.maml import anil, maml
from headstart.core.objective import meta_gradient
from headstart.core.rules import chain, only, scale
from headstart.engine.accelerate import accelerate, repays
from headstart.engine.record import Program
from headstart.engine.replayed_loops import WITHOUT_DERIVATIVES
from headstart.training.kept_memory import kept_memory
from headstart.training.loop import copied, tensors_of
from headstart.types import Batch, Episodes, Learner, Meta

#: So many outer steps has the run that steps are of.
STEPS = 10_000
#: What the log says of a computation of so many operations that it is computed as it is, by choice.
TOO_LONG = "operations, more than"


def programs(learner: Learner) -> list[Program | None] | None:
    """Return what an accelerated learner has recorded, ``None`` in place of what could not be.

    It returns ``None`` where nothing is to be recorded. Ask after the first meta-gradient.
    """
    engine: Any = learner.gradient
    counted = any(plan.counted for plan in engine.plans.values())
    if not (engine.options.compile or (counted and engine.options.replay)):
        return None
    return list(engine.recorded.programs.values())


def soon(learner: Learner) -> Learner:
    """Let an accelerated learner record at its second meta-gradient what it would record later, and return it."""
    engine: Any = learner.gradient
    engine.recorded.way = engine.recorded.way._replace(after=0)
    return learner


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Collect what headstart says in its log meanwhile."""
    logger, lines = logging.getLogger("headstart"), list[str]()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    before, handler = logger.level, Heard()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@functools.cache
def keep_memory() -> contextlib.ExitStack:
    """Let this process keep the memory that it frees, as `fit` does from its first step to its last."""
    run = contextlib.ExitStack()
    run.enter_context(kept_memory())
    return run


def prepare(values: Mapping[str, Any]) -> Prepared:
    """Return headstart as `fit` has it in a run of `STEPS`: compiled where that repays, else replayed."""
    case = case_of(values)
    learner = learner_of(case)
    if case.what == "adapt" or not repays(learner, learner.init(None), [episodes_of(case)], STEPS):
        return prepare_replayed(values)
    try:
        return prepare_compiled(values)
    except RuntimeError as error:  # what cannot be compiled is replayed
        return prepare_replayed(values)._replace(note=str(error))


def prepare_replayed(values: Mapping[str, Any]) -> Prepared:
    """Return headstart with its operations replayed from a record."""
    keep_memory()
    case = case_of(values)
    return _prepared(case, soon(accelerate(learner_of(case))), "replayed")


def prepare_unrecorded(values: Mapping[str, Any]) -> Prepared:
    """Return headstart as in the first steps of `fit`, before it has a record to replay."""
    keep_memory()
    case = case_of(values)
    return _prepared(case, accelerate(learner_of(case), replay=False), "")


def prepare_compiled(values: Mapping[str, Any]) -> Prepared:
    """Return headstart compiled."""
    keep_memory()
    case = case_of(values)
    return _prepared(case, accelerate(learner_of(case), compile=True), "compiled")


def learner_of(case: Case, **options: Any) -> Learner:
    """Return the case's method, with more options of it."""
    model, loss = module(case), "cross_entropy" if case.ways else "mse"
    if case.what == "anil":
        return anil(model, loss=loss, steps=case.steps, rate=case.rate, **options)
    if case.what == "adapters":
        rule = chain(only(*moved(case, model)), scale(case.rate))
        return maml(model, loss=loss, steps=case.steps, rule=rule, **options)
    return maml(model, loss=loss, steps=case.steps, rate=case.rate, **options)


def episodes_of(case: Case) -> Episodes:
    """Return the case's tensors."""
    task = batched(case)
    return Episodes(Batch(task.support_x, task.support_y), Batch(task.query_x, task.query_y))


def _prepared(case: Case, learner: Learner, becomes: str) -> Prepared:
    episodes, meta = episodes_of(case), copied(learner.init(None))
    if case.what == "adapt":

        def predict() -> torch.Tensor:
            with torch.no_grad():
                adapted, _ = learner.adapt(meta, episodes.support)
                return learner.predict(adapted, episodes.query.x)

        for _ in range(WITHOUT_DERIVATIVES.after // case.steps + 2):  # a service has long had a record
            predict()
        known: Any = learner.adapt
        replayed = all(entry.program for entry in known.__self__.replayed.kinds.entries.values())
        return Prepared(predict, lambda: {"predictions": predict().numpy()}, "replayed" if replayed else "")

    def gradient() -> Meta:
        return meta_gradient(learner, meta, episodes)[0]

    found, note = warmed(learner, gradient, becomes)
    return stepping(meta, gradient, found, note)


def stepping(
    meta: Meta, gradient: Callable[[], Meta], found: Meta, note: str = "", meet: Callable[[], object] | None = None
) -> Prepared:
    """Return what steps along the meta-gradient, whose last value, before any step, is ``found``."""
    kept, optimizer = [found], outer_optimizer(tensors_of(meta))

    def answer() -> Arrays:
        # before the first step the weights are still those that the last one of warming up had
        slopes = kept.pop() if kept else gradient()
        return {name: value.numpy() for name, value in slopes.params.items()}

    def step() -> None:
        kept.clear()
        for part, slopes in zip(meta, gradient()):
            for name, value in part.items():
                value.grad = slopes[name]
        optimizer.step()

    return Prepared(step, answer, note, meet)


def warmed(learner: Learner, gradient: Callable[[], Meta], becomes: str) -> tuple[Meta, str]:
    """Compute the meta-gradient until it is computed as in all later steps; return the last one, and what it became.

    Args:
        learner: what `accelerate` returned.
        gradient: computes it.
        becomes: ``"compiled"``, ``"replayed"``, or nothing where there is never a record.

    Raises:
        RuntimeError: it did not become what it should.
    """
    with heard() as lines:
        began = time.perf_counter()
        found = gradient()
        slowest = time.perf_counter() - began
        if not becomes or programs(learner) is None:
            return found, ""
        for _ in range(1 if programs(learner) else 2):
            began = time.perf_counter()
            found = gradient()
            slowest = max(slowest, time.perf_counter() - began)
    made = programs(learner) or []
    if not made or None in made:
        why = lines[-1] if lines else "nothing says why"
        if becomes == "replayed" and TOO_LONG in why:
            return found, f"not replayed: {why}"
        raise RuntimeError(f"it was not {becomes}: {why}")
    if becomes == "compiled":
        return (
            found,
            f"compiled, as from the first step of a long run, which took {slowest:.1f} s",
        )
    return found, f"replayed, as after the first steps of a run; the one that recorded took {slowest:.1f} s"


def whole(values: Mapping[str, Any]) -> Prepared:
    """Take all tasks together."""
    return _shared(values, parts=1)


def in_halves(values: Mapping[str, Any]) -> Prepared:
    """Take one half of the tasks after the other."""
    return _shared(values, parts=2)


def part(values: Mapping[str, Any]) -> Prepared:
    """Take the tasks that are this process's, and exchange gradients in every step (gloo)."""
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group(
        "gloo", init_method=f"file://{values['meeting']}", rank=values["rank"], world_size=values["of"]
    )
    return _shared(values, parts=1)


def _shared(values: Mapping[str, Any], parts: int) -> Prepared:
    keep_memory()
    case = case_of({name: value for name, value in values.items() if name not in ("rank", "of", "meeting")})
    learner = accelerate(learner_of(case), chunk=-(-case.tasks // parts))
    meta, episodes = copied(learner.init(None)), episodes_of(case)

    def gradient() -> Meta:
        return _mean(meta_gradient(learner, meta, episodes)[0])

    return stepping(meta, gradient, gradient(), meet=dist.barrier if dist.is_initialized() else None)


def _mean(own: Meta) -> Meta:
    """Return the mean over the processes, each of which has as many tasks."""
    if not dist.is_initialized():
        return own
    tensors = [*own.params.values(), *own.structure.values()]
    flat = torch.cat([tensor.ravel() for tensor in tensors])
    dist.all_reduce(flat)
    pieces = (flat / dist.get_world_size()).split([tensor.numel() for tensor in tensors])
    left = iter(piece.view_as(tensor) for piece, tensor in zip(pieces, tensors))
    return Meta(*({name: next(left) for name in part} for part in own))
