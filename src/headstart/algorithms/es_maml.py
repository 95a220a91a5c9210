"""MAML by evolution strategies: the outer gradient, and if asked the inner one, from losses alone."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from headstart.algorithms.adaptation import Adaptation
from headstart.algorithms.evolution import Evolution, Shaping, smoothed_gradient
from headstart.algorithms.maml import maml
from headstart.core.adjoints import FirstOrder
from headstart.core.step import Given
from headstart.errors import UsageError, unknown_name
from headstart.types import Learner, Params

Inner = Literal["gradient", "evolution"]


def es_maml(
    module: nn.Module,
    *,
    deviation: float = 0.05,
    samples: int = 32,
    antithetic: bool = True,
    shaping: Shaping | None = None,
    inner: Inner = "gradient",
    inner_deviation: float = 0.05,
    inner_samples: int = 32,
    **options: Any,
) -> Learner:
    """Learn initial weights from which a task adapts, as `maml` does, by an evolution strategy (`Evolution`).

    ∇L_σ(θ) = E[(L(θ + σε) − L(θ − σε)) ε] / (2σ), where L(θ) = Σᵢ loss(U(θ, Sᵢ), Qᵢ) and U adapts to the support
    set; no derivative passes through U, so there is none of second order, and memory is that of adapting alone.

    U is the paper's choice of adaptation operator: ``inner="gradient"`` takes MAML's T exact gradient steps;
    ``inner="evolution"`` takes T steps along ∇̂loss = meanₖ (loss(θᵢ + σε, Sᵢ) − loss(θᵢ − σε, Sᵢ)) ε / (2σ), the
    paper's zero-order one, so that the model need not be differentiable anywhere. The paper's third, hill climbing,
    is not offered.

    Two things differ from the paper: every perturbation is judged by all B tasks, where there each task has one of
    its own (the same on average, with less noise a perturbation); and losses take the place of rewards.

    Args:
        module: the model.
        deviation, samples, antithetic, shaping: of the outer estimate, as for `Evolution`.
        inner: what an inner step follows.
        inner_deviation, inner_samples: σ and the number of antithetic directions of an inner step's estimate. The
            directions are a function of the task's seed (without one, a fixed one) and of the step.
        options: as for `maml`: ``loss``, ``steps``, ``rate``, ``rule``, ``taskmap``, ``buffers``, ….

    Reference: Song, Gao, Yang, Choromanski, Pacchiano, Tang 2019, arXiv:1910.01215.
    """
    if inner not in ("gradient", "evolution"):
        raise unknown_name("inner", str(inner), ("gradient", "evolution"))
    outer = Evolution(deviation, samples, antithetic, shaping)
    learner = maml(module, adjoint=FirstOrder(), **options)
    if inner == "evolution":
        learner = _evolved(learner, inner_deviation, inner_samples)
    return learner._replace(gradient=outer, exact=False)


def _evolved(learner: Learner, deviation: float, samples: int) -> Learner:
    """Return the learner of `maml` with inner gradients that are estimated."""
    if not deviation > 0 or samples < 1:
        raise UsageError(
            f"inner_deviation must be greater than 0 and inner_samples at least 1, got {deviation} and {samples}"
        )
    # maml's functions are those of an Adaptation
    made: Adaptation = learner.adapt.__self__  # type: ignore[attr-defined]
    inner = _Evolved(**vars(made), deviation=deviation, samples=samples)
    return learner._replace(init=inner.init, adapt=inner.adapt, predict=inner.predict, path=inner.path)


@dataclass(frozen=True)
class _Evolved(Adaptation):
    """Adaptation whose support loss has an estimate in place of its derivative."""

    deviation: float
    samples: int

    def support_loss(self, given: Given, moved: Params, buffers: Params, step: int) -> tuple[Tensor, Params]:
        support, exact = given.support, super().support_loss
        seed = support.y.new_zeros(len(support.y), dtype=torch.int64) if support.seed is None else support.seed
        with torch.no_grad():
            points = {name: value.detach() for name, value in moved.items()}
            losses, after = exact(given, points, buffers, step)
            slopes = smoothed_gradient(
                lambda params: exact(given, params, buffers, step)[0],
                points,
                seed,
                self.deviation,
                self.samples,
                step,
            )
        # of the loss's value, with the estimate as its derivative
        tilts = [((moved[n] - points[n]) * slope).reshape(len(slope), -1).sum(1) for n, slope in slopes.items()]
        return losses + torch.stack(tilts).sum(0), after
