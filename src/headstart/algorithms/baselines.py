"""Baselines with the learners' interface, so that every report shows what meta-learning buys."""

from typing import Any

from torch import Generator, Tensor, nn

from headstart.algorithms.maml import maml
from headstart.algorithms.prototypes import class_means, squared_distances
from headstart.algorithms.reptile import joined
from headstart.core import losses
from headstart.core.adjoints import FirstOrder
from headstart.core.masks import present
from headstart.core.objective import backprop
from headstart.types import Adapted, Batch, Episodes, Info, Learner, Meta, Tree


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
    def unadapted(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        return learner.adapt(meta, support, steps=0)

    batch = joined(episodes)
    return backprop(learner._replace(adapt=unadapted), meta, Episodes(batch, batch))


def scratch(module: nn.Module, **options: Any) -> Learner:
    """Fine-tune from the module's own weights on every task; nothing is learned across tasks.

    Args:
        module: the model, with random weights.
        options: as for `maml`; ``steps`` and ``rate`` are the fine-tuning's.
    """
    return maml(module, adjoint=FirstOrder(), **options)._replace(gradient=None)


def nearest(module: nn.Module | None = None, *, ways: int | None = None) -> Learner:
    """Classify by the nearest class mean of the raw inputs; nothing is learned at all.

    Args:
        module: not used; it is accepted so that all methods are made alike.
        ways: number of classes; by default the largest support label plus one.
    """

    def init(generator: Generator | None = None) -> Meta:
        return Meta({}, {})

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        support = present(support)
        means = class_means(support.x.flatten(2), support, ways)
        return Adapted(meta, means, {}, support.seed), Info(means["absent"].new_zeros(0, support.y.shape[0]))

    def predict(adapted: Adapted, x: Tree) -> Tensor:
        distances = squared_distances(x.flatten(2), adapted.params["prototypes"])
        return adapted.params["absent"].unsqueeze(1) - distances

    return Learner(init, adapt, predict, losses.cross_entropy, None)
