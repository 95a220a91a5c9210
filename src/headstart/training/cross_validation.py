"""How well new classes are told apart, where all the examples that there are of them are learned from.

Where a method takes it in one batch, each is told by all others (leave-one-out). Else by stratified cross-validation: a
fifth of each class is kept back, the others are learned from, and those kept back are predicted; five times, so that
every example is predicted once, by others, or less often where these are many. Each time a little less is learned from
than in the end, so that the score is rather too low than too high.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from headstart.types import Batch

FOLDS = 5
#: Judged examples that are enough: the interval is within 3 points, and learning from so many takes a while.
ENOUGH = 1000


class Told(NamedTuple):
    """How many examples of each class were kept back once, and how many of these were told right."""

    judged: tuple[int, ...]
    right: tuple[int, ...]
    how: str = f"{FOLDS}-fold cross-validation"


Learn: TypeAlias = Callable[[Sequence[Batch]], Callable[[Sequence[Tensor]], Sequence[Tensor]]]
"""Returns of sets of examples ``(1, n, *features)`` what predicts others by each: of inputs ``(1, m, *features)`` for
each set logits ``(m, classes)``."""


def cross_validated(learn: Learn, support: Batch, classes: int) -> Told:
    """Return how many examples of a task are told right by the others.

    An example that is there twice in a class is in one fold, so that it is not told by itself. A class of one example
    is learned from each time, and never judged.

    Args:
        learn: learns from parts of the examples.
        support: the examples, as a batch of one.
        classes: how many there are.
    """
    fold, y = _folds(support), support.y[0]
    judged, right = torch.zeros(2, len(y), dtype=torch.bool)
    parts = list[tuple[Tensor, Tensor]]()
    for number in range(FOLDS):
        out = (fold == number).nonzero()[:, 0]
        if len(out) and judged.sum() < ENOUGH:
            parts.append((out, (fold != number).nonzero()[:, 0]))
            judged[out] = True
    if parts:
        predict = learn([Batch(support.x[:, rest], support.y[:, rest]) for _, rest in parts])
        with torch.no_grad():
            for (out, _), logits in zip(parts, predict([support.x[:, out] for out, _ in parts])):
                right[out] = logits.argmax(-1) == y[out]
    return Told(_counts(y[judged], classes), _counts(y[right], classes))


def left_out(answer: Callable[[Batch, Tensor], Tensor], support: Batch, classes: int, together: int) -> Told | None:
    """Return how many examples of a task are told right by all others: n tasks, each without another example.

    They are learned on the task axis, so many at once. An example that is its class's only one is never judged.

    Args:
        answer: of support sets ``(B, n - 1)`` and an input each ``(B, 1, *features)`` logits ``(B, 1, classes)``.
        support: the examples, as a batch of one.
        classes: how many there are.
        together: tasks at once.

    Returns:
        ``None`` where an example is there twice, which would be told by itself.
    """
    x, y = support.x[0], support.y[0]
    if len(x.flatten(1).unique(dim=0)) < len(x):
        return None
    judged = (y.bincount(minlength=classes) > 1)[y].nonzero()[:, 0]
    others = torch.arange(len(y)).expand(len(y), -1)[~torch.eye(len(y), dtype=torch.bool)].view(len(y), -1)
    right = list[Tensor]()
    for places in judged.split(together) if len(judged) else ():
        with torch.no_grad():
            found = answer(Batch(x[others[places]], y[others[places]]), x[places].unsqueeze(1))
        right.append(found[:, 0].argmax(-1).cpu() == y[places])
    told = torch.cat(right) if right else torch.zeros(0, dtype=torch.bool)
    return Told(_counts(y[judged], classes), _counts(y[judged][told], classes), "leave-one-out")


def _counts(y: Tensor, classes: int) -> tuple[int, ...]:
    return tuple(y.bincount(minlength=classes).tolist())


def _folds(support: Batch) -> Tensor:
    """Return the fold of each example, -1 where its class has nothing else to be told by."""
    _, same = support.x[0].flatten(1).unique(dim=0, return_inverse=True)
    places: dict[tuple[int, int], int] = {}
    seen = Counter[int]()
    for key in zip(support.y[0].tolist(), same.tolist()):
        if key not in places:
            places[key] = seen[key[0]]
            seen[key[0]] += 1
    keys = zip(support.y[0].tolist(), same.tolist())
    return torch.tensor([places[key] % FOLDS if seen[key[0]] > 1 else -1 for key in keys])


def interval(right: int, of: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927), which also holds for few examples.

    >>> [round(end, 2) for end in interval(9, 10)]
    [0.6, 0.98]
    """
    z = NormalDist().inv_cdf(0.975)
    middle, half = right + z * z / 2, z * math.sqrt(right * (of - right) / of + z * z / 4)
    return max(0.0, (middle - half) / (of + z * z)), min(1.0, (middle + half) / (of + z * z))


def told_text(told: Sequence[Told], examples: str) -> str:
    """Return the score of all tasks together, in words."""
    judged, right = sum(sum(one.judged) for one in told), sum(sum(one.right) for one in told)
    if not judged:
        return f"How good this is nothing says, with one of the {examples} in each class; two of a class would"
    low, high = (100 * end for end in interval(right, judged))
    how = " and ".join(sorted({one.how for one in told}))
    return (
        f"By {how}, {right} of {judged} {examples} are told right by the others,"
        f" {100 * right / judged:.1f} % (95 % interval {low:.0f} to {high:.0f} %)"
    )
