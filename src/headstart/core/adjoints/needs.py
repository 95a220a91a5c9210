"""How much memory going back over steps needs, measured on the first of them."""

from typing import NamedTuple

import torch
from torch.utils._pytree import tree_map

from headstart.core.adjoints.leaves import Slopes, draws, leaf, tensors_of
from headstart.core.adjoints.sweep import Pullback
from headstart.core.live_bytes import LiveBytes
from headstart.core.step import Given, Inner, Step


class Needs(NamedTuple):
    """What a sweep needs, in bytes."""

    state: int
    """For a state between two steps."""
    backward: int
    """For going back over one step, at the most."""


def measured(step: Step, given: Given, start: Inner, pullback: Pullback) -> Needs:
    """Return what a sweep needs, from going back over the first step."""
    drawn = draws(start)
    given, start = tree_map(leaf, (given, start))
    slopes: Slopes = [torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors_of(start)]
    state = sum(slope.nbytes for slope in slopes if slope is not None)
    with LiveBytes() as live:
        pullback(step, given, start, 0, slopes)
    drawn.restore()
    return Needs(state, live.peak + state)


def kept_bytes(step: Step, given: Given, start: Inner) -> int:
    """Return how many bytes each step keeps in an unrolled loop."""
    drawn = draws(start)
    with LiveBytes() as live, torch.enable_grad():
        after = step(given, start, 0, True)
        size = live.now
    del after
    drawn.restore()
    return size
