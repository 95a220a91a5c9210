"""The values that flow through headstart. The first axis of every tensor is the task.

Sizes in shapes: ``B`` tasks, ``n`` examples of a task, ``features`` and ``outputs`` of one example.

Data flow one way: tasks → `Episodes` → adapt → predict → loss → meta-gradient → optimiser → report.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from torch import Generator, Tensor

Params: TypeAlias = dict[str, Tensor]
"""Tensors by name."""

Tree: TypeAlias = Any
"""A tensor, or a tuple, list or dict of trees."""


def not_sent(what: str) -> TypeError:
    """Return the error for a value of functions that is to be pickled."""
    return TypeError(
        f"{what} holds functions, and so cannot be pickled or sent to another process: send the configuration"
        " (`headstart.training.config.resolve`) and `build` it there, or an adapted folder, and `open_adapted` it"
        " there; a process that is forked has it already"
    )


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
    step: int = 0
    """The number of inner steps taken; the most of any task."""


class Gaussian(NamedTuple):
    """A normal distribution of every target value."""

    mean: Tensor
    """``(B, n, *outputs)``."""
    variance: Tensor
    """Of an observation, noise included; ``(B, n, *outputs)``."""


class Adapt(Protocol):
    """``(meta, support, steps=None) -> (adapted, info)``; ``steps`` overrides the number of inner steps.

    Learners by gradient steps take ``(B,)`` of them, too: each task's own number.
    """

    def __call__(self, meta: Meta, support: Batch, /, steps: Any = None) -> tuple[Adapted, Info]: ...


class Path(Protocol):
    """``(meta, support, stops=None, detached=False) -> (adapted, info) after each of these numbers of steps``.

    ``stops`` ascend, and are 0, 1, …, T where not given; ``info`` is of the steps since the stop before. The steps
    are taken as they are asked for, and where ``detached``, each starts without the history of the one before.
    """

    def __call__(
        self, meta: Meta, support: Batch, /, stops: Sequence[int] | None = None, detached: bool = False
    ) -> Iterator[tuple[Adapted, Info]]: ...


class Learner(NamedTuple):
    """Pure functions over values whose first axis is the task: all that a meta-learning method is.

    The last fields have defaults that ask for nothing; ``learner._replace(...)`` makes one learner of another.
    """

    init: Callable[[Generator | None], Meta]
    """The meta value to start from; the generator draws what is random in it."""
    adapt: Adapt
    """Learn B tasks from their support sets: pure and differentiable.

    On a CPU, gradient steps of which nobody asks a derivative are replayed from a record, with the same bits, once that
    kind of support set has come often (``docs/speed.md``); `headstart.accelerate` with ``replay=False`` leaves that.
    """
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
    path: Path | None = None
    """The adaptation along its steps; ``None`` for a learner that takes none."""
    objective: "Objective | None" = None
    """The tasks' meta-losses Lᵢ(θ, M); ``None``: the query loss after adapting."""
    penalty: Callable[[Meta], Tensor | float] | None = None
    """R(θ, M), added to the meta-loss; ``None``: nothing is."""
    during: "Callable[[float], Learner] | None" = None
    """The learner to meta-train with when a fraction of the outer steps is done; ``None``: always this one.

    `headstart.core.objective.at` asks it, and keeps what was replaced of the learner since.
    """
    shown: Callable[[Meta], Params] | None = None
    """M in the units in which it acts, for reports: rates as they multiply, masks and gates in [0, 1]."""
    distribution: Callable[[Adapted, Tree], Gaussian] | None = None
    """The distribution of the targets, for regressors that know what they don't know; `predict` gives its mean."""
    prepare: "Prepare | None" = None
    """What of θ and M is read off the training tasks before the first outer step; ``None``: nothing is."""
    renewed: bool = False
    """Whether that is read again whenever the weights are judged, since it depends on them."""
    pooled: bool = False
    """Whether it is meta-trained on all training classes at once: labels of training tasks are then those of `Pool`."""
    transductive: bool = False
    """Whether `predict` reads the inputs that it is given together, so that what it says of one depends on the others
    of its task; `headstart.core.objective.predicted` leaves out those that a mask does."""

    def __getstate__(self) -> Any:
        raise not_sent("a learner")

    def __deepcopy__(self, memo: Any) -> "Learner":
        return self


MetaGradient: TypeAlias = Callable[[Learner, Meta, Episodes], tuple[Meta, Info]]
"""``(learner, meta, episodes) -> (a Meta of gradients, averaged over the tasks, and Info)``.

It is the mean of the gradients of parts of the tasks, weighted by their numbers of tasks, unless it is `Indivisible`.
"""


@runtime_checkable
class Indivisible(Protocol):
    """A `MetaGradient` that is not the mean of what it gives for parts of the tasks, weighted by their numbers.

    It says what it is where several processes have a part each (`headstart.training.distributed`).
    """

    def among(self, total: Callable[[Tensor], Tensor], share: float, /) -> MetaGradient:
        """Return the meta-gradient of all tasks, for a process that has a ``share`` of them, between 0 and 1.

        ``total`` sums a tensor over all processes, each of which has to call it. Where the share is 0, the process is
        given a task of another one, which must not count.

        Raises:
            UsageError: there is none; it says why, and the way on.
        """
        ...


class Prepare(Protocol):
    """``(meta, tasks, seed, folder=None) -> meta``, of the same names, shapes and types.

    A tensor that was without rows, ``(0, …)``, may have any number of them. ``folder`` is where a long search may keep
    what it can go on from.
    """

    def __call__(self, meta: Meta, tasks: "Tasks", seed: int, folder: PathLike[str] | None = None, /) -> Meta: ...


Objective: TypeAlias = Callable[[Learner, Meta, Episodes], tuple[Tensor, Info]]
"""``(learner, meta, episodes) -> (meta-losses (B,), Info with the query losses after adapting)``."""


class Pool(NamedTuple):
    """The classes of all training tasks together."""

    count: int
    """K, how many there are."""
    classes: Callable[[Sequence[int]], Tensor]
    """``classes(numbers)``: which of them, 0 … K − 1, the labels of those training tasks are: ``(B, ways)`` int64."""


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
    counts: Mapping[str, int] | None = None
    """How many different tasks each split has; ``None``: no end of them."""
    unit: float = 1.0
    """What a difference of 1 between targets is in the data's own units, in which errors are reported."""
    names: Callable[[str, int], tuple[str, ...]] | None = None
    """``names(split, number)``: what the classes of a task are called, in the order of their labels; ``None``: they
    have no names."""
    limits: tuple[float, float] | None = None
    """The least and the largest target of training tasks, where predictions are to be kept near them."""
    shared_classes: bool = False
    """Whether a class id means the same in all tasks, so that a support set may lack a class that its task has."""
    domain: Callable[[str, int], str] | None = None
    """``domain(split, number)``: which of several sources a task is from; ``None``: there is one."""
    pool: Pool | None = None
    """The classes of the training tasks together, where each has a name beyond its task; ``None``: they have none."""
    integers: bool = False
    """Whether inputs are int64, such as the bytes of texts."""

    def __getstate__(self) -> Any:
        raise not_sent("a family of tasks")

    def __deepcopy__(self, memo: Any) -> "Tasks":
        return self
