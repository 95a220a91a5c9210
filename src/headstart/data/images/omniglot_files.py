"""Read the two zip files of Omniglot; what was decoded once is kept as plain arrays."""

import contextlib
import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from headstart.data.images.download import cache_dir, sha256_of
from headstart.errors import DataError, FileError

ZIPS = {"images_background.zip": 964, "images_evaluation.zip": 659}
"""File names, and the number of characters that each holds."""

DRAWERS = 20
_SIDE, _REDUCED = 105, 28
_MOST_BYTES = 100_000  # of one drawing; the largest is a few hundred


class Omniglot(NamedTuple):
    """All drawings, the characters of the background set first."""

    images: Tensor
    """``(characters, 20, 1, 28, 28)`` uint8, ink 255."""
    names: tuple[str, ...]
    """``Alphabet/characterNN``."""
    background: int
    """How many of the characters are of the background set."""


def read_omniglot(data: Path) -> Omniglot:
    """Read ``images_background.zip`` and ``images_evaluation.zip`` in the folder ``data``.

    Decoding takes some seconds. The result is kept as an ``.npz`` file beside the zips, or in the user's
    cache folder where that cannot be written, under a name made from the zips' SHA-256.

    Raises:
        FileError: a zip or a drawing in it that is missing or damaged.
        DataError: a zip that does not hold its characters, each drawn 20 times.
    """
    missing = [name for name in ZIPS if not (data / name).is_file()]
    if missing:
        raise FileError(
            f"{data} has no {' and no '.join(missing)}; expected the folder of Omniglot's"
            f" {' and '.join(ZIPS)}. Without --data they are downloaded."
        )
    both = "".join(sha256_of(data / name) for name in ZIPS)
    cached = f"omniglot-{_REDUCED}-{hashlib.sha256(both.encode()).hexdigest()[:16]}.npz"
    folders = (data, cache_dir())
    for folder in folders:
        found = _load(folder / cached)
        if found is not None:
            return found
    parts = [_read_zip(data / name, characters) for name, characters in ZIPS.items()]
    drawings = {name: images for part in parts for name, images in part.items()}
    result = Omniglot(torch.from_numpy(np.stack(list(drawings.values())))[:, :, None], tuple(drawings), len(parts[0]))
    for folder in folders:
        with contextlib.suppress(OSError):
            _save(result, folder / cached)
            break
    return result


def _read_zip(path: Path, expected: int) -> dict[str, NDArray[np.uint8]]:
    """Return each character's drawings, ``(20, 28, 28)``, in order of name."""
    entry = ""
    drawings: dict[str, list[NDArray[np.uint8]]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in sorted(name for name in archive.namelist() if name.endswith(".png")):
                character = "/".join(entry.split("/")[-3:-1])
                drawings.setdefault(character, []).append(_read_drawing(archive, entry))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, SyntaxError, ValueError) as error:
        raise FileError(
            f"{path} is damaged{f' at {entry}' if entry else ''}: {error}. Delete it and fetch it again."
        ) from error
    short = [name for name, images in drawings.items() if len(images) != DRAWERS]
    if len(drawings) != expected or short:
        raise DataError(
            f"{path} holds {len(drawings)} characters"
            + (f", {short[0]!r} with {len(drawings[short[0]])} drawings" if short else "")
            + f"; Omniglot's has {expected} with {DRAWERS} each, as SET/ALPHABET/CHARACTER/DRAWING.png"
        )
    return {name: np.stack(images) for name, images in drawings.items()}


def _read_drawing(archive: zipfile.ZipFile, entry: str) -> NDArray[np.uint8]:
    """Return one drawing, ``(28, 28)``, ink 255."""
    if archive.getinfo(entry).file_size > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES} bytes for one drawing")
    with archive.open(entry) as file, Image.open(file, formats=("PNG",)) as image:
        if image.size != (_SIDE, _SIDE):
            raise ValueError(f"{image.size[0]} x {image.size[1]} pixels, expected {_SIDE} x {_SIDE}")
        reduced = image.convert("L").resize((_REDUCED, _REDUCED), Image.Resampling.BOX)
    return 255 - np.asarray(reduced)


def _load(path: Path) -> Omniglot | None:
    """Return what `_save` wrote, or nothing where the file is absent or not whole."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            images, names = arrays["images"], arrays["names"]
            background = int(arrays["background"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    if images.dtype != np.uint8 or images.shape != (len(names), DRAWERS, 1, _REDUCED, _REDUCED):
        return None
    return Omniglot(torch.from_numpy(images), tuple(names.tolist()), background)


def _save(omniglot: Omniglot, path: Path) -> None:
    """Write to another name first, so that no reader meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez(
                file,
                images=omniglot.images.numpy(),
                names=np.array(omniglot.names),
                background=np.array(omniglot.background),
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
