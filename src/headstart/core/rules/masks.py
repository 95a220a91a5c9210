"""Masks over what moves: gates m in [0, 1] that multiply gradients, learned by their logits or given.

What is random in a gate goes by the task's seed: one draw for a task, kept over all its steps, whatever the tasks
beside it. Without a seed nothing is random.
"""

from collections.abc import Callable, Mapping
from functools import partial, reduce
from math import log, prod
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Generator, Tensor

from headstart.core import tree
from headstart.core.parameters import Leaf, choose
from headstart.core.philox import WORD, philox
from headstart.core.rules.rule import Rule, require_positive, stateless
from headstart.errors import ShapeError, UsageError, check_known
from headstart.types import Batch, Params

Granularity: TypeAlias = Literal["weight", "unit", "tensor"]
Kind: TypeAlias = Literal["hard_concrete", "straight_through"]

#: What a concrete variable is stretched to before it is cut to [0, 1], so that 0 and 1 have a probability.
_LOW, _HIGH = -0.1, 1.1


class _Gates(NamedTuple):
    """How gates come of logits: where nothing is random, with logistic noise (if ever), and P(m > 0)."""

    settled: Callable[[Tensor], Tensor]
    drawn: Callable[[Tensor, Tensor], Tensor] | None
    open: Callable[[Tensor], Tensor]


_Places: TypeAlias = Callable[[dict[str, tuple[int, ...]]], dict[str, tuple[str, tuple[int, ...]]]]
"""``shapes of parameters -> (name in M, shape) of the logits of each``; several parameters may share theirs."""


def mask(
    *,
    target: float = 0.5,
    strength: float = 1.0,
    temperature: float = 2 / 3,
    start: float = 1.0,
    granularity: Granularity = "weight",
    kind: Kind = "hard_concrete",
    name: str = "mask",
) -> Rule:
    """Multiply gradients by learned gates m in [0, 1]: adaptation moves θ in a subspace that the outer loop learns.

    M holds the logits φ. The outer loop pays ``R(M) = strength (mean P(m > 0) − target)²``, the mean over all gates.

    - ``"hard_concrete"``: with a task's seed, ``m = min(1, max(0, 1.2 s − 0.1))`` with ``s = σ((φ + ln u − ln(1 − u))
      / temperature)`` and u uniform in (0, 1), one draw for a task; P(m > 0) = σ(φ − temperature ln(0.1 / 1.1)).
      Without a seed the test-time gate ``m = min(1, max(0, 1.2 σ(φ) − 0.1))``. Exactly differentiable in φ.
    - ``"straight_through"``: ``m = 1[φ > 0]``, with σ'(φ) in place of its derivative; ``exact`` is then false.

    Args:
        target: the part of the gates that is to be open, in (0, 1].
        strength: what a departure from the target costs, at least 0.
        temperature: of the concrete variable, positive.
        start: where every logit starts; the gates start open where it is well above 0.
        granularity: a gate for each ``"weight"``, ``"unit"`` (row of a parameter) or ``"tensor"``.
        kind: ``"hard_concrete"`` or ``"straight_through"``.
        name: of the part of M.

    Reference: Louizos, Welling, Kingma 2017, arXiv:1712.01312 (there the gates multiply weights, and each open one
    costs the same); Bengio, Leonard, Courville 2013, arXiv:1308.3432, for the straight-through estimator, which von
    Oswald et al. 2021, arXiv:2110.14402, put on inner gradients with the derivative of the identity.

    >>> from headstart import rules
    >>> rule = rules.chain(rules.mask(target=0.1, granularity="unit"), rules.scale(0.1))
    """
    if not 0 < target <= 1:
        raise UsageError(f"target is the part of the gates that is open, greater than 0 and at most 1; got {target}")
    if not strength >= 0:
        raise UsageError(f"strength must be at least 0, got {strength}")
    require_positive("temperature", temperature)
    axes = {"weight": None, "unit": 1, "tensor": 0}
    check_known("granularity", granularity, axes)
    check_known("kind of mask", kind, get_args(Kind))
    gates = _hard_concrete(temperature) if kind == "hard_concrete" else _Gates(_stepped, None, _stepped)

    def places(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {key: (f"{name}.{key}", shape[: axes[granularity]]) for key, shape in shapes.items()}

    def penalty(m: Params) -> Tensor:
        open_gates = torch.cat([gates.open(logits).flatten() for logits in _own(m, name).values()])
        return strength * (open_gates.mean() - target).square()

    return _gated(name, gates, places, start)._replace(penalty=penalty, exact=kind == "hard_concrete")


def unit_mask(*, temperature: float = 1.0, hard: bool = False, name: str = "mask") -> Rule:
    """Multiply gradients by one learned Bernoulli gate for each output unit, drawn once for a task (MT-net's mask).

    The rows of a module's weight and the elements of its bias share gates. M holds the logits ``mask.<module>``, from
    0, so that a unit moves with probability 1/2 = σ(0). (Where the parameters of a module have different numbers of
    rows, those with as many rows share gates.)

    With a task's seed, ``m = σ((φ + ln u − ln(1 − u)) / temperature)`` with u uniform in (0, 1): the Gumbel-softmax
    of the two logits φ and 0. Without a seed, its expectation at temperature 0, ``m = σ(φ)``, which unlike a
    threshold is differentiable where the logits start.

    Args:
        temperature: of the Gumbel-softmax, positive; gates are nearer to 0 or 1 where it is low.
        hard: round gates to 0 or 1 forwards and take the derivatives of the soft ones (``exact`` is then false), as
            the authors' code does; without a seed, ``m = 1[φ >= 0]``.
        name: of the part of M.

    Reference: Lee, Choi 2018, arXiv:1801.05558; Jang, Gu, Poole 2016, arXiv:1611.01144, for the Gumbel-softmax.
    """
    require_positive("temperature", temperature)

    def soft(logits: Tensor, noise: Tensor) -> Tensor:
        return ((logits + noise) / temperature).sigmoid()

    if hard:
        gates = _Gates(
            lambda logits: _straight(logits >= 0, logits.sigmoid()),
            lambda logits, noise: _straight(logits + noise >= 0, soft(logits, noise)),
            torch.sigmoid,
        )
    else:
        gates = _Gates(torch.sigmoid, soft, torch.sigmoid)
    return _gated(name, gates, partial(_by_unit, name), start=0.0)._replace(exact=not hard)


def fixed_mask(masks: Mapping[str, Tensor]) -> Rule:
    """Multiply gradients by given masks of zeros and ones, by parameter name; parameters without one move freely.

    Args:
        masks: ``{parameter name: mask shaped like it}``, of any type. A parameter whose mask is all zeros does not
            move at all.

    Raises:
        UsageError: values other than 0 and 1, or nothing is left to move.
        UnknownNameError, ShapeError: when the rule meets the parameters: a mask for none of them, or of another shape.

    >>> import torch
    >>> from headstart import rules
    >>> first_row = torch.zeros(3, 4)
    >>> first_row[0] = 1
    >>> rule = rules.chain(rules.only("head"), rules.fixed_mask({"head.weight": first_row}), rules.scale(0.1))
    """
    kept = {name: given.detach().clone() for name, given in masks.items()}
    if not kept:
        raise UsageError("fixed_mask got no masks; give one for each parameter of which only a part is to move")
    for name, given in kept.items():
        if not bool(((given == 0) | (given == 1)).all()):
            raise UsageError(f"a fixed mask holds zeros and ones only; that of {name!r} holds other values")

    def moves(leaves: Mapping[str, Leaf]) -> frozenset[str]:
        for name, given in kept.items():
            if name not in leaves:
                choose(leaves, name)  # refuses, naming the nearest
                raise UsageError(f"{name!r} names several parameters, a mask is for one of {', '.join(leaves)}")
            if tuple(given.shape) != leaves[name].shape:
                raise ShapeError(f"the mask of {name!r} is {tuple(given.shape)}, the parameter {leaves[name].shape}")
        names = frozenset(name for name in leaves if name not in kept or bool(kept[name].any()))
        if not names:
            raise UsageError(f"the masks are all zeros, so nothing is left to move among {', '.join(leaves)}")
        return names

    def masked(m: Params, grads: Params, params: Params) -> Params:
        return {k: g * kept[k].to(g) if k in kept else g for k, g in grads.items()}

    return stateless(masked)._replace(moves=moves)


def _hard_concrete(temperature: float) -> _Gates:
    def stretched(value: Tensor) -> Tensor:
        return (value * (_HIGH - _LOW) + _LOW).clamp(0, 1)

    return _Gates(
        lambda logits: stretched(logits.sigmoid()),
        lambda logits, noise: stretched(((logits + noise) / temperature).sigmoid()),
        lambda logits: (logits - temperature * log(-_LOW / _HIGH)).sigmoid(),
    )


def _stepped(logits: Tensor) -> Tensor:
    return _straight(logits > 0, logits.sigmoid())


def _straight(forwards: Tensor, backwards: Tensor) -> Tensor:
    """Return the value of the one with the derivatives of the other."""
    return forwards.to(backwards.dtype) + (backwards - backwards.detach())


def _gated(name: str, gates: _Gates, places: _Places, start: float) -> Rule:
    """Return the rule that multiplies gradients by gates whose logits are ``name.…`` in M, from ``start``."""

    def of(params: Params, first: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return places({key: tuple(value.shape[first:]) for key, value in params.items()})

    def structure(params: Params, generator: Generator | None) -> Params:
        return {key: params[p].new_full(shape, start) for p, (key, shape) in of(params, 0).items()}

    def state(m: Params, params: Params, support: Batch) -> Params:
        seed = support.seed
        if seed is None or gates.drawn is None:
            return {}
        stream, shapes = _word_of(name), {key: (shape, params[p]) for p, (key, shape) in of(params, 1).items()}
        return {
            key: _logistic(seed, shapes[key][0], index, stream).to(shapes[key][1])
            for index, key in enumerate(sorted(shapes))
        }

    def update(m: Params, noise: Params, grads: Params, params: Params, step: int) -> tuple[Params, Params]:
        placed = {p: key for p, (key, _) in of(grads, 1).items()}
        open_by = {
            key: gates.drawn(m[key], noise[key]) if gates.drawn and noise else gates.settled(m[key])[None]
            for key in dict.fromkeys(placed.values())
        }
        return {p: g * tree.over_tasks(open_by[placed[p]], g) for p, g in grads.items()}, noise

    def shown(m: Params) -> Params:
        return {key: gates.settled(logits) for key, logits in _own(m, name).items()}

    return Rule(update, state, structure, shown=shown)


def _by_unit(name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return one name for the parameters of a module with as many rows."""
    modules: dict[str, set[tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        modules.setdefault(key.rpartition(".")[0], set()).add(shape[:1])

    def place(key: str, rows: tuple[int, ...]) -> str:
        module = key.rpartition(".")[0]
        several = f"{rows[0]}_rows" if rows else "single"
        return ".".join(part for part in (name, module, several if len(modules[module]) > 1 else "") if part)

    return {key: (place(key, shape[:1]), shape[:1]) for key, shape in shapes.items()}


def _own(m: Params, name: str) -> Params:
    return {key: value for key, value in m.items() if key == name or key.startswith(f"{name}.")}


def _word_of(name: str) -> int:
    """Return a word that differs by name (the hash FNV-1; Python's own differs by process)."""
    return reduce(lambda word, byte: ((word * 16777619) & WORD) ^ byte, name.encode(), 2166136261)


def _logistic(seed: Tensor, shape: tuple[int, ...], index: int, stream: int) -> Tensor:
    """Return logistic noise ``(B, *shape)``, each element a function of (seed, stream, index, element) alone."""
    count = prod(shape)
    lane = torch.arange(-(-count // 4), device=seed.device)
    low, high = ((half & WORD)[:, None] for half in (seed, seed >> 32))
    # bit 30 keeps these draws apart from those of dropout, whose second key is a pass number
    words = torch.stack(philox((lane, 0, low, high), (index, stream | 1 << 30)), -1)
    uniform = (words.flatten(1)[:, :count].double() + 0.5) / 2**32
    return torch.logit(uniform).view(len(seed), *shape)
