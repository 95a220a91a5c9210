"""The outer objective L(θ, M) = Σᵢ Lᵢ(θ, M) and its gradient."""

import re
from typing import Literal

import torch
from torch import Tensor

from headstart.core import tree
from headstart.core.masks import present
from headstart.errors import DifferentiationError, UsageError, unknown_name
from headstart.types import Episodes, Info, Learner, Meta

Reduction = Literal["mean", "sum"]


def meta_loss(learner: Learner, meta: Meta, episodes: Episodes, reduction: Reduction = "mean") -> tuple[Tensor, Info]:
    """Return Σᵢ Lᵢ(θ, M): the query losses after adapting to the support sets.

    Args:
        learner: the method.
        meta: θ and M.
        episodes: B tasks.
        reduction: ``"sum"`` is the formula literally, ``"mean"`` divides it by B.

    Returns:
        A scalar that can be differentiated with respect to ``meta``, and `Info` with the losses of each task.
    """
    if reduction not in ("mean", "sum"):
        raise unknown_name("reduction", reduction, ("mean", "sum"))
    adapted, info = learner.adapt(meta, episodes.support)
    query = present(episodes.query)
    losses = learner.loss(learner.predict(adapted, query.x), query)
    total = losses.mean() if reduction == "mean" else losses.sum()
    return total, info._replace(query_loss=losses.detach())


def meta_gradient(learner: Learner, meta: Meta, episodes: Episodes, reduction: Reduction = "mean") -> tuple[Meta, Info]:
    """Return the learner's estimate of ∂L/∂θ and ∂L/∂M, and `Info` with the losses of each task.

    Raises:
        UsageError: the learner has nothing to learn.
        DifferentiationError: a layer of the model has no second derivative.
    """
    if reduction not in ("mean", "sum"):
        raise unknown_name("reduction", reduction, ("mean", "sum"))
    if learner.gradient is None:
        raise UsageError("this learner learns nothing across tasks, so it has no meta-gradient")
    gradient, info = learner.gradient(learner, meta, episodes)
    if reduction == "sum":
        tasks = episodes.query.y.shape[0]
        gradient = Meta(*({name: tasks * g for name, g in part.items()} for part in gradient))
    return gradient, info


def backprop(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Meta, Info]:
    """The `MetaGradient` that differentiates the mean meta-loss."""
    leaves = Meta(tree.detached(meta.params), tree.detached(meta.structure))
    tensors = [*leaves.params.values(), *leaves.structure.values()]
    try:
        with torch.enable_grad():
            loss, info = meta_loss(learner, leaves, episodes)
            gradients = torch.autograd.grad(loss, tensors, materialize_grads=True)
    except RuntimeError as error:
        raise _explained(error) from error
    named = iter(gradients)
    return Meta(*({name: next(named) for name in part} for part in leaves)), info


def _explained(error: RuntimeError) -> Exception:
    """Return what PyTorch says of a missing second derivative in words that help, or the error itself."""
    text = str(error)
    missing = re.search(r"derivative for ['\"]?([\w:]+)['\"]? is not implemented", text)
    if missing or "once_differentiable" in text:
        what = f"operation {missing[1]}" if missing else "a custom autograd function marked once_differentiable"
        return DifferentiationError(
            f"the model uses {what}, which has no second derivative; "
            f"replace it by operations that have one, or use adjoint=FirstOrder()"
        )
    return error
