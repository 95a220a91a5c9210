"""Augmentation: training images changed at random as tasks are made, on the device that they are on."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from headstart.data.random import uniform
from headstart.errors import UsageError, check_known
from headstart.types import Batch, Episodes, Tasks

Change: TypeAlias = Literal["crop", "flip", "colour"]

_CHANGES = ("crop", "flip", "colour")
_SHIFT, _JITTER = 0.125, 0.4
_STREAM, _NUMBERS = 8, 6  # the first of two of a task's random numbers; how many an image takes


def augmented(tasks: Tasks, changes: Sequence[Change], seed: int = 0) -> Tasks:
    """Return the tasks with training images changed at random, each of its own; validation and test stay as they are.

    What a task's images become is a function of (seed, task number), as the task is, whatever else is sampled with it.

    Args:
        tasks: of images, ``(B, n, C, H, W)`` in [0, 1].
        changes: any of ``"crop"``, a shift of up to an eighth of the side each way, what comes in being like the edge;
            ``"flip"``, left to right at every second; ``"colour"``, brightness, contrast and, in colour, saturation
            times 0.6 to 1.4 each.
        seed: as of the tasks.

    Raises:
        UnknownNameError: another change.
        UsageError: tasks of features.

    >>> from headstart import tasks
    >>> shaken = augmented(tasks.emoji(), ["crop", "colour"])
    >>> float(shaken.sample("train", [0]).query.x.amax()) <= 1
    True
    """
    for change in changes:
        check_known("change", change, _CHANGES)
    if not changes:
        return tasks
    if len(tasks.input_shape) != 3:
        raise UsageError(
            f"--augment changes images, but the tasks of {tasks.name} are features, which a pretrained network has"
            " computed once of each; leave it out, or learn a part of the network (--tuned last)"
        )

    def sample(split: str, numbers: Sequence[int]) -> Episodes:
        found = tasks.sample(split, numbers)
        if split != "train":
            return found
        parts = []
        for stream, batch in enumerate(found, _STREAM):  # of their own, so that no number goes by the other's padding
            count = batch.x.shape[1]
            drawn = uniform(seed, split, numbers, stream, _NUMBERS * count).view(len(numbers), count, _NUMBERS)
            parts.append(_changed(batch, changes, drawn.to(batch.x)))
        return Episodes(*parts)

    return tasks._replace(sample=sample, details={**tasks.details, "augment": tuple(changes)})


def _changed(batch: Batch, changes: Sequence[Change], drawn: Tensor) -> Batch:
    """Return a batch with its images changed by six numbers in [0, 1) each, ``(B, n, 6)``."""
    x, chance = batch.x.flatten(0, 1), drawn.flatten(0, 1).unbind(-1)
    x = _moved(x, chance[:3], "crop" in changes, "flip" in changes)
    if "colour" in changes:
        x = _coloured(x, chance[3:])
    x = x.view_as(batch.x)
    return batch._replace(x=x if batch.mask is None else x * batch.mask[(...,) + (None,) * (x.dim() - 2)])


def _moved(x: Tensor, chance: Sequence[Tensor], crop: bool, flip: bool) -> Tensor:
    """Shift and mirror images ``(N, C, H, W)``: rows and columns are gathered, those beyond the edge from the edge."""
    down, across, mirrored = chance
    for dim, share in ((2, down), (3, across)):
        size = x.shape[dim]
        most = int(_SHIFT * size) if crop else 0
        shift = (share * (2 * most + 1)).long().clamp(max=2 * most) - most
        place = (torch.arange(size, device=x.device) + shift[:, None]).clamp(0, size - 1)
        if flip and dim == 3:
            place = torch.where(mirrored[:, None] < 0.5, size - 1 - place, place)
        shape = [len(x), 1, 1, 1]
        shape[dim] = size
        x = x.gather(dim, place.view(shape).expand_as(x))
    return x


def _coloured(x: Tensor, chance: Sequence[Tensor]) -> Tensor:
    """Multiply brightness, contrast and saturation of images ``(N, C, H, W)``, staying in [0, 1] after each."""
    bright, contrast, saturation = ((1 - _JITTER + 2 * _JITTER * one).view(-1, 1, 1, 1).to(x.dtype) for one in chance)
    x = (x * bright).clamp(0, 1)
    mean = _grey(x).mean((1, 2, 3), keepdim=True)
    x = torch.lerp(mean, x, contrast).clamp(0, 1)
    return torch.lerp(_grey(x), x, saturation).clamp(0, 1) if x.shape[1] == 3 else x


def _grey(x: Tensor) -> Tensor:
    """Return the luminance ``(N, 1, H, W)`` (ITU-R BT.601)."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
