"""Flags: few-shot tasks out of flags of countries and territories, in colour; a data set that is part of the package.

A class is a country's flag, and its images are the drawings of different designers, at most one of each, from
open-source sets under permissive licences and CC-BY (``NOTICES.md`` names them all): 32 x 32 RGB on white, as
rectangles, rounded, waving, and as discs. Flags that look alike share a split, of those that look the same one is
there, and every drawing is in the data once; ``tools/build_flags.py`` tells how it is made.
"""

from collections.abc import Sequence
from typing import Any

from headstart.data.fewshot import GIVEN, few_shot
from headstart.data.images.augment import Change, augmented
from headstart.data.images.builtin import read_archive
from headstart.schema import Size, extends
from headstart.types import Tasks


@extends(few_shot, without=GIVEN)
def flags(*, queries: Size = 4, augment: Sequence[Change] = (), **options: Any) -> Tasks:
    """Make few-shot tasks of telling flags apart: ``x`` is ``(B, n, 3, 32, 32)`` in [0, 1].

    Every class has 5 or 6 drawings: for more shots + queries, say ``on_short='skip'``. It is a small set of fine
    differences, meant for learners that were trained on another.

    Args:
        queries: query images a class; 4 leaves room for 1 shot.
        augment: how training images are changed at random: any of crop, flip and colour.
        options: those of `few_shot`.

    Raises:
        UsageError: a number out of range.
        ShortClassError: more shots + queries than a class has images.
        FileError: the installed data file is damaged.

    >>> flags().sample("test", [0]).query.x.shape
    torch.Size([1, 20, 3, 32, 32])
    """
    archive = read_archive("flags")
    made = few_shot("flags", archive.stores, queries=queries, details=archive.details, **options)
    return augmented(made, augment, options.get("seed", 0))
