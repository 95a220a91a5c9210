"""Counter-based random numbers: they are computed from a task's number, so no order of asking changes them.

The counter of `philox` is ``(lane, stream, t low, t high)`` and its key ``(seed, split)``: a task's numbers depend on
nothing else, and no generator state exists that workers, ranks or resumed runs could disagree about.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.core.philox import WORD, philox
from headstart.errors import UsageError, check_known

Words = TypeVar("Words", Tensor, NDArray[np.int64])

SPLITS = ("train", "validation", "test")
"""The names of the splits; a name's place is its half of the key."""


def bits(seed: int, split: str, numbers: Sequence[int], stream: int, count: int) -> Tensor:
    """Return ``count`` random words for each of the tasks ``numbers``, ``(B, count)`` int64 in ``[0, 2**32)``.

    Args:
        seed: in ``[0, 2**32)``.
        split: 'train', 'validation' or 'test'.
        numbers: task numbers, each in ``[0, 2**63)``.
        stream: which of a task's independent sequences, in ``[0, 2**32)``.
        count: words per task.

    Raises:
        UsageError: a seed or task number out of range, or an unknown split.

    >>> bits(0, "train", [7], stream=0, count=2).tolist() == bits(0, "train", [3, 7], 0, 2)[1:].tolist()
    True
    """
    return streams(seed, split, numbers, {stream: count})[0]


def streams(seed: int, split: str, numbers: Sequence[int], counts: Mapping[int, int]) -> list[Tensor]:
    """Return what `bits` does of every stream in ``counts`` (``{stream: count}``), computed together.

    >>> [words.shape for words in streams(0, "train", [3, 7], {0: 10, 1: 6})]
    [torch.Size([2, 10]), torch.Size([2, 6])]
    """
    check_known("split", split, SPLITS)
    check_seed(seed)
    numbers = list(numbers)
    if numbers and not (0 <= min(numbers) and max(numbers) < 2**63):
        raise UsageError(f"task numbers must be from 0 to 2**63 - 1, got {min(numbers)} to {max(numbers)}")
    task = np.array(numbers, dtype=np.uint64)[:, None]
    lanes = [-(-count // 4) for count in counts.values()]
    lane = np.concatenate([np.arange(n, dtype=np.uint64) for n in lanes])
    stream = np.repeat(np.array(list(counts), dtype=np.uint64), lanes)
    # the words of a counter that do not differ have one value: arithmetic spreads them over tasks and lanes
    words = philox((lane, stream, task & np.uint64(WORD), task >> np.uint64(32)), (seed, SPLITS.index(split)))
    by_task = torch.from_numpy(np.stack(words, axis=-1).view(np.int64).reshape(len(task), 4 * len(lane)))
    parts = by_task.split([4 * n for n in lanes], dim=1)
    return [part[:, :count] for part, count in zip(parts, counts.values())]


def uniform(seed: int, split: str, numbers: Sequence[int], stream: int, count: int) -> Tensor:
    """Return ``(B, count)`` float64, uniform on [0, 1) with 53 random bits; arguments as for `bits`."""
    words = bits(seed, split, numbers, stream, 2 * count)
    high, low = words[:, 0::2] >> 5, words[:, 1::2] >> 6
    return (high * 2**26 + low).to(torch.float64) * 2.0**-53


def normal(seed: int, split: str, numbers: Sequence[int], stream: int, count: int) -> Tensor:
    """Return ``(B, count)`` float64, standard normal (Box, Muller 1958), of many the first as of few; as for `bits`."""
    drawn = uniform(seed, split, numbers, stream, 2 * count)
    return torch.sqrt(-2 * torch.log1p(-drawn[:, 0::2])) * torch.cos(2 * math.pi * drawn[:, 1::2])


def below(words: Words, bound: Words | int) -> Words:
    """Turn random words, in torch or numpy, into integers in ``[0, bound)``, for bounds up to 2**31.

    Multiply and shift (Lemire 2019, arXiv:1805.10941) without rejection: chances are off by less than 2**-32.
    """
    return (words * bound) >> 32  # pyrefly: ignore[bad-return]


def distinct(words: Tensor, sizes: Tensor, count: int) -> Tensor:
    """Draw ``count`` different integers below each of ``sizes``, in random order.

    Floyd's subset algorithm (Bentley and Floyd 1987, doi:10.1145/30401.315746), then a shuffle.

    Args:
        words: ``(*rows, 2 * count)`` random words.
        sizes: ``(*rows,)`` int64, each at least ``count``.

    Returns:
        ``(*rows, count)`` int64.
    """
    # numpy: its many small steps cost a third of torch's
    rows: NDArray[np.int64] = words.numpy().reshape(-1, words.shape[-1])
    size: NDArray[np.int64] = sizes.numpy().reshape(-1)
    # Step j draws among the first size - count + j + 1; a repeat takes the newest of them instead.
    newest = size - count + np.arange(count)[:, None]
    drawn = below(rows.T[:count], newest + 1)
    for j in range(1, count):
        repeated = np.logical_or.reduce(drawn[:j] == drawn[j])
        np.copyto(drawn[j], newest[j], where=repeated)
    order = rows[:, count : 2 * count].argsort(axis=-1, kind="stable")
    return torch.from_numpy(np.take_along_axis(drawn.T, order, axis=-1)).view(*sizes.shape, count)


def check_seed(seed: int) -> None:
    """Raise `UsageError` unless ``seed`` is in ``[0, 2**32)``."""
    if not 0 <= seed <= WORD:
        raise UsageError(f"seed must be an integer from 0 to 2**32 - 1, got {seed}")


def check_sizes(**sizes: int) -> None:
    """Raise `UsageError` unless each is at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"{name} must be at least 1, got {size}")


def check_deviations(**deviations: float) -> None:
    """Raise `UsageError` unless each is a standard deviation: a finite number of 0 or more."""
    for name, deviation in deviations.items():
        if not 0 <= deviation < math.inf:
            raise UsageError(f"{name} must be a standard deviation of 0 or more, got {deviation}")


def size_range(name: str, given: int | tuple[int, int]) -> tuple[int, int]:
    """Return the least and the most of a size that is a number or a pair, or raise `UsageError`."""
    try:
        low, high = (given, given) if isinstance(given, int) else (int(end) for end in given)
    except (TypeError, ValueError):
        low, high = 0, 0
    if not 1 <= low <= high:
        raise UsageError(f"{name} must be a number from 1 up, or a pair (least, most) of them, got {given!r}")
    return low, high
