"""Linear and kernel classifiers, solved by what each example spreads over the classes.

With targets Y (one-hot) and Q = C · Gram matrix, both classifiers here minimise over P, each row of which is at least
0 and sums to 1,

    ½ Σ_k (P_k − Y_k)ᵀ Q (P_k − Y_k) + Σ_n h(P_n),

and their coefficients are C (Y − P). The support vector machine has h(P_n) = P_n[y_n], logistic regression
h(P_n) = Σ_k P_nk log P_nk. B tasks are solved at once; each stops by itself, so no task changes another's answer.

Shapes: Q ``(B, n, n)``; Y, P and ``allowed`` ``(B, K, n)``: the class comes before the example. What is not allowed
(examples that are masked out, classes without an example) has P = Y = 0. All in double precision, without history.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from headstart.algorithms.heads.coupled import coupled

logger = logging.getLogger("headstart")


class Solved(NamedTuple):
    """The optimum, and what its derivative takes."""

    spread: Tensor
    """P ``(B, K, n)``."""
    solve: Callable[[Tensor], Tensor]
    """The symmetric T with dP = −T(dQ (P − Y))."""


_STEPS = 60
_SWEEPS = 40
#: Added to Q among the pairs that are free, relative to its diagonal; refinement takes it out again.
_RIDGE = 1e-8


def _apply(shared: Tensor, values: Tensor) -> Tensor:
    """Return Q P_k for every class."""
    return values @ shared  # Q is symmetric


def maximum_margin(shared: Tensor, targets: Tensor, allowed: Tensor) -> Solved:
    """Solve the dual of the multi-class support vector machine of Crammer and Singer.

    A primal-dual interior-point method (Mehrotra's predictor and corrector) finds which pairs of an example and a
    class are free (P > 0); a solve on these is then exact to rounding, and gives the derivative, which is that of the
    solution as long as the free pairs stay the same.
    """
    with torch.no_grad():
        spread, slack = _interior_point(shared, targets, allowed)
        size = shared.diagonal(dim1=1, dim2=2).amax(1).view(-1, 1, 1)
        free = (spread * size > slack) & allowed
        spread, free = _exact(shared, targets, allowed, spread, free)
        _warn(margin_gap(shared, targets, spread, allowed))
        return Solved(spread, lambda right: _among_free(shared, free, right))


def _warn(wrong: Tensor) -> None:
    """Say where tasks were not solved: ``wrong`` ``(B,)`` is how far they are from their optimum."""
    unsolved = ~(wrong <= 1e-6)  # NaN, too
    if bool(unsolved.any()):
        logger.warning(
            "%d of %d tasks' classifiers were solved to %.1g only; features, or C, may be too large",
            int(unsolved.sum()),
            len(wrong),
            wrong.max().item(),
        )


def _exact(shared: Tensor, targets: Tensor, allowed: Tensor, spread: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Return P to rounding, and its free pairs, from a P near the optimum: the primal-dual active set method."""
    gap = margin_gap(shared, targets, spread, allowed)
    best, chosen = spread, free
    goal = 1e-15 * (1 + shared.diagonal(dim1=1, dim2=2).amax(1))
    done = torch.zeros_like(gap, dtype=torch.bool)
    for _ in range(_SWEEPS):
        kept = torch.where(free, spread.clamp(min=0), 0)
        kept = kept / kept.sum(1, keepdim=True).clamp(min=1e-300)
        spread = kept - _among_free(shared, free, margin_slope(shared, targets, kept))
        reached = margin_gap(shared, targets, spread, allowed)
        # a task that is done stays as it is, however long the others take
        better = (reached < gap) & ~done
        closer = better.view(-1, 1, 1)
        best, chosen = torch.where(closer, spread, best), torch.where(closer, free, chosen)
        gap = torch.where(better, reached, gap)
        slope = margin_slope(shared, targets, spread)
        level = (slope * free).sum(1, keepdim=True) / free.sum(1, keepdim=True).clamp(min=1)
        again = allowed & (torch.where(free, spread, level - slope) > 0)
        done = done | (gap <= goal) | (again == free).all(2).all(1)
        if bool(done.all()):
            break
        free = again
    return best, chosen


def _among_free(shared: Tensor, free: Tensor, right: Tensor) -> Tensor:
    """Return x with Q x_k − λ = right_k among the free pairs, 0 elsewhere, and Σ_k x_k = 0."""
    with torch.no_grad():
        # an example with one free class has P = 1 there, which cannot move
        moving = free & (free.sum(1, keepdim=True) > 1)
        scale = shared.diagonal(dim1=1, dim2=2).amax(1).clamp(min=1e-300)
        factors = coupled(shared, moving.to(shared) / (_RIDGE * scale).view(-1, 1, 1))
        members = moving.sum(1, keepdim=True).clamp(min=1)
        found = torch.zeros_like(right)
        for _ in range(5):
            left = torch.where(moving, right - _apply(shared, found), 0)
            # λ takes up what all classes of an example share: without it, rounding is that of what is left
            left = torch.where(moving, left - left.sum(1, keepdim=True) / members, 0)
            found = found + factors.solve(left, -found.sum(1))[0]
        return found


def margin_slope(shared: Tensor, targets: Tensor, spread: Tensor) -> Tensor:
    """Return the derivative of the support vector machine's dual with respect to P."""
    return _apply(shared, spread - targets) + targets


def margin_gap(shared: Tensor, targets: Tensor, spread: Tensor, allowed: Tensor) -> Tensor:
    """Return how far P is from the optimum ``(B,)``: 0 there, and the duality gap per example elsewhere."""
    slope = margin_slope(shared, targets, spread)
    lowest = slope.masked_fill(~allowed, torch.inf).amin(1)
    there = allowed.any(1)
    gap = torch.where(there, (spread * slope).sum(1) - lowest, 0).abs().amax(1)
    return gap + (-spread).clamp(min=0).amax((1, 2)) + (spread.sum(1) - there.to(spread)).abs().amax(1)


class _Point(NamedTuple):
    """A point on the way to the optimum; everything but what is not allowed is above 0."""

    spread: Tensor
    slack: Tensor
    """z, the multipliers of P ≥ 0."""
    level: Tensor
    """λ ``(B, n)``, those of the sums of P."""

    def chosen(self, tasks: Tensor, other: "_Point") -> "_Point":
        """Return this point where ``tasks`` ``(B,)`` says so, else the other."""
        return _Point(*(torch.where(tasks.view(-1, *(1,) * (a.ndim - 1)), a, b) for a, b in zip(self, other)))


def _interior_point(shared: Tensor, targets: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Return P and its multipliers z ≥ 0, with P z near 0."""
    size = shared.diagonal(dim1=1, dim2=2).amax(1)
    goal = 1e-9 * torch.minimum(size, 1 / size)
    point = best = _centre(shared, targets, allowed)
    least = torch.full_like(size, torch.inf)
    done = torch.zeros_like(size, dtype=torch.bool)
    for _ in range(_STEPS):
        gap = margin_gap(shared, targets, point.spread, allowed)
        best = point.chosen(gap < least, best)
        least = torch.fmin(least, gap)
        # where the gap grows, rounding has taken over
        done = done | ~(_mean(allowed, point.spread * point.slack) > goal) | ~(gap <= 100 * least)
        if bool(done.all()):
            break
        moves = _direction(shared, targets, allowed, point)
        length = 0.995 * _longest(allowed, point, moves).clamp(max=1 / 0.995)
        moved = _Point(*(a + length.view(-1, *(1,) * (a.ndim - 1)) * b for a, b in zip(point, moves)))
        point = point.chosen(done, moved)
    return best.spread, best.slack


def _centre(shared: Tensor, targets: Tensor, allowed: Tensor) -> _Point:
    spread = allowed.to(shared) / allowed.sum(1, keepdim=True).clamp(min=1)
    slope = margin_slope(shared, targets, spread)
    margin = 1 + shared.diagonal(dim1=1, dim2=2).amax(1).view(-1, 1)
    level = torch.where(allowed.any(1), slope.masked_fill(~allowed, torch.inf).amin(1) - margin, 0)
    return _Point(spread, torch.where(allowed, slope - level.unsqueeze(1), 1), level)


def _mean(allowed: Tensor, products: Tensor) -> Tensor:
    return torch.where(allowed, products, 0).sum((1, 2)) / allowed.sum((1, 2)).clamp(min=1)


def _direction(shared: Tensor, targets: Tensor, allowed: Tensor, point: _Point) -> _Point:
    """Return Mehrotra's step: where a plain step leads says how far to aim for the centre."""
    spread, slack, level = point
    off = torch.where(allowed, margin_slope(shared, targets, spread) - level.unsqueeze(1) - slack, 0)
    short = allowed.any(1).to(spread) - spread.sum(1)
    factors = coupled(shared, spread / slack)

    def towards(product: Tensor) -> _Point:
        """Solve for P z to change by ``product``, to first order."""
        moved, shift = factors.solve(torch.where(allowed, product / spread, 0) - off, short)
        return _Point(moved, torch.where(allowed, (product - slack * moved) / spread, 0), shift)

    plain = towards(-spread * slack)
    length = _longest(allowed, point, plain).clamp(max=1).view(-1, 1, 1)
    mean = _mean(allowed, spread * slack)
    reached = _mean(allowed, (spread + length * plain.spread) * (slack + length * plain.slack))
    centre = mean * (reached / mean.clamp(min=1e-300)).clamp(0, 1) ** 3
    return towards(centre.view(-1, 1, 1) - spread * slack - plain.spread * plain.slack)


def _longest(allowed: Tensor, point: _Point, move: _Point) -> Tensor:
    """Return how far a task can go ``(B,)`` before one of its values is 0."""
    limits = [
        torch.where(allowed & (way < 0), -value / way, torch.inf).amin((1, 2))
        for value, way in zip(point[:2], move[:2])
    ]
    return torch.minimum(*limits)


def maximum_entropy(shared: Tensor, targets: Tensor, allowed: Tensor) -> Solved:
    """Solve multinomial logistic regression: Newton's method, halving steps that do not descend.

    At the optimum P = softmax(Q (Y − P)).
    """
    with torch.no_grad():
        there = allowed.any(1, keepdim=True)
        dual = torch.zeros_like(targets)
        done = torch.zeros(len(targets), dtype=torch.bool, device=targets.device)
        for _ in range(_STEPS):
            spread, value = _softmax(shared, targets, allowed, there, dual)
            wrong = dual - (targets - spread)
            done = done | ~(wrong.abs().amax((1, 2)) > 1e-14)
            if bool(done.all()):
                break
            moves = coupled(shared, spread).solve(_apply(shared, wrong))[0] - wrong
            length = _descending(shared, targets, allowed, there, (dual, moves, value))
            dual = dual + torch.where(done, 0, length).view(-1, 1, 1) * moves
        spread, _ = _softmax(shared, targets, allowed, there, dual)
        factors = coupled(shared, spread)
        _warn((dual - (targets - spread)).abs().amax((1, 2)))
        return Solved(targets - dual, lambda right: factors.solve(right)[0])


def _softmax(shared: Tensor, targets: Tensor, allowed: Tensor, there: Tensor, dual: Tensor) -> tuple[Tensor, Tensor]:
    """Return softmax(Q dual) among what is allowed, and the value ``(B,)`` of the penalised loss."""
    scores = _apply(shared, dual)
    # an example that is not there has no class at all
    shown = torch.where(there, scores.masked_fill(~allowed, -torch.inf), 0)
    spread = torch.where(allowed, shown.softmax(1), 0)
    losses = torch.where(there, shown.logsumexp(1, keepdim=True), 0).sum((1, 2)) - (scores * targets).sum((1, 2))
    return spread, losses + (scores * dual).sum((1, 2)) / 2


def _descending(
    shared: Tensor, targets: Tensor, allowed: Tensor, there: Tensor, line: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """Return the first of the lengths 1, ½, ¼, … that does not raise the penalised loss, for each task ``(B,)``."""
    dual, moves, value = line
    length = torch.ones_like(value)
    rounding = 1e-12 * (1 + value.abs())
    for _ in range(30):
        reached = _softmax(shared, targets, allowed, there, dual + length.view(-1, 1, 1) * moves)[1]
        short = reached > value + rounding
        if not bool(short.any()):
            break
        length = torch.where(short, length / 2, length)
    return length
