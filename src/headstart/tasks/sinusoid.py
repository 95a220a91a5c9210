"""The sinusoid family: the field's smallest benchmark, and the one with exact answers to check against."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from headstart.errors import UsageError
from headstart.tasks.random import check_seed, uniform
from headstart.types import Batch, Episodes, Tasks


def sinusoid(
    *,
    shots: int = 10,
    queries: int = 10,
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

    Raises:
        UsageError: ``shots`` or ``queries`` below 1, or a seed outside ``[0, 2**32)``.

    >>> sinusoid(shots=5).sample("train", range(25)).support.x.shape
    torch.Size([25, 5, 1])
    """
    if shots < 1 or queries < 1:
        raise UsageError(f"shots and queries must be at least 1, got {shots} and {queries}")
    check_seed(seed)

    def sample(split: str, numbers: Sequence[int]) -> Episodes:
        # Many small operations: they are cheaper on the CPU, whatever the device.
        drawn = uniform(seed, split, numbers, stream=0, count=2 + shots + queries)
        amplitude = 0.1 + 4.9 * drawn[:, 0:1]
        phase = math.pi * drawn[:, 1:2]
        x = 10 * drawn[:, 2:] - 5
        points = torch.stack((x, amplitude * torch.sin(x - phase)))[..., None].to(device, dtype)
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
            "amplitude": (0.1, 5.0),
            "phase": (0.0, math.pi),
            "x": (-5.0, 5.0),
            "source": "Finn, Abbeel, Levine 2017, arXiv:1703.03400",
        },
    )


def _batch(points: Tensor) -> Batch:
    x, y = points.unbind()
    return Batch(x.contiguous(), y.contiguous())
