"""Gaussian processes whose prior is learned across tasks: mean and kernel for tables, or a kernel on a network."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Generator, Tensor, nn

from headstart.algorithms import kernels
from headstart.algorithms.gaussian import mean_functions
from headstart.algorithms.gaussian.conditioning import Likelihood, Prior, conditioned
from headstart.algorithms.gaussian.mean_functions import Mean
from headstart.algorithms.kernels import Kernel
from headstart.core import tree
from headstart.errors import ShapeError, UsageError, unknown_name
from headstart.forward.functional import Buffers, functional
from headstart.forward.task_map import TaskMap
from headstart.types import Learner, Meta, Params, Tasks, Tree

KernelName: TypeAlias = Literal["rbf", "matern", "linear", "spectral"]

#: Starting values for targets of variance 1: standard deviations of the noise, of random intercepts and slopes, and
#: of what is left.
NOISE, INTERCEPT, SLOPES, REST = 0.3, 0.5, 0.3, 0.05
#: The standard deviation of the weak prior, in units of the logarithm.
WIDTH = 2.0
#: The parts of M that count, and are not learned: rounded, they have no derivative.
COUNTS = ("values", "tasks")
#: The random effects' covariance is never widened by more than this.
WIDEST = 2.0
#: How many target values the weak prior is weighed against before `Learner.prepare` has counted them.
VALUES = 1000.0


def gaussian_process(
    module: nn.Module | None = None,
    *,
    inputs: int,
    outputs: int = 1,
    mean: Literal["network", "linear", "constant"] = "network",
    kernel: Literal["exponential", "matern", "rbf", "linear"] = "exponential",
    hidden: Sequence[int] = (16,),
    regularization: float = 1.0,
    likelihood: Likelihood = "joint",
    dtype: torch.dtype = torch.float32,
    taskmap: str | TaskMap = "auto",
    buffers: Buffers = "batch",
) -> Learner:
    """Learn the prior of a Gaussian process: a mean function and a kernel that all tasks share.

    A task's targets are y = m(x) + f(x) + ε with ε ~ N(0, σ²) and f ~ GP(0, k),

        k(x, x′) = [1, x] L Lᵀ [1, x′]ᵀ + k_rest(x, x′)

    The first part of the kernel gives every task an intercept and slopes of its own with a full covariance, the second
    a curve of its own with a length for every feature. Adapting conditions f on the support set in closed form. With
    ``mean="linear"`` and ``kernel="linear"`` this is the linear mixed-effects model (Laird, Ware 1982), and `predict`
    its best linear unbiased predictor; the further parts let the shared curve, and each task's own, bend. θ is the
    mean function, M the kernel and the noise.

    Trained on −log p(y_support, y_query) of each task, jointly, for each target value. A weak prior keeps few tasks
    from overfitting (maximum a posteriori): logarithms of scales, lengths and noise, and correlations, are
    N(starting value, 2²), the network has small weights (`mean_functions.network`). Inputs and
    targets should be standardised; several target values share the kernel and the noise, and are independent.

    What T training tasks say of p random effects is itself uncertain. With the joint likelihood, a new task's effects
    therefore have the covariance (T + 1) / (T − p − 2) · L Lᵀ: that of a new draw, after T draws from a normal
    distribution of which nothing was known (Jeffreys' prior; twice L Lᵀ at most, and as it is before
    `Learner.prepare` has counted the tasks). The uncertainty of the other parts is left out.

    Args:
        module: a network f(x) of the mean function m(x) = b + x W + f(x); by default a small one is built.
        inputs: number of features of an input, which is flattened.
        outputs: number of target values.
        mean: ``"network"`` (a line plus a network), ``"linear"`` or ``"constant"``.
        kernel: what is added to the random intercept and slopes: ``"exponential"`` (Matérn of smoothness 1/2: errors
            that go on for a while, a continuous AR(1)), smooth curves (``"matern"`` of smoothness 5/2, or ``"rbf"``),
            or nothing (``"linear"``).
        hidden: widths of the network that is built.
        regularization: how much the weak prior counts; 1 is maximum a posteriori, 0 maximum likelihood. It is weighed
            against the number of target values of the training tasks, which `Learner.prepare` counts (1000 before).
        likelihood: ``"joint"``, or ``"predictive"``: −log p(y_query | y_support), one by one.
        dtype: of θ and M, where there is no module.
        taskmap, buffers: as in `headstart.forward.functional.functional`, for the module.

    Raises:
        UnknownNameError: a mean, kernel or likelihood that does not exist.
        UsageError: a module beside a mean that has none.

    Reference: Fortuin, Rätsch 2019, arXiv:1901.08098 (learned mean functions, trained on the joint marginal
    likelihood). The kernel of random effects, the linear part of the mean and the weak prior are added here.

    >>> learner = gaussian_process(inputs=2, kernel="linear")
    >>> sorted(learner.init(None).structure)
    ['kernel.effects.log_diagonal', 'kernel.effects.lower', 'log_noise', 'tasks', 'values']
    """
    chosen = _mean(mean, module, inputs, outputs, hidden, taskmap, buffers)
    made = _table_kernel(kernel, inputs)
    like = torch.empty(0, dtype=dtype)
    if module is not None:
        like = next((p for p in module.parameters() if p.is_floating_point()), like)

    def init(generator: Generator | None = None) -> Meta:
        structure = tree.prefixed("kernel", made.start(generator, like.dtype)) | _noise(like.dtype)
        structure |= {"values": torch.tensor(VALUES), "tasks": torch.tensor(0.0)}
        params = tree.prefixed("mean", chosen.start(generator, like.dtype))
        return Meta(*({name: value.to(like) for name, value in part.items()} for part in (params, structure)))

    def view(meta: Meta, x: Tree, own: Params, seed: Tensor | None, draw: int) -> tuple[Tensor, Tensor, Params]:
        if x.flatten(2).shape[-1] != inputs:
            raise ShapeError(f"inputs have {x.flatten(2).shape[-1]} features; the learner was made for inputs={inputs}")
        means, own = chosen.values(tree.within(meta.params, "mean"), x, own, seed, draw)
        return x.flatten(2), means, own

    prior = Prior(init, view, made, chosen.buffers, chosen.batch_statistics)
    if likelihood == "joint":
        prior = prior._replace(for_new=_widened)
    learner = conditioned(prior, likelihood)
    return learner._replace(penalty=_weak_prior(init(None).structure, chosen, regularization), prepare=_prepare)


def dkt(
    module: nn.Module,
    *,
    kernel: KernelName = "rbf",
    features: int | None = None,
    outputs: int = 1,
    likelihood: Likelihood = "joint",
    taskmap: str | TaskMap = "auto",
    buffers: Buffers = "batch",
) -> Learner:
    """Learn a kernel on a network's features, k(f(x), f(x′)), that all tasks share: deep kernel transfer.

    A task's targets are a Gaussian process with a constant mean, this kernel, and noise. The network is θ; mean,
    kernel and noise are M. Trained on the marginal likelihood of all of a task's points, support and query together,
    −log p(y_support, y_query) for each target value. Adapting conditions on the support set in closed form.

    Args:
        module: the network f; its outputs ``(n, *features)`` are flattened.
        kernel: ``"rbf"``, ``"matern"`` (smoothness 5/2), ``"linear"``, or ``"spectral"`` (4 mixtures).
        features: number of the network's features, for a length (or frequency) of each; by default all share one.
        outputs: number of target values; they share the kernel, and are independent.
        likelihood: ``"joint"`` as in the paper, or ``"predictive"``: −log p(y_query | y_support), one by one.
        taskmap: ``"auto"``, ``"vmap"`` or ``"loop"``.
        buffers: what normalisation does with running statistics; with ``"batch"``, support and query sets are each
            normalised by their own.

    Raises:
        UnknownNameError: a kernel or likelihood that does not exist.

    Reference: Patacchiola, Turner, Crowley, O'Boyle, Storkey 2020, arXiv:1910.05199 (its regression).

    >>> learner = dkt(nn.Linear(1, 8), kernel="spectral")
    >>> sorted(learner.init(None).params)
    ['bias', 'weight']
    """
    function = functional(module, buffers=buffers, taskmap=taskmap)
    made, mean = _deep_kernel(kernel, features), mean_functions.constant(outputs)
    weights = {**function.params, **function.structure}
    like = next(iter(weights.values()), torch.zeros((), dtype=torch.float32))

    def init(generator: Generator | None = None) -> Meta:
        structure = tree.prefixed("kernel", made.start(generator, like.dtype)) | _noise(like.dtype)
        structure |= tree.prefixed("mean", mean.start(generator, like.dtype))
        structure = {name: value.to(like.device) for name, value in structure.items()}
        own = {name: value.clone() for name, value in function.structure.items()}
        return Meta({name: value.clone() for name, value in function.params.items()}, own | structure)

    def view(meta: Meta, x: Tree, own: Params, seed: Tensor | None, draw: int) -> tuple[Tensor, Tensor, Params]:
        phase = "support" if draw == 0 else "query"
        values = {name: (meta.params | meta.structure)[name] for name in weights}
        embedded, own = function.apply(values, own, x, seed=seed, draw=draw, phase=phase)
        embedded = embedded.flatten(2)
        if features is not None and embedded.shape[-1] != features:
            raise ShapeError(f"the network gives {embedded.shape[-1]} features; the kernel was made for {features}")
        return embedded, mean.values(tree.within(meta.structure, "mean"), embedded, {}, None, 0)[0], own

    return conditioned(Prior(init, view, made, function.buffers, function.batch_statistics), likelihood)


def _noise(dtype: torch.dtype) -> Params:
    return {"log_noise": torch.tensor(math.log(NOISE), dtype=dtype)}


def _mean(
    name: str,
    module: nn.Module | None,
    inputs: int,
    outputs: int,
    hidden: Sequence[int],
    taskmap: str | TaskMap,
    buffers: Buffers,
) -> Mean:
    if module is not None and name != "network":
        raise UsageError(f"a module is the mean function's network, but mean={name!r} has none; use mean='network'")
    if name == "network":
        if module is not None:
            return mean_functions.with_module(module, inputs, outputs, taskmap=taskmap, buffers=buffers)
        return mean_functions.network(inputs, outputs, hidden)
    if name == "linear":
        return mean_functions.linear(inputs, outputs)
    if name == "constant":
        return mean_functions.constant(outputs)
    raise unknown_name("mean", name, ("network", "linear", "constant"))


def _table_kernel(name: str, inputs: int) -> Kernel:
    effects = kernels.effects(inputs, intercept=INTERCEPT, slopes=SLOPES)
    if name == "linear":
        return kernels.total({"effects": effects})
    rests = {
        "exponential": partial(kernels.matern, smoothness=0.5),
        "matern": kernels.matern,
        "rbf": kernels.rbf,
    }
    if name not in rests:
        raise unknown_name("kernel", name, (*rests, "linear"))
    return kernels.total({"effects": effects, "rest": rests[name](inputs, scale=REST)})


def _deep_kernel(name: str, features: int | None) -> Kernel:
    if name == "linear":
        return kernels.linear()
    stationary = {"rbf": kernels.rbf, "matern": kernels.matern, "spectral": kernels.spectral}
    if name not in stationary:
        raise unknown_name("kernel", name, (*stationary, "linear"))
    return stationary[name](features)


def _weak_prior(start: Params, mean: Mean, regularization: float) -> Callable[[Meta], Tensor]:
    """Return −log p(θ, M) for each target value of the training tasks."""

    def penalty(meta: Meta) -> Tensor:
        moved = [(v - start[k].to(v)).square().sum() for k, v in meta.structure.items() if k not in COUNTS]
        cost = 0.5 * torch.stack(moved).sum() / WIDTH**2 + mean.cost(tree.within(meta.params, "mean"))
        # the number of values is a constant: rounded, it has no derivative
        return regularization * cost / meta.structure["values"].round().clamp(min=1)

    return penalty


def _widened(meta: Meta) -> Meta:
    """Return M with the random effects' covariance as it is predicted for a new task, times (T + 1) / (T − p − 2)."""
    tasks, logs = meta.structure["tasks"].round(), meta.structure["kernel.effects.log_diagonal"]
    factor = ((tasks + 1) / (tasks - len(logs) - 2).clamp(min=1)).clamp(max=WIDEST)
    factor = torch.where(tasks > 0, factor, 1)
    return meta._replace(structure=meta.structure | {"kernel.effects.log_diagonal": logs + 0.5 * factor.log()})


def _prepare(meta: Meta, tasks: Tasks, seed: int, folder: object = None, /) -> Meta:
    """Start the mean function as the least-squares line through all training tasks, and count them."""
    values = meta.structure["values"]
    found = mean_functions.pooled(tasks, values.dtype)
    params = dict(meta.params)
    if "mean.linear" in params:
        start = {"mean.bias": found.weights[0], "mean.linear": found.weights[1:]}
        params |= {name: value.to(params[name].device).clone() for name, value in start.items()}
    counts = {"values": torch.full_like(values, found.values), "tasks": torch.full_like(values, found.tasks)}
    return Meta(params, meta.structure | counts)
