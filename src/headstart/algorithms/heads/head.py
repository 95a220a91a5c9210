"""Heads on an embedding that are fitted anew to each task: in closed form, or to the optimum."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_map

from headstart.core import losses
from headstart.core.inner import expanded
from headstart.core.losses import TaskLoss, present
from headstart.core.objective import backprop
from headstart.core.values import in_range, one_hot
from headstart.errors import ShapeError
from headstart.forward.functional import Buffers, functional
from headstart.forward.task_map import TaskMap, TaskMapName
from headstart.types import Adapted, Batch, Info, Learner, Meta, Params, Tree

Fit: TypeAlias = Callable[[Params, Tensor, Batch], Params]
"""``(M, features (B, n, d), support) -> what the head learned``, in double precision where it is solved."""
Outputs: TypeAlias = Callable[[Params, Params, Tensor], Tensor]
"""``(M, what the head learned, features (B, m, d)) -> outputs (B, m, *outputs)``, likewise."""


class Embedding(NamedTuple):
    """A network whose outputs are the features, or none: then the inputs are."""

    params: Params
    structure: Params
    """What of M is inside the network."""
    buffers: Params
    batch_statistics: str
    """The path of a layer that normalises by the batch; empty where there is none."""
    apply: Callable[[Params, Params, Tree, Tensor | None, int], tuple[Tensor, Params]]
    """``(θ and M, buffers, x, seed, draw) -> (features (B, n, d), buffers)``; draw 0 is of the support set."""
    like: Tensor
    """A tensor of the features' type, on their device."""

    def start(self) -> Meta:
        """Return θ and the network's part of M, in memory of their own."""
        return Meta(*({name: value.clone() for name, value in part.items()} for part in (self.params, self.structure)))

    def of_tasks(self, batch: Batch) -> Params:
        """Return every task's copy of the buffers."""
        return expanded(self.buffers, self.buffers, batch.y.shape[0])


def embedding(
    module: nn.Module | None, *, taskmap: TaskMapName | TaskMap = "auto", buffers: Buffers = "batch"
) -> Embedding:
    """Return ``module`` as an embedding; without one, inputs are flattened and taken as they are.

    Args:
        module: the network, its outputs flattened.
        taskmap: how the tasks of a step go through the network: at once (``"vmap"``), one by one (``"loop"``), or as is
            measured to be faster (``"auto"``: two runs may then differ in rounding).
        buffers: what normalisation goes by: the batch at hand (``"batch"``: support and query sets each by their own
            statistics), the model's statistics (``"frozen"``), or those of each task's support set (``"task"``).
    """
    if module is None:
        return Embedding({}, {}, {}, "", lambda values, own, x, seed, draw: (_flat(x), own), torch.zeros(()))
    function = functional(module, buffers=buffers, taskmap=taskmap)
    names = (*function.params, *function.structure)

    def apply(values: Params, own: Params, x: Tree, seed: Tensor | None, draw: int) -> tuple[Tensor, Params]:
        weights, phase = {name: values[name] for name in names}, "support" if draw == 0 else "query"
        embedded, own = function.apply(weights, own, x, seed=seed, draw=draw, phase=phase)
        return _flat(embedded), own

    # a frozen network has a type and a device, too
    like = next((p.detach() for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    return Embedding(function.params, function.structure, function.buffers, function.batch_statistics, apply, like)


def _flat(x: Tree) -> Tensor:
    if not isinstance(x, Tensor):
        raise ShapeError(
            f"a head without a network takes inputs that are one tensor; got a {type(x).__name__}; give it a module "
            f"that makes features of them"
        )
    return (x if x.is_floating_point() else x.to(torch.get_default_dtype())).reshape(*x.shape[:2], -1)


class Head(NamedTuple):
    """A head that is fitted in closed form, or to convergence."""

    structure: Mapping[str, float]
    """M: where its numbers start."""
    fit: Fit
    outputs: Outputs
    loss: TaskLoss
    solved: bool = True
    """Whether fitting solves a system: in double precision, and without the examples that no task has."""


def learner(module: nn.Module | None, head: Head, **options: Any) -> Learner:
    """Return the learner that fits ``head`` to each task's support set, on the features of an `embedding`."""
    features = embedding(module, **options)
    task_loss = losses.without_padding(head.loss, features.batch_statistics)
    accurate = _double if head.solved else lambda value: value

    def init(generator: Generator | None = None) -> Meta:
        start, like = features.start(), features.like
        numbers = {name: torch.tensor(value).to(like) for name, value in head.structure.items()}
        return Meta(start.params, start.structure | numbers)

    def own(structure: Params) -> Params:
        return {name: accurate(structure[name]) for name in head.structure}

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        losses.refuse_padding(support, features.batch_statistics)
        support = _compact(present(support)) if head.solved else present(support)
        values, buffers = {**meta.params, **meta.structure}, features.of_tasks(support)
        embedded, buffers = features.apply(values, buffers, support.x, support.seed, 0)
        if support.mask is not None:
            embedded = torch.where(support.mask.unsqueeze(-1), embedded, 0)
        fitted = head.fit(own(meta.structure), accurate(embedded), support)
        fitted = {name: value.to(embedded) for name, value in fitted.items()}
        return Adapted(meta, fitted, buffers, support.seed), Info(embedded.new_zeros(0, len(embedded)))

    def predict(adapted: Adapted, x: Tree) -> Tensor:
        values = {**adapted.meta.params, **adapted.meta.structure}
        embedded, _ = features.apply(values, adapted.buffers, x, adapted.seed, 1)
        fitted = {name: accurate(value) for name, value in adapted.params.items()}
        return head.outputs(own(adapted.meta.structure), fitted, accurate(embedded)).to(embedded)

    return Learner(init, adapt, predict, task_loss, backprop, shown=shown)


def shown(meta: Meta) -> Params:
    """Return M with what stands in it by its logarithm as what it is."""
    structure = meta.structure.items()
    return {name.replace("log_", ""): value.exp() if "log_" in name else value for name, value in structure}


def _compact(batch: Batch) -> Batch:
    if batch.mask is None:
        return batch
    there = batch.mask.any(0)
    there[:1] = True  # never none at all
    x, y, mask = tree_map(lambda leaf: leaf[:, there], (batch.x, batch.y, batch.mask))
    return Batch(x, y, mask, batch.seed)


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
    return torch.where(member.sum(1) == 0, -torch.inf, member.new_zeros(()))
