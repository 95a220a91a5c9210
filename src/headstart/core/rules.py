"""Inner update rules: what one step of adaptation does with a gradient.

A `Rule` turns gradients into the step that is subtracted from the parameters. Atoms join by `chain`, each working
on what the one before it made: ``chain(clip(norm=1.0), momentum(0.9), scale(0.1))``. An atom that learns declares
its own part of M, which the outer loop meta-learns.

All tensors of one step, gradients, parameters and states, have shape ``(B, *shape)``; those in M have no task axis.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from headstart.core import tree
from headstart.core.patterns import Leaf, What, choose
from headstart.errors import UsageError
from headstart.types import Params, Tree


def _all(leaves: Mapping[str, Leaf]) -> frozenset[str]:
    return frozenset(leaves)


def _nothing(*_: object) -> Params:
    return {}


class Rule(NamedTuple):
    """One inner update as pure functions; write your own, and prove it with `headstart.testing.check_rule`."""

    update: Callable[[Params, Tree, Params, Params, int], tuple[Params, Tree]]
    """``(M, state, gradients, params, step) -> (what to subtract from params, next state)``."""
    state: Callable[[Params], Tree] = _nothing
    """``params -> state`` before the first step; a dict (or tuple of dicts) of tensors with a task axis."""
    structure: Callable[[Params, Generator | None], Params] = _nothing
    """``(θ, generator) -> the part of M that this rule learns``, from parameters without a task axis."""
    moves: Callable[[Mapping[str, Leaf]], frozenset[str]] = _all
    """The names of the parameters that adaptation moves; the others stay shared by all tasks."""


def chain(*rules: Rule) -> Rule:
    """Apply ``rules`` from left to right; what moves is what all of them move."""

    def structure(params: Params, generator: Generator | None) -> Params:
        merged: Params = {}
        for rule in rules:
            part = rule.structure(params, generator)
            clash = merged.keys() & part.keys()
            if clash:
                raise UsageError(
                    f"two rules of one chain both learn {', '.join(sorted(clash))}; give one of them another name="
                )
            merged.update(part)
        return merged

    def update(m: Params, state: Tree, grads: Params, params: Params, step: int) -> tuple[Params, Tree]:
        states = []
        for rule, own in zip(rules, state, strict=True):
            grads, own = rule.update(m, own, grads, params, step)
            states.append(own)
        return grads, tuple(states)

    def moves(leaves: Mapping[str, Leaf]) -> frozenset[str]:
        names = frozenset(leaves).intersection(*(rule.moves(leaves) for rule in rules))
        if not names:
            raise UsageError(f"the rule leaves nothing to move among {', '.join(leaves)}")
        return names

    return Rule(update, lambda params: tuple(rule.state(params) for rule in rules), structure, moves)


def _stateless(transform: Callable[[Params, Params, Params], Params]) -> Rule:
    """Return the rule of ``transform(M, gradients, params)``."""
    return Rule(lambda m, state, grads, params, step: (transform(m, grads, params), state))


def scale(rate: float, *, learn: bool = False, name: str = "rate") -> Rule:
    """Multiply by a step size: α g. With ``learn``, α is part of M under ``name``.

    Args:
        rate: α, positive.
    """
    _positive("rate", rate)
    if not learn:
        return _stateless(lambda m, grads, params: {k: rate * g for k, g in grads.items()})
    rule = _stateless(lambda m, grads, params: {k: m[name] * g for k, g in grads.items()})
    return rule._replace(structure=lambda params, generator: {name: _filled((), rate, params)})


def per_tensor(rate: float, *, name: str = "rate") -> Rule:
    """Multiply each parameter tensor's gradient by its own learned step size, a scalar in M."""
    _positive("rate", rate)

    def structure(params: Params, generator: Generator | None) -> Params:
        return {f"{name}.{key}": value.new_full((), rate) for key, value in params.items()}

    return _learned_rates(structure, name)


def per_weight(rate: float | tuple[float, float] = (0.005, 0.1), *, name: str = "rate") -> Rule:
    """Multiply each weight's gradient by its own learned step size, α ∘ g with α shaped like θ (Meta-SGD).

    Args:
        rate: where each α starts: a number, or a range to draw it from uniformly (the paper's, by default).

    Reference: Li, Zhou, Chen, Li 2017, arXiv:1707.09835.
    """
    low, high = rate if isinstance(rate, tuple) else (rate, rate)
    _positive("rate", low)
    if low > high:
        raise UsageError(f"rate goes from {low} to {high}; give the lower end first")

    def structure(params: Params, generator: Generator | None) -> Params:
        def start(value: Tensor) -> Tensor:
            if low == high:
                return torch.full_like(value, low)
            # drawn on the CPU, so that a seed means the same numbers on every device
            draw = torch.rand(value.shape, generator=generator, dtype=torch.float64)
            return (low + (high - low) * draw).to(value)

        return {f"{name}.{key}": start(value) for key, value in params.items()}

    return _learned_rates(structure, name)


def _learned_rates(structure: Callable[[Params, Generator | None], Params], name: str) -> Rule:
    rule = _stateless(lambda m, grads, params: {k: m[f"{name}.{k}"] * g for k, g in grads.items()})
    return rule._replace(structure=structure)


def momentum(decay: float = 0.9, *, nesterov: bool = False) -> Rule:
    """Accumulate: v ← μ v + g, and step by v, or by g + μ v with Nesterov's look-ahead; equals torch.optim.SGD.

    Args:
        decay: μ, in [0, 1).
    """
    _fraction("decay", decay)

    def update(m: Params, state: Params, grads: Params, params: Params, step: int) -> tuple[Params, Params]:
        state = {k: decay * state[k] + g for k, g in grads.items()}
        return ({k: g + decay * state[k] for k, g in grads.items()} if nesterov else state), state

    return Rule(update, tree.zeros_like)


def adam(decay: float = 0.9, square_decay: float = 0.999, epsilon: float = 1e-8) -> Rule:
    """Normalise by running moments: m̂ / (√v̂ + ε); follow with `scale`. Equals torch.optim.Adam.

    The derivative of √v̂ at 0 is taken as 0, so that a weight without gradient does not make the meta-gradient NaN.

    Reference: Kingma, Ba 2014, arXiv:1412.6980.
    """
    _fraction("decay", decay)
    _fraction("square_decay", square_decay)
    _positive("epsilon", epsilon)

    def state(params: Params) -> Tree:
        return tree.zeros_like(params), tree.zeros_like(params)

    def update(m: Params, state: Tree, grads: Params, params: Params, step: int) -> tuple[Params, Tree]:
        first = {k: decay * state[0][k] + (1 - decay) * g for k, g in grads.items()}
        second = {k: square_decay * state[1][k] + (1 - square_decay) * g.square() for k, g in grads.items()}
        bias, square_bias = 1 - decay ** (step + 1), 1 - square_decay ** (step + 1)
        out = {k: (first[k] / bias) / (tree.safe_sqrt(second[k] / square_bias) + epsilon) for k in grads}
        return out, (first, second)

    return Rule(update, state)


def clip(*, value: float | None = None, norm: float | None = None) -> Rule:
    """Clip each element to [−value, value], or each task's whole gradient to Euclidean length ``norm``."""
    if (value is None) == (norm is None):
        raise UsageError(f"clip takes either value= or norm=, got value={value} and norm={norm}")
    if value is not None:
        limit = value
        _positive("value", limit)
        return _stateless(lambda m, grads, params: {k: g.clamp(-limit, limit) for k, g in grads.items()})
    longest = float(norm or 0)
    _positive("norm", longest)

    def shorten(m: Params, grads: Params, params: Params) -> Params:
        length = tree.per_task_norm(grads)
        factor = longest / length.clamp(min=longest)
        return {k: g * tree.over_tasks(factor, g) for k, g in grads.items()}

    return _stateless(shorten)


def weight_decay(strength: float) -> Rule:
    """Pull towards zero: g + λ θ; before `momentum` and `adam`, as in torch.optim."""
    _positive("strength", strength)
    return _stateless(lambda m, grads, params: {k: g + strength * params[k] for k, g in grads.items()})


def only(*what: What) -> Rule:
    """Move only the parameters that ``what`` chooses: name patterns, module types or predicates on `Leaf`.

    >>> from torch import nn
    >>> rule = chain(only("head", nn.BatchNorm2d), scale(0.1))
    """
    return _identity()._replace(moves=lambda leaves: choose(leaves, *what))


def exclude(*what: What) -> Rule:
    """Move all parameters but those that ``what`` chooses."""
    return _identity()._replace(moves=lambda leaves: frozenset(leaves) - choose(leaves, *what))


def _identity() -> Rule:
    return _stateless(lambda m, grads, params: grads)


def _filled(shape: tuple[int, ...], value: float, params: Params) -> Tensor:
    return next(iter(params.values())).new_full(shape, value)


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise UsageError(f"{name} must be greater than 0, got {value}")


def _fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UsageError(f"{name} must be at least 0 and less than 1, got {value}")
