"""The values that flow through headstart. The first axis of every tensor is the task.

Sizes in shapes: ``B`` tasks, ``n`` examples of a task, ``features`` and ``outputs`` of one example.

Data flow one way: tasks → `Episodes` → adapt → predict → loss → meta-gradient → optimiser → report.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from torch import Generator, Tensor

Params: TypeAlias = dict[str, Tensor]
"""Tensors by name."""

Tree: TypeAlias = Any
"""A tensor, or a tuple, list or dict of trees."""


class Batch(NamedTuple):
    """``n`` examples of each of ``B`` tasks."""

    x: Tree
    """Inputs, ``(B, n, *features)``."""
    y: Tensor
    """Class ids ``(B, n)`` (int64), or targets ``(B, n, *outputs)`` (floating)."""
    mask: Tensor | None = None
    """``(B, n)`` bool, false where a task has no such example; ``None``: every example is there.

    What is masked counts nowhere; batch normalisation, which could not leave it out, refuses it.
    """
    seed: Tensor | None = None
    """``(B,)`` int64, seeds what is random in a task (dropout); ``None``: nothing is random."""


class Episodes(NamedTuple):
    """``B`` tasks, each split into what is learned from and what is judged on."""

    support: Batch
    query: Batch


class Meta(NamedTuple):
    """What the outer loop learns: L(θ, M) = Σ Lᵢ(θ, M)."""

    params: Params
    """θ, the parameters that adaptation starts from."""
    structure: Params
    """M, what is learned about the model itself; empty when nothing is."""


class Info(NamedTuple):
    """Diagnostics of an adaptation: safe to throw away, never differentiated."""

    support_loss: Tensor
    """``(T, B)``, the support loss before each of the T inner steps."""
    query_loss: Tensor | None = None
    """``(B,)``, the query loss after adaptation; ``None`` where there was no query set."""


class Adapted(NamedTuple):
    """A learner's answer to a support set: values with a task axis, nothing else."""

    meta: Meta
    """What adaptation started from (shared by all tasks)."""
    params: Params
    """Only what the task changed or computed, each ``(B, *shape)``."""
    buffers: Params
    """Per-task copies of buffers, each ``(B, *shape)``; empty unless asked for."""
    seed: Tensor | None
    """The batch's seed, so that prediction draws the same kind of randomness."""


class Adapt(Protocol):
    """``(meta, support, steps=None) -> (adapted, info)``; ``steps`` overrides the number of inner steps."""

    def __call__(self, meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]: ...


class Learner(NamedTuple):
    """Pure functions over values whose first axis is the task: all that a meta-learning method is."""

    init: Callable[[Generator | None], Meta]
    """The meta value to start from; the generator draws what is random in it."""
    adapt: Adapt
    """Learn B tasks from their support sets: pure and differentiable."""
    predict: Callable[[Adapted, Tree], Tensor]
    """Outputs ``(B, n, *outputs)`` for inputs ``(B, n, *features)``."""
    loss: Callable[[Tensor, Batch], Tensor]
    """One loss a task, ``(B,)``."""
    gradient: "MetaGradient | None"
    """How the outer gradient is estimated; ``None`` when the learner has nothing to meta-learn."""
    steps: int | None = None
    """Number of inner steps; ``None`` for a learner that takes none."""
    exact: bool = True
    """Whether `gradient` is the derivative of the meta-loss (a first-order method's is not)."""


MetaGradient: TypeAlias = Callable[[Learner, Meta, Episodes], tuple[Meta, Info]]
"""``(learner, meta, episodes) -> (a Meta of gradients, averaged over the tasks, and Info)``."""


class Tasks(NamedTuple):
    """A family of tasks: the only thing a trainer needs to know about data.

    Task ``t`` of a split is a function of ``(seed, split, t)`` alone: the same whatever the batch it comes
    in, the number of workers, or how often a run was resumed.
    """

    name: str
    sample: Callable[[str, Sequence[int]], Episodes]
    """``sample(split, numbers)``: the episodes of those task numbers of 'train', 'validation' or 'test'."""
    kind: Literal["classification", "regression"]
    input_shape: tuple[int, ...]
    """Shape of one input, channels first for images."""
    output_size: int
    """Number of ways, or of target values."""
    details: Mapping[str, Any]
    """What the model card says of the data: counts of classes, sources, licences."""
