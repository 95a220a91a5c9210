"""A forest whose trees are grown across tasks, and whose values adapt to each task.

Every node of a tree is a box, the part of space that its splits leave, so that no tree is walked.
"""

import math
from os import PathLike
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray
from torch import Generator, Tensor

from headstart.algorithms import gaussians
from headstart.algorithms.estimators import MOST, check_targets, flat, required
from headstart.core import losses
from headstart.core.losses import present, there
from headstart.core.objective import backprop, query_losses
from headstart.core.values import in_range, one_hot
from headstart.errors import UsageError, check_known
from headstart.schema import Count, Whole
from headstart.types import Adapted, Batch, Gaussian, Info, Learner, Meta, Params, Tasks, Tree

#: Stands for infinity where a box has no bound: it can be saved, averaged and sent to any format of numbers.
FAR = float(np.finfo(np.float32).max)


class Boxes(NamedTuple):
    """Nodes of trees. A row x is in a box where lower < x ≤ upper in every feature; an empty box holds no row."""

    lower: Tensor
    """``(trees, nodes, features)``"""
    upper: Tensor


def unbounded(trees: int, nodes: int, features: int, dtype: torch.dtype) -> Boxes:
    """Return trees whose first box is all of space and whose others are empty."""
    lower = torch.full((trees, nodes, features), FAR, dtype=dtype)
    lower[:, 0] = -FAR
    return Boxes(lower, -lower)


def memberships(boxes: Boxes, x: Tensor) -> Tensor:
    """Return h(x) / √trees ``(B, n, trees * nodes)`` for rows ``(B, n, features)``, h being 1 in the boxes of a row."""
    return inside(boxes, x).flatten(2).to(boxes.lower.dtype) / math.sqrt(len(boxes.lower))


def shared(leaves: Tensor, held: Tensor) -> Tensor:
    """Return the mean over trees of each row's leaf value ``(B, n, outputs)``.

    Args:
        leaves: values ``(trees, leaves, outputs)``.
        held: `memberships`, of trees whose leaves are the first of their nodes.
    """
    ends = held.unflatten(2, (len(leaves), -1))[..., : leaves.shape[1]].flatten(2)
    return ends @ leaves.flatten(0, 1) / math.sqrt(len(leaves))


def inside(boxes: Boxes, x: Tensor) -> Tensor:
    """Return which boxes hold which rows, ``(*rows, trees, nodes)`` bool, for ``x`` ``(*rows, features)``.

    As in scikit-learn, x is compared in single precision.
    """
    # what a bound of float64 holds is a number of float32, and so are the rows that it was grown on
    x = x.to(torch.float32)[..., None, None, :]
    lower, upper = (bound.detach().to(torch.float32) for bound in boxes)
    held = torch.ones((), dtype=torch.bool, device=x.device)
    for feature in range(x.shape[-1]):  # all at once would take `features` times the memory
        column = x[..., feature]
        held = held & (column > lower[..., feature]) & (column <= upper[..., feature])
    return held


class Nodes(NamedTuple):
    """The nodes of one scikit-learn tree as boxes."""

    lower: NDArray[np.float32]
    """``(nodes, features)``"""
    upper: NDArray[np.float32]
    depth: NDArray[np.intp]
    """``(nodes,)``, 0 for the root and for empty boxes."""
    places: NDArray[np.intp]
    """Where scikit-learn's nodes are among the boxes."""


def boxes_of(tree: Any, leaves: int) -> Nodes:
    """Return the boxes of a fitted scikit-learn ``Tree``, 2 * leaves - 1 of them.

    Leaves come first, in the order of their numbers in scikit-learn, padded with empty boxes to ``leaves``; then the
    nodes that split, padded to ``leaves`` - 1.
    """
    ends = tree.children_left < 0
    places = np.where(ends, ends.cumsum() - 1, leaves + (~ends).cumsum() - 1)
    lower = np.full((2 * leaves - 1, tree.n_features), FAR, dtype=np.float32)
    upper, depth = -lower, np.zeros(2 * leaves - 1, dtype=np.intp)
    lower[places[0]], upper[places[0]] = -FAR, FAR
    for node in np.flatnonzero(~ends):  # a node's number is above its parent's
        own, low, high = (places[which] for which in (node, tree.children_left[node], tree.children_right[node]))
        lower[[low, high]], upper[[low, high]], depth[[low, high]] = lower[own], upper[own], depth[own] + 1
        upper[low, tree.feature[node]] = lower[high, tree.feature[node]] = _rounded_down(tree.threshold[node])
    return Nodes(lower, upper, depth, places)


def _rounded_down(threshold: float) -> np.float32:
    """Return the largest number of float32 up to ``threshold``: the same rows of float32 are up to both."""
    bound = np.float32(threshold)
    return bound if bound <= threshold else np.nextafter(bound, np.float32(-np.inf))


Kind = Literal["random_forest", "extra_trees"]


class Options(NamedTuple):
    """How trees are grown."""

    kind: Kind
    trees: int
    leaves: int
    min_rows: int
    max_features: float
    signs: int
    """Columns of the sketch; 0 grows on the pooled targets alone."""


class Grown(NamedTuple):
    """A forest as tensors, nodes in the order of `boxes_of`."""

    lower: Tensor
    """``(trees, nodes, features)``"""
    upper: Tensor
    leaves: Tensor
    """``(trees, leaves, outputs)``, scikit-learn's own: the mean target of the pooled rows; 0 in empty boxes."""
    depth: Tensor
    """``(trees, nodes)`` int64"""


def read(tasks: Tasks, count: int, first: int = 0) -> Batch:
    """Return all rows, support and query, of ``count`` training tasks as one batch with a mask; on the CPU."""
    episodes = tasks.sample("train", range(first, first + count))
    parts = zip(*((batch.x, batch.y, there(batch)) for batch in episodes))
    x, y, mask = (torch.cat(both, 1).cpu() for both in parts)
    return present(Batch(x.flatten(2) if x.ndim > 2 else x.unsqueeze(2), y, mask))


def number(tasks: Tasks, count: int | None) -> int:
    """Return how many training tasks to read: ``count`` as far as there are so many; by default all, or ``MOST``."""
    counted = MOST if tasks.counts is None else tasks.counts["train"]
    return counted if count is None else count if tasks.counts is None else min(count, counted)


def grow(rows: Batch, options: Options, seed: int) -> Grown:
    """Grow scikit-learn's forest on the rows ``(B, n, features)`` of B tasks with targets ``(B, n, outputs)``.

    The pooled targets do not show a split that parts the rows of each task well, but with another sign in every task.
    So trees are grown on several targets at once: beside the pooled ones on ``signs`` columns in which every task's
    targets, centred by task, are multiplied by a random sign of the task. In expectation over the signs, a split's gain
    in such a column has no terms between tasks: where the tasks have equal shares of the rows on its two sides, it is
    in proportion to the sum of the tasks' own gains.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    ensemble = required("sklearn.ensemble", "sklearn")
    mask, y = there(rows), present(rows).y.double()
    centred = y - (y.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)).unsqueeze(1)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (len(y), options.signs))
    sketch = torch.einsum("bno,bk->bnok", centred, torch.from_numpy(signs)).flatten(2)
    targets = torch.cat([y, sketch], 2)[mask].numpy()
    targets = targets[:, 0] if targets.shape[1] == 1 else targets  # scikit-learn warns of a single column
    make = ensemble.RandomForestRegressor if options.kind == "random_forest" else ensemble.ExtraTreesRegressor
    forest = make(
        options.trees,
        max_leaf_nodes=options.leaves,
        min_samples_leaf=options.min_rows,
        max_features=options.max_features,
        n_jobs=1,
        random_state=seed,
    ).fit(rows.x[mask].float().numpy(), targets)
    found = []
    for tree in (one.tree_ for one in forest.estimators_):
        nodes = boxes_of(tree, options.leaves)
        values = np.zeros((len(nodes.depth), y.shape[2]))
        values[nodes.places] = tree.value[:, : y.shape[2], 0]
        found.append((nodes.lower, nodes.upper, values[: options.leaves], nodes.depth))
    return Grown(*(torch.from_numpy(np.stack(part)) for part in zip(*found)))


#: Bounds of a variance ratio, so that its logarithm is finite.
SMALLEST, LARGEST = 1e-8, 1e8


class Posterior(NamedTuple):
    """What the rows of tasks say of y = μ + Φ u + ε with u ~ N(0, σ² diag(ratio)), ε ~ N(0, σ²)."""

    mean: Tensor
    """E[u | y] ``(B, D, outputs)``."""
    explained: Tensor
    """E ``(B, n, D)``: Var[u_d | y] = σ² ratio_d (1 − Σ_n E_nd²)."""


class Strength(NamedTuple):
    """Variances."""

    ratio: Tensor
    """``(D,)``, those of the deviations over the noise's: small is strong shrinkage."""
    noise: Tensor
    """``(outputs,)``"""


def posterior(held: Tensor, residual: Tensor, ratio: Tensor) -> Posterior:
    """Return E[u | y] = Λ Φᵀ (Φ Λ Φᵀ + I)⁻¹ (y − μ) with Λ = diag(ratio), from one n × n system a task.

    Args:
        held: Φ ``(B, n, D)``, zero in rows that are not there.
        residual: y − μ ``(B, n, outputs)``, zero in rows that are not there.
        ratio: ``(D,)``.
    """
    root = ratio.sqrt()
    scaled = held * root
    unit = torch.eye(held.shape[1], dtype=held.dtype, device=held.device)
    factor = gaussians.cholesky(scaled @ scaled.mT + unit)
    explained = gaussians.solve_lower(factor, scaled)
    return Posterior(root.unsqueeze(-1) * (explained.mT @ gaussians.solve_lower(factor, residual)), explained)


def strengths(
    held: Tensor, residual: Tensor, there: Tensor, level: Tensor, *, rounds: int = 10, pseudo: float = 5.0
) -> Strength:
    """Return variances that make the rows of B tasks likely.

    MacKay's fixed point of the marginal likelihood, all tasks together: a node's variance becomes Σᵢ E[uᵢ]² / Σᵢ γᵢ,
    where γᵢ = 1 − Var[uᵢ | y] / Var[uᵢ] is how far task i's rows determine its value, and the noise's the squared
    residuals / (rows − Σ γ). A node that few rows reach says little of its own variance, so both sums are joined by
    those of its level, at the weight of ``pseudo`` tasks: a method of our own.

    Args:
        held, residual: as for `posterior`.
        there: ``(B, n)`` bool, which rows are there.
        level: ``(D,)`` int64, the depth of each node.
        rounds: how often.
        pseudo: 0 leaves each node to itself.

    References: MacKay 1992, doi:10.1162/neco.1992.4.3.415; Tipping 2001, "Sparse Bayesian learning and the relevance
    vector machine", where each weight has a variance of its own.
    """
    rows, levels = there.sum(), int(level.max()) + 1
    total = (residual.square().sum((0, 1)) / rows).clamp(min=1e-12)
    noise, ratio = total / 2, torch.full_like(held[0, 0], 1 / levels)
    tasks, sizes = len(held), level.bincount(minlength=levels)

    def by_level(values: Tensor) -> Tensor:
        return torch.zeros(levels, dtype=values.dtype, device=values.device).index_add(0, level, values)

    for _ in range(rounds):
        found = posterior(held, residual, ratio)
        known = found.explained.square().sum((0, 1))
        squares = (found.mean.square() / noise).mean(2).sum(0)
        left = (residual - held @ found.mean).square().sum((0, 1))
        joined = pseudo / tasks * by_level(known) / sizes
        ratio_of_level = by_level(squares) / by_level(known).clamp(min=1e-12)
        ratio = (squares + (joined * ratio_of_level)[level]) / (known + joined[level]).clamp(min=1e-12)
        new_noise = (left / (rows - known.sum()).clamp(min=1)).clamp(min=1e-6 * total)
        ratio = (ratio * (noise / new_noise).mean()).clamp(SMALLEST, LARGEST)
        noise = new_noise
    return Strength(ratio, noise)


#: How many numbers memberships may take, how many rows of a task are looked at, and of how many tasks at least, where
#: strengths are read off; of `MOST` at most.
NUMBERS, ROWS, LEAST = 2**23, 64, 16
#: Nodes of this depth and deeper are of one level.
DEEP = 4


def prepared(meta: Meta, tasks: Tasks, options: Options, count: int | None, seed: int) -> Meta:
    """Return ``meta`` with trees grown on training tasks (see `number`), and strengths that explain them.

    Class ids become one-hot. Where the family has no end of tasks, strengths are read off others than trees are.
    """
    outputs, in_all = meta.params["leaves"].shape[2], number(tasks, count)

    def rows(many: int, first: int = 0) -> Batch:
        found = read(tasks, many, first)
        y = found.y if found.y.is_floating_point() else one_hot(found.y, outputs, found.x)
        return found._replace(y=y.double())

    grown = grow(rows(in_all), options, seed)
    other = rows(min(in_all, MOST), in_all if tasks.counts is None else 0)
    few = max(LEAST, NUMBERS // (min(ROWS, other.y.shape[1]) * grown.depth.numel()))
    x, y, mask = (part[:few, :ROWS] for part in (other.x, other.y, there(other)))
    held = memberships(Boxes(grown.lower.double(), grown.upper.double()), x) * mask.unsqueeze(-1)
    residual = (y - shared(grown.leaves, held)) * mask.unsqueeze(-1)
    found = strengths(held, residual, mask, grown.depth.flatten().clamp(max=DEEP))
    values = {**grown._asdict(), "log_ratio": found.ratio.log().view_as(grown.depth), "log_noise": found.noise.log()}

    def filled(old: Params) -> Params:
        return {name: values[name].to(value) if name in values else value for name, value in old.items()}

    return Meta(filled(meta.params), filled(meta.structure))


#: Scales of the logits that are tried before the first outer step.
SCALES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def forest(
    *,
    inputs: int,
    outputs: int = 1,
    loss: Literal["mse", "cross_entropy"] = "mse",
    trees: Annotated[int, Ge(1), Le(10_000)] = 50,
    leaves: Annotated[int, Ge(2), Le(4096)] = 16,
    grown_by: Kind = "random_forest",
    min_rows: Count = 5,
    max_features: Annotated[float, Gt(0), Le(1)] = 0.33,
    signs: Whole = 16,
    tasks_read: Count | None = None,
) -> Learner:
    """Learn where trees split across tasks, and what they say there task by task.

    `Learner.prepare` grows scikit-learn's forest on the rows of the training tasks (see `grow`: it finds splits that
    matter to tasks even where their effects cancel out between tasks) and keeps every node as a box in M. With
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
        trees: T, the number of trees.
        leaves: the most leaves of a tree.
        grown_by: how scikit-learn grows the trees: as a ``"random_forest"`` or as ``"extra_trees"``.
        min_rows: pooled training rows that a leaf must have.
        max_features: the share of the features that are looked at for a split.
        signs: columns of the sketch of what splits matter to single tasks; 0 grows on the pooled targets alone.
        tasks_read: how many training tasks to grow on; by default all, or 256 of a family that has no end of them.

    Raises:
        UsageError: sizes below their least; and in `Learner.prepare`, where scikit-learn is not installed.
        UnknownNameError: a loss or kind of forest that does not exist.

    References: trees as in Breiman 2001, doi:10.1023/A:1010933404324; Geurts, Ernst, Wehenkel 2006,
    doi:10.1007/s10994-006-6226-1. Shrinkage along the path from root to leaf as in Agarwal, Tan, Ronen, Singh, Yu 2022,
    arXiv:2202.00858, here with learned strengths. The meta-learning is our own.
    """
    check_known("loss", loss, ("mse", "cross_entropy"))
    check_known("kind of forest", grown_by, ("random_forest", "extra_trees"))
    least = {"inputs": (inputs, 1), "outputs": (outputs, 1), "trees": (trees, 1), "leaves": (leaves, 2)}
    least |= {"min_rows": (min_rows, 1), "signs": (signs, 0)}
    least |= {} if tasks_read is None else {"tasks_read": (tasks_read, 1)}
    for name, (value, bound) in least.items():
        if value < bound:
            raise UsageError(f"{name} must be at least {bound}, got {value}")
    if not 0 < max_features <= 1:
        raise UsageError(f"max_features must be a share above 0 and up to 1, got {max_features}")
    options = Options(grown_by, trees, leaves, min_rows, max_features, signs)
    classifies = loss == "cross_entropy"

    def init(generator: Generator | None = None) -> Meta:
        """Return trees that have not grown: each is one leaf, and the forest the offset of a task."""
        values = torch.zeros(trees, leaves, outputs)
        space = unbounded(trees, 2 * leaves - 1, inputs, values.dtype)
        own = {"log_scale": torch.tensor(math.log(8.0))} if classifies else {"log_noise": torch.zeros(outputs)}
        structure = {**space._asdict(), "log_ratio": values.new_zeros(trees, 2 * leaves - 1), **own}
        return Meta({"leaves": values}, structure)

    def held_by(meta: Meta, x: Tree) -> Tensor:
        return memberships(Boxes(meta.structure["lower"], meta.structure["upper"]), flat(x, inputs))

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        support = present(support)
        check_targets(support, outputs, classifies)
        mean, y = meta.params["leaves"], support.y
        if classifies:
            y = one_hot(in_range(y, outputs, f"this forest has {outputs} classes"), outputs, mean)
        held = gaussians.zeroed(held_by(meta, support.x), support.mask)
        residual = gaussians.zeroed(y - shared(mean, held), support.mask)
        found = posterior(held, residual, meta.structure["log_ratio"].flatten().exp())
        adapted = Adapted(meta, {"deviations": found.mean}, {"support.explained": found.explained}, support.seed)
        return adapted, Info(held.new_zeros(0, len(held)))

    def values(adapted: Adapted, held: Tensor) -> Tensor:
        return shared(adapted.meta.params["leaves"], held) + held @ adapted.params["deviations"]

    def distribution(adapted: Adapted, x: Tree) -> Gaussian:
        held = held_by(adapted.meta, x)
        scaled = held * adapted.meta.structure["log_ratio"].flatten().exp().sqrt()
        known = (scaled @ adapted.buffers["support.explained"].mT).square().sum(2)
        # rounding may explain a little more than there is
        variance = 1 + (scaled.square().sum(2) - known).clamp(min=0)
        return Gaussian(values(adapted, held), variance.unsqueeze(-1) * adapted.meta.structure["log_noise"].exp())

    def predict(adapted: Adapted, x: Tree) -> Tensor:
        found = values(adapted, held_by(adapted.meta, x))
        return adapted.meta.structure["log_scale"].exp() * found if classifies else found

    def prepare(meta: Meta, tasks: Tasks, seed: int, folder: PathLike[str] | None = None, /) -> Meta:
        meta = prepared(meta, tasks, options, tasks_read, seed)
        if not classifies:
            return meta
        episodes = tasks.sample("train", range(min(MOST, number(tasks, tasks_read))))

        def scaled(scale: float) -> Meta:
            value = meta.structure["log_scale"].new_full((), math.log(scale))
            return meta._replace(structure={**meta.structure, "log_scale": value})

        def cost(scale: float) -> float:
            adapted, _ = adapt(scaled(scale), episodes.support)
            return query_losses(learner, adapted, episodes.query).mean().item()

        with torch.no_grad():
            return scaled(min(SCALES, key=cost))

    def shown(meta: Meta) -> Params:
        """Return the strengths as they act; boxes are no numbers to take means of."""
        logs = {name: value for name, value in meta.structure.items() if name.startswith("log_")}
        return {name.removeprefix("log_"): value.exp() for name, value in logs.items()}

    learner = Learner(init, adapt, predict, losses.resolve(loss), backprop, prepare=prepare, shown=shown)
    return learner if classifies else learner._replace(objective=gaussians.predictive, distribution=distribution)
