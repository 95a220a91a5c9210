"""What an inner update rule is, and how rules join.

All tensors of one step, gradients, parameters and states, have shape ``(B, *shape)``; those in M have no task axis.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from headstart.core.parameters import Leaf, What, choose
from headstart.errors import UsageError
from headstart.types import Batch, Params, Tree


class Rule(NamedTuple):
    """One inner update as pure functions; write your own, and prove it with `headstart.testing.check_rule`."""

    update: Callable[[Params, Tree, Params, Params, int], tuple[Params, Tree]]
    """``(M, state, gradients, params, step) -> (what to subtract from params, next state)``.

    While a record is made that is to serve all steps, ``step`` is a tensor that holds the number; where an update
    cannot do with that, every step is recorded by itself (see `of_step` and `power`, which can).
    """
    state: Callable[[Params, Params, Batch], Tree] = lambda *_: {}
    """``(M, params, support) -> state`` before the first step; a dict (or tuple of dicts) of tensors with a task axis.

    ``support.seed`` ``(B,)`` is what a task's random numbers go by; without one, nothing may be random.
    """
    structure: Callable[[Params, Generator | None], Params] = lambda *_: {}
    """``(θ, generator) -> the part of M that this rule learns``, from parameters without a task axis."""
    moves: Callable[[Mapping[str, Leaf]], frozenset[str]] = frozenset
    """The names of the parameters that adaptation moves; the others stay shared by all tasks."""
    penalty: Callable[[Params], Tensor | float] = lambda m: 0.0
    """``M -> R(M)``, what the outer loop pays for the rule's part of M: L(θ, M) = Σ Lᵢ(θ, M) + R(M)."""
    shown: Callable[[Params], Params] = lambda *_: {}
    """``M -> its part of M in the units in which it acts``, for reports: rates as they multiply, masks in [0, 1]."""
    exact: bool = True
    """Whether its derivatives are those of what it computes (a straight-through estimator's are not)."""


def chain(*rules: Rule) -> Rule:
    """Apply ``rules`` from left to right; what moves is what all of them move."""

    def structure(params: Params, generator: Generator | None) -> Params:
        return merged_structure({f"rule {i}": r.structure(params, generator) for i, r in enumerate(rules)})

    def state(m: Params, params: Params, support: Batch) -> Tree:
        return tuple(rule.state(m, params, support) for rule in rules)

    def update(m: Params, state: Tree, grads: Params, params: Params, step: int) -> tuple[Params, Tree]:
        states = []
        for rule, own in zip(rules, state, strict=True):
            grads, own = rule.update(m, own, grads, params, step)
            states.append(own)
        return grads, tuple(states)

    def moves(leaves: Mapping[str, Leaf]) -> frozenset[str]:
        names = frozenset(leaves).intersection(*(rule.moves(leaves) for rule in rules))
        if not names:
            raise nothing_to_move(leaves)
        return names

    def shown(m: Params) -> Params:
        return {name: value for rule in rules for name, value in rule.shown(m).items()}

    def penalty(m: Params) -> Tensor | float:
        return sum((rule.penalty(m) for rule in rules), 0.0)

    return Rule(update, state, structure, moves, penalty, shown, exact=all(rule.exact for rule in rules))


def merged_structure(parts: Mapping[str, Params]) -> Params:
    """Return parts of M as one.

    Raises:
        UsageError: two parts hold the same name.
    """
    merged: Params = {}
    owner: dict[str, str] = {}
    for part, values in parts.items():
        for name in values:
            if name in owner:
                raise UsageError(
                    f"two parts of M ({owner[name]} and {part}) both hold {name!r}; give one of them another name="
                )
            owner[name] = part
        merged.update(values)
    return merged


def stateless(transform: Callable[[Params, Params, Params], Params]) -> Rule:
    """Return the rule of ``transform(M, gradients, params)``."""
    return Rule(lambda m, state, grads, params, step: (transform(m, grads, params), state))


def _moving(moves: Callable[[Mapping[str, Leaf]], frozenset[str]]) -> Rule:
    """Return the rule that passes gradients on as they are, and moves these parameters."""
    return stateless(lambda m, grads, params: grads)._replace(moves=moves)


def only(*what: What) -> Rule:
    """Move only the parameters that ``what`` chooses: name patterns, module types or predicates on `Leaf`.

    >>> from torch import nn
    >>> from headstart import rules
    >>> rule = rules.chain(rules.only("head", nn.BatchNorm2d), rules.scale(0.1))
    """
    return _moving(lambda leaves: choose(leaves, *what))


def exclude(*what: What) -> Rule:
    """Move all parameters but those that ``what`` chooses."""
    return _moving(lambda leaves: frozenset(leaves) - choose(leaves, *what))


def require_positive(name: str, value: float) -> None:
    """Raise `UsageError` unless ``value`` is above 0."""
    if not value > 0:
        raise UsageError(f"{name} must be greater than 0, got {value}")


def require_fraction(name: str, value: float) -> None:
    """Raise `UsageError` unless ``value`` is in [0, 1)."""
    if not 0 <= value < 1:
        raise UsageError(f"{name} must be at least 0 and less than 1, got {value}")


def nothing_to_move(leaves: Mapping[str, Leaf]) -> UsageError:
    """Return the error for a rule that moves none of the ``leaves``."""
    if leaves:
        return UsageError(f"the rule leaves nothing to move among {', '.join(leaves)}")
    return UsageError(
        "the module has no trainable parameter to adapt: give it a trainable head, or take a method that adapts without"
        " gradient steps (prototypes, ridge, logistic, svm; for numbers also dkt, alpaca)"
    )


def of_step(values: Tensor, step: int | Tensor) -> Tensor:
    """Return those of ``values`` ``(T, …)`` that are for a step; from T on, the last ones.

    >>> import torch
    >>> [int(of_step(torch.tensor([3, 4]), step)) for step in (0, 1, 2)]
    [3, 4, 4]
    """
    if isinstance(step, Tensor):
        return values.index_select(0, step.clamp(max=len(values) - 1).view(1)).squeeze(0)
    return values[min(step, len(values) - 1)]


def power(base: float, exponent: int | Tensor) -> float | Tensor:
    """Return ``base ** exponent`` in double precision."""
    return torch.tensor(base, dtype=torch.float64) ** exponent if isinstance(exponent, Tensor) else base**exponent
