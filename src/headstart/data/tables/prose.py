"""Columns of texts in tables, as a few numbers: TF-IDF of hashed n-grams, reduced to its principal components."""

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from headstart.data.text.read import encoded
from headstart.models.ngrams import Hashed

#: n-grams have 2^bits hashes: runs of letters inside words, and words; of so many bytes of a text.
_BITS, _LETTERS, _WORDS = 12, (3, 5), 1
LENGTH = 1024
#: Rows that the components are those of, at most, evenly among all; and rows that are read at a time.
_MOST, _CHUNK = 4096, 256
_WORDY = 3


class Components(NamedTuple):
    """What texts are reduced by: x = v P − c, where v is TF-IDF of length 1."""

    weights: Tensor
    """``(2^bits,)`` inverse document frequencies."""
    directions: Tensor
    """``(2^bits, numbers)`` P, over the standard deviations of its components."""
    centre: Tensor
    """``(numbers,)``."""

    def numbers(self, texts: Sequence[str]) -> Tensor:
        """Return the numbers ``(n, numbers)`` of texts."""
        parts = [_tf_idf(counts, self.weights) @ self.directions - self.centre for counts in _counted(texts)]
        return torch.cat(parts) if parts else torch.zeros(0, len(self.centre))


def is_prose(names: Sequence[str]) -> bool:
    """Return whether more than half of different values have several words, as sentences have and names have not.

    >>> is_prose(["works well so far", "broke on day two"]), is_prose(["Ada Lovelace", "Alan Turing"])
    (True, False)
    """
    return 2 * sum(len(name.split()) >= _WORDY for name in names) > len(names)


def learn_components(texts: Sequence[str], count: int) -> tuple[Components, float]:
    """Return ``count`` principal components of texts, or as many as there are, and their share of the variance.

    Each has mean 0 and deviation 1 on these texts. They do not depend on the machine, up to rounding.
    """
    some = [texts[row] for row in torch.linspace(0, len(texts) - 1, min(len(texts), _MOST)).long().tolist()]
    counts = torch.cat(list(_counted(some))).double()
    weights = 1 + ((1 + len(some)) / (1 + (counts > 0).sum(0))).log()
    v = _tf_idf(counts, weights)
    mean = v.mean(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, sizes, directions = torch.svd_lowrank(v - mean, q=min(4 * count, *v.shape), niter=8)
    kept = int((sizes[:count] > 1e-6 * sizes[0]).sum())
    directions, sizes = directions[:, :kept], sizes[:kept]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    directions = directions * largest.sign() / (sizes / len(v) ** 0.5)
    share = float(sizes.square().sum() / (v - mean).square().sum())
    return Components(*(part.float() for part in (weights, directions, mean @ directions))), share


def to_text(found: Components) -> str:
    """Return components as a text: base64 of their float32 numbers."""
    return base64.b64encode(torch.cat([part.flatten() for part in found]).numpy().astype("<f4").tobytes()).decode()


def from_text(text: str) -> Components:
    """Return the components that a text holds; ValueError where it holds none."""
    try:
        data = bytearray(base64.b64decode(text, validate=True))
    except binascii.Error as problem:
        raise ValueError(f"its texts are not in base64: {problem}") from problem
    count, rest = divmod(len(data) // 4 - 2**_BITS, 2**_BITS + 1)
    if count < 1 or rest or len(data) % 4:
        raise ValueError(f"its texts have {len(data)} bytes of components, which no number of them has")
    values = torch.frombuffer(data, dtype=torch.float32)
    if not bool(values.isfinite().all()):
        raise ValueError("its texts have components that are not finite")
    weights, directions, centre = values.split([2**_BITS, count * 2**_BITS, count])
    return Components(weights, directions.view(-1, count), centre)


def _counted(texts: Sequence[str]) -> Iterator[Tensor]:
    """Yield log counts of n-grams, ``(n, 2^bits)``, of some texts at a time."""
    count = Hashed(_BITS, *_LETTERS, _WORDS)
    for first in range(0, len(texts), _CHUNK):
        ids, _ = encoded(texts[first : first + _CHUNK], LENGTH, lower=True)
        longest = int((ids != 0).sum(1).max())
        yield count(ids[:, : max(longest, 1)].long())


def _tf_idf(counts: Tensor, weights: Tensor) -> Tensor:
    return torch.nn.functional.normalize(counts * weights, dim=-1)
