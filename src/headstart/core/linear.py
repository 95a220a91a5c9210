"""Linear systems of B tasks, solved at once from products with their matrices.

Every task has its own matrix A and its own numbers; a task that is done, or breaks down, stands still while the
others go on, without any value being read back from the device. All right sides are `Params`, each ``(B, *shape)``.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from headstart.core import tree
from headstart.types import Params

Product: TypeAlias = Callable[[Params], Params]
"""``v -> A v`` for every task's own A."""


class Solution(NamedTuple):
    """What a solver has reached."""

    value: Params
    """x, with A x ≈ right."""
    residual: Tensor
    """‖right − A x‖ / ‖right‖ of every task, ``(B,)``; 0 where the right side is 0."""


def conjugate_gradient(
    product: Product, right: Params, *, iterations: int, tolerance: float = 0.0, damping: float = 0.0
) -> Solution:
    """Solve (A + damping I) x = right by conjugate gradients, for symmetric positive definite A.

    Without rounding, as many iterations as A has distinct eigenvalues give the solution. A task stops where its
    relative residual falls to ``tolerance``, and where a direction has no positive curvature, since A is then not
    positive definite; one that meets such a direction first has x = 0.

    Reference: Hestenes, Stiefel 1952, doi:10.6028/jres.049.044.
    """
    value, residual, direction = tree.zeros_like(right), right, right
    start = size = _dot(right, right)
    for _ in range(iterations):
        image = product(direction)
        image = {name: each + damping * direction[name] for name, each in image.items()} if damping else image
        curvature = _dot(direction, image)
        going = (size > tolerance**2 * start) & (curvature > 0) & curvature.isfinite()
        length = size / torch.where(going, curvature, 1)
        value = _moved(going, value, length, direction)
        residual = _moved(going, residual, -length, image)
        reached = _dot(residual, residual)
        onward = _sum(residual, reached / torch.where(size > 0, size, 1), direction)
        direction = _chosen(going, onward, direction)
        size = reached
    return Solution(value, _ratio(size, start))


def neumann(product: Product, right: Params, *, terms: int, rate: float = 1.0) -> Solution:
    """Solve A x = right by x = rate Σₖ (I − rate A)ᵏ right, with k from 0 to ``terms``: ``terms`` + 1 terms in all.

    The series converges where I − rate A is a contraction; A need not be symmetric. Each task has the partial sum with
    the smallest residual, so that one whose series diverges has what it had reached before.
    """
    best, value, residual = tree.zeros_like(right), tree.zeros_like(right), right
    start = size = _dot(right, right)
    for term in range(terms + 1):
        value = {name: each + rate * residual[name] for name, each in value.items()}
        image = product(residual)
        residual = {name: each - rate * image[name] for name, each in residual.items()}
        reached = _dot(residual, residual)
        # the first term is what there is to go by where even the second leads away
        better = torch.ones_like(reached, dtype=torch.bool) if term == 0 else reached < size
        best, size = _chosen(better, value, best), torch.where(better, reached, size)
    return Solution(best, _ratio(size, start))


def _dot(left: Params, right: Params) -> Tensor:
    """Return every task's inner product ``(B,)``."""
    parts = [(value * right[name]).reshape(len(value), -1).sum(1) for name, value in left.items()]
    return torch.stack(parts).sum(0)


def _sum(one: Params, factor: Tensor, other: Params) -> Params:
    return {name: value + tree.over_tasks(factor, value) * other[name] for name, value in one.items()}


def _moved(going: Tensor, value: Params, length: Tensor, direction: Params) -> Params:
    """Return ``value + length · direction`` for the tasks that are going."""
    return _chosen(going, _sum(value, length, direction), value)


def _chosen(which: Tensor, one: Params, other: Params) -> Params:
    return {name: torch.where(tree.over_tasks(which, value), value, other[name]) for name, value in one.items()}


def _ratio(size: Tensor, start: Tensor) -> Tensor:
    return (size / torch.where(start == 0, 1, start)).sqrt()
