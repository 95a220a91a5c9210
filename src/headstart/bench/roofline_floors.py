"""What this machine can do at the best: products, convolutions, moving memory, and doing nothing."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

LARGE = 2048
"""Rows and columns of the large product."""
_SECONDS = 0.3


class Floors(NamedTuple):
    """With a number of threads."""

    threads: int
    product: float
    """FLOP a second of a float32 product of 2,048 x 2,048 matrices."""
    small_product: float
    """The same of 25 products (10 x 40) (40 x 40) in one operation: the sine network's."""
    convolution: float
    """The same of a 3 x 3 convolution from 64 to 64 channels of 25 images of 14 x 14: conv4's."""
    memory: float
    """Bytes a second, read and written, of copying 128 MiB."""
    cache: float
    """The same of copying 256 KiB, again and again."""
    operation: float
    """Seconds of adding two numbers: an operation that has nothing to do."""

    def rate_of(self, size: float) -> float:
        """Return the bytes a second for operations that move ``size`` bytes each."""
        return self.cache if size <= 2**20 else self.memory


def floors(threads: int) -> Floors:
    """Measure; takes about two seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            return _floors(threads)
    finally:
        torch.set_num_threads(before)


def _floors(threads: int) -> Floors:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    large, left, right = draw(LARGE, LARGE), draw(25, 10, 40), draw(25, 40, 40)
    images, filters, one = draw(25, 64, 14, 14), draw(64, 64, 3, 3), draw(1)
    (block, other), (piece, same) = ((torch.zeros(size), torch.zeros(size)) for size in (2**25, 2**16))
    return Floors(
        threads,
        2 * LARGE**3 / seconds(lambda: large @ large),
        2 * 25 * 10 * 40 * 40 / seconds(lambda: torch.bmm(left, right)),
        2 * 25 * 64 * 64 * 9 * 14 * 14 / seconds(lambda: F.conv2d(images, filters, padding=1)),
        2 * block.nbytes / seconds(lambda: other.copy_(block)),
        2 * piece.nbytes / seconds(lambda: same.copy_(piece)),
        seconds(lambda: torch.add(one, one)),
    )


def seconds(function: Callable[[], object], least: float = _SECONDS) -> float:
    """Return the shortest time of a call, of calls in blocks that take ``least`` seconds together."""
    function()
    began = time.perf_counter()
    function()
    count = max(1, int(least / 10 / max(1e-7, time.perf_counter() - began)))
    found = []
    until = time.perf_counter() + least
    while len(found) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        for _ in range(count):
            function()
        found.append((time.perf_counter() - began) / count)
    return float(np.min(found))
