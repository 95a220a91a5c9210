"""What families of computed points have in common."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from headstart.data.random import check_seed, check_sizes
from headstart.types import Batch, Episodes, Tasks


def point_tasks(
    name: str,
    draw: Callable[[str, Sequence[int]], tuple[Tensor, Tensor]],
    details: Mapping[str, Any],
    *,
    shots: int,
    queries: int,
    seed: int,
    device: str | torch.device,
    dtype: torch.dtype,
    features: int = 1,
) -> Tasks:
    """Return regression tasks; ``draw(split, numbers)`` computes their x ``(B, shots + queries, features)`` and y
    ``(B, shots + queries)``, support points first.

    Raises:
        UsageError: ``shots`` or ``queries`` below 1, or a seed outside ``[0, 2**32)``.
    """
    check_sizes(shots=shots, queries=queries)
    check_seed(seed)

    def sample(split: str, numbers: Sequence[int]) -> Episodes:
        # Many small operations: they are cheaper on the CPU, whatever the device.
        x, y = draw(split, numbers)
        x, y = x.to(device, dtype), y.unsqueeze(-1).to(device, dtype)
        halves = (slice(shots), slice(shots, None))
        return Episodes(*(Batch(x[:, half].contiguous(), y[:, half].contiguous()) for half in halves))

    about = {"shots": shots, "queries": queries, "seed": seed, **details}
    about["licence"] = "none needed, the points are computed"
    return Tasks(name, sample, "regression", (features,), 1, about)
