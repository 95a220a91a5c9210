"""How large a task is where ways and shots vary and classes are unbalanced: Meta-Dataset's sampler of episodes.

Triantafillou et al. 2019, arXiv:1903.03096, section 3.2, for data without a hierarchy of classes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from headstart.data.random import uniform

LEAST_WAYS = 5
MOST_SUPPORT = 500
"""Support examples of a task, all classes together."""


class Sizes(NamedTuple):
    """The sizes of B tasks, of at most W classes each."""

    ways: Tensor
    """|C|, ``(B,)``."""
    shots: Tensor
    """k_c, ``(B, W)``; 0 for classes from ``ways`` on."""
    queries: Tensor
    """q of each of its classes, ``(B,)``."""


def draw_ways(seed: int, split: str, numbers: Sequence[int], stream: int, most: int) -> Tensor:
    """Return |C| of each task, ``(B,)``: uniform from 5, or ``most`` where that is less, to ``most``."""
    least = min(LEAST_WAYS, most)
    return least + (uniform(seed, split, numbers, stream, 1)[:, 0] * (most - least + 1)).long()


def draw_sizes(
    seed: int, split: str, numbers: Sequence[int], stream: int, ways: Tensor, images: Tensor, shots: int, queries: int
) -> Sizes:
    """Return how many examples of each class tasks have.

    With |Im(c)| the examples of class c, β uniform on (0, 1], and α_c uniform on [log 0.5, log 2)::

        q   = min(queries, min_c ⌊|Im(c)| / 2⌋)
        |S| = min(500, Σ_c ⌈β · min(shots, |Im(c)| − q)⌉)
        R_c = exp(α_c) |Im(c)| / Σ_c' exp(α_c') |Im(c')|
        k_c = min(⌊R_c (|S| − |C|)⌋ + 1, |Im(c)| − q)

    Args:
        seed, split, numbers, stream: as for `headstart.data.random.bits`.
        ways: |C|, ``(B,)``.
        images: |Im(c)| of each task's classes, ``(B, W)``, at least 2; what lies behind its ways counts nowhere.
        shots: most that a class adds to |S|; 100 in the paper.
        queries: most query examples of a class; 10 in the paper.
    """
    drawn = uniform(seed, split, numbers, stream, 1 + images.shape[1])
    there = torch.arange(images.shape[1]) < ways[:, None]
    query = torch.where(there, images // 2, images.max()).amin(1).clamp(max=queries)
    beta, left = 1 - drawn[:, :1], images - query[:, None]
    total = torch.where(there, (beta * left.clamp(max=shots)).ceil(), 0).sum(1).clamp(max=MOST_SUPPORT)
    share = torch.where(there, torch.exp(math.log(0.5) + drawn[:, 1:] * math.log(4)) * images, 0)
    share = share / share.sum(1, keepdim=True)
    found = torch.minimum((share * (total - ways)[:, None]).floor().long() + 1, left)
    return Sizes(ways, torch.where(there, found, 0), query)
