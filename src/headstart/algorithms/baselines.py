"""Baselines with the learners' interface, so that every report shows what meta-learning buys."""

from typing import Any

from torch import nn

from headstart.algorithms.maml import maml
from headstart.algorithms.reptile import joined
from headstart.core.adjoints import FirstOrder
from headstart.core.objective import backprop
from headstart.schema import extends
from headstart.types import Episodes, Info, Learner, Meta


@extends(maml, without=("adjoint",))
def joint(module: nn.Module, **options: Any) -> Learner:
    """Train on all examples of all tasks pooled, L(θ) = Σᵢ loss(θ, Sᵢ ∪ Qᵢ), and fine-tune on a new task.

    No adaptation takes place in training: this is what a loop of SGD steps over tasks does, often taken for MAML.
    Where tasks name their classes arbitrarily, as few-shot classification does, there is little for it to learn.

    Args:
        module: the model.
        options: as for `maml`; ``steps`` and ``rate`` are the fine-tuning's.
    """
    return maml(module, adjoint=FirstOrder(), **options)._replace(gradient=_pooled)


def _pooled(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Meta, Info]:
    batch = joined(episodes)
    unadapted = learner._replace(adapt=lambda meta, support, /, steps=None: learner.adapt(meta, support, steps=0))
    return backprop(unadapted, meta, Episodes(batch, batch))


@extends(maml, without=("adjoint",))
def scratch(module: nn.Module, **options: Any) -> Learner:
    """Fine-tune from the module's own weights on every task; nothing is learned across tasks.

    Args:
        module: the model, with random weights.
        options: as for `maml`; ``steps`` and ``rate`` are the fine-tuning's.
    """
    return maml(module, adjoint=FirstOrder(), **options)._replace(gradient=None)
