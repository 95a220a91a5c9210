"""Icons: few-shot tasks out of a data set that is part of the package.

A class is what an icon shows (an umbrella, a key, a left arrow), and its images are the drawings of different
designers, at most one of each, from open-source icon sets under permissive licences (``NOTICES.md`` names them
all): 28 x 28 grey, 255 where there is ink. Like the characters of Omniglot, there are many classes of few images.
Near-synonyms share a split, and every drawing is in the data once; ``tools/build_icons.py`` tells how it is made.

``icons.zip`` holds ``index.json`` (splits, classes, counts, checksums), ``images.bin`` (all images, one byte a
pixel, grouped by split and class) and ``manifest.json`` (set, icon and source checksum of every image).
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import torch

from headstart.data.fewshot import GIVEN, ClassStore, few_shot, rotated
from headstart.errors import FileError
from headstart.schema import Size, extends
from headstart.types import Tasks

FORMAT = "headstart-icons-1"
_ICONS = files("headstart.data.images.icons").joinpath("icons.zip")


class Archive(NamedTuple):
    """The contents of the data file, without the manifest."""

    stores: dict[str, ClassStore]
    """The drawings, upright, by split."""
    turns: dict[str, tuple[bool, ...]]
    """For each class of a split: whether its drawings, turned by a quarter, show something new."""
    details: Mapping[str, Any]
    """Counts of sets and designers, images by licence, and what the images were made from."""


@cache
def read_archive() -> Archive:
    """Read and check the installed data file, once; one missing, damaged or of another format is a `FileError`."""
    index, images = _members()
    count, channels, height, width = index["shape"]
    if len(images) != count * channels * height * width:
        raise _damaged(f"images.bin has {len(images)} bytes, but {index['shape']} was announced")
    pixels = torch.frombuffer(bytearray(images), dtype=torch.uint8).view(count, channels, height, width)
    stores, turns, start = {}, {}, 0
    for split, classes in index["splits"].items():
        sizes = torch.tensor([size for _, size, _ in classes])
        end = start + int(sizes.sum())
        names, _, turns[split] = zip(*classes)
        stores[split] = ClassStore(pixels[start:end], sizes.cumsum(0) - sizes, sizes, names)
        start = end
    if start != count:
        raise _damaged(f"its classes have {start} images, but images.bin has {count}")
    return Archive(stores, turns, {**index["details"], "source": index["source"]})


def _members() -> tuple[dict[str, Any], bytes]:
    try:
        with _ICONS.open("rb") as file, zipfile.ZipFile(file) as archive:
            index = json.loads(archive.read("index.json"))
            data = archive.read("images.bin")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(str(error)) from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else type(index).__name__
        raise _damaged(f"it has format {found!r}, expected {FORMAT!r}")
    if hashlib.sha256(data).hexdigest() != index["sha256"]["images.bin"]:
        raise _damaged("the checksum of images.bin is wrong")
    return index, data


def _damaged(why: str) -> FileError:
    return FileError(f"cannot use the icons data file {_ICONS}: {why}. Reinstall headstart to restore it.")


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
    archive = read_archive()
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
    return dict(read_archive().stores)
