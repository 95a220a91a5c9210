"""The outer objective L(θ, M) = Σᵢ Lᵢ(θ, M) and its gradient."""

import re
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from headstart.core import tree
from headstart.core.inference import ordinary, out_of_inference_mode
from headstart.core.losses import present
from headstart.core.process import differentiated_once
from headstart.errors import DifferentiationError, UsageError, unknown_name
from headstart.types import Adapted, Batch, Episodes, Info, Learner, Meta, Tree

Reduction = Literal["mean", "sum"]


@out_of_inference_mode
def meta_loss(
    learner: Learner, meta: Meta, episodes: Episodes, *, reduction: Reduction = "mean"
) -> tuple[Tensor, Info]:
    """Return Σᵢ Lᵢ(θ, M), the query losses after adapting to the support sets or what the learner has in their place.

    It is a scalar, and `Info` holds the losses of each task. ``"sum"`` is the formula literally, ``"mean"`` divides it
    by B; a learner's ``penalty`` R(θ, M) counts once in the mean, and B times in the sum.
    """
    if reduction not in ("mean", "sum"):
        raise unknown_name("reduction", reduction, ("mean", "sum"))
    losses, info = (learner.objective or after_adapting)(learner, meta, episodes)
    total = losses.mean()
    if learner.penalty is not None:
        total = total + learner.penalty(meta)
    return total if reduction == "mean" else total * len(losses), info


def after_adapting(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Tensor, Info]:
    """The `Objective` of MAML: each task's query loss after adapting to its support set."""
    adapted, info = learner.adapt(meta, episodes.support)
    losses = query_losses(learner, adapted, episodes.query)
    return losses, info._replace(query_loss=losses.detach())


def query_losses(learner: Learner, adapted: Adapted, query: Batch) -> Tensor:
    """Return each task's loss ``(B,)`` on its query set."""
    query = present(query)
    return learner.loss(predicted(learner, adapted, query.x, query.mask), query)


def predicted(learner: Learner, adapted: Adapted, x: Tree, mask: Tensor | None = None) -> Tensor:
    """Return the outputs for inputs, in which those that the mask ``(B, n)`` leaves out have no part.

    A learner that reads a task's inputs together (`Learner.transductive`) is given each task's own alone.
    """
    if not learner.transductive or mask is None:
        return learner.predict(adapted, x)
    rows = []
    for task, own in enumerate(mask):
        params, buffers, seed = tree.mapped(itemgetter(slice(task, task + 1)), adapted[1:4])
        alone = Adapted(adapted.meta, params, buffers, seed, adapted.step)
        outputs = learner.predict(alone, tree.mapped(partial(_of_one, task, own), x))[0]
        rows.append(outputs.new_zeros(len(own), *outputs.shape[1:]).index_put((own,), outputs))
    return torch.stack(rows)


def _of_one(task: int, kept: Tensor, leaf: Tensor) -> Tensor:
    return leaf[task : task + 1, kept]


def at(learner: Learner, done: float) -> Learner:
    """Return the learner to meta-train with when a fraction ``done`` of the outer steps is done.

    What was replaced of the learner since it got its stages holds in all of them.
    """
    if learner.during is None:
        return learner
    now, built = learner.during(done), getattr(learner.during, "built", None)
    if built is None:
        return now
    others = (name for name in learner._fields if name not in ("during", "gradient"))
    own = {name: getattr(learner, name) for name in others if getattr(learner, name) is not getattr(built, name)}
    if clash := [name for name in own if getattr(now, name) is not getattr(built, name)]:
        raise UsageError(
            f"{', '.join(clash)} of the learner was replaced, and changes in the course of its meta-training, too; "
            f"replace it in the learner that this one is made of, or leave those stages out"
        )
    return now._replace(**own)


class Stages(NamedTuple):
    """What a learner is in the course of meta-training, beside what it was built as: what was replaced since, stays."""

    built: Learner
    stage: Callable[[float], Learner]

    def __call__(self, done: float) -> Learner:
        return self.stage(done)


def staged(learner: Learner, stage: Callable[[float], Learner]) -> Learner:
    """Return ``learner`` that is ``stage(done)`` while a fraction ``done`` of the outer steps is done."""
    return learner._replace(during=Stages(learner, stage))


@out_of_inference_mode
def meta_gradient(
    learner: Learner, meta: Meta, episodes: Episodes, *, reduction: Reduction = "mean"
) -> tuple[Meta, Info]:
    """Return the learner's estimate of ∂L/∂θ and ∂L/∂M, and `Info` with the losses of each task.

    Raises:
        UsageError: the learner has nothing to learn.
        DifferentiationError: a layer of the model has no second derivative.
    """
    if reduction not in ("mean", "sum"):
        raise unknown_name("reduction", reduction, ("mean", "sum"))
    if learner.gradient is None or not tree.tensors_of(meta):
        raise UsageError("this learner learns nothing across tasks, so it has no meta-gradient")
    gradient, info = learner.gradient(learner, ordinary(meta), ordinary(episodes))
    if reduction == "sum":
        # which may be those of several processes
        tasks = len(episodes.query.y if info.query_loss is None else info.query_loss)
        gradient = Meta(*({name: tasks * slope for name, slope in part.items()} for part in gradient))
    laid_out = (
        {name: _like(slope, own.get(name, slope)) for name, slope in part.items()} for part, own in zip(gradient, meta)
    )
    return Meta(*laid_out), info


def _like(slope: Tensor, value: Tensor) -> Tensor:
    """Return a slope with its numbers in memory where ``value`` has its own: fused optimisers rely on it, unchecked."""
    return slope if slope.stride() == value.stride() else torch.empty_like(value).copy_(slope)


def backprop(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Meta, Info]:
    """The `MetaGradient` that differentiates the mean meta-loss."""
    leaves = Meta(tree.detached(meta.params), tree.detached(meta.structure))
    try:
        with torch.enable_grad():
            with differentiated_once(True):  # but for inner steps, which say so themselves
                loss, info = meta_loss(learner, leaves, episodes)
            gradients = torch.autograd.grad(loss, tree.tensors_of(leaves), materialize_grads=True)
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
