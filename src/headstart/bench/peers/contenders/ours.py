"""headstart itself: the meta-gradient and the step of the outer optimiser that `headstart.fit` takes.

As with every contender, what a training loop does besides (sampling, checks, records) is left out.
"""

from collections.abc import Mapping
from typing import Any

import torch

from headstart.algorithms.maml import anil, maml
from headstart.bench.peers.case import Case, case_of, module, moved
from headstart.bench.peers.prepared import Arrays, Prepared
from headstart.bench.peers.torch_case import batched
from headstart.core.accelerate import accelerate
from headstart.core.objective import meta_gradient
from headstart.core.rules import chain, only, scale
from headstart.training.loop import start
from headstart.types import Batch, Episodes, Learner


def prepare(values: Mapping[str, Any]) -> Prepared:
    """Return headstart in eager mode."""
    case = case_of(values)
    return _prepared(case, learner_of(case))


def prepare_compiled(values: Mapping[str, Any]) -> Prepared:
    """Return headstart compiled."""
    case = case_of(values)
    return _prepared(case, accelerate(learner_of(case), compile=True))


def learner_of(case: Case) -> Learner:
    """Return the case's method."""
    model, loss = module(case), "cross_entropy" if case.ways else "mse"
    if case.what == "anil":
        return anil(model, loss=loss, steps=case.steps, rate=case.rate)
    if case.what == "adapters":
        return maml(model, loss=loss, steps=case.steps, rule=chain(only(*moved(case, model)), scale(case.rate)))
    return maml(model, loss=loss, steps=case.steps, rate=case.rate)


def _prepared(case: Case, learner: Learner) -> Prepared:
    task = batched(case)
    episodes = Episodes(Batch(task.support_x, task.support_y), Batch(task.query_x, task.query_y))
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

    ready = accelerate(learner)
    assert state.optimizer is not None
    optimizer = state.optimizer

    def step() -> None:
        gradient, _ = meta_gradient(ready, state.meta, episodes)
        for part, slopes in zip(state.meta, gradient):
            for name, value in part.items():
                value.grad = slopes[name]
        optimizer.step()

    return Prepared(step, answer)
