"""Other outer objectives for any learner, and what changes in the course of meta-training."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from headstart.core.objective import at, backprop, query_losses, staged
from headstart.errors import UsageError
from headstart.types import Episodes, Info, Learner, Meta, Objective

#: While the multi-step loss is annealed, a step before the last weighs at least this much of 1 / T.
LEAST = 0.03


def multi_step(learner: Learner, *, until: float | None = None, weights: Sequence[float] | None = None) -> Learner:
    """Meta-train on the query loss after every inner step: Lᵢ = Σₜ wₜ loss(θᵢ after t steps, Qᵢ), t = 1 … T.

    The weights start as 1/T each and go over to the last step while a fraction ``until`` of the outer steps is done
    (`step_weights`); from then on the learner is the one given. What is evaluated and reported is always the query
    loss after the last step.

    Args:
        learner: any that takes inner steps and follows the gradient of its meta-loss (not reptile, joint, scratch).
        until: the fraction of the outer steps over which the weights change, in (0, 1]; by default 0.1, as the
            authors' code has it for Omniglot (10 of 100 epochs; 15 of 100 for miniImageNet).
        weights: w₁ … w_T, at least 0, in place of those: they then hold throughout, and are not made to sum to 1.

    Raises:
        UsageError: a learner without inner steps, or with an objective or gradient of its own; weights that do not fit.

    Reference: Antoniou, Edwards, Storkey 2018, arXiv:1810.09502, section 4.

    >>> import headstart
    >>> learner = multi_step(headstart.maml(headstart.mlp(1, 1), loss="mse", steps=2), weights=[0.25, 0.75])
    >>> learner.objective is None
    False
    """
    steps = _steps_of(learner)
    if weights is not None:
        if until is not None:
            raise UsageError("multi_step takes either until= or weights=, got both")
        always = _weighted(_checked(weights, steps))
        now = learner._replace(objective=always, during=None)
        if learner.during is None:
            return now
        return staged(now, lambda done: at(learner, done)._replace(objective=always))
    end = 0.1 if until is None else until
    if not 0 < end <= 1:
        raise UsageError(f"until must be above 0 and at most 1, got {end}")

    def during(done: float) -> Learner:
        now = at(learner, done)
        return now._replace(objective=_weighted(step_weights(steps, done / end))) if done < end else now

    return staged(learner, during)


def step_weights(steps: int, done: float) -> tuple[float, ...]:
    """Return w₁ … w_T when a fraction ``done`` of their annealing is over.

    All but the last fall linearly from 1/T to 0.03/T, where they stay, as in the authors' code; the last is what
    remains of 1.

    >>> step_weights(2, 0.0), step_weights(2, 0.5), step_weights(2, 1.0)
    ((0.5, 0.5), (0.25, 0.75), (0.015, 0.985))
    """
    early = max(1 - done, LEAST) / steps
    return (*(early for _ in range(steps - 1)), 1 - (steps - 1) * early)


def first_order_until(learner: Learner, *, first_order: Learner, fraction: float) -> Learner:
    """Meta-train by first-order gradients while less than ``fraction`` of the outer steps is done (annealing).

    Meanwhile tasks adapt as ``first_order`` does; all else is of ``learner``, so this goes before or after
    `multi_step` alike. What changes how tasks adapt, as `sharpened` does, has to come after it.

    Args:
        learner: how meta-training ends.
        first_order: the same method with the adjoint `FirstOrder`.
        fraction: in [0, 1].

    Raises:
        UsageError: the two do not learn the same θ and M in the same number of steps.

    Reference: Antoniou, Edwards, Storkey 2018, arXiv:1810.09502, section 4.

    >>> import headstart
    >>> net = headstart.mlp(1, 1)
    >>> exact, cheap = headstart.maml(net, loss="mse"), headstart.fomaml(net, loss="mse")
    >>> learner = first_order_until(exact, first_order=cheap, fraction=0.3)
    >>> learner.during(0.0).exact, learner.during(0.3).exact
    (False, True)
    """
    if not 0 <= fraction <= 1:
        raise UsageError(f"fraction must be from 0 to 1, got {fraction}")
    described = []
    for one in (learner, first_order):
        meta = one.init(Generator().manual_seed(0))
        described.append([{name: tuple(value.shape) for name, value in part.items()} for part in meta])
    if described[0] != described[1] or learner.steps != first_order.steps:
        raise UsageError(
            "the first-order learner must be the same method on the same module with adjoint=FirstOrder(); "
            f"got θ and M {described[1]} in {first_order.steps} steps, expected {described[0]} in {learner.steps}"
        )

    def during(done: float) -> Learner:
        now = at(learner, done)
        if done >= fraction:
            return now
        cheap = at(first_order, done)
        return now._replace(adapt=cheap.adapt, path=cheap.path, exact=cheap.exact)

    return staged(learner, during)


def _weighted(weights: Sequence[float]) -> Objective:
    """Return the objective Σₜ wₜ loss(θᵢ after t steps, Qᵢ)."""

    def objective(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Tensor, Info]:
        assert learner.path is not None
        reached, seen = zip(*learner.path(meta, episodes.support))
        # where a step counts for nothing, its loss need not be known; the last one is reported
        counted = [t for t, weight in enumerate(weights, start=1) if weight or t == len(weights)]
        losses = torch.stack([query_losses(learner, reached[t], episodes.query) for t in counted])
        factors = losses.new_tensor([weights[t - 1] for t in counted])
        support_loss = torch.cat([info.support_loss for info in seen])
        return factors @ losses, Info(support_loss, losses[-1].detach())

    return objective


def _steps_of(learner: Learner) -> int:
    if not learner.steps:
        taken = "none" if learner.steps is None else "0 steps"
        raise UsageError(f"the multi-step loss counts after each inner step, but this learner takes {taken}")
    if learner.path is None:
        raise UsageError("the multi-step loss needs the adaptation after each inner step; Learner.path is None")
    if learner.gradient is not backprop:
        raise UsageError("this learner does not follow the gradient of its meta-loss, so another one would do nothing")
    if learner.objective is not None:
        raise UsageError("this learner has an objective of its own, which the multi-step loss would displace")
    return learner.steps


def _checked(weights: Sequence[float], steps: int) -> tuple[float, ...]:
    values = tuple(float(weight) for weight in weights)
    if len(values) != steps or not all(0 <= w < math.inf for w in values) or not any(values):
        raise UsageError(
            f"weights must be {steps} numbers, one for each inner step, at least 0 and not all of them 0; got {values}"
        )
    return values
