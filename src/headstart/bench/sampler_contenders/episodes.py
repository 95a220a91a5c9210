"""What every contender is to deliver, out of which images, and whether an episode is sound."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from headstart.bench.peers.prepared import Arrays, Prepared
from headstart.data.images.icons.archive import read_archive
from headstart.data.images.omniglot_files import ZIPS, read_omniglot
from headstart.data.images.store import ImageStore, image_store, long_enough, rotated, scaled

Tensors: TypeAlias = tuple[Tensor, ...]
"""Support ``x`` and ``y``, query ``x`` and ``y``: of one task, or stacked along a first axis."""

FIELDS = ("support_x", "support_y", "query_x", "query_y")


class SamplerCase(NamedTuple):
    """Batches of ``tasks`` episodes as a model takes them: float32 in [0, 1], labels below ``ways``."""

    ways: int = 5
    shots: int = 1
    queries: int = 15
    tasks: int = 32
    workers: int = 0
    """Processes that load for the contender, where it can have some."""
    seed: int = 0
    omniglot: str | None = None
    """The folder of Omniglot's zips; ``None``: the icons that are part of headstart."""


class Images(NamedTuple):
    """The images as other libraries take them: ready for a model, in memory."""

    x: Tensor
    """``(N, C, H, W)`` float32 in [0, 1]."""
    classes: list[int]
    """Each image's class."""


def case_of(values: Mapping[str, Any]) -> SamplerCase:
    """Return the case of which JSON has the values."""
    return SamplerCase(**values)


def omniglot_folder(data: Path | None) -> str | None:
    """Return the folder with Omniglot's zips: ``data``, or ``omniglot`` in it, in HEADSTART_DATA or ../shared/data."""
    places = [data] if data else [Path(os.environ.get("HEADSTART_DATA", Path("..", "shared", "data")))]
    for place in (*places, *(place / "omniglot" for place in places)):
        if all((place / name).is_file() for name in ZIPS):
            return str(place.absolute())
    return None


def store_of(case: SamplerCase) -> ImageStore:
    """Return the images that all contenders draw from.

    They are the 964 characters of Omniglot's background set, or the training icons; turned by 90, 180 and 270 degrees
    they are three more classes.
    """
    return _store(case.omniglot, case.shots + case.queries)


@cache
def _store(omniglot: str | None, needed: int) -> ImageStore:
    if omniglot is None:
        archive = read_archive()
        store = rotated(archive.stores["train"], archive.turns["train"])
        return long_enough(store, "train", needed, "", "skip")
    drawings, names, background = read_omniglot(Path(omniglot))
    return rotated(image_store(dict(zip(names[:background], drawings))))


def images_of(case: SamplerCase) -> Images:
    """Return the same images for another library."""
    return _images(case.omniglot, case.shots + case.queries)


@cache
def _images(omniglot: str | None, needed: int) -> Images:
    store = _store(omniglot, needed)
    places = [torch.arange(start, start + size) for start, size in zip(store.starts.tolist(), store.sizes.tolist())]
    classes = torch.arange(len(places)).repeat_interleave(store.sizes)
    return Images(scaled(store.images[torch.cat(places)]), classes.tolist())


def stacked(episodes: Sequence[Tensors]) -> Tensors:
    """Stack the episodes of several tasks."""
    return tuple(torch.stack(parts) for parts in zip(*episodes))


def prepared(batches: Iterator[Tensors], note: str = "") -> Prepared:
    """Return a contender whose step is the next batch, and whose answer is one."""

    def answer() -> Arrays:
        return {name: part.numpy() for name, part in zip(FIELDS, next(batches))}

    return Prepared(lambda: next(batches), answer, note)


def fault(found: Arrays, case: SamplerCase) -> str | None:
    """Return what is wrong with a batch of episodes, or ``None``.

    Every task must have ``ways`` different classes, one a label, and of each the asked number of different images, so
    that no query image is a support image.
    """
    store = store_of(case)
    for part, count in (("support", case.shots), ("query", case.queries)):
        x, y = found[f"{part}_x"], found[f"{part}_y"]
        shape = (case.tasks, case.ways * count)
        if x.shape != (*shape, *store.images.shape[1:]) or y.shape != shape:
            return f"the {part} sets have shapes {x.shape} and {y.shape}; expected {shape} examples"
        if x.dtype != np.float32 or x.min() < 0 or not 0.5 < x.max() <= 1:
            return f"the {part} images are {x.dtype} from {x.min()} to {x.max()}; expected float32 in [0, 1]"
        if any((np.bincount(labels, minlength=case.ways) != count).any() for labels in y.astype(np.int64)):
            return f"a {part} set does not have {count} examples of each of {case.ways} labels"
    owners = _owners(case.omniglot, case.shots + case.queries)
    x, y = (np.concatenate([found[f"support_{part}"], found[f"query_{part}"]], axis=1) for part in "xy")
    pixels = (x * 255).round().astype(np.uint8)
    return next(filter(None, (_fault(*task, owners, case.ways) for task in zip(pixels, y))), None)


def _fault(pixels: np.ndarray, labels: np.ndarray, owners: Mapping[bytes, set[int]], ways: int) -> str | None:
    """Return what is wrong with one task's images and labels."""
    chosen: set[int] = set()
    for label in range(ways):
        images = [image.tobytes() for image in pixels[labels == label]]
        if len(set(images)) < len(images):
            return f"an image is twice under label {label} of a task"
        # a drawing that looks the same when turned is of two classes
        shared = set.intersection(*(owners.get(image, set()) for image in images))
        if not shared:
            return f"label {label} of a task is not one class of these images"
        chosen |= shared
    return None if len(chosen) >= ways else f"a task has {len(chosen)} classes for {ways} labels"


@cache
def _owners(omniglot: str | None, needed: int) -> dict[bytes, set[int]]:
    store = _store(omniglot, needed)
    owners: dict[bytes, set[int]] = {}
    for number, (start, size) in enumerate(zip(store.starts.tolist(), store.sizes.tolist())):
        for image in store.images[start : start + size].numpy():
            owners.setdefault(image.tobytes(), set()).add(number)
    return owners
