"""Derivatives held against central differences."""

from collections.abc import Callable

import torch
from torch import Generator

from headstart.testing.contract import require
from headstart.types import Params

#: Lengths of the step along a direction of length 1. The best of float64 is near 1e-5; shorter ones are for
#: directions with a kink (of a ReLU, of a maximum) nearby.
STEPS = (1e-5, 3e-6, 1e-6, 1e-4)


def check_derivative(
    function: Callable[[Params], float],
    point: Params,
    gradient: Params,
    *,
    contract: str,
    directions: int = 3,
    tolerance: float = 1e-6,
) -> None:
    """Hold ``gradient`` against central differences of ``function`` at ``point`` along random directions.

    A difference is trusted where two step lengths agree on it. Where they never do, the function has a kink close by
    and another direction is drawn: a kink fails no right gradient, and nothing passes a wrong one.

    Args:
        function: from tensors named and shaped as ``point`` to a number, in float64.
        point: where to differentiate.
        gradient: what is claimed to be the derivative there.
        contract: what the message calls the claim.
        directions: how many directions must agree.
        tolerance: relative to the gradient's root mean square, which is what a slope is on average.

    Raises:
        ContractError: the gradient is wrong, or no differences can be trusted here.
    """
    count = sum(value.numel() for value in point.values())
    size = sum(g.square().sum().item() for g in gradient.values()) ** 0.5 / max(count, 1) ** 0.5
    # the second term is what rounding of the function's own value leaves undecided
    allowed = tolerance * (size + 1e-3 * abs(function(point)))
    generator = torch.Generator().manual_seed(0)
    trusted = 0
    for _ in range(3 * directions):
        direction = _direction(point, generator)
        slope = sum((gradient[name] * d).sum().item() for name, d in direction.items())
        difference = _difference(function, point, direction, allowed / 4)
        if difference is None:
            continue
        claim = f"along a random direction the gradient says {slope:.10g}, central differences say {difference:.10g}"
        gap = abs(slope - difference)
        off = f"they differ by {gap:.2g}, {allowed:.2g} is allowed"
        require(gap <= allowed, contract, f"{claim} ({off}); it is not the derivative")
        trusted += 1
        if trusted == directions:
            return
    claim = f"central differences settled along {trusted} of {3 * directions} directions only, {directions} are needed"
    why = "the function is not smooth around these values, or its value is not computed in float64"
    require(False, contract, f"{claim}; {why}")


def _direction(point: Params, generator: Generator) -> Params:
    drawn = {k: torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v) for k, v in point.items()}
    length = sum(d.square().sum().item() for d in drawn.values()) ** 0.5
    return {name: d / length for name, d in drawn.items()}


def _difference(function: Callable[[Params], float], point: Params, direction: Params, allowed: float) -> float | None:
    """Return the slope on which two step lengths agree, or ``None``."""
    known: list[float] = []
    for h in STEPS:
        ahead, behind = (function({k: v + step * direction[k] for k, v in point.items()}) for step in (h, -h))
        slope = (ahead - behind) / (2 * h)
        if any(abs(slope - other) <= allowed for other in known):
            return slope
        known.append(slope)
    return None
