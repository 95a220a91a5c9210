"""Curves drawn from Gaussian processes, with the true process to compare predictions with."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from headstart.data.curves.points import point_tasks
from headstart.data.random import below, bits, check_deviations, normal, size_range, uniform
from headstart.errors import ShapeError, UsageError, pick
from headstart.schema import NotNegative, Positive, Size, extends
from headstart.types import Batch, Episodes, Gaussian, Tasks

Kernel = Literal["rbf", "matern", "periodic"]


class Covariance(NamedTuple):
    """A kernel k(x, x') that depends on the distance d = |x − x'| alone."""

    formula: str
    lengthscale: float
    """ℓ where none is given."""
    of: Callable[[Tensor, float], Tensor]
    """``(d, ℓ) -> k``"""


def _matern(distance: Tensor, lengthscale: float) -> Tensor:
    scaled = math.sqrt(5) * distance / lengthscale
    return (1 + scaled + scaled**2 / 3) * torch.exp(-scaled)


KERNELS: dict[str, Covariance] = {
    "rbf": Covariance("exp(-d² / 2ℓ²)", 0.4, lambda d, length: torch.exp(-0.5 * (d / length) ** 2)),
    "matern": Covariance("(1 + s + s²/3) exp(-s), s = √5 d / ℓ", 0.4, _matern),
    "periodic": Covariance(
        "exp(-2 sin²(π d) / ℓ²)", 1.0, lambda d, length: torch.exp(-2 * (torch.sin(math.pi * d) / length) ** 2)
    ),
}
"""The kernels that there are: squared-exponential, Matérn of smoothness 5/2, and periodic with period 1."""

#: A variance beside the noise's, so that curves without noise can be drawn.
_JITTER = 1e-8


@extends(point_tasks)
def gp_curves(
    *,
    kernel: Kernel = "rbf",
    shots: Size | tuple[Size, Size] = (3, 20),
    queries: Size = 50,
    noise: NotNegative = 0.1,
    lengthscale: Positive | None = None,
    **options: Any,
) -> Tasks:
    """Regress curves drawn from one Gaussian process from a few noisy points: what neural processes are judged on.

    Every task draws x ~ U[-2, 2] for each of its points and y ~ N(0, K + noise² I), support and query together, K
    the kernel's covariance of the points (`KERNELS`; variance 1). Where ``shots`` is a range, every task draws its
    number of support points from it, uniformly; the sets are padded to the largest and masked. `true_distribution`
    gives the posterior of the process itself, which no learner can beat on average.

    Args:
        kernel: the covariance of the process that curves are drawn from.
        shots: support points of a task, or the least and the most of them.
        queries: query points of a task.
        noise: standard deviation of the noise in y, of the query set too. The curves' own is 1.
        lengthscale: ℓ of the kernel, in units of x (without unit for 'periodic'); 0.4 by default, 1 for 'periodic'.
        options: those of `point_tasks`: seed, device, dtype.

    Raises:
        UsageError: a range that is empty, or a noise or a length that is not a number of its kind.
        UnknownNameError: a kernel that does not exist.

    Curves from a known process as the test of a learner: Garnelo et al. 2018, arXiv:1807.01613.

    >>> support, query = gp_curves(shots=(3, 5)).sample("train", range(16))
    >>> support.x.shape, sorted(set(support.mask.sum(1).tolist())), query.y.shape
    (torch.Size([16, 5, 1]), [3, 4, 5], torch.Size([16, 50, 1]))
    """
    covariance = pick("kernel", kernel, KERNELS)
    length = covariance.lengthscale if lengthscale is None else lengthscale
    fewest, most = size_range("shots", shots)
    check_deviations(noise=noise)
    if not 0 < length < math.inf:
        raise UsageError(f"lengthscale must be a number above 0, got {length}")

    def draw(seed: int, split: str, numbers: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
        # support points first, so that they do not depend on the number of queries
        x = 4 * uniform(seed, split, numbers, stream=0, count=count) - 2
        white = normal(seed, split, numbers, stream=1, count=count)
        gram = _gram(x, x, kernel, length) + (noise**2 + _JITTER) * torch.eye(count, dtype=x.dtype)
        return x.unsqueeze(-1), (torch.linalg.cholesky(gram) * white.unsqueeze(1)).sum(-1)

    def sample(split: str, numbers: Sequence[int]) -> Episodes:
        support, query = full.sample(split, numbers)
        words = bits(full.details["seed"], split, numbers, stream=2, count=1)
        mask = (torch.arange(most) < fewest + below(words, most - fewest + 1)).to(support.x.device)
        x, y = (torch.where(mask.unsqueeze(2), values, 0) for values in (support.x, support.y))
        return Episodes(Batch(x, y, mask), query)

    details = {
        "kernel": kernel,
        "covariance": covariance.formula,
        "lengthscale": length,
        "x": (-2.0, 2.0),
        "noise": noise,
        "noise_variance": noise**2,
        "source": "Garnelo et al. 2018, arXiv:1807.01613 (the idea; kernels and numbers of points are options)",
    }
    full = point_tasks("gp_curves", draw, details, shots=most, queries=queries, **options)
    return full if fewest == most else full._replace(sample=sample, details={**full.details, "shots": (fewest, most)})


def true_distribution(tasks: Tasks, support: Batch, x: Tensor) -> Gaussian:
    """Return the distribution of every target at ``x`` given the support set, under the process that drew both.

    N(k(x, S) A⁻¹ y, 1 + noise² − k(x, S) A⁻¹ k(S, x)), A = K(S, S) + noise² I. No expected log-likelihood is higher.

    Args:
        tasks: of `gp_curves`.
        support: of those tasks; its mask is respected.
        x: ``(B, n, 1)``.

    Returns:
        Mean and variance ``(B, n, 1)``, computed in float64 and returned in the type of ``x``.

    Raises:
        UsageError: tasks of another family.
        ShapeError: points that are not ``(B, n, 1)``.

    >>> from headstart.data.curves.gp_curves import gp_curves, true_distribution
    >>> tasks = gp_curves(noise=0.2)
    >>> support, query = tasks.sample("test", range(4))
    >>> true_distribution(tasks, support, query.x).variance.min() >= 0.2**2
    tensor(True)
    """
    if tasks.name != "gp_curves":
        raise UsageError(f"the true process is known of 'gp_curves' tasks, not of {tasks.name!r}")
    if support.x.ndim != 3 or support.x.shape[2] != 1 or x.ndim != 3 or x.shape[2] != 1:
        raise ShapeError(f"points must be (tasks, n, 1); got {tuple(support.x.shape)} and {tuple(x.shape)}")
    kernel, length = tasks.details["kernel"], tasks.details["lengthscale"]
    variance = tasks.details["noise_variance"] + _JITTER
    known, asked, y = (values[..., 0].double() for values in (support.x, x, support.y))
    gram, cross = _gram(known, known, kernel, length), _gram(asked, known, kernel, length)
    there = torch.ones_like(y, dtype=torch.bool) if support.mask is None else support.mask
    y, cross = torch.where(there, y, 0), torch.where(there.unsqueeze(1), cross, 0)
    gram = torch.where(there.unsqueeze(1) & there.unsqueeze(2), gram, 0)
    factor = torch.linalg.cholesky(gram + variance * torch.eye(y.shape[1], dtype=y.dtype, device=y.device))
    weights = torch.linalg.solve_triangular(factor, cross.transpose(1, 2), upper=False)
    whitened = torch.linalg.solve_triangular(factor, y.unsqueeze(2), upper=False)
    left = (1 - weights.square().sum(1)).clamp(min=0) + variance
    return Gaussian(*(values.unsqueeze(2).to(x.dtype) for values in ((weights * whitened).sum(1), left)))


def _gram(left: Tensor, right: Tensor, kernel: str, lengthscale: float) -> Tensor:
    """Return the covariances ``(B, n, m)`` of points ``(B, n)`` and ``(B, m)``."""
    return KERNELS[kernel].of((left.unsqueeze(2) - right.unsqueeze(1)).abs(), lengthscale)
