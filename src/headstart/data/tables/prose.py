"""Columns of texts in tables, as a few numbers: principal components of TF-IDF, or of pretrained features."""

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from headstart.data.encoder import cut_by, features
from headstart.data.text.read import encoded as in_bytes, plain
from headstart.errors import ConfigError
from headstart.models.ngrams import Hashed
from headstart.models.trunks.source import absolute
from headstart.models.trunks.trunk import features_of, open_trunk

#: n-grams have 2^bits hashes: runs of letters inside words, and words; of so many bytes of a text.
_BITS, _LETTERS, _WORDS = 12, (3, 5), 1
HASHES, LENGTH = 2**_BITS, 1024
#: Rows that the components are those of, at most, evenly among all; and rows that are read at a time.
_MOST, _CHUNK = 4096, 256
_WORDY = 3


class Network(NamedTuple):
    """A pretrained network for texts."""

    source: str
    sha256: str


class Components(NamedTuple):
    """What texts are reduced by: x = v P − c, where v is TF-IDF, or a network's features, of length 1."""

    weights: Tensor
    """``(size,)`` inverse document frequencies of 2^bits hashes, or ones."""
    directions: Tensor
    """``(size, numbers)`` P, over the standard deviations of its components."""
    centre: Tensor
    """``(numbers,)``."""

    def numbers(self, texts: Sequence[str], network: Network | None = None, *, kept: bool = False) -> Tensor:
        """Return the numbers ``(n, numbers)`` of texts, by the network that the components are of.

        Its features are ``kept`` on disk, for the next time, or not.

        Raises:
            FileError: the network is not there, or is another one than it was.
        """
        parts = [_weighted(v, self.weights) @ self.directions - self.centre for v in _read(texts, network, kept)]
        return torch.cat(parts) if parts else torch.zeros(0, len(self.centre))


def is_prose(names: Sequence[str]) -> bool:
    """Return whether more than half of different values have several words, as sentences have and names have not.

    >>> is_prose(["works well so far", "broke on day two"]), is_prose(["Ada Lovelace", "Alan Turing"])
    (True, False)
    """
    return 2 * sum(len(name.split()) >= _WORDY for name in names) > len(names)


def cut(texts: Sequence[str], network: Network | None) -> str:
    """Return how many of texts are longer than what is read of them, as people read it; empty where none is."""
    if network is not None:
        return cut_by(open_trunk(network.source, sha256=network.sha256), texts)
    count = sum(len(plain(text).encode()) > LENGTH for text in texts)
    told = f"{count} of {len(texts)} texts are longer than {LENGTH} bytes; what comes after is not read"
    return told if count else ""


def find_network(source: str) -> Network:
    """Return a network with the SHA-256 that it has now; a `ConfigError` where it is not for texts."""
    trunk = open_trunk(absolute(source))
    if trunk.takes != "texts":
        raise ConfigError(f"{trunk.source} takes {trunk.takes}, but columns of texts are to go through it")
    return Network(trunk.source, trunk.sha256)


def learn_components(texts: Sequence[str], count: int, network: Network | None = None) -> tuple[Components, float]:
    """Return ``count`` principal components of texts, or as many as there are, and their share of the variance.

    Each has mean 0 and deviation 1 on these texts. They do not depend on the machine, up to rounding.
    """
    some = [texts[row] for row in torch.linspace(0, len(texts) - 1, min(len(texts), _MOST)).long().tolist()]
    raw = torch.cat(list(_read(some, network, True))).double()
    weights = torch.ones(raw.shape[1]).double()
    if network is None:
        weights += ((1 + len(some)) / (1 + (raw > 0).sum(0))).log()
    v = _weighted(raw, weights)
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


def from_text(text: str, numbers: int) -> Components:
    """Return the components that a text holds, of so many numbers; ValueError where it holds none."""
    try:
        data = bytearray(base64.b64decode(text, validate=True))
    except binascii.Error as problem:
        raise ValueError(f"its texts are not in base64: {problem}") from problem
    size, rest = divmod(len(data) // 4 - numbers, numbers + 1)
    if size < 1 or rest or len(data) % 4:
        raise ValueError(f"its texts have {len(data)} bytes of components, which {numbers} of them have not")
    values = torch.frombuffer(data, dtype=torch.float32)
    if not bool(values.isfinite().all()):
        raise ValueError("its texts have components that are not finite")
    weights, directions, centre = values.split([size, numbers * size, numbers])
    return Components(weights, directions.view(-1, numbers), centre)


def _read(texts: Sequence[str], network: Network | None, kept: bool) -> Iterator[Tensor]:
    """Yield log counts of n-grams, ``(n, 2^bits)``, of some texts at a time; or all features of a network."""
    if network is not None:
        trunk = open_trunk(network.source, sha256=network.sha256)
        yield features(trunk, [texts]) if kept else features_of(trunk, texts)
        return
    count = Hashed(_BITS, *_LETTERS, _WORDS)
    for first in range(0, len(texts), _CHUNK):
        ids, _ = in_bytes(texts[first : first + _CHUNK], LENGTH, lower=True)
        longest = int((ids != 0).sum(1).max())
        yield count(ids[:, : max(longest, 1)].long())


def _weighted(raw: Tensor, weights: Tensor) -> Tensor:
    return torch.nn.functional.normalize(raw * weights, dim=-1)
