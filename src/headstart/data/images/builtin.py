"""The data files of the image sets that are part of the package: `icons`, `emoji` and `flags`.

``NAME.zip`` beside a family holds ``index.json`` (splits, classes, counts, checksums), ``images.bin`` (all images, one
byte a pixel and channel, grouped by split and class) and ``manifest.json`` (set, icon and source checksum of every
image); ``tools/`` makes it.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, NamedTuple

import torch

from headstart.data.fewshot import ClassStore
from headstart.errors import FileError


class Archive(NamedTuple):
    """The contents of a data file, without the manifest."""

    stores: dict[str, ClassStore]
    """The drawings, upright, by split. Do not change their tensors."""
    turns: dict[str, tuple[bool, ...]]
    """For each class of a split: whether its drawings, turned by a quarter, show something new."""
    details: Mapping[str, Any]
    """Counts of sets and designers, images by licence, and what the images were made from."""


def data_file(name: str) -> Traversable:
    """Return where the data file of a family lies."""
    return files(f"headstart.data.images.{name}").joinpath(f"{name}.zip")


@cache
def read_archive(name: str) -> Archive:
    """Read and check an installed data file, once; one missing, damaged or of another format is a `FileError`."""
    index, images = _members(name)
    count, channels, height, width = index["shape"]
    if len(images) != count * channels * height * width:
        raise _damaged(name, f"images.bin has {len(images)} bytes, but {index['shape']} was announced")
    pixels = torch.frombuffer(bytearray(images), dtype=torch.uint8).view(count, channels, height, width)
    stores, turns, start = {}, {}, 0
    for split, classes in index["splits"].items():
        sizes = torch.tensor([size for _, size, _ in classes])
        end = start + int(sizes.sum())
        names, _, turns[split] = zip(*classes)
        stores[split] = ClassStore(pixels[start:end], sizes.cumsum(0) - sizes, sizes, names)
        start = end
    if start != count:
        raise _damaged(name, f"its classes have {start} images, but images.bin has {count}")
    return Archive(stores, turns, {**index["details"], "source": index["source"]})


def _members(name: str) -> tuple[dict[str, Any], bytes]:
    expected = f"headstart-{name}-1"
    try:
        with data_file(name).open("rb") as file, zipfile.ZipFile(file) as archive:
            index = json.loads(archive.read("index.json"))
            data = archive.read("images.bin")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(name, str(error)) from error
    if not isinstance(index, dict) or index.get("format") != expected:
        found = index.get("format") if isinstance(index, dict) else type(index).__name__
        raise _damaged(name, f"it has format {found!r}, expected {expected!r}")
    if hashlib.sha256(data).hexdigest() != index["sha256"]["images.bin"]:
        raise _damaged(name, "the checksum of images.bin is wrong")
    return index, data


def _damaged(name: str, why: str) -> FileError:
    return FileError(f"cannot use the {name} data file {data_file(name)}: {why}. Reinstall headstart to restore it.")
