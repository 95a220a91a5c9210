"""Omniglot: 1623 handwritten characters of 50 alphabets, each drawn by 20 people; read from its two zip files.

What was decoded once is kept as plain arrays.
"""

import contextlib
import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from headstart.cache import cache_dir, sha256_of, whole
from headstart.data.fewshot import GIVEN, class_store, few_shot, rotated, shuffled
from headstart.data.images.download import download
from headstart.errors import DataError, FileError, check_known
from headstart.schema import extends
from headstart.types import Tasks

_SOURCE = "https://github.com/brendenlake/omniglot/raw/master/python/"
_SHA256 = {
    "images_background.zip": "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640",
    "images_evaluation.zip": "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee",
}
_MOST_ZIP = 20_000_000  # bytes; both together have 16 million
_VALIDATION_CHARACTERS, _TEST_CHARACTERS, _VALIDATION_ALPHABETS = 100, 423, 5


Split = Literal["characters", "alphabets"]


@extends(few_shot, without=GIVEN)
def omniglot(*, data: Path | None = None, split: Split = "characters", **options: Any) -> Tasks:
    """Tell handwritten characters apart (Lake, Salakhutdinov, Tenenbaum 2015, doi:10.1126/science.aab3050).

    Images are 28 x 28, reduced from 105 x 105 by averaging areas, ink 1 on paper 0. No split depends on ``seed``.

    - ``split='characters'``, the field's usual one (Santoro et al. 2016, arXiv:1605.06065; Vinyals et al. 2016,
      arXiv:1606.04080): the 1623 characters shuffled by the SHA-256 of their names, 1100 for training, 100 for
      validation, 423 for test; turned by 90, 180 and 270 degrees they are three more classes each in their split: 4400,
      400 and 1692. Which characters are for test differs between papers.
    - ``split='alphabets'``, the data's own: the 20 alphabets of the evaluation set for test, 5 of the 30 of the
      background set for validation, the other 25 for training. Only training characters are turned.

    Args:
        data: folder with ``images_background.zip`` and ``images_evaluation.zip``; by default they are downloaded once
            (15 MB) into the user's cache folder.
        split: whether training, validation and test share alphabets (but no characters), or not even those.
        options: those of `few_shot`.

    Raises:
        FileError: files that are missing, damaged, or cannot be downloaded.
        DataError: zips that do not hold the 964 and 659 characters of Omniglot.
        ShortClassError: more shots and queries than the 20 images of a character.
    """
    check_known("split", split, get_args(Split))
    folder = _downloaded() if data is None else Path(data)
    images, names, background = read_omniglot(folder)
    parts, drawn = _parts(names, background, split), dict(zip(names, images))
    stores = {part: class_store({name: drawn[name] for name in chosen}) for part, chosen in parts.items()}
    turned = tuple(stores) if split == "characters" else ("train",)
    details = {
        "light_on_dark": True,
        "split": split,
        "characters": {part: len(chosen) for part, chosen in parts.items()},
        "rotated_splits": turned,
        "source": "Lake, Salakhutdinov, Tenenbaum 2015, doi:10.1126/science.aab3050",
        "licence": "MIT",
    }
    stores = {part: rotated(store) if part in turned else store for part, store in stores.items()}
    return few_shot("omniglot", stores, details=details, **options)


def _parts(names: Sequence[str], background: int, split: str) -> dict[str, Sequence[str]]:
    if split == "characters":
        order, first = shuffled(names), _TEST_CHARACTERS + _VALIDATION_CHARACTERS
        return {"train": order[first:], "validation": order[_TEST_CHARACTERS:first], "test": order[:_TEST_CHARACTERS]}
    alphabet = {name: name.partition("/")[0] for name in names}
    known = names[:background]
    held_out = set(shuffled({alphabet[name] for name in known})[:_VALIDATION_ALPHABETS])
    return {
        "train": [name for name in known if alphabet[name] not in held_out],
        "validation": [name for name in known if alphabet[name] in held_out],
        "test": names[background:],
    }


def _downloaded() -> Path:
    folder = cache_dir() / "omniglot"
    otherwise = f"Without a network, fetch {' and '.join(_SHA256)} elsewhere and pass their folder with --data DIR."
    for name, sha256 in _SHA256.items():
        download(_SOURCE + name, folder / name, sha256, most=_MOST_ZIP, instead=otherwise)
    return folder


ZIPS = {"images_background.zip": 964, "images_evaluation.zip": 659}
"""File names, and the number of characters that each holds."""

DRAWERS = 20
_SIDE, _REDUCED = 105, 28
_MOST_BYTES = 100_000  # of one drawing; the largest is a few hundred
#: Bytes of all that is kept of both zips, twice what it is.
_MOST_KEPT = 64 << 20


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

    Decoding takes some seconds. The result is kept as ``.npz`` beside the zips, or where that cannot be written in the
    user's cache folder, under a name made from the zips' SHA-256.

    Raises:
        FileError: a zip or a drawing in it that is missing or damaged.
        DataError: a zip that does not hold its characters, each drawn 20 times.
    """
    missing = [name for name in ZIPS if not (data / name).is_file()]
    if missing:
        wanted = f"expected the folder of Omniglot's {' and '.join(ZIPS)}"
        raise FileError(f"{data} has no {' and no '.join(missing)}; {wanted}. Without --data they are downloaded.")
    both = "".join(sha256_of(data / name) for name in ZIPS)
    cached = f"omniglot-{_REDUCED}-{hashlib.sha256(both.encode()).hexdigest()[:16]}.npz"
    folders = (data, cache_dir())
    for folder in folders:
        if found := _load(folder / cached):
            return found
    parts = [_read_zip(data / name, characters) for name, characters in ZIPS.items()]
    drawings = parts[0] | parts[1]
    result = Omniglot(torch.from_numpy(np.stack(list(drawings.values())))[:, :, None], tuple(drawings), len(parts[0]))
    for folder in folders:
        with contextlib.suppress(OSError), whole(folder / cached) as part, part.open("wb") as file:
            np.savez(file, images=result.images.numpy(), names=result.names, background=result.background)
            break
    return result


def _read_zip(path: Path, expected: int) -> dict[str, NDArray[np.uint8]]:
    entry = ""
    drawings: dict[str, list[NDArray[np.uint8]]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in sorted(name for name in archive.namelist() if name.endswith(".png")):
                character = "/".join(entry.split("/")[-3:-1])
                drawings.setdefault(character, []).append(_read_drawing(archive, entry))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, SyntaxError, ValueError) as error:
        # a RuntimeError is about a zip that is encrypted, or packed in a way that is not known
        at = f" at {entry}" if entry else ""
        raise FileError(f"{path} is damaged{at}: {error}. Delete it and fetch it again.") from error
    short = [name for name, images in drawings.items() if len(images) != DRAWERS]
    if len(drawings) != expected or short:
        raise DataError(
            f"{path} holds {len(drawings)} characters"
            + (f", {short[0]!r} with {len(drawings[short[0]])} drawings" if short else "")
            + f"; Omniglot's has {expected} with {DRAWERS} each, as SET/ALPHABET/CHARACTER/DRAWING.png"
        )
    return {name: np.stack(images) for name, images in drawings.items()}


def _read_drawing(archive: zipfile.ZipFile, entry: str) -> NDArray[np.uint8]:
    if archive.getinfo(entry).file_size > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES} bytes for one drawing")
    with archive.open(entry) as file, Image.open(file, formats=("PNG",)) as image:
        if image.size != (_SIDE, _SIDE):
            raise ValueError(f"{image.size[0]} x {image.size[1]} pixels, expected {_SIDE} x {_SIDE}")
        reduced = image.convert("L").resize((_REDUCED, _REDUCED), Image.Resampling.BOX)
    return 255 - np.asarray(reduced)


def _load(path: Path) -> Omniglot | None:
    """Return what was kept, or nothing where the file is absent or not whole."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if sum(member.file_size for member in arrays.zip.infolist()) > _MOST_KEPT:
                return None
            images, names, background = arrays["images"], arrays["names"], int(arrays["background"])
            found = Omniglot(torch.from_numpy(images), tuple(map(str, names)), background)
    except Exception:  # numpy's reader has errors of many types for what is damaged
        return None
    fits = found.images.dtype == torch.uint8 and images.shape == (len(names), DRAWERS, 1, _REDUCED, _REDUCED)
    return found if fits and 0 <= background <= len(names) else None
