"""ALFA: a small network generates the learning rates and weight decays of every inner step."""

from typing import Any

from torch import nn

from headstart.algorithms.maml import maml
from headstart.core.rules import generated_rates
from headstart.types import Learner


def alfa(
    module: nn.Module,
    *,
    rate: float = 0.01,
    decay: float = 0.0,
    hidden: int | None = None,
    steps: int = 5,
    **options: Any,
) -> Learner:
    """ALFA: `maml` whose inner steps go by generated learning rates and weight decays, ``θᵢ ← β θᵢ − α ∇loss``.

    α and β, one of each for every parameter tensor, come of the task's own mean gradients and weights at every step
    through a network in M, times learned base values of each tensor and step; see `generated_rates`, which also says
    how it starts.

    Args:
        module: the model.
        rate: where the base learning rates start.
        decay: where the base weight decays start, the part of a weight that a step takes away.
        hidden: the size of the network's hidden layer, by default two for each parameter tensor.
        steps: the number of inner steps.
        options: those of `maml`.

    Reference: Baik, Choi, Choi, Kim, Lee 2020, arXiv:2011.00209.
    """
    rule = generated_rates(rate, steps=max(steps, 1), decay=decay, hidden=hidden)
    return maml(module, rule=rule, steps=steps, **options)
