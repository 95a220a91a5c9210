"""What heads that are solved exactly for each task have in common: an embedding, a fit, and what is read off it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map

from headstart.core import losses
from headstart.core.losses import TaskLoss
from headstart.core.masks import present
from headstart.core.objective import backprop
from headstart.core.values import in_range, one_hot
from headstart.errors import ShapeError
from headstart.forward.functional import Buffers, functional
from headstart.forward.task_map import TaskMap
from headstart.types import Adapted, Batch, Info, Learner, Meta, Params, Tree

Fit: TypeAlias = Callable[[Params, Tensor, Batch], Params]
"""``(M, features (B, n, d), support) -> what the head learned``, everything in double precision."""
Outputs: TypeAlias = Callable[[Params, Params, Tensor], Tensor]
"""``(M, what the head learned, features (B, m, d)) -> outputs (B, m, *outputs)``, everything in double precision."""


class Head(NamedTuple):
    """A head that is fitted in closed form, or to convergence."""

    structure: Mapping[str, float]
    """M: where its numbers start."""
    fit: Fit
    outputs: Outputs
    loss: TaskLoss


class Embedding(NamedTuple):
    """A network whose outputs are the features, or none: then the inputs are."""

    params: Params
    buffers: Params
    batch_statistics: str
    apply: Callable[[Params, Params, Tree, Tensor | None, int], tuple[Tensor, Params]]
    """``(params, buffers, x, seed, draw) -> (features (B, n, d), buffers)``; draw 0 is of the support set."""


def embedding(module: nn.Module | None, buffers: Buffers, taskmap: str | TaskMap) -> Embedding:
    """Return ``module`` as an embedding; without one, inputs are flattened and taken as they are."""
    if module is None:
        return Embedding({}, {}, "", lambda params, buffers, x, seed, draw: (_flat(x), buffers))
    function = functional(module, buffers=buffers, taskmap=taskmap)

    def apply(params: Params, own: Params, x: Tree, seed: Tensor | None, draw: int) -> tuple[Tensor, Params]:
        phase = "support" if draw == 0 else "query"
        embedded, own = function.apply(params, own, x, seed=seed, draw=draw, phase=phase)
        return _flat(embedded), own

    return Embedding(function.params, function.buffers, function.batch_statistics, apply)


def _flat(x: Tree) -> Tensor:
    if not isinstance(x, Tensor):
        raise ShapeError(
            f"a head without a network takes inputs that are one tensor; got a {type(x).__name__}; give it a module "
            f"that makes features of them"
        )
    floating = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    return floating.reshape(*x.shape[:2], -1)


def learner(
    module: nn.Module | None, head: Head, *, taskmap: str | TaskMap = "auto", buffers: Buffers = "batch"
) -> Learner:
    """Return the learner that fits ``head`` to each task's support set, on the features that ``module`` makes."""
    features = embedding(module, buffers, taskmap)
    task_loss = losses.without_padding(head.loss, features.batch_statistics)

    def init(generator: Generator | None = None) -> Meta:
        params = {name: value.clone() for name, value in features.params.items()}
        like = next(iter(params.values()), torch.zeros(()))
        return Meta(params, {name: torch.tensor(value).to(like) for name, value in head.structure.items()})

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        losses.refuse_padding(support, features.batch_statistics)
        support = compact(present(support))
        tasks = support.y.shape[0]
        own = {name: value.expand(tasks, *value.shape) for name, value in features.buffers.items()}
        embedded, own = features.apply(meta.params, own, support.x, support.seed, 0)
        if support.mask is not None:
            embedded = torch.where(support.mask.unsqueeze(-1), embedded, 0)
        fitted = head.fit(precise(meta.structure), _double(embedded), support)
        fitted = {name: value.to(embedded) for name, value in fitted.items()}
        return Adapted(meta, fitted, own, support.seed), Info(embedded.new_zeros(0, tasks))

    def predict(adapted: Adapted, x: Tree) -> Tensor:
        embedded, _ = features.apply(adapted.meta.params, adapted.buffers, x, adapted.seed, 1)
        outputs = head.outputs(precise(adapted.meta.structure), precise(adapted.params), _double(embedded))
        return outputs.to(embedded)

    return Learner(init, adapt, predict, task_loss, backprop, shown=shown)


def shown(meta: Meta) -> Params:
    """Return M with what stands in it by its logarithm as what it is."""
    return {
        name.removeprefix("log_"): value.exp() if name.startswith("log_") else value
        for name, value in meta.structure.items()
    }


def compact(batch: Batch) -> Batch:
    """Return the batch without the examples that no task has."""
    if batch.mask is None:
        return batch
    there = batch.mask.any(0)
    there = there | (torch.arange(len(there), device=there.device) == 0)  # never none at all
    x, y, mask = tree_map(lambda leaf: leaf[:, there], (batch.x, batch.y, batch.mask))
    return Batch(x, y, mask, batch.seed)


def precise(values: Params) -> Params:
    """Return the values in double precision."""
    return {name: _double(value) for name, value in values.items()}


def _double(value: Tensor) -> Tensor:
    # Apple's accelerators have no double precision; these systems are small enough for the processor
    return value.to("cpu" if value.device.type == "mps" else value.device, torch.float64)


def class_members(features: Tensor, support: Batch, ways: int | None) -> Tensor:
    """Return the labels as ``(B, n, ways)``, with the features' type; nothing but 0 where an example is masked out.

    Raises:
        ShapeError: labels that are not integers, not one an example, or out of range.
    """
    y = support.y
    if y.is_floating_point() or y.dtype == torch.bool or y.shape != features.shape[:2]:
        raise ShapeError(
            f"a classifier needs integer labels (tasks, examples) = {tuple(features.shape[:2])}; "
            f"got y {tuple(y.shape)} of {y.dtype}"
        )
    labels = y.long()
    count = (int(labels.max()) + 1 if labels.numel() else 1) if ways is None else ways
    member = one_hot(in_range(labels, count, f"there are {count} ways"), count, features)
    return member if support.mask is None else member * support.mask.unsqueeze(-1).to(features)


def absent(member: Tensor) -> Tensor:
    """Return what to add to logits ``(B, ways)``: −∞ for a class without a support example, 0 else."""
    sizes = member.sum(1)
    return torch.zeros_like(sizes).masked_fill(sizes == 0, -torch.inf)
