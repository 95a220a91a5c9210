"""Omniglot: 1623 handwritten characters of 50 alphabets, each drawn by 20 people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from headstart.data.images.download import cache_dir, download
from headstart.data.images.fewshot import ImageStore, few_shot, image_store, rotated
from headstart.data.images.omniglot_files import read_omniglot
from headstart.data.images.store import shuffled
from headstart.errors import UsageError
from headstart.types import Tasks

_SOURCE = "https://github.com/brendenlake/omniglot/raw/master/python/"
_SHA256 = {
    "images_background.zip": "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640",
    "images_evaluation.zip": "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee",
}
_VALIDATION_CHARACTERS, _TEST_CHARACTERS, _VALIDATION_ALPHABETS = 100, 423, 5


def omniglot(
    *,
    data: Path | None = None,
    ways: int = 5,
    shots: int | tuple[int, int] = 1,
    queries: int = 15,
    seed: int = 0,
    split: Literal["characters", "alphabets"] = "characters",
    device: str | torch.device = "cpu",
    on_short: Literal["error", "skip"] = "error",
    train_ways: int | None = None,
) -> Tasks:
    """Tell handwritten characters apart (Lake, Salakhutdinov, Tenenbaum 2015, doi:10.1126/science.aab3050).

    Images are 28 x 28, reduced from 105 x 105 by averaging areas, ink 1 on paper 0. No split depends on
    ``seed``.

    - ``split='characters'``, the field's usual one (Santoro et al. 2016, arXiv:1605.06065; Vinyals et al.
      2016, arXiv:1606.04080): the 1623 characters shuffled (by the SHA-256 of their names), 423 for test, 100
      for validation, 1100 for training. Turned by 90, 180 and 270 degrees each gives three more classes in
      its own split, in all three splits: 4400, 400 and 1692 classes. Authors shuffled differently, so which
      characters are for test differs between papers.
    - ``split='alphabets'``, the data's own: the 20 alphabets of the evaluation set for test, 5 of the 30 of
      the background set for validation, the other 25 for training. Only training characters are turned;
      validation and test are upright.

    Args:
        data: folder with ``images_background.zip`` and ``images_evaluation.zip``; ``None``: they are
            downloaded once (15 MB) into the user's cache folder.
        split: see above.
        ways, shots, queries, seed, device, on_short, train_ways: see `headstart.data.images.fewshot.few_shot`.

    Raises:
        FileError: files that are missing, damaged, or cannot be downloaded.
        DataError: zips that do not hold the 964 and 659 characters of Omniglot.
        ShortClassError: more shots and queries than the 20 images of a character.
    """
    if split not in ("characters", "alphabets"):
        raise UsageError(f"split must be 'characters' or 'alphabets', got {split!r}")
    folder = _downloaded() if data is None else Path(data)
    images, names, background = read_omniglot(folder)
    parts = _by_character(names) if split == "characters" else _by_alphabet(names, background)
    stores = {part: _store(images, names, chosen) for part, chosen in parts.items()}
    turned = tuple(stores) if split == "characters" else ("train",)
    return few_shot(
        "omniglot",
        {part: rotated(store) if part in turned else store for part, store in stores.items()},
        ways=ways,
        shots=shots,
        queries=queries,
        seed=seed,
        on_short=on_short,
        train_ways=train_ways,
        device=device,
        details={
            "split": split,
            "characters": {part: len(chosen) for part, chosen in parts.items()},
            "rotated_splits": turned,
            "source": "Lake, Salakhutdinov, Tenenbaum 2015, doi:10.1126/science.aab3050",
            "licence": "MIT",
        },
    )


def _by_character(names: Sequence[str]) -> dict[str, list[str]]:
    order = shuffled(names)
    first_validation = _TEST_CHARACTERS + _VALIDATION_CHARACTERS
    return {
        "train": order[first_validation:],
        "validation": order[_TEST_CHARACTERS:first_validation],
        "test": order[:_TEST_CHARACTERS],
    }


def _by_alphabet(names: Sequence[str], background: int) -> dict[str, list[str]]:
    held_out = set(shuffled({_alphabet(name) for name in names[:background]})[:_VALIDATION_ALPHABETS])
    return {
        "train": [name for name in names[:background] if _alphabet(name) not in held_out],
        "validation": [name for name in names[:background] if _alphabet(name) in held_out],
        "test": list(names[background:]),
    }


def _alphabet(name: str) -> str:
    return name.partition("/")[0]


def _store(images: Tensor, names: Sequence[str], chosen: Sequence[str]) -> ImageStore:
    row = {name: i for i, name in enumerate(names)}
    return image_store({name: images[row[name]] for name in chosen})


def _downloaded() -> Path:
    folder = cache_dir() / "omniglot"
    for name, sha256 in _SHA256.items():
        download(
            _SOURCE + name,
            folder / name,
            sha256,
            instead=f"Without a network, fetch {' and '.join(_SHA256)} elsewhere and pass their folder with"
            " --data DIR.",
        )
    return folder
