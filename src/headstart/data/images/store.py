"""Images kept in memory, grouped by class, and the checks that make splits of them safe to learn from."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from headstart.data.random import SPLITS
from headstart.errors import DataError, LeakageError, ShapeError, ShortClassError, unknown_name

_TURN = re.compile(r"@(90|180|270)$")


class ImageStore(NamedTuple):
    """Images of one split, grouped by class."""

    images: Tensor
    """``(N, C, H, W)`` uint8, the images of a class beside each other."""
    starts: Tensor
    """``(K,)`` int64, where each class starts."""
    sizes: Tensor
    """``(K,)`` int64, the number of images of each class."""
    names: tuple[str, ...]
    """K class names."""


def image_store(classes: Mapping[str, Tensor]) -> ImageStore:
    """Build a store from each class's images, ``(n, C, H, W)`` uint8; classes are sorted by name.

    Raises:
        DataError: no class.
        ShapeError: a tensor that is not uint8 or whose image shape differs from the others'.

    >>> image_store({"b": torch.zeros(3, 1, 2, 2, dtype=torch.uint8),
    ...              "a": torch.zeros(5, 1, 2, 2, dtype=torch.uint8)}).starts
    tensor([0, 5])
    """
    if not classes:
        raise DataError("no class to build an image store from; expected at least one")
    names = tuple(sorted(classes))
    shape = classes[names[0]].shape[1:]
    for name in names:
        images = classes[name]
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1:] != shape:
            raise ShapeError(
                f"images of class {name!r} are {images.dtype} {tuple(images.shape)}; expected torch.uint8"
                f" (n, C, H, W) with one (C, H, W) for all classes (class {names[0]!r} has {tuple(shape)})"
            )
    sizes = torch.tensor([len(classes[name]) for name in names])
    return ImageStore(torch.cat([classes[name] for name in names]), sizes.cumsum(0) - sizes, sizes, names)


def rotated(store: ImageStore, keep: Sequence[bool] | None = None) -> ImageStore:
    """Add copies turned by 90, 180 and 270 degrees (counter-clockwise) as classes of their own.

    Class ``a`` gains ``a@90``, ``a@180`` and ``a@270``, after all original classes. They count as the class
    ``a`` where `few_shot` checks that no two splits share a class (Santoro et al. 2016, arXiv:1605.06065).

    Args:
        store: images as high as they are wide.
        keep: which classes to turn, one value a class; ``None``: all.

    Raises:
        ShapeError: images that are not square, or a ``keep`` of the wrong length.
    """
    height, width = store.images.shape[-2:]
    if height != width:
        raise ShapeError(f"images are {height} x {width}; only square images can be turned by 90 degrees")
    keep = [True] * len(store.names) if keep is None else list(keep)
    if len(keep) != len(store.names):
        raise ShapeError(f"keep has {len(keep)} values for {len(store.names)} classes; expected one a class")
    turned = [i for i, kept in enumerate(keep) if kept]
    if not turned:
        return store
    spans = zip(store.starts[turned].tolist(), store.sizes[turned].tolist())
    originals = torch.cat([store.images[start : start + size] for start, size in spans])
    copies = [originals.rot90(quarter, (-2, -1)) for quarter in (1, 2, 3)]
    sizes = store.sizes[turned].repeat(3)
    return ImageStore(
        torch.cat((store.images, *copies)),
        torch.cat((store.starts, len(store.images) + sizes.cumsum(0) - sizes)),
        torch.cat((store.sizes, sizes)),
        store.names + tuple(f"{store.names[i]}@{angle}" for angle in (90, 180, 270) for i in turned),
    )


def scaled(images: Tensor) -> Tensor:
    """Return uint8 images as models see them: float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


def shuffled(names: Iterable[str]) -> list[str]:
    """Return the names ordered by their SHA-256: a shuffle that no seed and no library version changes."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def check_splits(name: str, stores: Mapping[str, ImageStore]) -> None:
    """Refuse unknown splits, repeated names, images of different shapes, and classes that splits share."""
    if not stores:
        raise DataError(f"{name} has no split; expected one of {', '.join(SPLITS)}")
    for split, store in stores.items():
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        if store.images.dtype != torch.uint8 or store.images.dim() != 4:
            raise ShapeError(
                f"images of split {split!r} of {name} are {store.images.dtype} {tuple(store.images.shape)};"
                " expected torch.uint8 (N, C, H, W)"
            )
    shapes = {split: tuple(store.images.shape[1:]) for split, store in stores.items()}
    if len(set(shapes.values())) > 1:
        raise ShapeError(f"the splits of {name} have images of different shapes: {shapes}")
    _check_names(name, stores)


def _check_names(name: str, stores: Mapping[str, ImageStore]) -> None:
    owner: dict[str, str] = {}
    for split, store in stores.items():
        if len(set(store.names)) < len(store.names):
            twice = next(n for i, n in enumerate(store.names) if n in store.names[:i])
            raise DataError(f"class {twice!r} is twice in split {split!r} of {name}; names must be unique")
        originals = sorted({_TURN.sub("", n) for n in store.names})
        shared = [n for n in originals if n in owner]
        if shared:
            raise LeakageError(
                f"splits {owner[shared[0]]!r} and {split!r} of {name} share {_listed(shared)}"
                " (a rotated copy is the same class). Every class must be in one split only."
            )
        owner |= dict.fromkeys(originals, split)


def long_enough(store: ImageStore, split: str, needed: int, why: str, on_short: Literal["error", "skip"]) -> ImageStore:
    """Return the store without its short classes, or raise."""
    enough = store.sizes >= needed
    short = (~enough).nonzero().flatten().tolist()
    if not short:
        return store
    if on_short == "error":
        sizes = store.sizes.tolist()
        raise ShortClassError(
            f"class {store.names[short[0]]!r} of split {split!r} has {sizes[short[0]]} images, but {why} need"
            f" {needed}"
            + (f" (so do {len(short) - 1} other classes)" if len(short) > 1 else "")
            + ". Leave short classes out with --on-short skip, or lower --shots or --queries."
        )
    names = tuple(n for n, kept in zip(store.names, enough.tolist()) if kept)
    return ImageStore(store.images, store.starts[enough], store.sizes[enough], names)


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(repr(n) for n in names[:most])
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"class {shown}" if len(names) == 1 else f"the classes {shown}{more}"
