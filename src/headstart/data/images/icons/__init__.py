"""Icons: few-shot tasks out of a data set that is part of the package.

A class is what an icon shows (an umbrella, a key, a left arrow), and its images are the drawings of different
designers, at most one of each, from open-source icon sets under permissive licences (``NOTICES.md`` names them
all): 28 x 28 grey, 255 where there is ink. Like the characters of Omniglot, there are many classes of few images.
Near-synonyms share a split, and every drawing is in the data once; ``tools/build_icons.py`` tells how it is made.
"""

from typing import Any

from headstart.data.fewshot import GIVEN, ClassStore, few_shot, rotated
from headstart.data.images.builtin import read_archive
from headstart.schema import Size, extends
from headstart.types import Tasks


@extends(few_shot, without=GIVEN)
def icons(*, queries: Size = 7, rotations: bool = True, **options: Any) -> Tasks:
    """Make few-shot tasks of telling icons apart: ``x`` is ``(B, n, 1, 28, 28)`` in [0, 1], ink is 1.

    Every class has at least 12 drawings: for more shots + queries, say ``on_short='skip'``. Results compare methods
    within this data set, not with published Omniglot figures.

    Args:
        queries: query images a class; 7 leaves room for 5 shots.
        rotations: let training classes also appear turned by 90, 180 and 270 degrees, as classes of their own
            (Santoro et al. 2016, arXiv:1605.06065), but where the name tells a direction or the drawings look the same
            turned. Validation and test are always upright.
        options: those of `few_shot`.

    Raises:
        UsageError: a number out of range.
        ShortClassError: more shots + queries than a class has images.
        FileError: the installed data file is damaged.

    >>> icons().sample("test", [0]).query.x.shape
    torch.Size([1, 35, 1, 28, 28])
    """
    archive = read_archive("icons")
    stores = dict(archive.stores)
    if rotations:
        stores["train"] = rotated(stores["train"], archive.turns["train"])
    upright = {split: len(store.names) for split, store in archive.stores.items()}
    details = {**archive.details, "light_on_dark": True, "upright_classes": upright, "rotations": rotations}
    return few_shot("icons", stores, queries=queries, details=details, **options)


def load_icons() -> dict[str, ClassStore]:
    """Return the drawings, upright, by split: 'train', 'validation', 'test'. Do not change their tensors.

    >>> load_icons()["test"].examples.dtype
    torch.uint8
    """
    return dict(read_archive("icons").stores)
