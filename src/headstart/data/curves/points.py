"""What families of computed points have in common."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from headstart.data.random import check_seed, check_sizes
from headstart.schema import Size
from headstart.types import Batch, Episodes, Tasks


def point_tasks(
    name: str,
    draw: Callable[[int, str, Sequence[int], int], tuple[Tensor, Tensor]],
    details: Mapping[str, Any],
    size: int = 1,
    *,
    shots: Size = 10,
    queries: Size = 10,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tasks:
    """Return regression tasks of one target value.

    Args:
        name: of the family.
        draw: ``(seed, split, numbers, n) -> x (B, n, size), y (B, n)``: the points of tasks, support points first.
        details: what else is known of the tasks.
        size: number of values of one x.
        shots: support points of a task.
        queries: query points of a task.
        seed: of the family; in ``[0, 2**32)``.
        device: where the points are put.
        dtype: their type.

    Raises:
        UsageError: ``shots`` or ``queries`` below 1, or a seed outside ``[0, 2**32)``.
    """
    check_sizes(shots=shots, queries=queries)
    check_seed(seed)

    def sample(split: str, numbers: Sequence[int]) -> Episodes:
        # many small operations: they are cheaper on the CPU, whatever the device
        x, y = draw(seed, split, numbers, shots + queries)
        x, y = x.to(device, dtype), y.unsqueeze(-1).to(device, dtype)
        halves = (slice(shots), slice(shots, None))
        return Episodes(*(Batch(x[:, half].contiguous(), y[:, half].contiguous()) for half in halves))

    about = {"shots": shots, "queries": queries, "seed": seed, **details}
    about["licence"] = "none needed, the points are computed"
    return Tasks(name, sample, "regression", (size,), 1, about)
