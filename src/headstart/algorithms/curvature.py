"""Meta-Curvature: learn the metric in which a task's gradient is followed."""

from typing import Any

from torch import nn

from headstart.algorithms.maml import maml
from headstart.core.rules import chain, curvature, scale
from headstart.types import Learner


def meta_curvature(module: nn.Module, *, rate: float = 0.01, **options: Any) -> Learner:
    """Meta-Curvature: `maml` whose gradients go through learned matrices, θᵢ ← θᵢ − α MC(∇loss); M = the matrices.

    Args:
        module: the model.
        rate: α, the same for all.
        options: those of `maml`.

    Reference: Park, Oliva 2019, arXiv:1902.03356 (MC1: an output, an input and a filter factor for every weight).
    """
    return maml(module, rule=chain(curvature(), scale(rate)), **options)
