"""The curves family: tasks of several kinds, of which the support set alone tells."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from headstart.data.curves.points import point_tasks
from headstart.data.random import check_deviations, normal, uniform
from headstart.errors import UsageError, pick
from headstart.schema import NotNegative, extends
from headstart.types import Tasks

KINDS = ("sine", "line", "quadratic")


@extends(point_tasks)
def curves(*, noise: NotNegative = 0.3, kinds: Sequence[str] = KINDS, **options: Any) -> Tasks:
    """Regress curves of several kinds from a few noisy points (Vuorio, Sun, Hu, Lim 2019, arXiv:1910.13616).

    Every task is of one of the ``kinds``, each as likely as the others; the learner is not told which. It draws

    - sine: y = A sin(w x + b), with A ~ U[0.1, 5], w ~ U[0.5, 2], b ~ U[0, 2 pi];
    - line: y = A x + b, with A ~ U[-3, 3], b ~ U[-3, 3];
    - quadratic: y = A (x - c)² + b, with |A| ~ U[0.02, 0.15] of either sign, c ~ U[-3, 3], b ~ U[-3, 3];

    then x ~ U[-5, 5] for each of its points, and adds Gaussian noise of standard deviation ``noise`` to every y, of
    the query set too. So no learner has an expected query error below ``noise**2``. ``x`` and ``y`` are ``(B, n, 1)``.

    The best answer that does not depend on the support set is 0. It costs 4.252 on sines, 28 on lines and 5.514 on
    quadratics, 12.589 on the three together, each plus ``noise**2``.

    Args:
        noise: standard deviation of the noise, in units of y.
        kinds: one or more of 'sine', 'line' and 'quadratic', none of them twice.
        options: those of `point_tasks`: shots, queries, seed, device, dtype.

    Raises:
        UsageError: a noise that is negative or not finite, or no kind or one twice.
        UnknownNameError: a kind that does not exist.

    >>> curves(shots=5, kinds=("sine", "line")).sample("train", range(25)).support.y.shape
    torch.Size([25, 5, 1])
    """
    kinds = tuple(kinds)
    for kind in kinds:
        pick("kind of curve", kind, _FUNCTIONS)
    if not kinds or len(set(kinds)) < len(kinds):
        raise UsageError(f"kinds must be one or more of {', '.join(KINDS)}, none of them twice, got {kinds}")
    check_deviations(noise=noise)

    def draw(seed: int, split: str, numbers: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
        drawn = uniform(seed, split, numbers, stream=0, count=4 + count)
        kind, x = (len(kinds) * drawn[:, 0:1]).long(), 10 * drawn[:, 4:] - 5
        a, b, c = drawn[:, 1:2], drawn[:, 2:3], drawn[:, 3:4]
        y = noise * normal(seed, split, numbers, stream=1, count=count)
        for place, name in enumerate(kinds):
            y = y + torch.where(kind == place, _FUNCTIONS[name](a, b, c, x), 0.0)
        return x.unsqueeze(-1), y

    details = {
        "kinds": {name: _RANGES[name] for name in kinds},
        "task_kind": "drawn uniformly, and not given to the learner",
        "x": (-5.0, 5.0),
        "noise": noise,
        "noise_variance": noise**2,
        "source": "Vuorio, Sun, Hu, Lim 2019, arXiv:1910.13616",
    }
    return point_tasks("curves", draw, details, **options)


def _quadratic(a: Tensor, b: Tensor, c: Tensor, x: Tensor) -> Tensor:
    signed = 2 * a - 1  # its size and its sign are independent
    scale = 0.13 * signed + 0.02 * torch.copysign(torch.ones_like(signed), signed)
    return scale * (x - (6 * c - 3)) ** 2 + (6 * b - 3)


#: Each takes a task's three numbers, uniform on [0, 1) and of shape (B, 1), and x of shape (B, n).
_FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "sine": lambda a, b, c, x: (0.1 + 4.9 * a) * torch.sin((0.5 + 1.5 * c) * x + 2 * math.pi * b),
    "line": lambda a, b, c, x: (6 * a - 3) * x + (6 * b - 3),
    "quadratic": _quadratic,
}
_RANGES = {
    "sine": {"function": "A sin(w x + b)", "A": (0.1, 5.0), "w": (0.5, 2.0), "b": (0.0, 2 * math.pi)},
    "line": {"function": "A x + b", "A": (-3.0, 3.0), "b": (-3.0, 3.0)},
    "quadratic": {"function": "A (x - c)² + b", "|A|": (0.02, 0.15), "b": (-3.0, 3.0), "c": (-3.0, 3.0)},
}
