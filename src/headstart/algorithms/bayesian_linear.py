"""Bayesian linear regression on learned features, with a learned prior (ALPaCA)."""

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn

from headstart.algorithms import gaussians
from headstart.algorithms.gaussian_process import pooled
from headstart.algorithms.gaussians import Likelihood
from headstart.algorithms.heads.head import embedding, features_of
from headstart.algorithms.kernels import triangular, with_one
from headstart.core import losses
from headstart.core.losses import present
from headstart.errors import ShapeError, pick
from headstart.schema import extends
from headstart.types import Adapted, Batch, Gaussian, Info, Learner, Meta, Params, Tasks, Tree

#: The standard deviation of the noise to start from, for targets of variance 1.
NOISE = 0.3


@extends(embedding)
def alpaca(
    module: nn.Module | None = None,
    *,
    inputs: int | None = None,
    features: int | None = None,
    outputs: int = 1,
    likelihood: Likelihood = "predictive",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Learner:
    """Learn features and a prior for Bayesian linear regression on them: adapting is its closed form.

    y = Kᵀ φ(x) + ε, ε ~ N(0, Σ), with the prior K ~ MN(K̄₀, Λ₀⁻¹, Σ). From the support rows Φ, Y,

        Λ = ΦᵀΦ + Λ₀,    K̄ = Λ⁻¹ (ΦᵀY + Λ₀ K̄₀),    y | x ~ N(K̄ᵀφ(x), (1 + φ(x)ᵀ Λ⁻¹ φ(x)) Σ)

    θ is the network; M holds K̄₀, the Cholesky factor of Λ₀, and Σ. Without a module φ(x) = [1, x]: a Bayesian
    mixed-effects model, whose fixed effects are K̄₀ and whose random effects have the covariance Σ Λ₀⁻¹. Trained on
    the posterior-predictive −log p(y_query | support set), one by one, for each target value.

    The paper takes the noise Σ as known, here it is diagonal and learned; φ has a 1 beside the network's features; a
    task is split into support and query set once, where the paper draws how much of a sequence has been seen.

    Args:
        module: the network; its outputs ``(n, *features)`` are flattened.
        inputs: number of features of an input, needed without a module.
        features: number of the module's features; by default, read off its last linear layer.
        outputs: number of target values; they are independent and share Λ₀.
        likelihood: what is trained on: that of the query points given the support set, one by one, as in the paper
            (``"predictive"``), or that of all of a task's points, jointly (``"joint"``).
        dtype: of M, where there is no module.
        options: those of `embedding`.

    Raises:
        UnknownNameError: a likelihood that does not exist.
        UsageError: neither a module nor ``inputs``; a module whose features cannot be counted.

    Reference: Harrison, Sharma, Pavone 2018, arXiv:1807.08912.

    >>> learner = alpaca(inputs=2)
    >>> {name: tuple(value.shape) for name, value in learner.init(None).structure.items()}
    {'mean': (3, 1), 'log_diagonal': (3,), 'lower': (3,), 'log_noise': (1,)}
    """
    phi, size = embedding(module, **options), 1 + features_of(module, inputs, features)
    like = torch.empty(0, dtype=dtype) if module is None else phi.like

    def view(meta: Meta, x: Tree, own: Params, seed: Tensor | None, draw: int) -> tuple[Tensor, Tensor, Params]:
        found, own = phi.apply({**meta.params, **meta.structure}, own, x, seed, draw)
        if found.shape[-1] != size - 1:
            raise ShapeError(f"there are {found.shape[-1]} features, but the learner was made for {size - 1}")
        design = with_one(found)
        return design, design @ meta.structure["mean"], own

    def init(generator: Generator | None = None) -> Meta:
        start = phi.start()
        numbers = {
            "mean": like.new_zeros(size, outputs),
            # of Λ₀ in units of the noise: coefficients with standard deviation 1 / √p
            "log_diagonal": like.new_full((size,), math.log(NOISE * math.sqrt(size))),
            "lower": like.new_zeros(size * (size - 1) // 2),
            "log_noise": like.new_full((outputs,), math.log(NOISE)),
        }
        return Meta(start.params, start.structure | numbers)

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        support = present(support)
        losses.refuse_padding(support, phi.batch_statistics)
        design, means, own = view(meta, support.x, phi.of_tasks(support), support.seed, 0)
        design = gaussians.zeroed(design, support.mask)
        left = gaussians.zeroed(gaussians.residual(support.y, means), support.mask)
        prior = triangular(meta.structure["log_diagonal"], meta.structure["lower"])
        factor = gaussians.cholesky(design.mT @ design + prior @ prior.T)
        # the same as in the docstring, without the difference of large numbers
        change = torch.cholesky_solve(design.mT @ left, factor)
        params = {"mean": meta.structure["mean"] + change, "factor": factor}
        return Adapted(meta, params, own, support.seed), Info(design.new_zeros(0, len(design)))

    def distribution(adapted: Adapted, x: Tree) -> Gaussian:
        design, _, _ = view(adapted.meta, x, adapted.buffers, adapted.seed, 1)
        whitened = gaussians.solve_lower(adapted.params["factor"], design.mT)
        spread = (1 + whitened.square().sum(1)).unsqueeze(-1)
        return Gaussian(design @ adapted.params["mean"], spread * torch.exp(2 * adapted.meta.structure["log_noise"]))

    def covariance(meta: Meta, design: Tensor) -> tuple[Tensor, Tensor]:
        """Return I + Φ Λ₀⁻¹ Φᵀ, in units of the noise."""
        prior = triangular(meta.structure["log_diagonal"], meta.structure["lower"])
        spread = gaussians.solve_lower(prior, design.mT)
        unit = torch.eye(design.shape[1], dtype=design.dtype, device=design.device)
        return unit + spread.mT @ spread, meta.structure["log_noise"]

    objectives = {"predictive": gaussians.predictive, "joint": gaussians.joint(view, covariance, phi)}
    objective = pick("likelihood", likelihood, objectives)
    learner = gaussians.regressor(init, adapt, distribution, objective, phi.batch_statistics)
    return learner._replace(prepare=_prepare) if module is None else learner


def _prepare(meta: Meta, tasks: Tasks, seed: int, folder: object = None, /) -> Meta:
    """Start K̄₀ as the least-squares line through all training tasks."""
    mean = meta.structure["mean"]
    return meta._replace(structure=meta.structure | {"mean": pooled(tasks, mean.dtype)[0].to(mean.device)})
