"""Linear systems of B tasks, solved at once from products with their matrices.

Every task has its own matrix A and its own numbers; a task that is done, or breaks down, stands still while the
others go on, without any value being read back from the device. All right sides are `Params`, each ``(B, *shape)``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from headstart.core import tree
from headstart.errors import UsageError
from headstart.types import Params

Product: TypeAlias = Callable[[Params], Params]
"""``v -> A v`` for every task's own A."""


class Solution(NamedTuple):
    """What a solver has reached: x, and every task's ‖right − A x‖ / ‖right‖ ``(B,)``, 0 where the right side is 0."""

    value: Params
    residual: Tensor


Solver: TypeAlias = Callable[[Product, Params], Solution]
"""``(v -> A v, right) -> x with A x ≈ right``, for every task's own matrix A."""


@dataclass(frozen=True, kw_only=True)
class ConjugateGradient:
    """Solve (A + damping I) x = right by conjugate gradients, for symmetric positive definite A.

    Without rounding, as many iterations as A has distinct eigenvalues give the solution. A task stops where its
    relative residual falls to ``tolerance``, and where a direction has no positive curvature, since A is then not
    positive definite; one that meets such a direction first has x = 0.

    For `Implicit` A is that of a step's displacement, ``rate · (∇²loss + λ I)``, with `rules.proximal` hard enough.

    Reference: Hestenes, Stiefel 1952, doi:10.6028/jres.049.044.
    """

    iterations: int = 5
    tolerance: float = 0.0
    damping: float = 0.0

    def __post_init__(self) -> None:
        _require_count("ConjugateGradient(iterations=...)", self.iterations, 1)
        if self.tolerance < 0 or self.damping < 0:
            raise UsageError(
                f"ConjugateGradient's tolerance and damping must be 0 or more, got {self.tolerance} and {self.damping}"
            )

    def __call__(self, product: Product, right: Params) -> Solution:
        value, residual, direction = tree.zeros_like(right), right, right
        start = size = _dot(right, right)
        for _ in range(self.iterations):
            image = product(direction)
            if self.damping:
                image = {name: each + self.damping * direction[name] for name, each in image.items()}
            curvature = _dot(direction, image)
            going = (size > self.tolerance**2 * start) & (curvature > 0) & curvature.isfinite()
            length = size / torch.where(going, curvature, 1)
            value = _chosen(going, _sum(value, length, direction), value)
            residual = _chosen(going, _sum(residual, -length, image), residual)
            reached = _dot(residual, residual)
            onward = _sum(residual, reached / torch.where(size > 0, size, 1), direction)
            direction = _chosen(going, onward, direction)
            size = reached
        return Solution(value, _ratio(size, start))


@dataclass(frozen=True, kw_only=True)
class Neumann:
    """Solve A x = right by x = Σₖ (I − A)ᵏ right, with k from 0 to ``terms``: ``terms`` + 1 terms in all.

    The series converges where I − A is a contraction, as a step of a rule for `Implicit`; A need not be symmetric. Each
    task has the partial sum with the smallest residual. At the point of rest it is `Truncated` to ``terms`` + 1 steps.
    """

    terms: int = 20

    def __post_init__(self) -> None:
        _require_count("Neumann(terms=...)", self.terms, 0)

    def __call__(self, product: Product, right: Params) -> Solution:
        best, value, residual = tree.zeros_like(right), tree.zeros_like(right), right
        start = size = _dot(right, right)
        for term in range(self.terms + 1):
            value = {name: each + residual[name] for name, each in value.items()}
            image = product(residual)
            residual = {name: each - image[name] for name, each in residual.items()}
            reached = _dot(residual, residual)
            # the first term is what there is to go by where even the second leads away
            better = torch.ones_like(reached, dtype=torch.bool) if term == 0 else reached < size
            best, size = _chosen(better, value, best), torch.where(better, reached, size)
        return Solution(best, _ratio(size, start))


def _require_count(what: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise UsageError(f"{what} must be a whole number from {least} up, got {value!r}")


def _dot(left: Params, right: Params) -> Tensor:
    parts = [(value * right[name]).reshape(len(value), -1).sum(1) for name, value in left.items()]
    return torch.stack(parts).sum(0)


def _sum(one: Params, factor: Tensor, other: Params) -> Params:
    return {name: value + tree.over_tasks(factor, value) * other[name] for name, value in one.items()}


def _chosen(which: Tensor, one: Params, other: Params) -> Params:
    return {name: torch.where(tree.over_tasks(which, value), value, other[name]) for name, value in one.items()}


def _ratio(size: Tensor, start: Tensor) -> Tensor:
    return (size / torch.where(start == 0, 1, start)).sqrt()
