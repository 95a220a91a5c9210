"""Texts as counts of their hashed n-grams, each of which has a weight to learn."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from headstart.errors import ShapeError, UsageError
from headstart.schema import Count, Whole
from headstart.types import Params

Bits: TypeAlias = Annotated[int, Ge(4), Le(24)]

_SPACE = 32
#: Odd numbers of 64 bits: of a polynomial in the bytes, and to mix its value (those of splitmix64).
_BASE, _MIX = 0x5851F42D4C957F2D, (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)


def ngrams(
    inputs: int | Sequence[int],
    ways: int | None,
    *,
    bits: Bits = 14,
    letters: tuple[Count, Count] = (2, 5),
    words: Whole = 0,
    width: Whole = 0,
) -> "Ngrams":
    """Return an embedding of texts without order: v_k = w_k log(1 + n_k), scaled to length 1.

    n_k is how often n-grams of hash k are in the text, and w_k > 0 how much they tell, which is learned. In a run it
    starts from the inverse document frequencies of training texts, which makes it TF-IDF; else from 1. It takes bytes
    ``(n, length)`` (int64, 0 where there is none) and gives ``(n, 2^bits)``, ``(n, width)`` or ``(n, ways)``.

    Args:
        inputs: the most bytes that a text may have, or the shape of an input, ``(length,)``.
        ways: number of classes, or of target values; ``None`` leaves the head out, for an embedding.
        bits: how many hash values there are: 2^bits.
        letters: the shortest and the longest run of bytes inside a word and the spaces around it.
        words: words in a row, up to so many; 0: none.
        width: values of a learned projection; 0: none.

    References: Weinberger et al. 2009, arXiv:0902.2206, for the hashes; Salton, Buckley 1988,
    doi:10.1016/0306-4573(88)90021-0, for TF-IDF.

    >>> ids = torch.tensor([list(b"where is my card")])
    >>> round(ngrams(16, None)(ids).norm().item(), 4)
    1.0
    """
    shape = (inputs,) if isinstance(inputs, int) else tuple(inputs)
    low, high = letters
    if len(shape) != 1:
        raise ShapeError(f"ngrams takes texts as bytes (length,); got inputs of shape {shape}")
    if not 1 <= low <= high or high > 16 or words > 8:
        raise UsageError(
            f"ngrams takes letters from 1 to 16, the fewer first, and words up to 8; got {letters}, {words}"
        )
    layers = OrderedDict[str, nn.Module](counts=Hashed(bits, low, high, words), weights=Weighted(2**bits))
    if width:
        layers["projection"] = nn.Linear(2**bits, width, bias=False)
    if ways is not None:
        layers["head"] = nn.Linear(width or 2**bits, ways)
    return Ngrams(layers)


class Ngrams(nn.Sequential):
    """The layers of `ngrams`."""

    def start_by_inputs(self, inputs: Sequence[Tensor]) -> Params:
        """Return log w of inverse document frequencies, w_k = 1 + log((1 + N) / (1 + N_k)).

        N_k of the N texts ``(N, length)`` have n-grams of hash k.
        """
        counts, parts = self.get_submodule("counts"), [part for x in inputs for part in x.split(256)]
        there = torch.stack([(counts(part) > 0).sum(0) for part in parts]).sum(0)
        return {"weights.log_weight": (1 + ((1 + sum(map(len, parts))) / (1 + there)).log()).log()}


class Hashed(nn.Module):
    """Log counts of hashed n-grams, ``(n, length) -> (n, 2^bits)``; it learns nothing."""

    def __init__(self, bits: int, low: int, high: int, words: int) -> None:
        super().__init__()
        self.bits, self.low, self.high, self.words = bits, low, high, words

    def forward(self, ids: Tensor) -> Tensor:
        text = F.pad(torch.where(ids == 0, _SPACE, ids).long(), (1, 1), value=_SPACE)
        hashes, there = [], []
        for size in range(self.low, self.high + 1):
            if size <= text.shape[-1]:
                runs = text.unfold(-1, size, 1)
                gap = runs == _SPACE
                written = ~gap.all(-1)
                # shorter ones have nothing inside, and to onnxruntime any of nothing is true
                there.append(written & ~gap[..., 1:-1].any(-1) if size > 2 else written)
                hashes.append(_hashed(_polynomial(runs), size))
        if self.words:
            found = _words(text)
            some = found != 0
            together, row = some, found
            for size in range(1, self.words + 1):
                hashes.append(_hashed(row, 64 + size))
                there.append(together)
                if size < found.shape[-1]:
                    row = F.pad(row[..., :-1] * _BASE, (1, 0)) + found
                    together = F.pad(together[..., :-1], (1, 0)) & some
        buckets = torch.cat(hashes, -1) & (2**self.bits - 1)
        # from 1, since log is several times as fast as log1p
        counts = torch.ones(*ids.shape[:-1], 2**self.bits, dtype=torch.get_default_dtype(), device=ids.device)
        return counts.scatter_add(-1, buckets, torch.cat(there, -1).to(counts)).log()


class Weighted(nn.Module):
    """v ↦ w v / ‖w v‖ with w = exp(``log_weight``)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.zeros(size))

    def forward(self, counts: Tensor) -> Tensor:
        weighted = self.log_weight.exp() * counts
        # an empty text stays 0, and has finite derivatives
        return weighted * (weighted.square().sum(-1, keepdim=True) + 1e-12).rsqrt()


def _polynomial(runs: Tensor) -> Tensor:
    """Return a number for each run of bytes ``(…, size)``, in arithmetic modulo 2^64."""
    total = torch.zeros_like(runs[..., 0])
    for place in range(runs.shape[-1]):
        total = total * _BASE + runs[..., place] + 1
    return total


def _words(text: Tensor) -> Tensor:
    """Return a number for each word, in order, and 0 for the places that are left: ``(n, length)``."""
    space = text == _SPACE
    # a word is what lies between two spaces; those beside each other have nothing between them
    starts = ~space & F.pad(space[..., :-1], (1, 0), value=True)
    number = starts.cumsum(-1)
    places = torch.arange(text.shape[-1], device=text.device).expand_as(text)
    begun = torch.where(starts, places, 0).cummax(-1).values
    powers = [1]
    for _ in range(text.shape[-1] - 1):
        powers.append((powers[-1] * _BASE + 2**63) % 2**64 - 2**63)
    power = torch.tensor(powers, device=text.device)
    terms = torch.where(space, 0, (text + 1) * power[places - begun])
    return torch.zeros_like(text).scatter_add(-1, (number - 1).clamp(min=0), terms)


def _hashed(values: Tensor, salt: int) -> Tensor:
    """Return values whose low bits depend on all bits of ``values``."""
    mixed = values ^ (salt << 40)
    for factor, shift in zip(_MIX, (30, 27)):
        mixed = (mixed ^ (mixed >> shift)) * factor
    return mixed ^ (mixed >> 31)
