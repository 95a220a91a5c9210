"""L2F: forget some of the initial weights before adapting, as much as the support set's gradient says."""

from math import log, sqrt
from typing import Annotated, Any

import torch
from annotated_types import Gt, Lt
from torch import Generator, nn

from headstart.algorithms.adaptation import Gradient, Start, uniform
from headstart.algorithms.maml import maml
from headstart.core import tree
from headstart.errors import UsageError
from headstart.schema import extends
from headstart.types import Batch, Learner, Params

_LAYERS = ("first", "middle", "last")


@extends(maml, without=("start",))
def l2f(module: nn.Module, *, keep: Annotated[float, Gt(0), Lt(1)] = 0.5, **options: Any) -> Learner:
    """L2F, learning to forget: `maml` from weights attenuated task by task, θᵢ⁰ = γ_w θ_w for every tensor w.

    γ = g(mean of ∂loss(θ, Sᵢ)/∂θ_w, for every w), with g three linear layers as wide as there are tensors, ReLU
    between them and a sigmoid at the end, so γ_w is in (0, 1); M = g (``attenuator.…``), the same for all tasks.
    Only tensors that adaptation moves are attenuated.

    With an exact adjoint the meta-gradient goes through γ's support gradient (a constant in the authors' code).

    Args:
        module: the model.
        keep: about where every attenuation γ starts, between 0 and 1; 0.5 is what a sigmoid gives without more ado.
        options: those of `maml`.

    Raises:
        UsageError: ``keep`` outside (0, 1).

    Reference: Baik, Hong, Lee 2019, arXiv:1906.05895.
    """
    return maml(module, start=attenuated(keep), **options)


def attenuated(keep: float = 0.5, *, name: str = "attenuator") -> Start:
    """Return the `Start` of `l2f`: each task's tensors multiplied by what a network reads off its support gradient.

    Args:
        keep: about where every factor starts, in (0, 1).
        name: of the part of M.
    """
    if not 0 < keep < 1:
        raise UsageError(f"keep is a factor between 0 and 1, both excluded, got {keep}")

    def structure(params: Params, generator: Generator | None) -> Params:
        width, like = len(params), next(iter(params.values()))
        parts: Params = {}
        for layer in _LAYERS:
            for part, shape in (("weight", (width, width)), ("bias", (width,))):
                parts[f"{name}.{layer}.{part}"] = uniform(shape, 1 / sqrt(width), like, generator)
        parts[f"{name}.last.bias"] += log(keep / (1 - keep))
        return parts

    def values(m: Params, params: Params, shared: Params, support: Batch, gradient: Gradient) -> Params:
        grads, names = gradient(params), sorted(params)
        # a context that does not move has no gradient
        each = (grads[k] if k in grads else torch.zeros_like(params[k]) for k in names)
        x = torch.stack([value.reshape(len(value), -1).mean(1) for value in each], 1)
        for layer in _LAYERS:
            x = nn.functional.linear(x, m[f"{name}.{layer}.weight"], m[f"{name}.{layer}.bias"])
            x = x.sigmoid() if layer == "last" else x.relu()
        factors = dict(zip(names, x.unbind(1)))
        return {k: tree.over_tasks(factors[k], v) * v if k in grads else v for k, v in params.items()}

    return Start(values, structure)
