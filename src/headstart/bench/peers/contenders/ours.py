"""headstart itself: the meta-gradient and the step of the outer optimiser that `headstart.fit` takes.

As with every contender, what a training loop does besides (sampling, checks, records) is left out. What headstart does
in its first steps alone, recording and compiling, is done before anything is timed, and a note tells how long it took.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from headstart.algorithms.maml import anil, maml
from headstart.bench.peers.case import Case, case_of, module, moved
from headstart.bench.peers.contenders.recording import TOO_LONG, heard, programs, soon
from headstart.bench.peers.keeping import keep_memory
from headstart.bench.peers.prepared import Arrays, Prepared
from headstart.bench.peers.torch_case import batched, outer_optimizer
from headstart.core.objective import meta_gradient
from headstart.core.rules import chain, only, scale
from headstart.engine.accelerate import accelerate
from headstart.training.loop import copied, tensors_of
from headstart.types import Batch, Episodes, Learner, Meta


def prepare(values: Mapping[str, Any]) -> Prepared:
    """Return headstart as `fit` has it, small operations replayed from a record."""
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

        return Prepared(predict, lambda: {"predictions": predict().numpy()})

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
        return found, "compiled before it is timed"
    return found, f"replayed, as after the first steps of a run; the one that recorded took {slowest:.1f} s"
