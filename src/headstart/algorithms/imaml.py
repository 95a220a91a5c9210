"""Implicit MAML: tasks stay near the start, and the outer gradient is that of where they come to rest."""

from typing import Any

from torch import nn

from headstart.algorithms.maml import Rate, Steps, maml
from headstart.core.adjoints.implicit import Implicit
from headstart.core.linear import ConjugateGradient, Solver
from headstart.core.rules import chain, proximal, scale
from headstart.schema import Count, NotNegative, Positive, extends
from headstart.types import Learner


@extends(maml, without=("rule", "adjoint"))
def imaml(
    module: nn.Module,
    *,
    strength: Positive = 2.0,
    rate: Rate = 0.1,
    steps: Steps = 16,
    iterations: Count = 5,
    damping: NotNegative = 1.0,
    solver: Solver | None = None,
    learn: bool = False,
    **options: Any,
) -> Learner:
    """iMAML: `maml` whose tasks lower their loss + λ/2 ‖φ − θ‖², with the derivative of the minimum φ.

    With ``damping=0`` the outer gradient of a task is ``(I + ∇²loss(φ, Sᵢ) / λ)⁻¹ ∇loss(φ, Qᵢ)``, from a linear
    system at φ alone (`Implicit`): memory does not grow with the number of inner steps. It is the derivative of the
    exact minimum, so it is as good as the inner steps come near that; ``learner.exact`` is False.

    Small λ let tasks go far, and need many steps; ``rate · (λ + the loss's largest curvature)`` above 2 makes them
    diverge. Where the loss bends downwards by about λ, the system is nearly singular and one task can outweigh all
    others, which ``damping`` prevents (on sinusoids, gradients of single tasks up to 30 times too long).

    Args:
        strength: λ, how hard tasks are pulled back to θ.
        rate: the inner step size.
        steps: T, enough to come near the minimum; the defaults are those of the authors' code for Omniglot.
        iterations: steps of conjugate gradients on the linear system of the backward pass.
        damping: what is added to λ in the linear system alone; 0 is the paper's formula (the authors' code damps
            harder: ``2 I + ∇²loss / (λ + 10)``).
        solver: of the system of a step, ``rate · (∇²loss + λ I)``, in place of ``iterations`` and ``damping``.
        learn: whether each parameter tensor's λ is learned, from ``strength`` on; M then holds the logarithms.
        options: those of `maml`.

    Reference: Rajeswaran, Finn, Kakade, Levine 2019, arXiv:1909.04630.

    >>> import headstart
    >>> learner = imaml(headstart.mlp(1, 1, hidden=(8,)), loss="mse", strength=1.0)
    >>> learner.steps, learner.exact
    (16, False)
    """
    rule = chain(proximal(strength, learn=learn), scale(rate))
    chosen = ConjugateGradient(iterations=iterations, damping=rate * damping) if solver is None else solver
    return maml(module, rule=rule, adjoint=Implicit(chosen), steps=steps, **options)
