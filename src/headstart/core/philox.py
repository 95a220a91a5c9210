"""Counter-based random words: word i is computed, not drawn, so no order of asking can change it.

Reference: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", doi:10.1145/2063384.2063405.
"""

from typing import Any, TypeAlias

Words: TypeAlias = Any
"""Four arrays of one shape: numpy uint64 or torch int64, holding words in ``[0, 2**32)``."""

WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Return four arrays of random words for a counter of four and a key of two words (Philox4x32-10).

    Written in operators alone, so that numpy computes it where many small calls count, and torch on any device.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # a signed 64-bit product wraps around; the masks read its two halves as unsigned words
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((p1 >> 32) & WORD) ^ c1 ^ k0, p1 & WORD
        c2, c3 = ((p0 >> 32) & WORD) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + _KEY_STEPS[0]) & WORD, (k1 + _KEY_STEPS[1]) & WORD
    return c0, c1, c2, c3
