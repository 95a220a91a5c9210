"""Keeping steps short and weights near: clipping, weight decay and pulling back to the start."""

from headstart.core import tree
from headstart.core.rules.rates import per_tensor, scale
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


def weight_decay(strength: float, *, learn: bool = False, name: str = "weight_decay") -> Rule:
    """Pull towards zero: g + λ θ; before `momentum` and `adam`, as in torch.optim.

    Args:
        strength: λ, positive; where the learned ones start.
        learn: whether the outer loop learns a λ_w for each parameter tensor; M then holds their logarithms
            (``log_weight_decay.<parameter>``), so that they stay positive.
        name: of the part of M.
    """
    pull = _strengths(strength, learn, name)

    def update(m: Params, state: Params, grads: Params, params: Params, step: int) -> tuple[Params, Params]:
        pulled = pull.update(m, {}, {k: params[k] for k in grads}, params, step)[0]
        return {k: g + pulled[k] for k, g in grads.items()}, state

    return Rule(update, structure=pull.structure, shown=pull.shown, affine=True)


def proximal(strength: float, *, learn: bool = False, name: str = "proximal") -> Rule:
    """Pull towards where the task started: g + λ (θ_t − θ⁰), the gradient of the loss + λ/2 ‖θ_t − θ⁰‖².

    It is differentiated with respect to θ⁰ as well.

    Args:
        strength: λ, positive; where the learned ones start.
        learn: whether the outer loop learns a λ_w for each parameter tensor; M then holds their logarithms
            (``log_proximal.<parameter>``), so that they stay positive.
        name: of the part of M.

    Reference: Rajeswaran, Finn, Kakade, Levine 2019, arXiv:1909.04630, equation 3.
    """
    pull = _strengths(strength, learn, name)

    def update(m: Params, state: Params, grads: Params, params: Params, step: int) -> tuple[Params, Params]:
        away = {k: params[k] - state[k] for k in grads}
        pulled = pull.update(m, {}, away, params, step)[0]
        return {k: g + pulled[k] for k, g in grads.items()}, state

    return Rule(update, lambda m, params, seed: dict(params), pull.structure, shown=pull.shown, affine=True)


def _strengths(strength: float, learn: bool, name: str) -> Rule:
    """Return the rule that multiplies a pull by λ, or by each tensor's λ_w from M."""
    require_positive("strength", strength)
    return per_tensor(strength, positive=True, name=name) if learn else scale(strength)
