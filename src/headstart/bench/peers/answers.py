"""Answers of contenders, and how far they may be from each other."""

from pathlib import Path

import numpy as np

from headstart.bench.peers.prepared import Arrays
from headstart.bench.peers.process import PeerError

#: In double precision.
EXACT = 1e-8
#: In single precision.
CLOSE = 1e-4
#: In single precision through ReLUs and the maxima of pools. One unit of a support image within a rounding error of its
#: kink moves the first inner step, and with it hundreds of units of the query images: with 25 images and 5 steps the
#: gradient may be off by a third, in any library. That the mathematics is the same is held to `EXACT` besides.
LOOSE = 0.6
#: What is small beside the whole is held against this share of the whole's length: it may be a sum of zeros.
_SHARE = 0.01


def read(path: Path) -> Arrays:
    """Return the arrays of an .npz file; raise `PeerError` where there is none."""
    if not path.exists():
        raise PeerError("it has no answer to compare")
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def check(answer: Arrays, expected: Arrays, tolerance: float) -> float:
    """Return how far an answer is from what is expected.

    Raises:
        PeerError: farther than ``tolerance``, or an answer with other parts.
    """
    if set(answer) != set(expected):
        raise PeerError(f"its answer has other parts: {', '.join(sorted(set(answer) ^ set(expected)))}")
    for name, value in expected.items():
        if answer[name].shape != value.shape:
            raise PeerError(f"its answer has a {name} of shape {answer[name].shape} in place of {value.shape}")
    distance = difference(answer, expected)
    if not distance <= tolerance:
        raise PeerError(
            f"its answer is another one: {distance:.1e} from it, relative, where {tolerance:.0e} is allowed"
        )
    return distance


def difference(answer: Arrays, expected: Arrays) -> float:
    """Return the largest relative distance of the arrays, by the length of each, or by a hundredth of all together.

    >>> ones = np.ones(4)
    >>> round(difference({"a": ones, "b": ones + 0.1}, {"a": ones, "b": ones}), 6)
    0.1
    """
    if not expected:
        raise PeerError("there is nothing to compare with")
    lengths = {name: float(np.linalg.norm(value.astype(float))) for name, value in expected.items()}
    least = max(_SHARE * float(np.linalg.norm(list(lengths.values()))), 1e-30)
    distances = [
        float(np.linalg.norm(answer[name].astype(float) - value.astype(float))) / max(lengths[name], least)
        for name, value in expected.items()
    ]
    return float(np.max(distances))  # which, other than max, tells of a NaN
