"""From a Gaussian process prior to a learner: adapting conditions it on the support set, in closed form."""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Generator, Tensor

from headstart.algorithms import gaussians
from headstart.algorithms.gaussians import Conditioner
from headstart.algorithms.kernels import Kernel
from headstart.core import losses, tree
from headstart.core.masks import present
from headstart.core.objective import backprop
from headstart.errors import ShapeError, unknown_name
from headstart.types import Adapted, Batch, Episodes, Gaussian, Info, Learner, Meta, Objective, Params, Tree

Likelihood: TypeAlias = Literal["joint", "predictive"]


class Prior(NamedTuple):
    """A Gaussian process prior over the functions of tasks; its part of M is ``kernel.…`` and ``log_noise``."""

    init: Callable[[Generator | None], Meta]
    view: "View"
    kernel: Kernel
    buffers: Params
    """The module's buffers of which every task has a copy."""
    batch_statistics: str
    """The path of a layer that normalises by the batch; empty where there is none."""
    for_new: Callable[[Meta], Meta] = lambda meta: meta
    """M as it holds for a new task, beside the training tasks that it was fitted to."""


View: TypeAlias = Callable[[Meta, Tree, Params, Tensor | None, int], tuple[Tensor, Tensor, Params]]
"""``(meta, x, buffers, seed, draw) -> (the kernel's inputs (B, n, d), prior means (B, n, outputs), buffers)``."""


def conditioned(prior: Prior, likelihood: Likelihood) -> Learner:
    """Return the learner that conditions ``prior`` on the support set.

    What a task has learned grows with its support set: the inputs, the Cholesky factor of their covariance and the
    weights stand among the `Adapted` buffers, ``support.…``.

    Raises:
        UnknownNameError: a likelihood that does not exist.
    """
    objectives = {"joint": _joint(prior), "predictive": predictive}
    if likelihood not in objectives:
        raise unknown_name("likelihood", likelihood, objectives)

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        support = present(support)
        losses.refuse_padding(support, prior.batch_statistics)
        inputs, means, own = prior.view(meta, support.x, _own(prior, support), support.seed, 0)
        covariance = _covariance(prior, prior.for_new(meta), inputs, support.mask)
        factor = gaussians.cholesky(covariance, support.mask)
        known = gaussians.condition(factor, residual(support.y, means), support.mask)
        there = torch.ones_like(inputs[..., 0], dtype=torch.bool) if support.mask is None else support.mask
        kept = {"inputs": inputs, "there": there, "factor": known.factor, "weights": known.weights}
        buffers = tree.prefixed("module", own) | tree.prefixed("support", kept)
        return Adapted(meta, {}, buffers, support.seed), Info(inputs.new_zeros(0, len(inputs)))

    def distribution(adapted: Adapted, x: Tree) -> Gaussian:
        meta, kept = prior.for_new(adapted.meta), tree.within(adapted.buffers, "support")
        inputs, means, _ = prior.view(meta, x, tree.within(adapted.buffers, "module"), adapted.seed, 1)
        params = tree.within(meta.structure, "kernel")
        cross = torch.where(kept["there"].unsqueeze(1), prior.kernel.matrix(params, inputs, kept["inputs"]), 0)
        known = Conditioner(kept["factor"], kept["weights"])
        change, variance = gaussians.posterior(known, cross, prior.kernel.diagonal(params, inputs))
        variance = variance + torch.exp(2 * meta.structure["log_noise"])
        return Gaussian(means + change, variance.unsqueeze(-1).expand_as(means))

    return Learner(
        prior.init,
        adapt,
        lambda adapted, x: distribution(adapted, x).mean,
        losses.without_padding(losses.mse, prior.batch_statistics),
        backprop,
        objective=objectives[likelihood],
        distribution=distribution,
        shown=shown,
    )


def _joint(prior: Prior) -> Objective:
    """Return the `Objective` −log p(y_support, y_query), for each target value.

    The query losses that it tells are those under the prior as it fits the training tasks.
    """

    def objective(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Tensor, Info]:
        support, query = (present(batch) for batch in episodes)
        losses.refuse_padding(support, prior.batch_statistics)
        ahead, means_ahead, own = prior.view(meta, support.x, _own(prior, support), support.seed, 0)
        # as in prediction, the query set goes by the support set's seed
        behind, means_behind, _ = prior.view(meta, query.x, own, support.seed, 1)
        mask = joined_mask(support, query)
        factor = gaussians.cholesky(_covariance(prior, meta, torch.cat([ahead, behind], 1), mask), mask)
        left = torch.cat([residual(support.y, means_ahead), residual(query.y, means_behind)], 1)
        with torch.no_grad():
            predicted = means_behind + gaussians.foreseen(factor, left, mask, ahead.shape[1])
            info = Info(left.new_zeros(0, len(left)), learner.loss(predicted, query))
        return gaussians.joint_loss(factor, left, mask), info

    return objective


def predictive(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Tensor, Info]:
    """The `Objective` −log p(y | support set), averaged over the query set's target values one by one."""
    adapted, info = learner.adapt(meta, episodes.support)
    query = present(episodes.query)
    assert learner.distribution is not None
    predicted = learner.distribution(adapted, query.x)
    errors = learner.loss(predicted.mean.detach(), query)
    return gaussians.marginal_loss(predicted, query.y, query.mask), info._replace(query_loss=errors)


def joined_mask(support: Batch, query: Batch) -> Tensor | None:
    """Return the mask of support and query rows together, ``None`` where every one is there."""
    if support.mask is None and query.mask is None:
        return None
    parts = (
        torch.ones_like(y[..., 0], dtype=torch.bool) if mask is None else mask for _, y, mask, _ in (support, query)
    )
    return torch.cat(tuple(parts), 1)


def residual(y: Tensor, means: Tensor) -> Tensor:
    """Return y − m(x), or raise `ShapeError` where they do not fit."""
    if not y.is_floating_point() or y.shape != means.shape:
        raise ShapeError(
            f"the targets must be floating, (tasks, examples, outputs) = {tuple(means.shape)}; "
            f"got y {tuple(y.shape)} of {y.dtype}. Make the learner with outputs= the number of target values"
        )
    return y - means


def shown(meta: Meta) -> Params:
    """Return M with scales, lengths and noise in place of their logarithms."""
    return {
        name.replace("log_", ""): value.exp() if "log_" in name else value for name, value in meta.structure.items()
    }


def _covariance(prior: Prior, meta: Meta, inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Return the covariance of observations ``(B, n, n)``, noise included."""
    matrix = prior.kernel.matrix(tree.within(meta.structure, "kernel"), inputs, inputs)
    unit = torch.eye(inputs.shape[1], dtype=inputs.dtype, device=inputs.device)
    return gaussians.masked_covariance(matrix + torch.exp(2 * meta.structure["log_noise"]) * unit, mask)


def _own(prior: Prior, batch: Batch) -> Params:
    """Return every task's copy of the module's buffers."""
    tasks = batch.y.shape[0]
    return {name: value.expand(tasks, *value.shape) for name, value in prior.buffers.items()}
