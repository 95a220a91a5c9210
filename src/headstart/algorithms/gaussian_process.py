"""Gaussian processes whose prior is learned across tasks: mean and kernel for tables, or a kernel on a network.

Adapting conditions the prior on the support set, in closed form.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from torch import Generator, Tensor, nn

from headstart.algorithms import gaussians, kernels
from headstart.algorithms.estimators import time_of
from headstart.algorithms.gaussians import Likelihood, View
from headstart.algorithms.heads import head
from headstart.algorithms.heads.head import Embedding, embedding
from headstart.algorithms.kernels import Kernel, with_one
from headstart.core import losses, tree
from headstart.core.losses import present, there
from headstart.errors import ShapeError, UsageError, pick, unknown_name
from headstart.schema import NotNegative, Sizes, extends
from headstart.types import Adapted, Batch, Gaussian, Info, Learner, Meta, Params, Tasks, Tree

#: Most tasks from which starting values are read.
MOST_TASKS = 1024
#: Standard deviation of the prior on the weights of a network's head: small beside targets of variance 1.
HEAD = 0.1
#: Starting values for targets of variance 1: standard deviations of the noise, of random intercepts and slopes, and
#: of what is left.
NOISE, INTERCEPT, SLOPES, REST = 0.3, 0.5, 0.3, 0.05
#: The standard deviation of the weak prior, in units of the logarithm.
WIDTH = 2.0
#: The parts of M that count or tell which input is time, and are not learned: rounded, they have no derivative.
COUNTS = ("values", "tasks", "time")
#: The random effects' covariance is never widened by more than this.
WIDEST = 2.0
#: What reports call the covariance of a task's own intercept and slopes of all inputs (and of time's square).
EFFECTS = "effects.inputs"
#: How many target values the weak prior is weighed against before `Learner.prepare` has counted them.
VALUES = 1000.0

Form: TypeAlias = Literal["network", "linear", "constant"]


def mean_start(
    form: Form, inputs: int, outputs: int, hidden: Sequence[int], generator: Generator | None, dtype: torch.dtype
) -> Params:
    """Return the parameters of a mean function that is 0: of `mean_values`, as far as its form has them."""
    made = {"bias": torch.zeros(outputs, dtype=dtype)}
    if form == "constant":
        return made
    made["linear"] = torch.zeros(inputs, outputs, dtype=dtype)
    if form == "linear":
        return made
    if form != "network":
        raise unknown_name("mean", form, ("network", "linear", "constant"))
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    widths = (inputs, *hidden)
    for layer, (before, after) in enumerate(pairwise(widths), start=1):
        drawn = torch.randn(before + 1, after, generator=generator, dtype=torch.float64).to(dtype)
        made[f"hidden{layer}.weight"] = drawn[1:] / math.sqrt(before)
        made[f"hidden{layer}.bias"] = drawn[0].clone()
    made["head"] = torch.zeros(widths[-1], outputs, dtype=dtype)
    return made


def mean_values(params: Params, x: Tensor) -> Tensor:
    """Return m(x) = b + x W + tanh(… tanh(x V₁ + c₁) …) H ``(B, n, outputs)``: a line, and a smooth curve."""
    x = x.flatten(2)
    means = params["bias"].expand(*x.shape[:2], -1)
    if "linear" in params:
        means = means + x @ params["linear"]
    if "head" in params:
        for layer in _layers(params):
            x = torch.tanh(x @ params[f"hidden{layer}.weight"] + params[f"hidden{layer}.bias"])
        means = means + x @ params["head"]
    return means


def mean_cost(params: Params) -> Tensor | float:
    """Return −log of the priors that keep the curve small, V ~ N(0, 1 / width), c ~ N(0, 1) and H ~ N(0, 0.1²)."""
    if "head" not in params:
        return 0.0
    squares = [params["head"].square().sum() / HEAD**2]
    for layer in _layers(params):
        weight = params[f"hidden{layer}.weight"]
        squares += [len(weight) * weight.square().sum(), params[f"hidden{layer}.bias"].square().sum()]
    return 0.5 * torch.stack(squares).sum()


def _layers(params: Params) -> range:
    return range(1, 1 + sum(name.startswith("hidden") for name in params) // 2)


def pooled(tasks: Tasks, dtype: torch.dtype, more: Callable[[Tensor], Tensor] = lambda x: x) -> tuple[Tensor, int, int]:
    """Return the least-squares weights ``(1 + d, o)`` of y on [1, x], and how many target values and tasks there are.

    ``more`` makes x of inputs ``(N, inputs)``.
    Of all training tasks, or `MOST_TASKS`; the number of tasks is 0 where there is no end of them.
    """
    count = (tasks.counts or {}).get("train", 0)
    seen = min(count or MOST_TASKS, MOST_TASKS)
    batches = tasks.sample("train", range(seen))
    rows = [(batch.x.flatten(2)[there(batch)], batch.y[there(batch)]) for batch in batches]
    x, y = (torch.cat(parts).double() for parts in zip(*rows))
    design = with_one(more(x))
    square = design.T @ design
    # a little ridge: features may be constant, or copies of each other
    ridge = 1e-6 * len(design) * torch.eye(len(square), dtype=square.dtype, device=square.device)
    line = torch.linalg.solve(square + ridge, design.T @ y).to(dtype)
    return line, round(y.numel() * (count or seen) / seen), count


def _conditioned(
    init: Callable[..., Meta],
    view: View,
    kernel: Kernel,
    network: Embedding,
    likelihood: Likelihood,
    widened: Callable[[Meta], Meta] = lambda meta: meta,
) -> Learner:
    """Return the learner that conditions a Gaussian process on the support set; in M are ``kernel.…``, ``log_noise``.

    What a task has learned grows with its support set, and so stands among the `Adapted` buffers, ``support.…``.
    ``widened`` gives M as it holds for a new task, beside the training tasks that it was fitted to.
    """

    def covariance(meta: Meta, inputs: Tensor) -> tuple[Tensor, Tensor]:
        matrix = kernel.matrix(tree.within(meta.structure, "kernel"), inputs, inputs)
        unit = torch.eye(inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
        return matrix + torch.exp(2 * meta.structure["log_noise"]) * unit, matrix.new_zeros(1)

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        support = present(support)
        losses.refuse_padding(support, network.batch_statistics)
        inputs, means, own = view(meta, support.x, network.of_tasks(support), support.seed, 0)
        factor = gaussians.cholesky(covariance(widened(meta), inputs)[0], support.mask)
        weights = gaussians.condition(factor, gaussians.residual(support.y, means), support.mask)
        kept = {"inputs": inputs, "there": there(support), "factor": factor, "weights": weights}
        buffers = tree.prefixed("module", own) | tree.prefixed("support", kept)
        return Adapted(meta, {}, buffers, support.seed), Info(inputs.new_zeros(0, len(inputs)))

    def distribution(adapted: Adapted, x: Tree) -> Gaussian:
        meta, kept = widened(adapted.meta), tree.within(adapted.buffers, "support")
        inputs, means, _ = view(meta, x, tree.within(adapted.buffers, "module"), adapted.seed, 1)
        params = tree.within(meta.structure, "kernel")
        cross = torch.where(kept["there"].unsqueeze(1), kernel.matrix(params, inputs, kept["inputs"]), 0)
        prior = kernel.diagonal(params, inputs)
        change, variance = gaussians.posterior(kept["factor"], kept["weights"], cross, prior)
        variance = variance + torch.exp(2 * meta.structure["log_noise"])
        return Gaussian(means + change, variance.unsqueeze(-1).expand_as(means))

    objectives = {"joint": gaussians.joint(view, covariance, network), "predictive": gaussians.predictive}
    objective = pick("likelihood", likelihood, objectives)
    return gaussians.regressor(init, adapt, distribution, objective, network.batch_statistics)


@extends(embedding)
def gaussian_process(
    module: nn.Module | None = None,
    *,
    inputs: int,
    outputs: int = 1,
    mean: Form = "network",
    kernel: Literal["exponential", "matern", "rbf", "linear"] = "exponential",
    trend: Literal["linear", "quadratic"] = "linear",
    hidden: Sizes = (16,),
    regularization: NotNegative = 1.0,
    likelihood: Likelihood = "joint",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Learner:
    """Learn the prior of a Gaussian process: a mean function and a kernel that all tasks share.

    A task's targets are y = m(x) + f(x) + ε with ε ~ N(0, σ²) and f ~ GP(0, k),

        k(x, x′) = [1, x] L Lᵀ [1, x′]ᵀ + k_rest(x, x′)

    The first part of the kernel gives every task an intercept and slopes of its own with a full covariance, the second
    a curve of its own with a length for every feature. Adapting conditions f on the support set in closed form. With
    ``mean="linear"`` and ``kernel="linear"`` this is the linear mixed-effects model (Laird, Ware 1982), and `predict`
    its best linear unbiased predictor. θ is the mean function, M the kernel and the noise.

    Trained on −log p(y_support, y_query) of each task, jointly, for each target value. A weak prior keeps few tasks
    from overfitting: logarithms of scales, lengths and noise, and correlations, are N(starting value, 2²), the network
    has small weights. Standardise inputs and targets; target values share kernel and noise, and are independent.

    With the joint likelihood, a new task's p random effects have the covariance (T + 1) / (T − p − 2) · L Lᵀ: that of
    a new draw, after T from a normal distribution of which nothing was known (Jeffreys' prior; twice L Lᵀ at most,
    and L Lᵀ before `Learner.prepare` has counted the tasks). The uncertainty of the other parts is left out.

    Args:
        module: a network f(x) of the mean function m(x) = b + x W + f(x); by default a small one is built.
        inputs: number of features of an input, which is flattened.
        outputs: number of target values.
        mean: what all tasks have in common: a line plus a network (``"network"``), ``"linear"`` or ``"constant"``.
        kernel: what is added to the random intercept and slopes: ``"exponential"`` (Matérn of smoothness 1/2, a
            continuous AR(1)), smooth curves (``"matern"`` of smoothness 5/2, or ``"rbf"``), or nothing (``"linear"``).
        trend: with ``"quadratic"``, the mean's line and the random effects have the square of time besides. Time is
            the table's time column, or the only input, which `Learner.prepare` finds; without one there is no square.
        hidden: widths of the layers of the mean function's network.
        regularization: how much the weak prior counts; 1 is maximum a posteriori, 0 maximum likelihood. It is weighed
            against the number of target values of the training tasks, which `Learner.prepare` counts (1000 before).
        likelihood: what is trained on: that of all of a task's points, jointly (``"joint"``), or that of the query
            points given the support set, one by one (``"predictive"``).
        dtype: of θ and M, where there is no module.
        options: those of `embedding`, for the module.

    Raises:
        UnknownNameError: a mean, kernel or likelihood that does not exist.
        UsageError: a module beside a mean that has none.

    Reference: Fortuin, Rätsch 2019, arXiv:1901.08098 (learned mean functions, trained on the joint marginal
    likelihood). The kernel of random effects, the linear part of the mean and the weak prior are added here.

    >>> learner = gaussian_process(inputs=2, kernel="linear")
    >>> sorted(learner.init(None).structure)
    ['kernel.effects.log_diagonal', 'kernel.effects.lower', 'log_noise', 'tasks', 'values']
    """
    if module is not None and mean != "network":
        raise UsageError(f"a module is the mean function's network, but mean={mean!r} has none; use mean='network'")
    phi = embedding(module, **options)
    # a module's curve is added to the line; its weights have no prior
    form, like = (mean, torch.empty(0, dtype=dtype)) if module is None else ("linear", phi.like)
    rest = {
        "exponential": partial(kernels.matern, smoothness=0.5),
        "matern": kernels.matern,
        "rbf": kernels.rbf,
        "linear": None,
    }
    columns = inputs + pick("trend", trend, {"linear": 0, "quadratic": 1})
    parts = {"effects": kernels.effects(columns, intercept=INTERCEPT, slopes=SLOPES)}
    further = pick("kernel", kernel, rest)
    if further is not None:
        parts |= {"rest": kernels.of_first(inputs, further(inputs, scale=REST))}
    total = kernels.total(parts)

    def init(generator: Generator | None = None) -> Meta:
        structure = tree.prefixed("kernel", total.start(generator, like.dtype))
        counts = {"values": torch.tensor(VALUES), "tasks": torch.tensor(0.0)}
        counts |= {} if trend == "linear" else {"time": torch.full((inputs,), float(inputs == 1))}
        structure |= {"log_noise": torch.tensor(math.log(NOISE), dtype=like.dtype), **counts}
        own = phi.start()
        params = mean_start(form, columns, outputs, hidden, generator, like.dtype)
        params |= tree.prefixed("module", {**own.params, **own.structure})
        both = (tree.prefixed("mean", params), structure)
        return Meta(*({name: value.to(like) for name, value in part.items()} for part in both))

    def design(structure: Params, rows: Tensor) -> Tensor:
        if trend == "linear":
            return rows
        time = rows @ structure["time"].round().to(rows)
        return torch.cat([rows, time.square().unsqueeze(-1)], -1)

    def prepare(meta: Meta, tasks: Tasks, seed: int, folder: object = None, /) -> Meta:
        structure, values = dict(meta.structure), meta.structure["values"]
        structure |= {name: time_of(tasks, value) for name, value in structure.items() if name == "time"}
        line, *counts = pooled(tasks, values.dtype, partial(design, structure))
        params, line = dict(meta.params), line.to(values.device)
        if "mean.linear" in params:
            params |= {"mean.bias": line[0].clone(), "mean.linear": line[1:].clone()}
        return Meta(params, structure | {name: torch.full_like(values, n) for name, n in zip(COUNTS, counts)})

    def view(meta: Meta, x: Tree, own: Params, seed: Tensor | None, draw: int) -> tuple[Tensor, Tensor, Params]:
        if x.flatten(2).shape[-1] != inputs:
            raise ShapeError(f"inputs have {x.flatten(2).shape[-1]} features; the learner was made for inputs={inputs}")
        params, rows = tree.within(meta.params, "mean"), design(meta.structure, x.flatten(2))
        means = mean_values(params, rows)
        if module is not None:
            curve, own = phi.apply(tree.within(params, "module"), own, x, seed, draw)
            means = means + curve.reshape(means.shape)
        return rows, means, own

    def penalty(meta: Meta) -> Tensor:
        """Return −log p(θ, M) for each target value of the training tasks."""
        moved = [(v - start[k].to(v)).square().sum() for k, v in meta.structure.items() if k not in COUNTS]
        cost = 0.5 * torch.stack(moved).sum() / WIDTH**2 + mean_cost(tree.within(meta.params, "mean"))
        # the number of values is a constant: rounded, it has no derivative
        return regularization * cost / meta.structure["values"].round().clamp(min=1)

    def shown(meta: Meta) -> Params:
        """Return M with the random effects' covariance, of the intercept and the slopes."""
        found = {name: value for name, value in head.shown(meta).items() if not name.startswith("kernel.effects.")}
        return {EFFECTS: kernels.covariance(tree.within(meta.structure, "kernel.effects"))} | found

    start = init(None).structure
    wider = [_widened] if likelihood == "joint" else []
    learner = _conditioned(init, view, total, phi, likelihood, *wider)
    return learner._replace(penalty=penalty, prepare=prepare, shown=shown)


@extends(embedding)
def dkt(
    module: nn.Module,
    *,
    kernel: Literal["rbf", "matern", "linear", "spectral"] = "rbf",
    features: int | None = None,
    outputs: int = 1,
    likelihood: Likelihood = "joint",
    **options: Any,
) -> Learner:
    """Learn a kernel on a network's features, k(f(x), f(x′)), that all tasks share: deep kernel transfer.

    A task's targets are a Gaussian process with a constant mean, this kernel, and noise. The network is θ; mean,
    kernel and noise are M. Trained on −log p(y_support, y_query) of all of a task's points, for each target value.
    Adapting conditions on the support set in closed form.

    Args:
        module: the network f; its outputs ``(n, *features)`` are flattened.
        kernel: between features: ``"rbf"``, ``"matern"`` (smoothness 5/2), ``"linear"`` or ``"spectral"`` (4 mixtures).
        features: number of the network's features, for a length (or frequency) of each; by default all share one.
        outputs: number of target values; they share the kernel, and are independent.
        likelihood: what is trained on: that of all of a task's points, jointly, as in the paper (``"joint"``), or that
            of the query points given the support set, one by one (``"predictive"``).
        options: those of `embedding`.

    Raises:
        UnknownNameError: a kernel or likelihood that does not exist.

    Reference: Patacchiola, Turner, Crowley, O'Boyle, Storkey 2020, arXiv:1910.05199 (its regression).

    >>> learner = dkt(nn.Linear(1, 8), kernel="spectral")
    >>> sorted(learner.init(None).params)
    ['bias', 'weight']
    """
    phi = embedding(module, **options)
    found = {
        "rbf": kernels.rbf,
        "matern": kernels.matern,
        "spectral": kernels.spectral,
        "linear": lambda features: kernels.linear(),
    }
    made = pick("kernel", kernel, found)(features)

    def init(generator: Generator | None = None) -> Meta:
        (params, structure), like = phi.start(), phi.like
        structure |= tree.prefixed("kernel", made.start(generator, like.dtype))
        structure |= {"log_noise": like.new_full((), math.log(NOISE)), "mean.bias": like.new_zeros(outputs)}
        return Meta(params, {name: value.to(like.device) for name, value in structure.items()})

    def view(meta: Meta, x: Tree, own: Params, seed: Tensor | None, draw: int) -> tuple[Tensor, Tensor, Params]:
        embedded, own = phi.apply({**meta.params, **meta.structure}, own, x, seed, draw)
        if features is not None and embedded.shape[-1] != features:
            raise ShapeError(f"the network gives {embedded.shape[-1]} features; the kernel was made for {features}")
        return embedded, meta.structure["mean.bias"].expand(*embedded.shape[:2], -1), own

    return _conditioned(init, view, made, phi, likelihood)


def _widened(meta: Meta) -> Meta:
    """Return M with the random effects' covariance as it is predicted for a new task, times (T + 1) / (T − p − 2)."""
    tasks, logs = meta.structure["tasks"].round(), meta.structure["kernel.effects.log_diagonal"]
    factor = ((tasks + 1) / (tasks - len(logs) - 2).clamp(min=1)).clamp(max=WIDEST)
    factor = torch.where(tasks > 0, factor, 1)
    return meta._replace(structure=meta.structure | {"kernel.effects.log_diagonal": logs + 0.5 * factor.log()})
