"""Whether two ways to compute a meta-gradient give the same."""

import math

import torch
from torch import Tensor

from headstart.types import Info, Meta

#: What counts as the length of a tensor that is nearly zero, relative to that of all together.
LEAST = 0.01


def differing(got: tuple[Meta, Info], expected: tuple[Meta, Info], tolerance: float) -> str:
    """Return the tensor in which two results differ by more than ``tolerance`` of its length, and by how much.

    Numbers that are not finite have to be the same in both.
    """
    ours, theirs = (
        {**{f"θ.{n}": v for n, v in meta[0].items()}, **{f"M.{n}": v for n, v in meta[1].items()}, **_told(info)}
        for (meta, info) in (got, expected)
    )
    whole = math.hypot(*(float(torch.linalg.vector_norm(v[v.isfinite()])) for v in theirs.values()))
    for name, value in theirs.items():
        own = ours[name]
        finite = value.isfinite()
        if own.shape != value.shape or own.dtype != value.dtype:
            return f"{name}: {tuple(own.shape)} of {own.dtype}"
        if not torch.allclose(own[~finite], value[~finite], equal_nan=True) or not own[finite].isfinite().all():
            return f"{name}: other numbers are not finite"
        length = max(float(torch.linalg.vector_norm(value[finite])), LEAST * whole)
        gap = float(torch.linalg.vector_norm(own[finite] - value[finite]))
        if gap > tolerance * length:
            return f"{name}: off by {gap / length if length else math.inf:.1e} of its length"
    return ""


def _told(info: Info) -> dict[str, Tensor]:
    return {name: value for name, value in info._asdict().items() if value is not None}
