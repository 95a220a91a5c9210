"""What a learner may do otherwise than MAML: where adaptation starts from, and what it lowers."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Generator, Tensor

from headstart.types import Batch, Params


def _nothing(m: Params) -> Params:
    return {}


Gradient: TypeAlias = Callable[[Params], Params]
"""``params (B, *shape) -> every task's gradient of its support loss`` with respect to those that move."""


class Start(NamedTuple):
    """Changes the parameters of a task before the first inner step."""

    values: Callable[[Params, Params, Params, Batch, Gradient], Params]
    """``(M, params, shared, support, gradient) -> params``: those that move and the context, each ``(B, *shape)``, by
    name; ``shared`` are the other parameters of the model, which have no task axis. Names of these that are returned
    become each task's own."""
    structure: Callable[[Params, Generator | None], Params]
    """``(params, generator) -> the part of M that it learns``, from parameters without a task axis."""
    shown: Callable[[Params], Params] = _nothing
    """``M -> its part of M in the units in which it acts``, for reports."""


class InnerLoss(NamedTuple):
    """What adaptation lowers on the support set, where that is not the learner's own loss."""

    loss: Callable[[Params, Tensor, Batch, int], Tensor]
    """``(M, outputs, support, step) -> (B,)``."""
    structure: Callable[[Params, Generator | None], Params]
    """``(params, generator) -> the part of M that it learns``."""
