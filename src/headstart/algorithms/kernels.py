"""Kernels as pure functions of (M, x, x′): covariances between the values of a random function.

A `Kernel` is a value: `start` makes its part of M, `matrix` gives k(x, x′) of every pair, `diagonal` k(x, x). Positive
numbers stand in M by their logarithms. `total` adds kernels up, each under its own name.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from headstart.core import tree
from headstart.errors import UsageError
from headstart.types import Params

#: Up to so many features, distances are sums over differences, which do not suffer from cancellation.
FEW_FEATURES = 32


class Kernel(NamedTuple):
    """A covariance function."""

    start: Callable[[Generator | None, torch.dtype], Params]
    """``(generator, dtype)``: the parameters to start from; few kernels draw any of them."""
    matrix: Callable[[Params, Tensor, Tensor], Tensor]
    """k(x, x′) ``(B, n, m)`` for ``x`` ``(B, n, d)`` and ``x′`` ``(B, m, d)``."""
    diagonal: Callable[[Params, Tensor], Tensor]
    """k(x, x) ``(B, n)``."""


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """Return ‖x − x′‖² ``(B, n, m)`` for ``(B, n, d)`` and ``(B, m, d)``; never negative."""
    if left.shape[-1] <= FEW_FEATURES:
        return (left.unsqueeze(2) - right.unsqueeze(1)).square().sum(-1)
    squares = left.square().sum(-1).unsqueeze(-1) + right.square().sum(-1).unsqueeze(-2)
    return (squares - 2 * left @ right.transpose(1, 2)).clamp(min=0)


def rbf(features: int | None = None, *, scale: float = 1.0, length: float = 1.0) -> Kernel:
    """k(x, x′) = s² exp(−½ Σ_d (x_d − x′_d)² / l_d²), the squared exponential.

    Args:
        features: number of features d, for a length of each (automatic relevance determination); ``None``: one length.
        scale: s to start from.
        length: l to start from.
    """
    return _stationary(lambda square: torch.exp(-0.5 * square), features, scale, length)


def matern(features: int | None = None, *, smoothness: float = 2.5, scale: float = 1.0, length: float = 1.0) -> Kernel:
    """The Matérn kernel of smoothness ν = 1/2, 3/2 or 5/2 (Rasmussen, Williams 2006, equation 4.17).

    With r² = Σ_d (x_d − x′_d)² / l_d² and c = √(2ν) r: s² exp(−c) times 1, 1 + c, or 1 + c + c² / 3.

    Args:
        features, scale, length: as in `rbf`.
        smoothness: ν; its functions can be differentiated less than ν times.

    Raises:
        UsageError: another smoothness.
    """
    polynomials: dict[float, Callable[[Tensor], Tensor]] = {
        0.5: torch.ones_like,
        1.5: lambda c: 1 + c,
        2.5: lambda c: 1 + c + c.square() / 3,
    }
    if smoothness not in polynomials:
        raise UsageError(f"smoothness must be one of {', '.join(map(str, polynomials))}, got {smoothness}")

    def shape(square: Tensor) -> Tensor:
        c = math.sqrt(2 * smoothness) * tree.safe_sqrt(square)
        return polynomials[smoothness](c) * torch.exp(-c)

    return _stationary(shape, features, scale, length)


def _stationary(shape: Callable[[Tensor], Tensor], features: int | None, scale: float, length: float) -> Kernel:
    """Return s² · shape(Σ_d (x_d − x′_d)² / l_d²), where shape(0) = 1."""

    def start(generator: Generator | None, dtype: torch.dtype) -> Params:
        return {
            "log_scale": torch.tensor(math.log(scale), dtype=dtype),
            "log_length": torch.full((features or 1,), math.log(length), dtype=dtype),
        }

    def matrix(params: Params, left: Tensor, right: Tensor) -> Tensor:
        by = torch.exp(-params["log_length"])
        return torch.exp(2 * params["log_scale"]) * shape(squared_distances(left * by, right * by))

    return Kernel(start, matrix, lambda params, x: torch.exp(2 * params["log_scale"]).expand(x.shape[:2]))


def linear(*, scale: float = 1.0, offset: float = 1.0) -> Kernel:
    """k(x, x′) = s² x·x′ + b²: a random linear function with a random intercept, all slopes alike and independent.

    Args:
        scale, offset: s and b to start from.
    """

    def start(generator: Generator | None, dtype: torch.dtype) -> Params:
        logs = {"log_scale": math.log(scale), "log_offset": math.log(offset)}
        return {name: torch.tensor(value, dtype=dtype) for name, value in logs.items()}

    def squared(params: Params, products: Tensor) -> Tensor:
        return torch.exp(2 * params["log_scale"]) * products + torch.exp(2 * params["log_offset"])

    return Kernel(
        start,
        lambda params, left, right: squared(params, left @ right.transpose(1, 2)),
        lambda params, x: squared(params, x.square().sum(-1)),
    )


def effects(features: int, *, intercept: float = 1.0, slopes: float = 1.0) -> Kernel:
    """k(x, x′) = [1, x] L Lᵀ [1, x′]ᵀ: random intercept and slopes with a full covariance L Lᵀ.

    The random effects of a linear mixed-effects model (Laird, Ware 1982); L is `triangular`.

    Args:
        features: number of features d.
        intercept, slopes: standard deviations to start from, without correlation.
    """
    size = features + 1

    def start(generator: Generator | None, dtype: torch.dtype) -> Params:
        logs = torch.full((size,), math.log(slopes), dtype=dtype)
        logs[0] = math.log(intercept)
        return {"log_diagonal": logs, "lower": torch.zeros(size * (size - 1) // 2, dtype=dtype)}

    def weighted(params: Params, x: Tensor) -> Tensor:
        return with_one(x) @ triangular(params["log_diagonal"], params["lower"])

    return Kernel(
        start,
        lambda params, left, right: weighted(params, left) @ weighted(params, right).transpose(1, 2),
        lambda params, x: weighted(params, x).square().sum(-1),
    )


def covariance(params: Params) -> Tensor:
    """Return the covariance L Lᵀ of `effects`: of the intercept and the slopes, ``(1 + d, 1 + d)``."""
    factor = triangular(params["log_diagonal"], params["lower"])
    return factor @ factor.mT


def of_first(features: int, kernel: Kernel) -> Kernel:
    """Return the kernel of the first ``features`` of its inputs."""
    return kernel._replace(
        matrix=lambda params, left, right: kernel.matrix(params, left[..., :features], right[..., :features]),
        diagonal=lambda params, x: kernel.diagonal(params, x[..., :features]),
    )


def with_one(x: Tensor) -> Tensor:
    """Return [1, x] ``(B, n, 1 + d)``."""
    return torch.cat([torch.ones_like(x[..., :1]), x], -1)


def triangular(log_diagonal: Tensor, lower: Tensor) -> Tensor:
    """Return diag(exp(log_diagonal)) · (I + strictly lower triangle filled with ``lower`` row by row)."""
    size = len(log_diagonal)
    rows, columns = torch.tril_indices(size, size, -1, device=lower.device)
    unit = torch.eye(size, dtype=lower.dtype, device=lower.device).index_put((rows, columns), lower)
    return torch.exp(log_diagonal).unsqueeze(-1) * unit


def spectral(features: int | None = None, *, mixtures: int = 4, scale: float = 1.0, length: float = 1.0) -> Kernel:
    """k(x, x′) = Σ_q s_q² Π_d exp(−2π² v_qd² τ_d²) cos(2π μ_qd τ_d), τ = x − x′: the spectral mixture kernel.

    Its spectrum is a mixture of Gaussians of means ±μ_q and standard deviations v_q.

    Args:
        features: number of features d, for frequencies of each; ``None``: all features have the same.
        mixtures: number of Gaussians.
        scale: √(Σ s_q²) to start from.
        length: v starts as 1 / (2π length); log μ is drawn around the same number, from N(log v, 1).

    Reference: Wilson, Adams 2013, arXiv:1302.4245, equation 12.
    """
    shape = (mixtures, features or 1)
    middle = -math.log(2 * math.pi * length)

    def start(generator: Generator | None, dtype: torch.dtype) -> Params:
        spread = torch.linspace(-1, 1, mixtures, dtype=dtype).unsqueeze(-1).expand(shape)
        drawn = spread if generator is None else torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        return {
            "log_scale": torch.full((mixtures,), math.log(scale) - 0.5 * math.log(mixtures), dtype=dtype),
            "log_frequency": middle + drawn,
            "log_spread": torch.full(shape, middle, dtype=dtype),
        }

    def matrix(params: Params, left: Tensor, right: Tensor) -> Tensor:
        gaps = 2 * math.pi * (left.unsqueeze(2) - right.unsqueeze(1))
        parts = zip(*(torch.exp(params[name]) for name in ("log_scale", "log_frequency", "log_spread")))
        # one mixture at a time: gaps are the largest tensor here already
        return torch.stack(
            [
                scale.square() * torch.exp(-0.5 * (gaps * spread).square().sum(-1)) * torch.cos(gaps * mean).prod(-1)
                for scale, mean, spread in parts
            ]
        ).sum(0)

    return Kernel(start, matrix, lambda params, x: torch.exp(2 * params["log_scale"]).sum().expand(x.shape[:2]))


def total(parts: Mapping[str, Kernel]) -> Kernel:
    """Return the sum of kernels; the parameters of each are named ``name.…``.

    >>> both = total({"trend": linear(), "rest": rbf()})
    >>> sorted(both.start(None, torch.float32))
    ['rest.log_length', 'rest.log_scale', 'trend.log_offset', 'trend.log_scale']
    """

    def start(generator: Generator | None, dtype: torch.dtype) -> Params:
        made: Params = {}
        for name, kernel in parts.items():
            made |= tree.prefixed(name, kernel.start(generator, dtype))
        return made

    def summed(params: Params, of: Callable[[Kernel, Params], Tensor]) -> Tensor:
        return torch.stack([of(one, tree.within(params, name)) for name, one in parts.items()]).sum(0)

    return Kernel(
        start,
        lambda params, left, right: summed(params, lambda one, own: one.matrix(own, left, right)),
        lambda params, x: summed(params, lambda one, own: one.diagonal(own, x)),
    )
