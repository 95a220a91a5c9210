"""Emoji: few-shot tasks out of emoji in colour, a data set that is part of the package.

A class is a character of Unicode (a tiger, an umbrella, a face with tears of joy), and its images are the drawings of
different designers, at most one of each, from open-source sets under permissive licences and CC-BY (``NOTICES.md``
names them all): 32 x 32 RGB on white. There are no skin tones, no pairs of genders and no flags. Near-synonyms and
look-alikes share a split, and every drawing is in the data once; ``tools/build_emoji.py`` tells how it is made.
"""

from collections.abc import Sequence
from typing import Any

from headstart.data.fewshot import GIVEN, few_shot
from headstart.data.images.augment import Change, augmented
from headstart.data.images.builtin import read_archive
from headstart.schema import Size, extends
from headstart.types import Tasks


@extends(few_shot, without=GIVEN)
def emoji(*, queries: Size = 5, augment: Sequence[Change] = (), **options: Any) -> Tasks:
    """Make few-shot tasks of telling emoji apart: ``x`` is ``(B, n, 3, 32, 32)`` in [0, 1].

    Every class has 6 or 7 drawings, one of each designer: 5 shots leave room for one query, and for more say
    ``on_short='skip'``.

    Args:
        queries: query images a class; 5 leaves room for 1 shot.
        augment: how training images are changed at random: any of crop, flip and colour.
        options: those of `few_shot`.

    Raises:
        UsageError: a number out of range.
        ShortClassError: more shots + queries than a class has images.
        FileError: the installed data file is damaged.

    >>> emoji().sample("test", [0]).query.x.shape
    torch.Size([1, 25, 3, 32, 32])
    """
    archive = read_archive("emoji")
    made = few_shot("emoji", archive.stores, queries=queries, details=archive.details, **options)
    return augmented(made, augment, options.get("seed", 0))
