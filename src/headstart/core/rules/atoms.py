"""The atoms that most rules are chained of: step sizes, running averages, clipping and pulls.

Step sizes are one, or learned ones in M, by tensor, inner step and weight. With ``positive=True`` M holds the logarithm
of a rate, so that no outer step can turn its sign; it is then called ``log_rate`` where it would be ``rate``.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from headstart.core import tree
from headstart.core.rules.rule import Rule, of_step, power, require_fraction, require_positive, stateless
from headstart.errors import UsageError
from headstart.types import Batch, Params, Tree


def scale(rate: float, *, learn: bool = False, positive: bool = False, name: str = "rate") -> Rule:
    """Multiply by a step size: α g. With ``learn``, α is part of M as ``name``, kept ``positive`` if asked for."""
    require_positive("rate", rate)
    if not learn:
        return stateless(lambda m, grads, params: {k: rate * g for k, g in grads.items()})
    key = f"log_{name}" if positive else name

    def rate_of(m: Params) -> Tensor:
        return m[key].exp() if positive else m[key]

    def structure(params: Params, generator: Generator | None) -> Params:
        start = next(iter(params.values())).new_full((), rate)
        return {key: start.log() if positive else start}

    rule = stateless(lambda m, grads, params: {k: rate_of(m) * g for k, g in grads.items()})
    return rule._replace(structure=structure, shown=lambda m: {name: rate_of(m)})


def per_tensor(rate: float, *, steps: int | None = None, positive: bool = False, name: str = "rate") -> Rule:
    """Multiply each parameter tensor's gradient by its own learned step size, α_w g_w, or α_{w,t} g_w at step t.

    Args:
        rate: where every α starts, positive.
        steps: T: with it, every tensor has one α for each of the steps 0 … T − 1, ``(T,)`` in M (LSLR, as in MAML++);
            later steps go by the last one. Without it, one for all steps.
        positive: keep every α positive.
        name: of the part of M.

    Reference: Antoniou, Edwards, Storkey 2018, arXiv:1810.09502, for ``steps``.
    """
    require_positive("rate", rate)
    if steps is not None and steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")
    shape = () if steps is None else (steps,)
    return _rated(lambda value, generator: value.new_full(shape, rate), positive, name, steps)


def per_weight(rate: float | tuple[float, float] = (0.005, 0.1), *, positive: bool = False, name: str = "rate") -> Rule:
    """Multiply each weight's gradient by its own learned step size, α ∘ g with α shaped like θ (Meta-SGD).

    Args:
        rate: where each α starts: a number, or a range to draw it from uniformly (the paper's, by default).
        positive: keep every α positive (the paper's may change sign).
        name: of the part of M.

    Reference: Li, Zhou, Chen, Li 2017, arXiv:1707.09835.
    """
    low, high = rate if isinstance(rate, tuple) else (rate, rate)
    require_positive("rate", low)
    if low > high:
        raise UsageError(f"rate goes from {low} to {high}; give the lower end first")

    def start(value: Tensor, generator: Generator | None) -> Tensor:
        if low == high:
            return torch.full_like(value, low)
        # drawn on the CPU, so that a seed means the same numbers on every device
        draw = torch.rand(value.shape, generator=generator, dtype=torch.float64)
        return (low + (high - low) * draw).to(value)

    return _rated(start, positive, name)


def _rated(
    start: Callable[[Tensor, Generator | None], Tensor], positive: bool, name: str, steps: int | None = None
) -> Rule:
    """Return the rule of a learned rate, or one for each step, of each parameter, which starts at ``start`` of it."""
    key = f"log_{name}" if positive else name

    def rate_of(m: Params, parameter: str) -> Tensor:
        value = m[f"{key}.{parameter}"]
        return value.exp() if positive else value

    def structure(params: Params, generator: Generator | None) -> Params:
        rates = {f"{key}.{k}": start(value, generator) for k, value in params.items()}
        return {k: rate.log() for k, rate in rates.items()} if positive else rates

    def update(m: Params, state: Params, grads: Params, params: Params, step: int) -> tuple[Params, Params]:
        if steps is None:
            return {k: rate_of(m, k) * g for k, g in grads.items()}, state
        return {k: of_step(rate_of(m, k), step) * g for k, g in grads.items()}, state

    return Rule(
        update, structure=structure, shown=lambda m: {f"{name}.{k}": rate_of(m, k) for k in tree.within(m, key)}
    )


def per_task(factors: Callable[[Params, Params, Batch], Tensor | Params]) -> Rule:
    """Multiply each task's gradient by factors of its own: rates and masks that differ by task.

    Args:
        factors: ``(M, params, support) -> (B,)``, or for some parameters by name factors ``(B, *first axes)``; called
            before the first step. What the tasks are given may lie in the support set, as inputs the model ignores.

    >>> import torch
    >>> from headstart import rules
    >>> fewer_rows_smaller_steps = rules.per_task(lambda m, params, support: support.mask.float().mean(1))
    >>> rule = rules.chain(fewer_rows_smaller_steps, rules.scale(0.1))
    """

    def state(m: Params, params: Params, support: Batch) -> Params:
        found = factors(m, params, support)
        return dict.fromkeys(params, found) if isinstance(found, Tensor) else found

    def update(m: Params, own: Params, grads: Params, params: Params, step: int) -> tuple[Params, Params]:
        return {k: tree.over_tasks(own[k].to(g), g) * g if k in own else g for k, g in grads.items()}, own

    return Rule(update, state)


def momentum(*, decay: float = 0.9, nesterov: bool = False, learn: bool = False, name: str = "momentum") -> Rule:
    """Accumulate: v ← μ v + g, and step by v, or by g + μ v with Nesterov's look-ahead; equals torch.optim.SGD.

    Args:
        decay: μ, in [0, 1); where a learned one starts, in (0, 1).
        nesterov: whether to look ahead.
        learn: whether the outer loop learns μ; M then holds its logit, ``logit_momentum``, so that it stays in (0, 1).
        name: of the part of M.
    """
    require_fraction("decay", decay)
    if learn and decay == 0:
        raise UsageError("a learned decay must start above 0, since its logit would be infinite; got 0")

    def structure(params: Params, generator: Generator | None) -> Params:
        return {f"logit_{name}": next(iter(params.values())).new_tensor(decay).logit()} if learn else {}

    def shown(m: Params) -> Params:
        return {name: m[f"logit_{name}"].sigmoid()} if learn else {}

    def update(m: Params, state: Params, grads: Params, params: Params, step: int) -> tuple[Params, Params]:
        kept = shown(m).get(name, decay)
        state = {k: kept * state[k] + g for k, g in grads.items()}
        return ({k: g + kept * state[k] for k, g in grads.items()} if nesterov else state), state

    return Rule(update, lambda m, params, support: tree.zeros_like(params), structure, shown=shown)


def adam(*, decay: float = 0.9, square_decay: float = 0.999, epsilon: float = 1e-8) -> Rule:
    """Normalise by running moments: m̂ / (√v̂ + ε). It takes no rate: ``chain(adam(), scale(α))`` is torch.optim.Adam.

    The derivative of √v̂ at 0 is taken as 0, so that a weight without gradient does not make the meta-gradient NaN.

    Reference: Kingma, Ba 2014, arXiv:1412.6980.
    """
    require_fraction("decay", decay)
    require_fraction("square_decay", square_decay)
    require_positive("epsilon", epsilon)

    def update(m: Params, state: Tree, grads: Params, params: Params, step: int) -> tuple[Params, Tree]:
        first = {k: decay * state[0][k] + (1 - decay) * g for k, g in grads.items()}
        second = {k: square_decay * state[1][k] + (1 - square_decay) * g.square() for k, g in grads.items()}
        bias, square_bias = 1 - power(decay, step + 1), 1 - power(square_decay, step + 1)
        out = {k: (first[k] / bias) / (tree.safe_sqrt(second[k] / square_bias) + epsilon) for k in grads}
        return out, (first, second)

    return Rule(update, lambda m, params, support: (tree.zeros_like(params), tree.zeros_like(params)))


def clip(*, value: float | None = None, norm: float | None = None) -> Rule:
    """Clip each element to [−value, value], or each task's whole gradient to Euclidean length ``norm``."""
    if (value is None) == (norm is None):
        raise UsageError(f"clip takes either value= or norm=, got value={value} and norm={norm}")
    if value is not None:
        require_positive("value", value)
        return stateless(lambda m, grads, params: {k: g.clamp(-value, value) for k, g in grads.items()})
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
            (``log_weight_decay.<parameter>``).
        name: of the part of M.
    """
    return _pulled(strength, learn, name, lambda m, params, support: {})


def proximal(strength: float, *, learn: bool = False, name: str = "proximal") -> Rule:
    """Pull towards where the task started: g + λ (θ_t − θ⁰), the gradient of the loss + λ/2 ‖θ_t − θ⁰‖², also for θ⁰.

    Args:
        strength: λ, positive; where the learned ones start.
        learn: whether the outer loop learns a λ_w for each parameter tensor; M then holds their logarithms
            (``log_proximal.<parameter>``).
        name: of the part of M.

    Reference: Rajeswaran, Finn, Kakade, Levine 2019, arXiv:1909.04630, equation 3.
    """
    return _pulled(strength, learn, name, lambda m, params, support: dict(params))


def _pulled(strength: float, learn: bool, name: str, start: Callable[[Params, Params, Batch], Params]) -> Rule:
    """Return the rule that adds a pull by λ, or by each tensor's λ_w from M, towards where ``start`` says, or zero."""
    require_positive("strength", strength)
    pull = per_tensor(strength, positive=True, name=name) if learn else scale(strength)

    def update(m: Params, state: Params, grads: Params, params: Params, step: int) -> tuple[Params, Params]:
        away = {k: params[k] - state[k] if state else params[k] for k in grads}
        pulled = pull.update(m, {}, away, params, step)[0]
        return {k: g + pulled[k] for k, g in grads.items()}, state

    return Rule(update, start, pull.structure, shown=pull.shown)
