"""Inner update rules for Keras models, with the names and meanings of `headstart.rules`.

What a rule is, `chain`, `only` and `exclude` are the same; the atoms are written again, since PyTorch's call methods of
its tensors, and count steps in Python, where here they may be counted by a loop of the graph.

Rules made here are kept in a ``.keras`` file by what they were made of.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import numpy as np

from headstart.core.rules import rule as core
from headstart.core.rules.rule import Rule, require_fraction, require_positive, stateless
from headstart.errors import UsageError, pick
from headstart.integrations.keras.backend import tf

Values = dict[str, Any]


class Kept(Rule):
    """A rule that a file can hold."""

    config: Mapping[str, Any]
    """The name of what made it, and the arguments."""


def _kept(make: Callable[..., Rule]) -> Callable[..., Kept]:
    @wraps(make)
    def made(*args: Any, **options: Any) -> Kept:
        rule = Kept(*make(*args, **options))
        rule.config = {"rule": make.__name__, "args": [*map(_plain, args)], "options": options}
        return rule

    return made


def _plain(value: Any) -> Any:
    return getattr(value, "config", Rule) if isinstance(value, Rule) else value


def to_config(rule: Rule) -> Mapping[str, Any]:
    """Return what a file holds of a rule.

    Raises:
        UsageError: it was not made by the functions here, or chooses parameters by types or functions.
    """
    config = getattr(rule, "config", None)
    if config is None or not _can_be_kept(config):
        raise UsageError(
            "a rule of your own, or one that chooses parameters by a type or a function, cannot be kept in a file: "
            "make it of headstart.integrations.keras.rules, and choose parameters by names"
        )
    return config


def _can_be_kept(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_can_be_kept, (*value["args"], *value["options"].values())))
    return value is None or isinstance(value, (str, int, float, list, tuple))


def from_config(config: Mapping[str, Any]) -> Rule:
    """Return the rule that a file holds."""
    args = [from_config(value) if isinstance(value, Mapping) else value for value in config["args"]]
    return pick("rule", config["rule"], RULES)(*args, **config["options"])


@_kept
def chain(*rules: Rule) -> Rule:
    """Apply ``rules`` from left to right; what moves is what all of them move."""
    return core.chain(*rules)


@_kept
def only(*what: Any) -> Rule:
    """Move only the parameters that ``what`` chooses: name patterns (``"head"``, ``"dense*.kernel"``), layer types or
    predicates on `headstart.core.parameters.Leaf`."""
    return core.only(*what)


@_kept
def exclude(*what: Any) -> Rule:
    """Move all parameters but those that ``what`` chooses."""
    return core.exclude(*what)


@_kept
def scale(rate: float) -> Rule:
    """Multiply by a step size: α g."""
    require_positive("rate", rate)
    return stateless(lambda m, grads, params: {k: rate * g for k, g in grads.items()})


@_kept
def per_tensor(rate: float, *, steps: int | None = None, positive: bool = False, name: str = "rate") -> Rule:
    """Multiply each variable's gradient by its own learned step size, α_w g_w, or α_{w,t} g_w at step t.

    Args:
        rate: where every α starts, positive.
        steps: T: with it, every variable has one α for each of the steps 0 … T − 1, ``(T,)`` in M (LSLR, as in MAML++);
            later steps go by the last one. Without it, one for all steps.
        positive: keep every α positive: M then holds its logarithm, ``log_rate``.
        name: of the part of M.

    Reference: Antoniou, Edwards, Storkey 2018, arXiv:1810.09502, for ``steps``.
    """
    require_positive("rate", rate)
    if steps is not None and steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")
    shape = () if steps is None else (steps,)
    return _rated(lambda value, random: np.full(shape, rate), positive, name, steps)


@_kept
def per_weight(rate: float | tuple[float, float] = (0.005, 0.1), *, positive: bool = False, name: str = "rate") -> Rule:
    """Multiply each weight's gradient by its own learned step size, α ∘ g with α shaped like θ (Meta-SGD).

    Args:
        rate: where each α starts: a number, or a range to draw it from uniformly (the paper's, by default).
        positive: keep every α positive (the paper's may change sign).
        name: of the part of M.

    Reference: Li, Zhou, Chen, Li 2017, arXiv:1707.09835.
    """
    low, high = rate if isinstance(rate, (tuple, list)) else (rate, rate)
    require_positive("rate", low)
    if low > high:
        raise UsageError(f"rate goes from {low} to {high}; give the lower end first")
    return _rated(lambda value, random: random.uniform(low, high, value.shape), positive, name)


def _rated(
    start: Callable[[Any, np.random.Generator], Any], positive: bool, name: str, steps: int | None = None
) -> Rule:
    key = f"log_{name}" if positive else name

    def structure(params: Values, random: Any) -> Values:
        rates = {f"{key}.{k}": start(value, random) for k, value in params.items()}
        return {k: np.log(rate) if positive else rate for k, rate in rates.items()}

    def rate_of(m: Values, parameter: str, step: Any = None) -> Any:
        value = m[f"{key}.{parameter}"]
        if steps is not None and step is not None:
            value = tf.gather(value, tf.minimum(step, steps - 1))
        return tf.exp(value) if positive else value

    def update(m: Values, state: Any, grads: Values, params: Values, step: Any) -> tuple[Values, Any]:
        return {k: rate_of(m, k, step) * g for k, g in grads.items()}, state

    def shown(m: Values) -> Values:
        return {f"{name}.{k[len(key) + 1 :]}": rate_of(m, k[len(key) + 1 :]) for k in m if k.startswith(f"{key}.")}

    return Rule(update, structure=structure, shown=shown)


@_kept
def momentum(*, decay: float = 0.9, nesterov: bool = False) -> Rule:
    """Accumulate: v ← μ v + g, and step by v, or by g + μ v with Nesterov's look-ahead; μ is ``decay``, in [0, 1)."""
    require_fraction("decay", decay)

    def update(m: Values, state: Values, grads: Values, params: Values, step: Any) -> tuple[Values, Values]:
        state = {k: decay * state[k] + g for k, g in grads.items()}
        return ({k: g + decay * state[k] for k, g in grads.items()} if nesterov else state), state

    return Rule(update, lambda m, params, support: _zeros(params))


@_kept
def adam(*, decay: float = 0.9, square_decay: float = 0.999, epsilon: float = 1e-8) -> Rule:
    """Normalise by running moments: m̂ / (√v̂ + ε). It takes no rate: ``chain(adam(), scale(α))`` is Adam.

    The derivative of √v̂ at 0 is taken as 0, so that a weight without gradient does not make the meta-gradient NaN.

    Reference: Kingma, Ba 2014, arXiv:1412.6980.
    """
    require_fraction("decay", decay)
    require_fraction("square_decay", square_decay)
    require_positive("epsilon", epsilon)

    def update(m: Values, state: Any, grads: Values, params: Values, step: Any) -> tuple[Values, Any]:
        first = {k: decay * state[0][k] + (1 - decay) * g for k, g in grads.items()}
        second = {k: square_decay * state[1][k] + (1 - square_decay) * tf.square(g) for k, g in grads.items()}
        out = {}
        for k, g in grads.items():
            # not by tf.cast, which would round these to single precision first
            bias, square_bias = (
                1 - tf.pow(tf.constant(rate, g.dtype), tf.cast(step + 1, g.dtype)) for rate in (decay, square_decay)
            )
            out[k] = (first[k] / bias) / (_safe_sqrt(second[k] / square_bias) + epsilon)
        return out, (first, second)

    return Rule(update, lambda m, params, support: (_zeros(params), _zeros(params)))


@_kept
def clip(*, value: float | None = None, norm: float | None = None) -> Rule:
    """Clip each element to [−value, value], or each task's whole gradient to Euclidean length ``norm``."""
    if (value is None) == (norm is None):
        raise UsageError(f"clip takes either value= or norm=, got value={value} and norm={norm}")
    if value is not None:
        require_positive("value", value)
        return stateless(lambda m, grads, params: {k: tf.clip_by_value(g, -value, value) for k, g in grads.items()})

    assert norm is not None
    require_positive("norm", norm)

    def shorten(m: Values, grads: Values, params: Values) -> Values:
        squares = [tf.reduce_sum(tf.reshape(tf.square(g), [tf.shape(g)[0], -1]), 1) for g in grads.values()]
        length = _safe_sqrt(tf.add_n(squares))
        factor = norm / tf.maximum(length, tf.constant(norm, length.dtype))
        return {k: g * tf.reshape(factor, [-1, *[1] * (len(g.shape) - 1)]) for k, g in grads.items()}

    return stateless(shorten)


def _zeros(params: Values) -> Values:
    return {name: tf.zeros_like(value) for name, value in params.items()}


def _safe_sqrt(square: Any) -> Any:
    """Return the square root with derivative 0, not infinity, at 0."""
    positive = square > 0
    return tf.where(positive, tf.sqrt(tf.where(positive, square, tf.ones_like(square))), tf.zeros_like(square))


RULES: dict[str, Callable[..., Rule]] = {
    make.__name__: make for make in (adam, chain, clip, exclude, momentum, only, per_tensor, per_weight, scale)
}
