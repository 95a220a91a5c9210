"""Icons: few-shot tasks out of a data set that is part of the package.

A class is what an icon shows (an umbrella, a key, a left arrow), and its images are the drawings of different
designers, at most one of each, from open-source icon sets under permissive licences (``NOTICES.md`` names them
all): 28 x 28 grey, 255 where there is ink. Like the characters of Omniglot, there are many classes of few images.
Near-synonyms share a split, and every drawing is in the data once; ``tools/build_icons.py`` tells how it is made.
"""

from typing import Literal

import torch

from headstart.data.images.fewshot import few_shot, rotated
from headstart.data.images.icons.archive import Source, read_archive, read_manifest
from headstart.data.images.store import ImageStore
from headstart.types import Tasks

__all__ = ["Source", "icons", "load_icons", "read_manifest"]


def icons(
    *,
    ways: int = 5,
    shots: int | tuple[int, int] = 1,
    queries: int = 7,
    seed: int = 0,
    rotations: bool = True,
    device: str | torch.device = "cpu",
    on_short: Literal["error", "skip"] = "error",
    train_ways: int | None = None,
) -> Tasks:
    """Make few-shot tasks of telling icons apart: ``x`` is ``(B, n, 1, 28, 28)`` in [0, 1], ink is 1.

    Every class has at least 12 drawings, so that up to 12 shots + queries need nothing left out; beyond, say
    ``on_short='skip'``. Results compare methods within this data set, not with published Omniglot figures.

    Args:
        ways: classes of a task.
        shots: support images a class, or a range ``(low, high)`` of them.
        queries: query images a class; 7 leaves room for 5 shots.
        seed: decides the tasks.
        rotations: let training classes also appear turned by 90, 180 and 270 degrees, as classes of their own
            (Santoro et al. 2016, arXiv:1605.06065), where that shows something new: not where the name tells a
            direction or the drawings look the same turned. Validation and test are always upright.
        device: where the images are kept and the tasks are made.
        train_ways: classes of a training task, where they differ from ``ways``.
        on_short: what to do with a class of fewer than shots + queries images: an error, or leave it out.

    Raises:
        UsageError: a number out of range.
        ShortClassError: more shots + queries than a class has images.
        FileError: the installed data file is damaged.

    >>> icons().sample("test", [0]).query.x.shape
    torch.Size([1, 35, 1, 28, 28])
    """
    archive = read_archive()
    stores = dict(archive.stores)
    if rotations:
        stores["train"] = rotated(stores["train"], archive.turns["train"])
    upright = {split: len(store.names) for split, store in archive.stores.items()}
    return few_shot(
        "icons",
        stores,
        ways=ways,
        shots=shots,
        queries=queries,
        seed=seed,
        on_short=on_short,
        train_ways=train_ways,
        device=device,
        details={**archive.details, "upright_classes": upright, "rotations": rotations},
    )


def load_icons() -> dict[str, ImageStore]:
    """Return the drawings, upright, by split: 'train', 'validation', 'test'. Do not change their tensors.

    >>> load_icons()["test"].images.dtype
    torch.uint8
    """
    return dict(read_archive().stores)
