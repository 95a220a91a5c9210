"""Heads on an embedding that are fitted anew to each task: in closed form, or to the optimum."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Generator, Tensor, nn

from headstart.core import losses
from headstart.core.inner import expanded
from headstart.core.losses import TaskLoss, present
from headstart.core.objective import backprop
from headstart.core.tree import mapped
from headstart.core.values import in_range, one_hot
from headstart.errors import ShapeError, UsageError
from headstart.forward.functional import Buffers, functional
from headstart.forward.task_map import TaskMap, TaskMapName
from headstart.types import Adapted, Batch, Info, Learner, Meta, Params, Tasks, Tree

Fit: TypeAlias = Callable[[Params, Tensor, Batch], Params]
"""``(M, features (B, n, d), support) -> what the head learned``, in double precision where it is solved.

A classifier says how many ``counts`` ``(B, ways)`` of each class there were."""
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
    module: nn.Module | None,
    *,
    taskmap: TaskMapName | TaskMap = "auto",
    buffers: Buffers = "batch",
    training: bool = True,
) -> Embedding:
    """Return ``module`` as an embedding; without one, inputs are flattened and taken as they are.

    Args:
        module: the network, its outputs flattened.
        taskmap: how the tasks of a step go through the network: at once (``"vmap"``), one by one (``"loop"``), or as is
            measured to be faster (``"auto"``: two runs may then differ in rounding).
        buffers: what normalisation goes by: the batch at hand (``"batch"``: support and query sets each by their own
            statistics), the model's statistics (``"frozen"``), or those of each task's support set (``"task"``).
        training: whether meta-training runs the network in training mode, in which dropout drops; `evaluate`, `adapt`
            and `predict` run it in evaluation mode always.
    """
    if module is None:
        return Embedding({}, {}, {}, "", lambda values, own, x, seed, draw: (_flat(x), own), torch.zeros(()))
    # no gradient is taken of a gradient, so it need not have a second derivative
    function = functional(module, buffers=buffers, taskmap=taskmap, training=training, check=False)
    names = (*function.params, *function.structure)

    def apply(values: Params, own: Params, x: Tree, seed: Tensor | None, draw: int) -> tuple[Tensor, Params]:
        weights, phase = {name: values[name] for name in names}, "support" if draw == 0 else "query"
        embedded, own = function.apply(weights, own, x, seed=seed, draw=draw, phase=phase)
        return _flat(embedded), own

    # a frozen network has a type and a device, too
    like = next((p.detach() for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    return Embedding(function.params, function.structure, function.buffers, function.batch_statistics, apply, like)


def features_of(module: nn.Module | None, inputs: int | None, features: int | None) -> int:
    """Return how many features an `embedding` gives: as is said, or read off the module's last linear layer.

    Raises:
        UsageError: they cannot be counted.
    """
    if module is None:
        if inputs is None:
            raise UsageError("an embedding without a module needs inputs= the number of features of an input")
        return inputs
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if features is None and not layers:
        raise UsageError("the module has no linear layer to read the number of its features off; say features=")
    return layers[-1].out_features if features is None else features


def _flat(x: Tree) -> Tensor:
    if not isinstance(x, Tensor):
        raise ShapeError(
            f"a head without a network takes inputs that are one tensor; got a {type(x).__name__}; give it a module "
            f"that makes features of them"
        )
    return (x if x.is_floating_point() else x.to(torch.get_default_dtype())).reshape(*x.shape[:2], -1)


class Head(NamedTuple):
    """A head that is fitted in closed form, or to convergence."""

    structure: Mapping[str, float | Tensor]
    """M: where its numbers start."""
    fit: Fit
    outputs: Outputs
    loss: TaskLoss
    solved: bool = True
    """Whether it solves a system or keeps examples: in double precision, and without those that no task has."""


#: What of M says how likely classes are that a support set lacks: log α and log π.
_CLASSES = ("log_concentration", "log_prior")
#: Training tasks that are read for the prior of classes.
_MOST = 1024
#: Where the concentration α of that prior is looked for.
_CONCENTRATIONS = torch.logspace(-6, 4, 201, dtype=torch.float64)


def learner(
    module: nn.Module | None, head: Head, *, ways: int | None = None, shared_classes: bool = False, **options: Any
) -> Learner:
    """Return the learner that fits ``head`` to each task's support set, on the features of an `embedding`.

    A class that the support set lacks is never predicted, but where ``shared_classes``: then how likely it is depends
    on π, the classes' shares in the training tasks, and α, how much tasks are alike in them. With n support rows, a
    class that is not among them has probability α π_k / (α + n), as in a Dirichlet prior of each task's shares (their
    posterior mean), and what is left goes to the others as the head says. ``Learner.prepare`` counts π and takes the α
    under which the query rows of training tasks are likeliest, both in M.

    Args:
        module, head, options: the embedding and what is fitted on it.
        ways: number of classes.
        shared_classes: whether a class id means the same in all tasks.

    Raises:
        UsageError: classes that are shared, but not counted.
    """
    if shared_classes and ways is None:
        raise UsageError("shared_classes needs ways= the number of classes, which no single task may tell")
    features = embedding(module, **options)
    task_loss = losses.without_padding(head.loss, features.batch_statistics)
    accurate = _double if head.solved else lambda value: value

    def init(generator: Generator | None = None) -> Meta:
        start, like = features.start(), features.like
        # a Python number in the type that it is to have, not in PyTorch's default first
        given = {name: torch.as_tensor(value, dtype=like.dtype) for name, value in head.structure.items()}
        numbers = {name: value.to(like, copy=True) for name, value in given.items()}
        if shared_classes:
            numbers |= unseen(ways or 0, like)
        return Meta(start.params, start.structure | numbers)

    names = (*head.structure, *_CLASSES) if shared_classes else tuple(head.structure)

    def own(structure: Params) -> Params:
        return {name: accurate(structure[name]) for name in names}

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
        structure = own(adapted.meta.structure)
        outputs = head.outputs(structure, fitted, accurate(embedded))
        return (of_classes(structure, outputs, fitted["counts"]) if "counts" in fitted else outputs).to(embedded)

    prepare = read_classes if shared_classes else None
    return Learner(init, adapt, predict, task_loss, backprop, shown=shown, prepare=prepare)


def unseen(ways: int, like: Tensor) -> Params:
    """Return what of M says how likely classes are that a support set lacks, before `read_classes`."""
    return dict(zip(_CLASSES, (like.new_zeros(()), like.new_zeros(ways))))


def shown(meta: Meta) -> Params:
    """Return M with what stands in it by its logarithm as what it is."""
    structure = dict(meta.structure)
    if "log_prior" in structure:  # up to a factor
        structure["log_prior"] = structure["log_prior"].log_softmax(0)
    return {name.replace("log_", ""): v.exp() if "log_" in name else v for name, v in structure.items()}


def of_classes(structure: Params, logits: Tensor, counts: Tensor) -> Tensor:
    """Return logits ``(B, m, ways)`` in which a class without a support example is as likely as M says, or never.

    Args:
        structure: M; ``log_prior`` and ``log_concentration`` where it knows the classes.
        logits: a head's, which says nothing of such a class.
        counts: support examples of each class, ``(B, ways)``; where a task has none at all, no class is preferred, or
            each is as likely as in the training tasks.
    """
    absent, some = (counts == 0).unsqueeze(1), (counts.sum(1) > 0).view(-1, 1, 1)
    if "log_prior" not in structure:
        return logits.masked_fill(absent & some, -torch.inf)
    prior, concentration = structure["log_prior"].log_softmax(0), structure["log_concentration"].exp()
    here = counts.sum(1).view(-1, 1, 1) + concentration * (prior.exp() * ~absent).sum(-1, keepdim=True)
    level = torch.where(some, logits.masked_fill(absent & some, -torch.inf), 0).logsumexp(-1, keepdim=True)
    seen = logits - level + torch.where(some, here, 1).log()
    return torch.where(absent, structure["log_concentration"] + prior, seen)


def read_classes(meta: Meta, tasks: Tasks, seed: int, folder: object = None, /) -> Meta:
    """Count the classes of the training tasks, and how often one that a support set lacks comes in its query set."""
    episodes = tasks.sample("train", range(min((tasks.counts or {}).get("train", _MOST), _MOST)))
    ways = len(meta.structure["log_prior"])
    support, query = (class_members(batch.y.double(), batch, ways).sum(1).cpu() for batch in episodes)
    # one more of each, lest a class that no training task has be impossible
    prior = (support + query).sum(0) + 1
    prior, absent, taken = prior / prior.sum(), support == 0, support.sum(1)
    alpha = _CONCENTRATIONS.unsqueeze(1)
    away, home = (query * absent).sum(1), (query * ~absent).sum(1)
    likely = away * alpha.log() + home * (taken + alpha * (prior * ~absent).sum(1)).log()
    best = int((likely - (away + home) * (taken + alpha).log()).sum(1).argmax())
    found = dict(zip(_CLASSES, (_CONCENTRATIONS[best].log(), prior.log())))
    return meta._replace(structure=meta.structure | {name: v.to(meta.structure[name]) for name, v in found.items()})


def _compact(batch: Batch) -> Batch:
    if batch.mask is None:
        return batch
    there = batch.mask.any(0)
    there[:1] = True  # never none at all
    x, y, mask = mapped(lambda leaf: leaf[:, there], (batch.x, batch.y, batch.mask))
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
