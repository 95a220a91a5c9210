"""Support vector machine and logistic regression, solved to convergence for each task, as heads of an embedding.

Both are solved by what each example spreads over the classes. With targets Y (one-hot) and Q = C · Gram matrix, both
minimise over P, each row of which is at least 0 and sums to 1,

    ½ Σ_k (P_k − Y_k)ᵀ Q (P_k − Y_k) + Σ_n h(P_n),

and their coefficients are C (Y − P). The support vector machine has h(P_n) = P_n[y_n], logistic regression
h(P_n) = Σ_k P_nk log P_nk. B tasks are solved at once; each stops by itself, so no task changes another's answer.

Shapes: Q ``(B, n, n)``; Y, P and ``allowed`` ``(B, K, n)``: the class comes before the example, and Q P_k for all
classes is P @ Q. What is not allowed (examples that are masked out, classes without an example) has P = Y = 0. All in
double precision, without history.
"""

import logging
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from headstart.algorithms.heads.head import Head, class_members, embedding, learner
from headstart.algorithms.kernels import squared_distances
from headstart.core import losses
from headstart.errors import DifferentiationError, UsageError, check_known
from headstart.schema import Positive, extends
from headstart.types import Batch, Learner, Params

HeadKernel = Literal["linear", "rbf"]
logger = logging.getLogger("headstart")


class Solved(NamedTuple):
    """The optimum, and what its derivative takes."""

    spread: Tensor
    """P ``(B, K, n)``."""
    solve: Callable[[Tensor], Tensor]
    """The symmetric T with dP = −T(dQ (P − Y))."""


@extends(embedding)
def machine(
    module: nn.Module | None,
    optimum: Callable[[Tensor, Tensor, Tensor], Solved],
    structure: dict[str, float],
    *,
    ways: int | None = None,
    kernel: HeadKernel = "linear",
    width: Positive = 1.0,
    scale: Positive = 1.0,
    intercept: float | None = None,
    shared_classes: bool = False,
    **options: Any,
) -> Learner:
    """Return the learner of a classifier that is solved by ``optimum``.

    Args:
        module: the embedding, its outputs flattened; ``None``: the inputs themselves, flattened.
        optimum: `maximum_margin` or `maximum_entropy`.
        structure: where C, or the penalty 1 / C that is called ``regularisation``, starts.
        ways: number of classes; by default the largest support label plus one (which reads it from the device).
        kernel: how features are compared: ``"linear"``, or ``"rbf"``, by their distance.
        width: where the width ℓ of the rbf kernel starts, which is learned: a distance between features of size 1 each.
        scale: where the scale γ of the logits starts, which is learned.
        intercept: a constant feature of this value, so an intercept that is penalised the less the larger it is
            (scikit-learn's ``intercept_scaling``); by default 0 over a network and 1 without one.
        shared_classes: whether class ids mean the same in all tasks, so that a class that a support set lacks is as
            likely as the training tasks say; else it is never predicted.
        options: those of `embedding`.
    """
    check_known("kernel", kernel, get_args(HeadKernel))
    linear = kernel == "linear"
    numbers = {**structure, "width": width, "scale": scale}
    for name, value in numbers.items():
        if not value > 0:
            raise UsageError(f"{name} must be above 0, got {value}: it is learned by its logarithm")
    constant = float(module is None) if intercept is None else intercept**2

    def compare(structure: Params, left: Tensor, right: Tensor) -> Tensor:
        """Return k(x, x′) ``(B, n, m)``."""
        if linear:
            return left @ right.mT
        exponent = squared_distances(left, right) / (2 * left.shape[-1])
        return torch.exp(-exponent * torch.exp(-2 * structure["log_width"]))

    def fit(structure: Params, features: Tensor, support: Batch) -> Params:
        member = class_members(features, support, ways)
        targets = member.mT
        allowed = (targets.sum(1, keepdim=True) > 0) & (targets.sum(2, keepdim=True) > 0)
        cost = structure["log_C"].exp() if "log_C" in structure else (-structure["log_regularisation"]).exp()
        shared = cost * (compare(structure, features, features) + constant)
        if support.mask is not None:
            shared = shared * (support.mask.unsqueeze(1) & support.mask.unsqueeze(2)).to(shared)
        spread, solve = optimum(shared.detach(), targets, allowed)
        # of the derivative of the dual, only this part has Q in it
        slope = (spread - targets) @ shared
        coefficients = cost * (targets - implicit(spread, slope, solve)).mT
        fitted = {"offset": constant * coefficients.sum(1), "counts": member.sum(1)}
        if linear:
            return {**fitted, "weights": features.mT @ coefficients}
        return {**fitted, "support": features, "weights": coefficients}

    def outputs(structure: Params, fitted: Params, features: Tensor) -> Tensor:
        kernel = features if linear else compare(structure, features, fitted["support"])
        scores = kernel @ fitted["weights"]
        return structure["log_scale"].exp() * (scores + fitted["offset"].unsqueeze(1))

    logs = {f"log_{name}": math.log(value) for name, value in numbers.items() if name != "width" or not linear}
    head = Head(logs, fit, outputs, losses.cross_entropy)
    return learner(module, head, ways=ways, shared_classes=shared_classes, **options)


@extends(machine)
def svm(module: nn.Module | None = None, *, C: Positive = 0.1, **options: Any) -> Learner:
    """Learn an embedding f on which a multi-class support vector machine, solved for each task, is right (MetaOptNet).

    The machine of Crammer and Singer: minimise ½ Σ_k ‖w_k‖² + C Σ_n ξ_n such that, for every example n and class k,
    (w_{y_n} − w_k) · f(x_n) ≥ 1 − [k = y_n] − ξ_n. Its dual is solved to rounding, and differentiated exactly by the
    implicit function theorem (there is a kink where an example is about to become, or no longer be, a support vector).
    The logit of class k is γ w_k · f(x).

    M is log C, log γ and, with ``kernel="rbf"``, log ℓ: k(x, x′) = exp(−‖f(x) − f(x′)‖² / (2 d ℓ²)) for d features
    takes the place of f(x) · f(x′). (The paper fixes C = 0.1 and the linear kernel.)

    Args:
        module: the embedding, its outputs flattened; ``None``: the inputs themselves, flattened.
        C: where C starts, which is learned: what an example counts against a wide margin.
        options: those of `machine`.

    Raises:
        UsageError: a start that is not above 0.
        UnknownNameError: another kernel.

    Reference: Lee, Maji, Ravichandran, Soatto 2019, arXiv:1904.03758; Crammer, Singer 2001, JMLR 2, 265-292.

    >>> import torch, headstart
    >>> from headstart.algorithms.heads.kernel_machines import svm
    >>> learner = svm(C=100.0)
    >>> support = headstart.Batch(torch.tensor([[[-1.0], [3.0]]]), torch.tensor([[0, 1]]))
    >>> adapted, _ = learner.adapt(learner.init(None), support)
    >>> logits = learner.predict(adapted, torch.tensor([[[-1.0], [3.0]]]))
    >>> (logits[..., 1] - logits[..., 0]).round(decimals=4)  # the margins of the support vectors
    tensor([[-1.,  1.]])
    """
    return machine(module, maximum_margin, {"C": C}, **options)


@extends(machine)
def logistic(module: nn.Module | None = None, *, regularisation: Positive = 1.0, **options: Any) -> Learner:
    """Learn an embedding f on which multinomial logistic regression, solved for each task, is right.

    Minimise λ/2 Σ_k ‖w_k‖² + Σ_n −log softmax(w · f(x_n))[y_n], by Newton's method until it has converged; the
    derivative is that of the solution, by the implicit function theorem. (LR-D2 of Bertinetto et al. 2018 goes through
    few steps.) The logit of class k is γ w_k · f(x). M is log λ, log γ and, with ``kernel="rbf"``, log ℓ as in `svm`.

    Args:
        module: the embedding, its outputs flattened; ``None``: the inputs themselves, flattened.
        regularisation: where the penalty λ starts, which is learned.
        options: those of `machine`.

    Raises:
        UsageError: a start that is not above 0.
        UnknownNameError: another kernel.

    >>> import torch, headstart
    >>> from headstart.algorithms.heads.kernel_machines import logistic
    >>> learner = logistic()
    >>> support = headstart.Batch(torch.tensor([[[-1.0], [3.0]]]), torch.tensor([[0, 1]]))
    >>> adapted, _ = learner.adapt(learner.init(None), support)
    >>> learner.predict(adapted, torch.tensor([[[-2.0], [5.0]]])).argmax(-1)
    tensor([[0, 1]])
    """
    return machine(module, maximum_entropy, {"regularisation": regularisation}, **options)


_STEPS = 60
_SWEEPS = 40
#: Added to Q among the pairs that are free, relative to its diagonal; refinement takes it out again.
_RIDGE = 1e-8


def maximum_margin(shared: Tensor, targets: Tensor, allowed: Tensor) -> Solved:
    """Solve the dual of the multi-class support vector machine of Crammer and Singer.

    A primal-dual interior-point method (Mehrotra's predictor and corrector) finds which pairs of an example and a
    class are free (P > 0); a solve on these is then exact to rounding, and gives the derivative.
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
        text = "%d of %d tasks' classifiers were solved to %.1g only; features, or C, may be too large"
        logger.warning(text, int(unsolved.sum()), len(wrong), wrong.max().item())


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
        better = ((reached < gap) & ~done).view(-1, 1, 1)
        best, chosen = torch.where(better, spread, best), torch.where(better, free, chosen)
        gap = torch.where(better.flatten(), reached, gap)
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
            left = torch.where(moving, right - found @ shared, 0)
            # λ takes up what all classes of an example share: without it, rounding is that of what is left
            left = torch.where(moving, left - left.sum(1, keepdim=True) / members, 0)
            found = found + factors.solve(left, -found.sum(1))[0]
        return found


def margin_slope(shared: Tensor, targets: Tensor, spread: Tensor) -> Tensor:
    """Return the derivative of the support vector machine's dual with respect to P."""
    return (spread - targets) @ shared + targets


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
    """λ ``(B, 1, n)``, those of the sums of P."""


def _chosen(tasks: Tensor, one: _Point, other: _Point) -> _Point:
    return _Point(*(torch.where(tasks.view(-1, 1, 1), a, b) for a, b in zip(one, other)))


def _interior_point(shared: Tensor, targets: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Return P and its multipliers z ≥ 0, with P z near 0."""
    size = shared.diagonal(dim1=1, dim2=2).amax(1)
    goal = 1e-9 * torch.minimum(size, 1 / size)
    spread = allowed.to(shared) / allowed.sum(1, keepdim=True).clamp(min=1)
    slope = margin_slope(shared, targets, spread)
    lowest = slope.masked_fill(~allowed, torch.inf).amin(1, keepdim=True)
    level = torch.where(allowed.any(1, keepdim=True), lowest - (1 + size).view(-1, 1, 1), 0)
    point = best = _Point(spread, torch.where(allowed, slope - level, 1), level)
    least = torch.full_like(size, torch.inf)
    done = torch.zeros_like(size, dtype=torch.bool)
    for _ in range(_STEPS):
        gap = margin_gap(shared, targets, point.spread, allowed)
        best = _chosen(gap < least, point, best)
        least = torch.fmin(least, gap)
        # where the gap grows, rounding has taken over
        done = done | ~(_mean(allowed, point.spread * point.slack) > goal) | ~(gap <= 100 * least)
        if bool(done.all()):
            break
        moves = _direction(shared, targets, allowed, point)
        length = 0.995 * _longest(allowed, point, moves).clamp(max=1 / 0.995)
        moved = _Point(*(value + length.view(-1, 1, 1) * way for value, way in zip(point, moves)))
        point = _chosen(done, point, moved)
    return best.spread, best.slack


def _mean(allowed: Tensor, products: Tensor) -> Tensor:
    return torch.where(allowed, products, 0).sum((1, 2)) / allowed.sum((1, 2)).clamp(min=1)


def _direction(shared: Tensor, targets: Tensor, allowed: Tensor, point: _Point) -> _Point:
    """Return Mehrotra's step: where a plain step leads says how far to aim for the centre."""
    spread, slack, level = point
    off = torch.where(allowed, margin_slope(shared, targets, spread) - level - slack, 0)
    short = allowed.any(1).to(spread) - spread.sum(1)
    factors = coupled(shared, spread / slack)

    def towards(product: Tensor) -> _Point:
        """Solve for P z to change by ``product``, to first order."""
        moved, shift = factors.solve(torch.where(allowed, product / spread, 0) - off, short)
        return _Point(moved, torch.where(allowed, (product - slack * moved) / spread, 0), shift.unsqueeze(1))

    plain = towards(-spread * slack)
    length = _longest(allowed, point, plain).clamp(max=1).view(-1, 1, 1)
    mean = _mean(allowed, spread * slack)
    reached = _mean(allowed, (spread + length * plain.spread) * (slack + length * plain.slack))
    centre = mean * (reached / mean.clamp(min=1e-300)).clamp(0, 1) ** 3
    return towards(centre.view(-1, 1, 1) - spread * slack - plain.spread * plain.slack)


def _longest(allowed: Tensor, point: _Point, move: _Point) -> Tensor:
    """Return how far a task can go ``(B,)`` before one of its values is 0."""
    limits = (
        torch.where(allowed & (way < 0), -value / way, torch.inf).amin((1, 2))
        for value, way in zip(point[:2], move[:2])
    )
    return torch.minimum(*limits)


def maximum_entropy(shared: Tensor, targets: Tensor, allowed: Tensor) -> Solved:
    """Solve multinomial logistic regression: Newton's method, halving steps that do not descend.

    At the optimum P = softmax(Q (Y − P)).
    """
    there = allowed.any(1, keepdim=True)

    def softmax(dual: Tensor) -> tuple[Tensor, Tensor]:
        """Return softmax(Q dual) among what is allowed, and the value ``(B,)`` of the penalised loss."""
        scores = dual @ shared
        # an example that is not there has no class at all
        shown = torch.where(there, scores.masked_fill(~allowed, -torch.inf), 0)
        costs = torch.where(there, shown.logsumexp(1, keepdim=True), 0).sum((1, 2))
        value = costs + (scores * (dual / 2 - targets)).sum((1, 2))
        return torch.where(allowed, shown.softmax(1), 0), value

    with torch.no_grad():
        dual = torch.zeros_like(targets)
        done = torch.zeros(len(targets), dtype=torch.bool, device=targets.device)
        for _ in range(_STEPS):
            spread, value = softmax(dual)
            wrong = dual - (targets - spread)
            done = done | ~(wrong.abs().amax((1, 2)) > 1e-14)
            if bool(done.all()):
                break
            moves = coupled(shared, spread).solve(wrong @ shared)[0] - wrong
            # the first of the lengths 1, ½, ¼, … that does not raise the loss
            length, most = torch.ones_like(value), value + 1e-12 * (1 + value.abs())
            for _ in range(30):
                short = softmax(dual + length.view(-1, 1, 1) * moves)[1] > most
                if not bool(short.any()):
                    break
                length = torch.where(short, length / 2, length)
            dual = dual + torch.where(done, 0, length).view(-1, 1, 1) * moves
        spread, _ = softmax(dual)
        factors = coupled(shared, spread)
        _warn((dual - (targets - spread)).abs().amax((1, 2)))
        return Solved(targets - dual, lambda right: factors.solve(right)[0])


class Coupled(NamedTuple):
    """The factors of (Q + W⁻¹) for each class, and of their sum; `coupled` makes them."""

    half: Tensor
    """``(B, K, n, n)``; halfᵀ half is (Q + W⁻¹)⁻¹."""
    total: Tensor
    """``(B, n, n)``, the Cholesky factor of the sum of these inverses over the classes."""

    def solve(self, right: Tensor, sums: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x ``(B, K, n)`` and λ ``(B, n)`` with (Q + W⁻¹) x_k − λ = right_k and Σ_k x_k = sums, 0 by default."""
        own = self._inverse(right)
        short = -own.sum(1) if sums is None else sums - own.sum(1)
        shift = torch.cholesky_solve(short.unsqueeze(-1), self.total).squeeze(-1)
        return own + self._inverse(shift.unsqueeze(1).expand_as(right)), shift

    def _inverse(self, right: Tensor) -> Tensor:
        return (self.half.mT @ (self.half @ right.unsqueeze(-1))).squeeze(-1)


def coupled(shared: Tensor, weights: Tensor) -> Coupled:
    """Factor the blocks Q + W_k⁻¹.

    Args:
        shared: Q, positive semidefinite ``(B, n, n)``.
        weights: the diagonals of W ``(B, K, n)``, at least 0; where one is 0, x is 0.
    """
    root = weights.sqrt()
    scaled = root.unsqueeze(-1) * shared.unsqueeze(1) * root.unsqueeze(-2)
    lower = torch.linalg.cholesky_ex(scaled + torch.eye(scaled.shape[-1]).to(scaled))[0]
    # as a product with its own transpose, the inverse stays positive semidefinite whatever the rounding
    half = torch.linalg.solve_triangular(lower, torch.diag_embed(root), upper=False)
    stacked = half.flatten(1, 2)
    total = stacked.mT @ stacked
    diagonal = total.diagonal(dim1=1, dim2=2)
    lifted = torch.where(diagonal == 0, 1, 1e-15 * diagonal)
    return Coupled(half, torch.linalg.cholesky_ex(total + torch.diag_embed(lifted))[0])


def implicit(solution: Tensor, residual: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``solution``, with the derivative that it has as the root of ``residual``.

    Where r(p, θ) = 0 defines p(θ), dp = −(∂r/∂p)⁻¹ ∂r/∂θ dθ, however the root was found.

    Args:
        solution: the root p, found without history.
        residual: r(p, θ) at ``solution``, of its shape, with its history back to θ alone. Its value is not used.
        solve: ``v -> (∂r/∂p)⁻¹ v``, where ∂r/∂p is symmetric, as that of an optimum is.

    Second derivatives are refused.

    >>> import torch
    >>> square = torch.tensor(9.0, requires_grad=True)
    >>> root = torch.tensor(3.0)  # of p² = square
    >>> torch.autograd.grad(implicit(root, root**2 - square, lambda v: v / (2 * root)), square)[0]
    tensor(0.1667)
    """

    def through(slope: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            text = "a solution that is differentiated implicitly has a first derivative only"
            raise DifferentiationError(f"{text}; differentiate without create_graph=True")
        return -solve(slope)

    change = residual - residual.detach()  # 0, with the history of the residual
    if change.requires_grad:
        change.register_hook(through)
    return solution + change
