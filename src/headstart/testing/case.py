"""A learner on some episodes, and all that it says of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from headstart.core.objective import meta_gradient
from headstart.types import Adapted, Episodes, Info, Learner, Meta, Params

#: Two ways of computing one thing may differ by rounding alone.
ROUNDING = 1e-10


class Case(NamedTuple):
    learner: Learner
    meta: Meta
    episodes: Episodes


class Result(NamedTuple):
    """All that a learner says of some episodes."""

    adapted: Adapted
    info: Info
    outputs: Tensor
    losses: Tensor


def run(case: Case, steps: int | None = None) -> Result:
    """Adapt and predict, without derivatives."""
    with torch.no_grad():
        adapted, info = case.learner.adapt(case.meta, case.episodes.support, steps=steps)
        query = case.episodes.query
        outputs = case.learner.predict(adapted, query.x)
        return Result(adapted, info, outputs, case.learner.loss(outputs, query))


def of_a_task(result: Result) -> list[Params | Tensor]:
    """Return what a result says task by task (each tensor with the task axis first)."""
    return [result.adapted.params, result.adapted.buffers, result.outputs, result.losses]


def gradient_of(case: Case) -> Meta | None:
    if case.learner.gradient is None:
        return None
    return meta_gradient(case.learner, case.meta, case.episodes)[0]
