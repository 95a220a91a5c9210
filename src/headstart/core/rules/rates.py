"""Step sizes: one, or learned ones in M, by tensor, inner step and weight.

With ``positive=True`` M holds the logarithm of a rate, so that no outer step can turn its sign; it is then called
``log_rate`` where it would be ``rate``.
"""

import torch
from torch import Generator, Tensor

from headstart.core import tree
from headstart.core.rules.rule import Rule, require_positive, stateless
from headstart.errors import UsageError
from headstart.types import Params


def scale(rate: float, *, learn: bool = False, positive: bool = False, name: str = "rate") -> Rule:
    """Multiply by a step size: α g. With ``learn``, α is part of M under ``name``.

    Args:
        rate: α, positive.
        learn: whether the outer loop learns α.
        positive: keep the learned α positive.
        name: of the part of M.
    """
    _check(rate)
    if not learn:
        return stateless(lambda m, grads, params: {k: rate * g for k, g in grads.items()})._replace(affine=True)
    rates = _Rates(name, positive)
    rule = stateless(lambda m, grads, params: {k: rates.of(m) * g for k, g in grads.items()})
    return rule._replace(
        structure=lambda params, generator: {rates.key(): rates.start(_like(params).new_full((), rate))},
        shown=lambda m: {name: rates.of(m)},
    )


def per_tensor(rate: float, *, steps: int | None = None, positive: bool = False, name: str = "rate") -> Rule:
    """Multiply each parameter tensor's gradient by its own learned step size, α_w g_w, or α_{w,t} g_w at step t.

    Args:
        rate: where every α starts, positive.
        steps: T: with it, every tensor has one α for each of the steps 0 … T − 1, ``(T,)`` in M (LSLR, the per-layer
            per-step rates of MAML++); later steps go by the last one. Without it, one for all steps.
        positive: keep every α positive.
        name: of the part of M.

    Reference: Antoniou, Edwards, Storkey 2018, arXiv:1810.09502, for ``steps``.
    """
    _check(rate)
    if steps is not None and steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")
    rates = _Rates(name, positive)
    shape = () if steps is None else (steps,)

    def structure(params: Params, generator: Generator | None) -> Params:
        return {rates.key(k): rates.start(value.new_full(shape, rate)) for k, value in params.items()}

    def update(m: Params, state: Params, grads: Params, params: Params, step: int) -> tuple[Params, Params]:
        at = () if steps is None else (min(step, steps - 1),)
        return {k: rates.of(m, k)[at] * g for k, g in grads.items()}, state

    return Rule(update, structure=structure, shown=rates.shown)


def per_weight(rate: float | tuple[float, float] = (0.005, 0.1), *, positive: bool = False, name: str = "rate") -> Rule:
    """Multiply each weight's gradient by its own learned step size, α ∘ g with α shaped like θ (Meta-SGD).

    It is also the learned diagonal preconditioner.

    Args:
        rate: where each α starts: a number, or a range to draw it from uniformly (the paper's, by default).
        positive: keep every α positive (the paper's may change sign).
        name: of the part of M.

    Reference: Li, Zhou, Chen, Li 2017, arXiv:1707.09835.
    """
    low, high = rate if isinstance(rate, tuple) else (rate, rate)
    _check(low)
    if low > high:
        raise UsageError(f"rate goes from {low} to {high}; give the lower end first")
    rates = _Rates(name, positive)

    def structure(params: Params, generator: Generator | None) -> Params:
        def start(value: Tensor) -> Tensor:
            if low == high:
                return torch.full_like(value, low)
            # drawn on the CPU, so that a seed means the same numbers on every device
            draw = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            return (low + (high - low) * draw).to(value)

        return {rates.key(k): rates.start(start(value)) for k, value in params.items()}

    rule = stateless(lambda m, grads, params: {k: rates.of(m, k) * g for k, g in grads.items()})
    return rule._replace(structure=structure, shown=rates.shown)


class _Rates:
    """How rates stand in M: as they are, or by their logarithms."""

    def __init__(self, name: str, positive: bool) -> None:
        self.name = name
        self.positive = positive

    def key(self, tensor: str = "") -> str:
        own = f"log_{self.name}" if self.positive else self.name
        return f"{own}.{tensor}" if tensor else own

    def start(self, rate: Tensor) -> Tensor:
        return rate.log() if self.positive else rate

    def of(self, m: Params, tensor: str = "") -> Tensor:
        value = m[self.key(tensor)]
        return value.exp() if self.positive else value

    def shown(self, m: Params) -> Params:
        keys = tree.within(m, self.key())
        return {f"{self.name}.{key}": self.of(m, key) for key in keys}


def _like(params: Params) -> Tensor:
    return next(iter(params.values()))


def _check(rate: float) -> None:
    require_positive("rate", rate)
