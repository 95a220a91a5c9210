"""Few-shot classification tasks out of images kept in memory.

A task is ``ways`` classes, and of each class some images to learn from (the support set, ``shots`` a class)
and others to be judged on (the query set, ``queries`` a class). All images stay as one uint8 tensor on the
training device; a batch of tasks is one computation of indices and one gather.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from headstart.data.ahead import Draw, drawn_ahead
from headstart.data.images.store import ImageStore, check_splits, image_store, long_enough, rotated, scaled
from headstart.data.random import below, bits, check_seed, distinct, streams
from headstart.errors import ShortClassError, UsageError, unknown_name
from headstart.types import Batch, Episodes, Tasks

__all__ = ["ImageStore", "few_shot", "image_store", "rotated"]

_CLASSES, _IMAGES, _SHOTS = 0, 1, 2  # streams of random numbers


def few_shot(
    name: str,
    stores: Mapping[str, ImageStore],
    *,
    ways: int = 5,
    shots: int | tuple[int, int] = 1,
    queries: int = 15,
    seed: int = 0,
    on_short: Literal["error", "skip"] = "error",
    device: str | torch.device = "cpu",
    details: Mapping[str, Any] | None = None,
    train_ways: int | None = None,
) -> Tasks:
    """Make few-shot classification tasks out of stores of images (Vinyals et al. 2016, arXiv:1606.04080).

    Every task draws ``ways`` classes of its split uniformly without replacement, in random order (a class's
    place is its label), and of each class images uniformly without replacement, so support and query never
    share one. Examples are ordered by class: ``x`` is float32 in [0, 1], ``(B, n, C, H, W)``, ``y`` int64
    ``(B, n)`` in ``0 … ways - 1``.

    Args:
        name: what the tasks are called.
        stores: by split: 'train', 'validation', 'test', or some of them.
        ways: classes of a task, at least 2.
        shots: support images a class. A pair ``(low, high)``: every task draws its number of shots uniformly
            from ``low … high``, one number for all its classes; the support set then has room for ``high`` a
            class, and ``support.mask`` is false (and ``x`` zero) where there is no example.
        queries: query images a class.
        seed: in ``[0, 2**32)``; with the split and the task number it decides a task.
        on_short: what to do with a class of fewer than shots + queries images: an error, or leave it out
            (``details['skipped_classes']`` counts them).
        device: where the images are kept and the tasks are made.
        details: more for the model card.
        train_ways: classes of a task of the split 'train', where they differ from ``ways``.

    Raises:
        UsageError: a number out of range.
        LeakageError: two splits share a class; a rotated copy counts as its original.
        ShortClassError: a class with too few images, or a split with fewer classes than ways.
    """
    low, high = _shot_range(shots)
    _check_numbers(ways, queries, seed, on_short)
    if train_ways is not None:
        _check_numbers(train_ways, queries, seed, on_short)
    ways_of = {split: train_ways if train_ways and split == "train" else ways for split in stores}
    check_splits(name, stores)
    usable = _usable(name, stores, ways_of, high, queries, on_short)
    # rows are gathered: channels that lie last would be moved at every batch
    held = {split: store.images.to(device).contiguous() for split, store in usable.items()}
    words = 2 * max(ways_of.values()) * (high + queries)
    drawn = drawn_ahead(_draws(usable, ways_of, (low, high), queries, seed), words)

    def sample(split: str, numbers: Sequence[int]) -> Episodes:
        if split not in held:
            raise unknown_name("split", split, held)
        rows, *mask = drawn(split, list(numbers))
        return _episodes(held[split], rows, high, *mask)

    return Tasks(
        name=name,
        sample=sample,
        kind="classification",
        input_shape=tuple(next(iter(held.values())).shape[1:]),
        output_size=ways,
        details={
            "ways": ways,
            "shots": shots,
            "queries": queries,
            "seed": seed,
            "classes": {split: len(store.names) for split, store in usable.items()},
            "images": {split: int(store.sizes.sum()) for split, store in usable.items()},
            "skipped_classes": sum(len(stores[s].names) - len(usable[s].names) for s in stores),
            **({} if train_ways is None else {"train_ways": train_ways}),
            **(details or {}),
        },
    )


def _draws(
    stores: Mapping[str, ImageStore], ways_of: Mapping[str, int], shots: tuple[int, int], queries: int, seed: int
) -> Draw:
    """Return what draws the rows of the images of tasks, ``(B, ways, high + queries)``, those of the support set first.

    Where the number of shots varies, the support sets' masks ``(B, ways * high)`` come with them.
    """
    low, high = shots
    count = high + queries

    def draw(split: str, numbers: Sequence[int]) -> tuple[Tensor, ...]:
        store, ways, tasks = stores[split], ways_of[split], len(numbers)
        class_words, words = streams(seed, split, numbers, {_CLASSES: 2 * ways, _IMAGES: 2 * ways * count})
        classes = distinct(class_words, torch.full((tasks,), len(store.names)), ways)
        places = distinct(words.reshape(tasks, ways, 2 * count), store.sizes[classes], count)
        rows = store.starts[classes][..., None] + places
        if low == high:
            return (rows,)
        drawn = low + below(bits(seed, split, numbers, _SHOTS, 1), high - low + 1)
        return rows, (torch.arange(high) < drawn).repeat(1, ways)

    return draw


def _episodes(images: Tensor, rows: Tensor, shots: int, mask: Tensor | None = None) -> Episodes:
    """Gather images and labels; indices are computed on the CPU (many small operations) and copied once."""
    tasks, ways, count = rows.shape
    sizes = (shots, count - shots)
    wanted = torch.cat([rows[:, :, :shots].flatten(), rows[:, :, shots:].flatten()])
    chosen = scaled(_gathered(images, wanted.to(images.device, non_blocking=True)))
    first = tasks * ways * shots
    halves = zip((chosen[:first], chosen[first:]), sizes)
    x_support, x_query = (half.view(tasks, ways * n, *images.shape[1:]) for half, n in halves)
    if mask is not None:
        mask = mask.to(images.device, non_blocking=True, copy=True)
        x_support.mul_(mask.view(tasks, ways * shots, 1, 1, 1))
    labels = torch.arange(ways, device=images.device)[:, None]
    spread = (labels.expand(tasks, ways, n).clone(memory_format=torch.contiguous_format) for n in sizes)
    y_support, y_query = (labels.flatten(1) for labels in spread)
    return Episodes(Batch(x_support, y_support, mask), Batch(x_query, y_query))


def _gathered(images: Tensor, rows: Tensor) -> Tensor:
    """Return the images at ``rows``, one after the other: as rows of long words, of which there are fewer to copy."""
    flat = images.flatten(1)
    if flat.shape[1] % 8 or flat.storage_offset() % 8:
        return flat.index_select(0, rows)
    return flat.view(torch.int64).index_select(0, rows).view(torch.uint8)


def _usable(
    name: str,
    stores: Mapping[str, ImageStore],
    ways_of: Mapping[str, int],
    shots: int,
    queries: int,
    on_short: Literal["error", "skip"],
) -> dict[str, ImageStore]:
    """Return the stores without short classes, or raise where that is not allowed or leaves too few."""
    needed, usable = shots + queries, {}
    needs = f"{shots} support + {queries} query images"
    for split, store in stores.items():
        kept = long_enough(store, split, needed, needs, on_short)
        skipped = len(store.names) - len(kept.names)
        ways = ways_of[split]
        if len(kept.names) < ways:
            raise ShortClassError(
                f"split {split!r} of {name} has {len(kept.names)} classes"
                + (f" ({skipped} more were skipped: fewer than {needed} images)" if skipped else "")
                + f", but {ways} ways need {ways}. Lower --ways, or add classes."
            )
        usable[split] = kept
    return usable


def _shot_range(shots: int | tuple[int, int]) -> tuple[int, int]:
    low, high = (shots, shots) if isinstance(shots, int) else shots
    if not 1 <= low <= high:
        raise UsageError(
            f"shots must be a number of at least 1, or a pair (low, high) with 1 <= low <= high; got {shots}"
        )
    return low, high


def _check_numbers(ways: int, queries: int, seed: int, on_short: str) -> None:
    if ways < 2:
        raise UsageError(f"ways must be at least 2 (there is nothing to tell apart in fewer), got {ways}")
    if queries < 1:
        raise UsageError(f"queries must be at least 1, got {queries}")
    if on_short not in ("error", "skip"):
        raise UsageError(f"on_short must be 'error' or 'skip', got {on_short!r}")
    check_seed(seed)
