"""Drawing ahead: training asks for tasks number by number, and many are drawn for little more than a few."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["drawn_ahead"]

Draw: TypeAlias = Callable[[str, Sequence[int]], tuple[Tensor, ...]]
"""Of a split and task numbers, tensors whose first axis is the task."""

_TASKS, _WORDS = 256, 2**17  # of a block, at most
_BLOCKS = 4  # kept: two of training, while validation uses others


def drawn_ahead(draw: Draw, words: int) -> Draw:
    """Return what ``draw`` computes, and keep what it will be asked for next.

    Numbers that follow each other are cut from blocks of up to 256 tasks, since most of the time of small draws goes
    into starting operations. ``draw`` must be a pure function that draws a task by its number alone, and what it
    returns is shared: nothing may write into it.

    Args:
        draw: what to compute.
        words: about how many numbers a task takes; blocks are smaller where it is large.
    """
    size = min(_TASKS, _WORDS // max(words, 1))

    @lru_cache(maxsize=_BLOCKS)
    def block(split: str, number: int) -> tuple[Tensor, ...]:
        return draw(split, range(number * size, min((number + 1) * size, 2**63)))

    def cut(split: str, numbers: Sequence[int]) -> tuple[Tensor, ...]:
        count, first = len(numbers), int(numbers[0]) if numbers else -1  # numpy's integers may be too short
        if not 0 <= first < 2**63 - count or count >= size or list(numbers) != list(range(first, first + count)):
            return draw(split, numbers)
        low, high = first // size, (first + count - 1) // size
        parts = block(split, low)
        if high > low:
            parts = tuple(map(torch.cat, zip(parts, block(split, high))))
        start = first - low * size
        return tuple(part[start : start + count] for part in parts)

    return cut
