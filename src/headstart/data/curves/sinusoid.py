"""The sinusoid family: the field's smallest benchmark, and the one with exact answers to check against."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headstart.data.curves.points import point_tasks
from headstart.data.random import uniform
from headstart.errors import UsageError
from headstart.schema import Positive, extends
from headstart.types import Tasks


@extends(point_tasks)
def sinusoid(*, frequency: tuple[Positive, Positive] = (1.0, 1.0), **options: Any) -> Tasks:
    """Regress y = A sin(x - p) from a few noiseless points (Finn, Abbeel, Levine 2017, arXiv:1703.03400).

    Every task draws its amplitude A ~ U[0.1, 5] and phase p ~ U[0, pi], and x ~ U[-5, 5] for each of its
    ``shots`` support and ``queries`` query points. ``x`` and ``y`` are ``(B, n, 1)``.

    Answering 0 has a mean squared error of E[A²] E[sin²(x - p)] = 4.252; the best answer that does not depend on the
    support set, -1.623 cos x, one of 3.006. A learner that stays near 3 has not adapted at all.

    With another ``frequency`` than (1, 1), y = A sin(w x + p), w ~ U[low, high], and the same A, p and x; mind the sign
    of the phase, which follows Li, Zhou, Chen, Li 2017 (Meta-SGD, arXiv:1707.09835), where the range is (0.8, 1.2).
    Answering 0 still costs 4.252; the best without the support set, 1.623 E[cos w x], 3.115 in that range.

    Args:
        frequency: angular frequency in radians per unit of x: a range ``(low, high)`` that tasks draw from.
        options: those of `point_tasks`: shots, queries, seed, device, dtype.

    Raises:
        UsageError: a frequency that is not 0 < low <= high.

    >>> sinusoid(shots=5).sample("train", range(25)).support.x.shape
    torch.Size([25, 5, 1])
    """
    try:
        low, high = (float(end) for end in frequency)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 < low <= high < math.inf:
        raise UsageError(f"frequency must be a pair (low, high) with 0 < low <= high, got {frequency!r}")
    plain = low == high == 1
    source = "Finn, Abbeel, Levine 2017, arXiv:1703.03400"
    if not plain:
        source = "Li, Zhou, Chen, Li 2017, arXiv:1707.09835 (theirs: frequencies from 0.8 to 1.2)"

    def draw(seed: int, split: str, numbers: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
        drawn = uniform(seed, split, numbers, stream=0, count=2 + count)
        amplitude, phase, x = 0.1 + 4.9 * drawn[:, 0:1], math.pi * drawn[:, 1:2], 10 * drawn[:, 2:] - 5
        if plain:
            angle = x - phase
        else:
            # a stream of its own, so that amplitudes, phases and x are those of every other range
            angle = (low + (high - low) * uniform(seed, split, numbers, stream=1, count=1)) * x + phase
        return x.unsqueeze(-1), amplitude * torch.sin(angle)

    details = {
        "function": "A sin(x - p)" if plain else "A sin(w x + p)",
        "amplitude": (0.1, 5.0),
        "phase": (0.0, math.pi),
        "frequency": (low, high),
        "x": (-5.0, 5.0),
        "source": source,
    }
    return point_tasks("sinusoid", draw, details, **options)
