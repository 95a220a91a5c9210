"""The sinusoid family: the field's smallest benchmark, and the one with exact answers to check against."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from headstart.data.random import check_seed, uniform
from headstart.errors import UsageError
from headstart.types import Batch, Episodes, Tasks


def sinusoid(
    *,
    shots: int = 10,
    queries: int = 10,
    frequency: tuple[float, float] = (1.0, 1.0),
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tasks:
    """Regress y = A sin(x - p) from a few noiseless points (Finn, Abbeel, Levine 2017, arXiv:1703.03400).

    Every task draws its amplitude A ~ U[0.1, 5] and phase p ~ U[0, pi], and x ~ U[-5, 5] for each of its
    ``shots`` support and ``queries`` query points. ``x`` and ``y`` are ``(B, n, 1)``.

    Two mean squared errors are known in closed form. Answering 0 costs E[A²] E[sin²(x - p)] = 4.252; the best
    answer that does not depend on the support set, -1.623 cos x, costs 3.006. A learner that stays near 3
    has not adapted at all.

    With another ``frequency`` than (1, 1), y = A sin(w x + p): every task draws w ~ U[low, high] too, and the same
    A, p and x as before. Mind the sign of the phase, which follows Li, Zhou, Chen, Li 2017 (Meta-SGD,
    arXiv:1707.09835); theirs is the range (0.8, 1.2). Answering 0 still costs 4.252; the best answer that does
    not depend on the support set is 1.623 E[cos w x], and costs 3.115 in that range.

    Args:
        shots: support points of a task.
        queries: query points of a task.
        frequency: ``(low, high)``, the range of the angular frequency in radians per unit of x.
        seed: of the family; in ``[0, 2**32)``.
        device: where the points are put.
        dtype: their type.

    Raises:
        UsageError: ``shots`` or ``queries`` below 1, a frequency that is not 0 < low <= high, or a seed outside
            ``[0, 2**32)``.

    >>> sinusoid(shots=5).sample("train", range(25)).support.x.shape
    torch.Size([25, 5, 1])
    """
    if shots < 1 or queries < 1:
        raise UsageError(f"shots and queries must be at least 1, got {shots} and {queries}")
    low, high = _checked(frequency)
    check_seed(seed)
    plain = low == high == 1

    def sample(split: str, numbers: Sequence[int]) -> Episodes:
        # Many small operations: they are cheaper on the CPU, whatever the device.
        drawn = uniform(seed, split, numbers, stream=0, count=2 + shots + queries)
        amplitude = 0.1 + 4.9 * drawn[:, 0:1]
        phase = math.pi * drawn[:, 1:2]
        x = 10 * drawn[:, 2:] - 5
        if plain:
            angle = x - phase
        else:
            # a stream of its own, so that amplitudes, phases and x are those of every other range
            angle = (low + (high - low) * uniform(seed, split, numbers, stream=1, count=1)) * x + phase
        points = torch.stack((x, amplitude * torch.sin(angle)))[..., None].to(device, dtype)
        return Episodes(_batch(points[:, :, :shots]), _batch(points[:, :, shots:]))

    return Tasks(
        name="sinusoid",
        sample=sample,
        kind="regression",
        input_shape=(1,),
        output_size=1,
        details={
            "shots": shots,
            "queries": queries,
            "seed": seed,
            "function": "A sin(x - p)" if plain else "A sin(w x + p)",
            "amplitude": (0.1, 5.0),
            "phase": (0.0, math.pi),
            "frequency": (low, high),
            "x": (-5.0, 5.0),
            "source": (
                "Finn, Abbeel, Levine 2017, arXiv:1703.03400"
                if plain
                else "Li, Zhou, Chen, Li 2017, arXiv:1707.09835 (theirs: frequencies from 0.8 to 1.2)"
            ),
            "licence": "none needed, the points are computed",
        },
    )


def _checked(frequency: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in frequency)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 < low <= high < math.inf:
        raise UsageError(f"frequency must be a pair (low, high) with 0 < low <= high, got {frequency!r}")
    return low, high


def _batch(points: Tensor) -> Batch:
    x, y = points.unbind()
    return Batch(x.contiguous(), y.contiguous())
