"""headstart itself: `headstart.fit`, with tasks that are always the same tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from headstart.algorithms.maml import anil, maml
from headstart.bench.peers.case import Case, case_of, module, moved
from headstart.bench.peers.prepared import Arrays, Prepared
from headstart.bench.peers.torch_case import batched
from headstart.core.objective import meta_gradient
from headstart.core.rules import chain, only, scale
from headstart.training.loop import fit, start
from headstart.types import Batch, Episodes, Learner, Tasks

ENDLESS = 10**9


def prepare(values: Mapping[str, Any]) -> Prepared:
    """Return headstart in eager mode."""
    case = case_of(values)
    return _prepared(case, learner_of(case))


def prepare_compiled(values: Mapping[str, Any]) -> Prepared:
    """Return headstart compiled."""
    from headstart.core.compiled import compiled

    case = case_of(values)
    return _prepared(case, compiled(learner_of(case)))


def learner_of(case: Case) -> Learner:
    """Return the case's method."""
    model, loss = module(case), "cross_entropy" if case.ways else "mse"
    if case.what == "anil":
        return anil(model, loss=loss, steps=case.steps, rate=case.rate)
    if case.what == "adapters":
        return maml(model, loss=loss, steps=case.steps, rule=chain(only(*moved(case, model)), scale(case.rate)))
    return maml(model, loss=loss, steps=case.steps, rate=case.rate)


def constant_tasks(case: Case) -> Tasks:
    """Return tasks of which every sample is the case's tensors."""
    task = batched(case)
    episodes = Episodes(Batch(task.support_x, task.support_y), Batch(task.query_x, task.query_y))

    def sample(split: str, numbers: Sequence[int]) -> Episodes:
        return episodes

    shape = tuple(task.support_x.shape[2:])
    kind = "classification" if case.ways else "regression"
    return Tasks(case.name, sample, kind, shape, case.ways or 1, {})


def _prepared(case: Case, learner: Learner) -> Prepared:
    tasks = constant_tasks(case)
    episodes = tasks.sample("train", range(case.tasks))
    state = start(learner)

    def predict() -> torch.Tensor:
        with torch.no_grad():
            adapted, _ = learner.adapt(state.meta, episodes.support)
            return learner.predict(adapted, episodes.query.x)

    if case.what == "adapt":
        return Prepared(predict, lambda: {"predictions": predict().numpy()})

    def answer() -> Arrays:
        gradient, _ = meta_gradient(learner, state.meta, episodes)
        return {name: value.numpy() for name, value in gradient.params.items()}

    records = fit(learner, tasks, steps=ENDLESS, tasks_per_step=case.tasks, state=state)
    return Prepared(lambda: next(records), answer)
