"""A forest whose trees are grown across tasks, and whose values adapt to each task."""

import math
from os import PathLike
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from headstart.algorithms import gaussians
from headstart.algorithms.forest.boxes import Boxes, memberships, shared, unbounded
from headstart.algorithms.forest.growth import Kind, Options, number
from headstart.algorithms.forest.preparation import prepared
from headstart.algorithms.forest.strength import posterior
from headstart.core import losses
from headstart.core.masks import present
from headstart.core.objective import backprop, query_losses
from headstart.core.values import in_range, one_hot
from headstart.errors import ShapeError, UsageError, unknown_name
from headstart.types import Adapted, Batch, Episodes, Gaussian, Info, Learner, Meta, Params, Tasks, Tree

#: Scales of the logits that are tried before the first outer step.
SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
#: Training tasks that they are tried on, at most.
TASKS = 256


class Size(NamedTuple):
    """Sizes of a forest."""

    trees: int
    leaves: int
    inputs: int
    outputs: int


def forest(
    *,
    inputs: int,
    outputs: int = 1,
    loss: Literal["mse", "cross_entropy"] = "mse",
    trees: int = 50,
    leaves: int = 16,
    grown_by: Kind = "random_forest",
    min_rows: int = 5,
    max_features: float = 0.33,
    signs: int = 16,
    tasks_read: int | None = None,
) -> Learner:
    """Learn where trees split across tasks, and what they say there task by task.

    `Learner.prepare` grows scikit-learn's forest on the rows of the training tasks (see `grow`: its targets show splits
    that matter to tasks even where their effects cancel out between tasks) and keeps every node as a box in M. With
    h(x) ∈ {0, 1}^D which of the D nodes of all T trees hold x, leaves and inner nodes alike, a task is

        f(x) = (1/T) Σ_t μ[t, leaf_t(x)] + h(x)ᵀ u / √T,    u ~ N(0, σ² diag(ratio)),    y = f(x) + N(0, σ²)

    The leaf values μ of all tasks are θ, from scikit-learn's own; M holds ratio and σ², from empirical Bayes (see
    `strengths`). A task's u is its posterior mean given the support set: ridge regression on all nodes of all trees
    jointly, shrunk towards the forest of all tasks, in closed form and so differentiable. As a node's value counts for
    all leaves below it, a leaf that no support row reaches takes after its neighbours, and the roots are the task's
    offset. ratio → 0 leaves scikit-learn's forest, ratio → ∞ interpolates the support set.

    With ``loss="mse"`` the outer loop refines μ, ratio and σ² (the boxes have no derivative) by the negative log
    density of the query rows (`Learner.distribution`). With ``"cross_entropy"`` f is ridge regression on one-hot
    labels, μ are class frequencies, and the logits are scale · f(x) with the scale learned in M.

    Args:
        inputs: number of features; inputs of other shapes are flattened.
        outputs: number of target values, or of classes.
        loss: ``"mse"`` for regression, ``"cross_entropy"`` for classification.
        trees: T.
        leaves: of each tree, at most; 2 or more.
        grown_by: ``"random_forest"`` or ``"extra_trees"``.
        min_rows: pooled training rows that a leaf must have.
        max_features: the share of features that are looked at for a split.
        signs: columns of the sketch of what splits matter to single tasks; 0 grows on the pooled targets alone.
        tasks_read: how many training tasks to grow on; by default all, or 256 of a family that has no end of them.

    Raises:
        UsageError: sizes below their least; and in `Learner.prepare`, where scikit-learn is not installed.
        UnknownNameError: a loss or kind of forest that does not exist.

    References: trees as in Breiman 2001, doi:10.1023/A:1010933404324; Geurts, Ernst, Wehenkel 2006,
    doi:10.1007/s10994-006-6226-1. Shrinkage along the path from root to leaf as in Agarwal, Tan, Ronen, Singh, Yu 2022,
    arXiv:2202.00858, here with learned strengths. The meta-learning is our own.
    """
    if loss not in ("mse", "cross_entropy"):
        raise unknown_name("loss", loss, ("mse", "cross_entropy"))
    if grown_by not in ("random_forest", "extra_trees"):
        raise unknown_name("kind of forest", grown_by, ("random_forest", "extra_trees"))
    options = Options(grown_by, trees, leaves, min_rows, max_features, signs)
    _check(options, inputs, outputs, tasks_read)
    size = Size(trees, leaves, inputs, outputs)
    return (_regressor if loss == "mse" else _classifier)(size, options, tasks_read)


def _regressor(size: Size, options: Options, tasks_read: int | None) -> Learner:
    def init(generator: Generator | None = None) -> Meta:
        meta = _start(size)
        noise = meta.params["leaves"].new_zeros(size.outputs)
        return meta._replace(structure={**meta.structure, "log_noise": noise})

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        support = present(support)
        if not support.y.is_floating_point() or support.y.shape[2:] != (size.outputs,):
            raise ShapeError(
                f"this forest regresses {size.outputs} target values, so targets are (tasks, rows, {size.outputs}) "
                f"and floating; got {tuple(support.y.shape)} of {support.y.dtype}"
            )
        return _conditioned(size, meta, support, support.y)

    def distribution(adapted: Adapted, x: Tree) -> Gaussian:
        held = _held(size, adapted.meta, x)
        scaled = held * adapted.meta.structure["log_ratio"].flatten().exp().sqrt()
        known = (scaled @ adapted.buffers["support.explained"].transpose(1, 2)).square().sum(2)
        # rounding may explain a little more than there is
        variance = 1 + (scaled.square().sum(2) - known).clamp(min=0)
        noise = adapted.meta.structure["log_noise"].exp()
        return Gaussian(_values(adapted, held), variance.unsqueeze(-1) * noise)

    def predict(adapted: Adapted, x: Tree) -> Tensor:
        return _values(adapted, _held(size, adapted.meta, x))

    def objective(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Tensor, Info]:
        adapted, info = learner.adapt(meta, episodes.support)
        query = present(episodes.query)
        found = distribution(adapted, query.x)
        error = learner.loss(found.mean, query).detach()
        return gaussians.marginal_loss(found, query.y, query.mask), info._replace(query_loss=error)

    def prepare(meta: Meta, tasks: Tasks, seed: int, folder: PathLike[str] | None = None, /) -> Meta:
        return prepared(meta, tasks, options, tasks_read, seed)

    learner = Learner(init, adapt, predict, losses.mse, backprop)
    return learner._replace(objective=objective, distribution=distribution, prepare=prepare, shown=_shown)


def _classifier(size: Size, options: Options, tasks_read: int | None) -> Learner:
    def init(generator: Generator | None = None) -> Meta:
        meta = _start(size)
        scale = meta.params["leaves"].new_full((), math.log(8.0))
        return meta._replace(structure={**meta.structure, "log_scale": scale})

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        support = present(support)
        return _conditioned(size, meta, support, _members(support, size, meta.params["leaves"]))

    def predict(adapted: Adapted, x: Tree) -> Tensor:
        scale = adapted.meta.structure["log_scale"].exp()
        return scale * _values(adapted, _held(size, adapted.meta, x))

    def prepare(meta: Meta, tasks: Tasks, seed: int, folder: PathLike[str] | None = None, /) -> Meta:
        meta = prepared(meta, tasks, options, tasks_read, seed)
        episodes = tasks.sample("train", range(min(TASKS, number(tasks, tasks_read))))

        def scaled(scale: float) -> Meta:
            value = meta.structure["log_scale"].new_full((), math.log(scale))
            return meta._replace(structure={**meta.structure, "log_scale": value})

        def cost(scale: float) -> float:
            adapted, _ = adapt(scaled(scale), episodes.support)
            return query_losses(learner, adapted, episodes.query).mean().item()

        with torch.no_grad():
            return scaled(min(SCALES, key=cost))

    learner = Learner(init, adapt, predict, losses.cross_entropy, backprop)
    return learner._replace(prepare=prepare, shown=_shown)


def _held(size: Size, meta: Meta, x: Tree) -> Tensor:
    rows = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
    if rows.shape[2] != size.inputs:
        raise ShapeError(f"this forest is of {size.inputs} features, got inputs {tuple(x.shape)}")
    return memberships(Boxes(meta.structure["lower"], meta.structure["upper"]), rows)


def _start(size: Size) -> Meta:
    """Return trees that have not grown: each is one leaf, and the forest the offset of a task."""
    dtype, nodes = torch.get_default_dtype(), 2 * size.leaves - 1
    leaves = torch.zeros(size.trees, size.leaves, size.outputs, dtype=dtype)
    space = unbounded(size.trees, nodes, size.inputs, dtype)
    return Meta({"leaves": leaves}, {**space._asdict(), "log_ratio": leaves.new_zeros(size.trees, nodes)})


def _shown(meta: Meta) -> Params:
    """Return the strengths as they act; boxes are no numbers to take means of."""
    logs = {name: value for name, value in meta.structure.items() if name.startswith("log_")}
    return {name.removeprefix("log_"): value.exp() for name, value in logs.items()}


def _conditioned(size: Size, meta: Meta, support: Batch, y: Tensor) -> tuple[Adapted, Info]:
    """Return the deviations of tasks with the (present) support rows ``support.x`` and targets ``y``."""
    held = gaussians.zeroed(_held(size, meta, support.x), support.mask)
    residual = gaussians.zeroed(y - shared(meta.params["leaves"], held), support.mask)
    found = posterior(held, residual, meta.structure["log_ratio"].flatten().exp())
    adapted = Adapted(meta, {"deviations": found.mean}, {"support.explained": found.explained}, support.seed)
    return adapted, Info(held.new_zeros(0, len(held)))


def _values(adapted: Adapted, held: Tensor) -> Tensor:
    return shared(adapted.meta.params["leaves"], held) + held @ adapted.params["deviations"]


def _members(batch: Batch, size: Size, like: Tensor) -> Tensor:
    y = batch.y
    if y.is_floating_point() or y.ndim != 2:
        raise ShapeError(
            f"this forest classifies, so labels are (tasks, rows) and integers; got {tuple(y.shape)} of {y.dtype}"
        )
    return one_hot(in_range(y, size.outputs, f"this forest has {size.outputs} classes"), size.outputs, like)


def _check(options: Options, inputs: int, outputs: int, tasks_read: int | None) -> None:
    sizes = {"inputs": inputs, "outputs": outputs, "trees": options.trees, "min_rows": options.min_rows}
    if tasks_read is not None:
        sizes["tasks_read"] = tasks_read
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"{name} must be at least 1, got {size}")
    if options.leaves < 2 or options.signs < 0:
        raise UsageError(f"leaves must be at least 2 and signs at least 0, got {options.leaves} and {options.signs}")
    if not 0 < options.max_features <= 1:
        raise UsageError(f"max_features must be a share above 0 and up to 1, got {options.max_features}")
