"""The icons data file: reading it, and checking that it is what it should be.

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

from headstart.data.images.store import ImageStore
from headstart.errors import FileError

FORMAT = "headstart-icons-1"


class Archive(NamedTuple):
    """The contents of the data file, without the manifest."""

    stores: dict[str, ImageStore]
    """The drawings, upright, by split."""
    turns: dict[str, tuple[bool, ...]]
    """For each class of a split: whether its drawings, turned by a quarter, show something new."""
    details: Mapping[str, Any]
    """Counts of sets and designers, images by licence, and what the images were made from."""


class Source(NamedTuple):
    """Where one image comes from."""

    split: str
    class_name: str
    icon_set: str
    """The set's prefix in its package."""
    icon: str
    author: str
    licence: str
    """SPDX name."""
    sha256: str
    """Of the SVG document that was rendered."""


@cache
def read_archive() -> Archive:
    """Read and check the images of the installed data file; the first call reads, later ones remember.

    Raises:
        FileError: the file is missing, damaged or of another format.
    """
    index, images = _members("images.bin")
    count, channels, height, width = index["shape"]
    if len(images) != count * channels * height * width:
        raise _damaged(f"images.bin has {len(images)} bytes, but {index['shape']} was announced")
    pixels = torch.frombuffer(bytearray(images), dtype=torch.uint8).view(count, channels, height, width)
    stores, turns, start = {}, {}, 0
    for split, classes in index["splits"].items():
        sizes = torch.tensor([size for _, size, _ in classes])
        end = start + int(sizes.sum())
        names = tuple(name for name, _, _ in classes)
        stores[split] = ImageStore(pixels[start:end], sizes.cumsum(0) - sizes, sizes, names)
        turns[split] = tuple(may_turn for _, _, may_turn in classes)
        start = end
    if start != count:
        raise _damaged(f"its classes have {start} images, but images.bin has {count}")
    return Archive(stores, turns, {**index["details"], "source": index["source"]})


def read_manifest() -> list[Source]:
    """Return where every image comes from, in the order of the stores of 'train', 'validation' and 'test'.

    Raises:
        FileError: the file is missing, damaged or of another format.
    """
    index, text = _members("manifest.json")
    manifest = json.loads(text)
    places = [
        (split, name) for split, classes in index["splits"].items() for name, size, _ in classes for _ in range(size)
    ]
    if len(places) != len(manifest["images"]):
        raise _damaged(f"its manifest names {len(manifest['images'])} images, but there are {len(places)}")
    sources = []
    for (split, name), (which, icon, digest) in zip(places, manifest["images"]):
        prefix, _, author, licence = manifest["sets"][which]
        sources.append(Source(split, name, prefix, icon, author, licence, digest))
    return sources


def _members(name: str) -> tuple[dict[str, Any], bytes]:
    """Return the index and the member called ``name``, its checksum verified."""
    try:
        with (
            files("headstart.data.images.icons").joinpath("icons.zip").open("rb") as file,
            zipfile.ZipFile(file) as archive,
        ):
            index = json.loads(archive.read("index.json"))
            data = archive.read(name)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(str(error)) from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else type(index).__name__
        raise _damaged(f"it has format {found!r}, expected {FORMAT!r}")
    if hashlib.sha256(data).hexdigest() != index["sha256"][name]:
        raise _damaged(f"the checksum of {name} is wrong")
    return index, data


def _damaged(why: str) -> FileError:
    path = files("headstart.data.images.icons").joinpath("icons.zip")
    return FileError(f"cannot use the icons data file {path}: {why}. Reinstall headstart to restore it.")
