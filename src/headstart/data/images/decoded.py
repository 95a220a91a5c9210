"""Decoded images, all in one tensor: in memory, or where they are many, in a file that is mapped into it.

The file lies in the user's cache folder under a name made from the images' bytes and how they are read, so that a
second run reads no image again, and a changed image is never taken for the old one.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeAlias

import PIL
import torch
from torch import Tensor

from headstart.cache import cache_dir, sha256_of, warn_not_kept, whole
from headstart.errors import DataError, FileError

MOST_IN_MEMORY = 2**28
"""Bytes of images above which they are kept in a file."""

Read: TypeAlias = Callable[[Sequence[Path]], Iterable[Tensor | DataError | FileError]]
"""``(paths) ->`` for each in order, its image or what is wrong with it."""


class Decoded(NamedTuple):
    """Images that were read."""

    images: Tensor
    """``(n, *shape)`` uint8, in the order of their paths."""
    kept: tuple[int, ...]
    """Which of the paths they are of, ascending."""
    failed: tuple[str, ...]
    """What is wrong with the others."""


def decoded(paths: Sequence[Path], shape: tuple[int, int, int], how: str, read: Read) -> Decoded:
    """Read images, and where that takes more than `MOST_IN_MEMORY`, keep them in a file of the user's cache folder.

    Where that folder cannot be written, there is a warning, and they are in memory.

    Args:
        paths: the images.
        shape: of each once read.
        how: what else decides how they are read; part of the file's name.
        read: reads them.
    """
    size = shape[0] * shape[1] * shape[2]
    if len(paths) * size <= MOST_IN_MEMORY:
        return _in_memory(paths, shape, read)
    name = hashlib.sha256(f"1 {shape} {how} Pillow {PIL.__version__}".encode())
    with ThreadPoolExecutor() as pool:
        for digest in pool.map(_digest, paths):
            name.update(digest.encode())
    file = cache_dir() / "images" / f"{name.hexdigest()[:32]}.bin"
    told = file.with_suffix(".json")
    try:
        kept, failed = _kept(file, told, size) or _write(file, told, paths, read)
    except FileError:
        raise
    except OSError as error:
        warn_not_kept("decoded images", file, error)
        return _in_memory(paths, shape, read)
    # private to this process: nothing that is written to the tensor reaches the file
    images = torch.from_file(str(file), shared=False, size=len(kept) * size, dtype=torch.uint8)
    return Decoded(images.view(len(kept), *shape), tuple(kept), tuple(failed))


def _in_memory(paths: Sequence[Path], shape: tuple[int, int, int], read: Read) -> Decoded:
    images, kept, failed = torch.empty(len(paths), *shape, dtype=torch.uint8), list[int](), list[str]()
    for image in _each(paths, read, kept, failed):
        images[len(kept) - 1] = image
    return Decoded(images[: len(kept)], tuple(kept), tuple(failed))


def _each(paths: Sequence[Path], read: Read, kept: list[int], failed: list[str]) -> Iterator[Tensor]:
    for place, image in enumerate(read(paths)):
        if isinstance(image, Tensor):
            kept.append(place)
            yield image
        else:
            failed.append(str(image))


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError:  # what is wrong with it is said where it is read
        return "-"


def _kept(file: Path, told: Path, size: int) -> tuple[list[int], list[str]] | None:
    """Return what a file holds; nothing where it is not there, or not whole."""
    if not told.is_file():
        return None
    try:
        found = json.loads(told.read_text("utf-8"))
        kept, failed = [int(place) for place in found["kept"]], [str(one) for one in found["failed"]]
        whole = file.stat().st_size == len(kept) * size and sha256_of(file) == found["sha256"]
        return (kept, failed) if kept and whole else None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _write(file: Path, told: Path, paths: Sequence[Path], read: Read) -> tuple[list[int], list[str]]:
    kept, failed, total = list[int](), list[str](), hashlib.sha256()
    with whole(file) as part, part.open("wb") as out:
        for image in _each(paths, read, kept, failed):
            total.update(image.numpy().data)
            out.write(image.numpy().data)
    with whole(told) as part:
        part.write_text(json.dumps({"kept": kept, "failed": failed, "sha256": total.hexdigest()}), "utf-8")
    return kept, failed
