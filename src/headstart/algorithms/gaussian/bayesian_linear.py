"""Bayesian linear regression on learned features, with a learned prior (ALPaCA)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from headstart.algorithms import gaussians
from headstart.algorithms.gaussian import mean_functions
from headstart.algorithms.gaussian.conditioning import Likelihood, joined_mask, predictive, residual, shown
from headstart.algorithms.kernels import triangular, with_one
from headstart.core import losses
from headstart.core.masks import present
from headstart.core.objective import backprop
from headstart.errors import ShapeError, UsageError, unknown_name
from headstart.forward.functional import Buffers, functional
from headstart.forward.task_map import TaskMap
from headstart.types import Adapted, Batch, Episodes, Gaussian, Info, Learner, Meta, Objective, Params, Tasks, Tree

#: The standard deviation of the noise to start from, for targets of variance 1.
NOISE = 0.3

View = Callable[[Meta, Tree, Params, Tensor | None, int], tuple[Tensor, Params]]


class Features(NamedTuple):
    """The features φ(x) of a linear model, a 1 first."""

    start: Callable[[], Params]
    view: View
    """``(meta, x, buffers, seed, draw) -> (φ (B, n, p), buffers)``."""
    size: int
    """p."""
    buffers: Params
    batch_statistics: str
    like: Tensor
    """A tensor of their type, on their device."""


def alpaca(
    module: nn.Module | None = None,
    *,
    inputs: int | None = None,
    features: int | None = None,
    outputs: int = 1,
    likelihood: Likelihood = "predictive",
    dtype: torch.dtype = torch.float32,
    taskmap: str | TaskMap = "auto",
    buffers: Buffers = "batch",
) -> Learner:
    """Learn features and a prior for Bayesian linear regression on them: adapting is its closed form.

    y = Kᵀ φ(x) + ε, ε ~ N(0, Σ), with the prior K ~ MN(K̄₀, Λ₀⁻¹, Σ). From the support rows Φ, Y,

        Λ = ΦᵀΦ + Λ₀,    K̄ = Λ⁻¹ (ΦᵀY + Λ₀ K̄₀),    y | x ~ N(K̄ᵀφ(x), (1 + φ(x)ᵀ Λ⁻¹ φ(x)) Σ)

    θ is the network; M holds K̄₀, the Cholesky factor of Λ₀, and Σ. Without a module φ(x) = [1, x]: a Bayesian
    mixed-effects model, whose fixed effects are K̄₀ and whose random effects have the covariance Σ Λ₀⁻¹. Trained on
    the posterior-predictive −log p(y_query | support set), one by one, for each target value.

    Here Σ is diagonal and learned, where the paper takes the noise as known; φ has a 1 beside the network's features;
    and a task is split into support and query set once, where the paper draws how much of a sequence has been seen.

    Args:
        module: the network; its outputs ``(n, *features)`` are flattened.
        inputs: number of features of an input, needed without a module.
        features: number of the module's features; by default, read off its last linear layer.
        outputs: number of target values; they are independent and share Λ₀.
        likelihood: ``"predictive"`` as in the paper, or ``"joint"``: −log p(y_support, y_query).
        dtype: of M, where there is no module.
        taskmap, buffers: as in `headstart.forward.functional.functional`, for the module.

    Raises:
        UnknownNameError: a likelihood that does not exist.
        UsageError: neither a module nor ``inputs``; a module whose features cannot be counted.

    Reference: Harrison, Sharma, Pavone 2018, arXiv:1807.08912.

    >>> learner = alpaca(inputs=2)
    >>> {name: tuple(value.shape) for name, value in learner.init(None).structure.items()}
    {'mean': (3, 1), 'log_diagonal': (3,), 'lower': (3,), 'log_noise': (1,)}
    """
    phi = _raw(inputs, dtype) if module is None else _learned(module, features, taskmap, buffers)
    objectives = {"predictive": predictive, "joint": _joint(phi)}
    if likelihood not in objectives:
        raise unknown_name("likelihood", likelihood, objectives)

    def init(generator: Generator | None = None) -> Meta:
        zeros, full = phi.like.new_zeros, phi.like.new_full
        structure = {
            "mean": zeros(phi.size, outputs),
            # of Λ₀ in units of the noise: coefficients with standard deviation 1 / √p
            "log_diagonal": full((phi.size,), math.log(NOISE * math.sqrt(phi.size))),
            "lower": zeros(phi.size * (phi.size - 1) // 2),
            "log_noise": full((outputs,), math.log(NOISE)),
        }
        return Meta(phi.start(), structure)

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        support = present(support)
        losses.refuse_padding(support, phi.batch_statistics)
        design, own = phi.view(meta, support.x, _own(phi, support), support.seed, 0)
        design = gaussians.zeroed(design, support.mask)
        left = gaussians.zeroed(residual(support.y, design @ meta.structure["mean"]), support.mask)
        prior = _precision_factor(meta)
        factor = gaussians.cholesky(design.transpose(1, 2) @ design + prior @ prior.T)
        # the same as in the docstring, without the difference of large numbers
        change = torch.cholesky_solve(design.transpose(1, 2) @ left, factor)
        params = {"mean": meta.structure["mean"] + change, "factor": factor}
        return Adapted(meta, params, own, support.seed), Info(design.new_zeros(0, len(design)))

    def distribution(adapted: Adapted, x: Tree) -> Gaussian:
        design, _ = phi.view(adapted.meta, x, adapted.buffers, adapted.seed, 1)
        whitened = gaussians.solve_lower(adapted.params["factor"], design.transpose(1, 2))
        spread = (1 + whitened.square().sum(1)).unsqueeze(-1)
        return Gaussian(design @ adapted.params["mean"], spread * torch.exp(2 * adapted.meta.structure["log_noise"]))

    return Learner(
        init,
        adapt,
        lambda adapted, x: distribution(adapted, x).mean,
        losses.without_padding(losses.mse, phi.batch_statistics),
        backprop,
        objective=objectives[likelihood],
        distribution=distribution,
        prepare=_prepare if module is None else None,
        shown=shown,
    )


def _raw(inputs: int | None, dtype: torch.dtype) -> Features:
    """Return the features [1, x]."""
    if inputs is None:
        raise UsageError("alpaca without a module needs inputs= the number of features of an input")

    def view(meta: Meta, x: Tree, own: Params, seed: Tensor | None, draw: int) -> tuple[Tensor, Params]:
        return _checked(with_one(x.flatten(2)), inputs + 1), own

    return Features(dict, view, inputs + 1, {}, "", torch.empty(0, dtype=dtype))


def _learned(module: nn.Module, features: int | None, taskmap: str | TaskMap, buffers: Buffers) -> Features:
    """Return the features [1, f(x)] of a module f."""
    function = functional(module, buffers=buffers, taskmap=taskmap)
    size = 1 + (_width(module) if features is None else features)
    weights = {**function.params, **function.structure}
    like = next(iter(weights.values()), torch.empty(0, dtype=torch.float32)).detach()

    def start() -> Params:
        return {name: value.clone() for name, value in weights.items()}

    def view(meta: Meta, x: Tree, own: Params, seed: Tensor | None, draw: int) -> tuple[Tensor, Params]:
        phase = "support" if draw == 0 else "query"
        embedded, own = function.apply(meta.params, own, x, seed=seed, draw=draw, phase=phase)
        return _checked(with_one(embedded.flatten(2)), size), own

    return Features(start, view, size, function.buffers, function.batch_statistics, like)


def _width(module: nn.Module) -> int:
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise UsageError("the module has no linear layer to read the number of its features off; say features=")
    return layers[-1].out_features


def _checked(design: Tensor, size: int) -> Tensor:
    if design.shape[-1] != size:
        raise ShapeError(f"there are {design.shape[-1] - 1} features, but the learner was made for {size - 1}")
    return design


def _precision_factor(meta: Meta) -> Tensor:
    """Return the lower Cholesky factor of Λ₀."""
    return triangular(meta.structure["log_diagonal"], meta.structure["lower"])


def _joint(phi: Features) -> Objective:
    """Return the `Objective` −log p(y_support, y_query), for each target value."""

    def objective(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Tensor, Info]:
        support, query = (present(batch) for batch in episodes)
        losses.refuse_padding(support, phi.batch_statistics)
        ahead, own = phi.view(meta, support.x, _own(phi, support), support.seed, 0)
        behind, _ = phi.view(meta, query.x, own, support.seed, 1)
        design, mask = torch.cat([ahead, behind], 1), joined_mask(support, query)
        log_noise = meta.structure["log_noise"]
        left = residual(torch.cat([support.y, query.y], 1), design @ meta.structure["mean"]) * torch.exp(-log_noise)
        # (I + Φ Λ₀⁻¹ Φᵀ), in units of the noise
        spread = torch.linalg.solve_triangular(_precision_factor(meta), design.transpose(1, 2), upper=False)
        unit = torch.eye(design.shape[1], dtype=design.dtype, device=design.device)
        covariance = gaussians.masked_covariance(unit + spread.transpose(1, 2) @ spread, mask)
        factor = gaussians.cholesky(covariance, mask)
        with torch.no_grad():
            change = torch.exp(log_noise) * gaussians.foreseen(factor, left, mask, ahead.shape[1])
            errors = learner.loss(behind @ meta.structure["mean"] + change, query)
        info = Info(left.new_zeros(0, len(left)), errors)
        return gaussians.joint_loss(factor, left, mask) + log_noise.mean(), info

    return objective


def _own(phi: Features, batch: Batch) -> Params:
    """Return every task's copy of the module's buffers."""
    return {name: value.expand(batch.y.shape[0], *value.shape) for name, value in phi.buffers.items()}


def _prepare(meta: Meta, tasks: Tasks, seed: int, folder: object = None, /) -> Meta:
    """Start K̄₀ as the least-squares line through all training tasks."""
    mean = meta.structure["mean"]
    found = mean_functions.pooled(tasks, mean.dtype)
    return meta._replace(structure=meta.structure | {"mean": found.weights.to(mean.device)})
