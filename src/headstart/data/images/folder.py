"""Your own images: a folder that holds one folder of images for each class."""

import warnings
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from headstart.data.images.fewshot import few_shot, image_store
from headstart.data.images.files import (
    SUFFIXES,
    SkippedImageWarning,
    check_image_shape,
    image_files,
    read_image,
    read_images,
)
from headstart.data.images.store import shuffled
from headstart.errors import DataError, FileError, ShortClassError
from headstart.types import Tasks

__all__ = ["ClassFolder", "folder", "read_class_folder", "read_image"]

_HELD_OUT = 0.2  # of the classes for validation, and as many for test


class ClassFolder(NamedTuple):
    """The images of a folder of class folders."""

    names: list[str]
    """Class names, sorted."""
    images: list[Tensor]
    """One ``(n, channels, size, size)`` uint8 tensor a class."""
    skipped: int
    """How many image files could not be read."""


def folder(
    data: str | Path,
    *,
    ways: int = 5,
    shots: int | tuple[int, int] = 1,
    queries: int = 15,
    seed: int = 0,
    size: int = 28,
    channels: Literal[1, 3] = 3,
    device: str | torch.device = "cpu",
    on_short: Literal["error", "skip"] = "error",
    strict: bool = False,
    train_ways: int | None = None,
) -> Tasks:
    """Make few-shot tasks out of a folder of class folders of images.

    Where ``data`` holds ``train``, ``validation`` (or ``val``) and ``test`` folders of class folders, those
    are the splits. Else the class folders are shuffled by the SHA-256 of their names, and a fifth of them
    each is for validation and for test. That depends on the names alone, so runs with other seeds, ways or
    shots test on the same classes; but adding or removing a class can move others to another split.
    `headstart.data.images.files.read_image` says how an image is read.

    Args:
        data: the folder.
        ways, shots, queries, seed, device, on_short, train_ways: see `headstart.data.images.fewshot.few_shot`.
        size: height and width of the images, in pixels.
        channels: 1 (grey) or 3 (RGB).
        strict: whether an image that cannot be read is an error; else it is left out with a
            `SkippedImageWarning`, and counted in ``details['skipped_images']``.

    Raises:
        FileError: no such folder.
        DataError: no class folder, or, where ``strict``, an image that cannot be read.
        ShortClassError: too few classes for the ways, or too few images in a class.
        LeakageError: a class folder that is in two splits.
    """
    check_image_shape(size, channels)
    splits = _splits(Path(data), ways)
    read = {split: _read(paths, size, channels, strict) for split, paths in splits.items()}
    return few_shot(
        "folder",
        {split: image_store(dict(zip(found.names, found.images))) for split, found in read.items()},
        ways=ways,
        shots=shots,
        queries=queries,
        seed=seed,
        on_short=on_short,
        train_ways=train_ways,
        device=device,
        details={
            "source": Path(data).resolve().name,
            "class_names": {split: found.names for split, found in read.items()},
            "skipped_images": sum(found.skipped for found in read.values()),
        },
    )


def read_class_folder(
    path: str | Path, size: int = 28, channels: Literal[1, 3] = 3, strict: bool = False
) -> ClassFolder:
    """Read one folder of class folders, such as the support set of a new task.

    Raises:
        FileError: no such folder.
        DataError: fewer than two class folders, one without an image that can be read, or, where ``strict``,
            any image that cannot be read.
    """
    check_image_shape(size, channels)
    classes = _class_folders(Path(path))
    if len(classes) < 2:
        raise DataError(
            f"{path} has one class folder only, {classes[0].name!r}; there is nothing to tell it apart from"
        )
    found = _read(classes, size, channels, strict)
    for name, images in zip(found.names, found.images):
        if not len(images):
            raise DataError(
                f"class folder {Path(path) / name} has no image that can be read"
                f" (it holds {_contents(Path(path) / name)}); expected at least one of {', '.join(SUFFIXES)}"
            )
    return found


def _read(classes: Sequence[Path], size: int, channels: Literal[1, 3], strict: bool) -> ClassFolder:
    """Read class folders; one without images gives an empty tensor."""
    classes = sorted(classes, key=lambda path: path.name)
    files = [image_files(path) for path in classes]
    read = read_images([path for paths in files for path in paths], size, channels, strict)
    images, skipped = [], 0
    for paths in files:
        kept = torch.empty(len(paths), channels, size, size, dtype=torch.uint8)
        count = 0
        for image in islice(read, len(paths)):
            if isinstance(image, DataError):
                warnings.warn(f"skipped: {image}", SkippedImageWarning, stacklevel=4)
                skipped += 1
            else:
                kept[count] = image
                count += 1
        images.append(kept[:count])
    return ClassFolder([path.name for path in classes], images, skipped)


def _splits(data: Path, ways: int) -> Mapping[str, Sequence[Path]]:
    """Return the class folders of each split."""
    found = _class_folders(data)
    own = {"val": "validation"} | {split: split for split in ("train", "validation", "test")}
    holders = {own[path.name]: path for path in found if path.name in own and _subfolders(path)}
    if "train" in holders:
        missing = [split for split in ("validation", "test") if split not in holders]
        if missing:
            raise DataError(
                f"{data} has a train folder of class folders, but none for {' and '.join(missing)}; expected"
                " train, validation (or val) and test, or the class folders themselves"
            )
        return {split: _class_folders(holders[split]) for split in ("train", "validation", "test")}
    by_name = {path.name: path for path in found}
    order = shuffled(by_name)
    held_out = round(_HELD_OUT * len(order))
    names = {
        "train": order[2 * held_out :],
        "validation": order[held_out : 2 * held_out],
        "test": order[:held_out],
    }
    if held_out < ways:
        counts = ", ".join(f"{len(part)} for {split}" for split, part in names.items())
        raise ShortClassError(
            f"{data} has {len(order)} class folder{'s' * (len(order) > 1)} ({counts}), but {ways} ways need"
            f" {ways} classes in each split. Lower --ways, add classes, or make train, validation and test"
            " folders."
        )
    return {split: [by_name[name] for name in part] for split, part in names.items()}


def _class_folders(path: Path) -> list[Path]:
    """Return the folders in ``path``, or raise where there are none."""
    if not path.is_dir():
        raise FileError(f"{path} is not a folder; expected a folder that holds one folder of images a class")
    found = _subfolders(path)
    if not found:
        raise DataError(
            f"{path} has no class folder (it holds {_contents(path)}); expected one folder of images a class"
        )
    return found


def _subfolders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _contents(path: Path) -> str:
    names = sorted(child.name for child in path.iterdir())
    if not names:
        return "nothing"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
