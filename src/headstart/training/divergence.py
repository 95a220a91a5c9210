"""Tasks whose loss or meta-gradient is not finite: which they are, where it began, and an outer step without them."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch

from headstart.core import tree
from headstart.errors import DataError, DivergenceError, UsageError
from headstart.types import Batch, Episodes, Info, Learner, Meta

OnNonfinite: TypeAlias = Literal["stop", "skip"]
Gradient: TypeAlias = Callable[[Sequence[int]], tuple[Meta, Info]]
Sampled: TypeAlias = Callable[[Sequence[int]], Episodes]

#: In so many steps in a row at least half of the tasks may be left out. Odd tasks come now and then, however many there
#: are; where most fail again and again, θ or a rate is at fault, and leaving out tasks does not help.
MOST_LOST = 10
_SHOWN = 4  # support losses that a message tells

_FIX = "Lower --inner-rate or --outer-rate, or take fewer --inner-steps"


class LeftOut(NamedTuple):
    """A task that an outer step was taken without."""

    task: int
    """Its number in the split 'train'."""
    why: str
    """What of it is not finite, and from which inner step on."""


class Measured(NamedTuple):
    """A meta-gradient that is finite, and what there is to say of it."""

    gradient: Meta | None
    """``None`` where all tasks were left out."""
    loss: float
    """The mean query loss of the tasks that it is of; NaN where there are none."""
    norm: float
    """The gradient's length; NaN where there are none."""
    left_out: tuple[LeftOut, ...] = ()


def finite_gradient(
    gradient: Gradient,
    numbers: Sequence[int],
    learner: Learner,
    meta: Meta,
    sampled: Sampled,
    *,
    step: int,
    on_nonfinite: OnNonfinite = "stop",
) -> Measured:
    """Return the meta-gradient of the tasks, or of those of them whose loss and meta-gradient are finite.

    It is then computed again, of the others alone, so it is bit for bit that of a step that never had these tasks. A
    step whose numbers are finite costs nothing more, and waits for the device once.

    Args:
        gradient: ``numbers of tasks -> (a Meta of gradients, the mean over these tasks, and Info)``, a pure function.
        numbers: the tasks of the step.
        learner, meta: whose gradient it is, for a second look at tasks that fail.
        sampled: ``numbers -> the episodes of these tasks``, for that look.
        step: the outer steps that were taken before, for messages.
        on_nonfinite: whether to stop, or to leave such tasks out.

    Raises:
        DivergenceError: the loss or the gradient is not finite, and ``on_nonfinite`` is ``"stop"``; or no task alone is
            to blame.
        DataError: a task holds numbers that are not finite, and ``on_nonfinite`` is ``"stop"``.
    """
    left_out = list[LeftOut]()
    while numbers:
        found = gradient(numbers)
        loss, norm = _sizes(*found)
        if math.isfinite(loss) and math.isfinite(norm):
            return Measured(found[0], loss, norm, tuple(sorted(left_out)))
        if on_nonfinite == "stop":
            check_data(sampled(numbers), "train", numbers)
        what, bad = _blamed(gradient, numbers, found[1])
        stops = on_nonfinite == "stop" or not bad
        why = [LeftOut(number, _why(learner, meta, sampled([number]))) for number in (bad[:1] if stops else bad)]
        if stops:
            some = f" of task{'s' * (len(bad) > 1)} {named(bad)}" if bad and not len(bad) == len(numbers) > 1 else ""
            raise DivergenceError(
                f"the {what}{some} is no longer a finite number in step {step + 1}; the weights are those of step"
                f" {step}. {_told(why) if bad else 'Of each task alone it is finite'}. {_FIX}"
            )
        left_out += why
        failed = set(bad)
        numbers = [number for number in numbers if number not in failed]
    return Measured(None, math.nan, math.nan, tuple(sorted(left_out)))


def lost_in_a_row(before: int, left_out: Sequence[LeftOut], tasks: int, step: int) -> int:
    """Return in how many steps in a row, this one included, at least half of the tasks were left out.

    Raises:
        DivergenceError: in too many, `MOST_LOST`.
    """
    lost = before + 1 if 2 * len(left_out) >= tasks else 0
    if lost >= MOST_LOST:
        raise DivergenceError(
            f"in {lost} steps in a row, the last of them step {step + 1}, at least half of the tasks were left out for"
            " a loss or a meta-gradient that is not finite: it is not single tasks that fail; the weights are those of"
            f" step {step}. {_told(left_out)}. {_FIX}"
        )
    return lost


def _told(bad: Sequence[LeftOut]) -> str:
    return f"Task {bad[0].task}: {bad[0].why}"


def _blamed(gradient: Gradient, numbers: Sequence[int], info: Info) -> tuple[str, list[int]]:
    """Return what is not finite, and of which tasks; where all losses are finite, each task is tried alone."""
    losses = [] if info.query_loss is None else info.query_loss.tolist()
    bad = [number for number, loss in zip(numbers, losses) if not math.isfinite(loss)]
    if bad:
        return "loss", bad
    alone = (number for number in numbers if not all(map(math.isfinite, _sizes(*gradient([number])))))
    return "meta-gradient", list(alone)


@torch.no_grad()
def _why(learner: Learner, meta: Meta, one: Episodes) -> str:
    """Return what of a task is not finite: where in its inner loop that begins, found by taking the steps again."""
    if _not_finite(one):
        return "its examples hold numbers that are not finite"
    if learner.path is not None and learner.steps:
        losses, so_far = list[float](), ""
        for stop, (adapted, info) in enumerate(learner.path(meta, one.support, detached=True)):
            losses += info.support_loss[:, 0].tolist()
            so_far = ", ".join(f"{loss:.3g}" for loss in losses[-_SHOWN:])
            if losses and not math.isfinite(losses[-1]):
                return f"its support loss is not finite before inner step {stop} of {learner.steps} ({so_far})"
            if not all(bool(torch.isfinite(value).all()) for value in adapted.params.values()):
                return f"its weights are not finite after inner step {stop} of {learner.steps} (support loss {so_far})"
        return f"its support loss is finite in all {learner.steps} inner steps ({so_far}), what comes after it is not"
    return "its loss or its meta-gradient is not finite"


def _sizes(gradient: Meta, info: Info) -> tuple[float, float]:
    """Return the mean loss and the gradient's length; a step's only wait for the device."""
    losses = info.query_loss
    if losses is None:
        raise UsageError("the learner's gradient must return Info with query_loss, the loss of each task (B,)")
    norm = torch.nn.utils.get_total_norm([*gradient.params.values(), *gradient.structure.values()])
    loss, length = torch.stack((losses.mean(), norm.to(losses))).tolist()
    return loss, length


def check_data(episodes: Episodes, split: str, numbers: Sequence[int]) -> None:
    """Raise `DataError` where a task's examples hold numbers that are not finite."""
    if bad := [numbers[row] for row in _not_finite(episodes)]:
        raise DataError(
            f"the data of split {split!r}, task{'s' * (len(bad) > 1)} {named(bad)}, hold numbers that are not"
            " finite (NaN or infinite); remove or repair those examples"
        )


def _not_finite(episodes: Episodes) -> list[int]:
    """Return the rows of the tasks whose examples hold numbers that are not finite."""

    def finite(batch: Batch, row: int) -> bool:
        there = slice(None) if batch.mask is None else batch.mask[row]
        return all(bool(torch.isfinite(leaf[row][there]).all()) for leaf in (*tree.tensors_of(batch.x), batch.y))

    return [row for row in range(len(episodes.query.y)) if not all(finite(part, row) for part in episodes)]


def named(numbers: Sequence[int], most: int = 5) -> str:
    """Return task numbers as text, the first few of them."""
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return ", ".join(str(number) for number in numbers[:most]) + more
