"""Keeping steps short and weights near: clipping and weight decay."""

from headstart.core import tree
from headstart.core.rules.rule import Rule, require_positive, stateless
from headstart.errors import UsageError
from headstart.types import Params


def clip(*, value: float | None = None, norm: float | None = None) -> Rule:
    """Clip each element to [−value, value], or each task's whole gradient to Euclidean length ``norm``."""
    if (value is None) == (norm is None):
        raise UsageError(f"clip takes either value= or norm=, got value={value} and norm={norm}")
    if value is not None:
        limit = value
        require_positive("value", limit)
        return stateless(lambda m, grads, params: {k: g.clamp(-limit, limit) for k, g in grads.items()})
    longest = float(norm or 0)
    require_positive("norm", longest)

    def shorten(m: Params, grads: Params, params: Params) -> Params:
        length = tree.per_task_norm(grads)
        factor = longest / length.clamp(min=longest)
        return {k: g * tree.over_tasks(factor, g) for k, g in grads.items()}

    return stateless(shorten)


def weight_decay(strength: float) -> Rule:
    """Pull towards zero: g + λ θ; before `momentum` and `adam`, as in torch.optim."""
    require_positive("strength", strength)
    return stateless(lambda m, grads, params: {k: g + strength * params[k] for k, g in grads.items()})
