"""When the values of a tensor may be looked at, what is demanded of them, and where they are drawn near."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from headstart.errors import ShapeError

Conditions: TypeAlias = dict[tuple[int, int, int], tuple[Tensor, Tensor | None, Tensor]]
"""What must hold, each a scalar, behind the tensor that it is about and the mask of what counts of it; by the identity
of these, and the bound."""

_noted: ContextVar[Conditions | None] = ContextVar("noted", default=None)


@contextlib.contextmanager
def conditions() -> Iterator[Conditions]:
    """Collect what is demanded of values inside, where a computation is recorded."""
    found: Conditions = {}
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)


def readable(tensor: Tensor) -> bool:
    """Return whether a tensor has values that can be read at no cost, and may decide something: nothing is recorded."""
    there = tensor.device.type == "cpu" and tensor.numel() > 0 and not isinstance(tensor, FakeTensor)
    return there and get_proxy_mode() is None


def in_range(y: Tensor, count: int, there_are: str, mask: Tensor | None = None) -> Tensor:
    """Return integer labels as int64, checked to be from 0 to ``count − 1``, and 0 where the mask leaves them out.

    While operations are recorded, the check becomes part of the record (see `conditions`). On an accelerator nothing
    is read: there `one_hot` gives NaN. ``there_are`` says where the number comes from: ``"the model has 5 outputs"``.

    Raises:
        ShapeError: a label is out of range.
    """
    labels = (y if mask is None else torch.where(mask, y, 0)).long()
    if readable(labels):
        low, high = (int(bound) for bound in torch.aminmax(labels))
        if low < 0 or high >= count:
            raise ShapeError(f"labels go from {low} to {high}, but {there_are}; labels must be 0 to {count - 1}")
    else:
        demand(y, count, mask)
    return labels


def demand(y: Tensor, count: int, mask: Tensor | None = None) -> None:
    """Note, where a computation is recorded, that ``y`` must be from 0 to ``count − 1``, where the mask has it."""
    noted = _noted.get()
    key = id(y), id(mask), count
    if noted is not None and y.numel() and key not in noted:
        holds = y.clamp(0, count - 1) == y
        noted[key] = y, mask, (holds if mask is None else holds | ~mask).all()


def all_true(mask: Tensor) -> bool:
    """Return whether a mask is true throughout; while operations are recorded, demand it."""
    noted = _noted.get()
    if noted is None:
        return bool(mask.all())
    noted[id(mask), id(None), 0] = mask, None, mask.all()
    return True


def one_hot(labels: Tensor, ways: int, like: Tensor) -> Tensor:
    """Return ``(…, ways)``, 1 at each label and 0 elsewhere, of the type and on the device of ``like``.

    PyTorch's own looks at the labels' values, which stalls an accelerator and cannot be recorded. Where they cannot be
    checked first (see `in_range`), a label out of range gives NaN, so that it is not overlooked.
    """
    labels = labels.to(like.device).unsqueeze(-1)
    member = (labels == torch.arange(ways, device=like.device)).to(like)
    if like.device.type == "cpu":
        return member
    return torch.where((labels >= 0) & (labels < ways), member, torch.nan)


#: Numbers are taken as they are up to this share of their range beyond it; no further than twice that.
SLACK = 0.5


def bounded(values: Any, limits: tuple[float, float]) -> Any:
    """Return an array or tensor, its numbers far outside of ``limits`` drawn near, in their order.

    Beyond `SLACK` of the range they approach twice as much; what is not finite gives NaN.

    >>> bounded(torch.tensor([0.0, 1.0, 1.5, 2.0, 99.5]), (0.0, 1.0))
    tensor([0.0000, 1.0000, 1.5000, 1.7500, 1.9975])
    """
    low, high = limits
    slack = SLACK * (high - low) or 1.0
    inside = values.clip(low - slack, high + slack)
    beyond = values - inside
    return inside + beyond / (1 + abs(beyond) / slack)
