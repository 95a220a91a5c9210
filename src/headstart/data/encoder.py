"""Examples as a pretrained network sees them: its features, computed once and kept on disk, or its inputs.

Features lie in ``$HEADSTART_CACHE/features``, or in the user's cache folder, as one safetensors file for each network
and content, which is mapped into memory where it is read. Deleting the folder costs time only.
"""

import hashlib
import json
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from headstart.cache import cache_dir, warn_not_kept, whole
from headstart.data.text.read import CutTextWarning
from headstart.errors import ConfigError, FileError
from headstart.models.trunks.source import absolute
from headstart.models.trunks.trunk import Trunk, features_of, module_of, open_trunk, some
from headstart.types import Tasks

Encoded: TypeAlias = Literal["features", "inputs"]
"""What of a pretrained network examples are."""
Examples: TypeAlias = Sequence[str] | Tensor
"""Texts, or uint8 images ``(n, C, H, W)``."""

#: Of how features are computed; another number where the same network and content would give others.
_FORMAT = "headstart-features-1"
#: Examples that are encoded between two writes.
_CHUNK = 256
_LINE_SECONDS = 10.0


class Encoder(NamedTuple):
    """What a run keeps of the pretrained network that its examples went through."""

    source: str
    sha256: str
    encoded: Encoded
    shape: tuple[int, ...]
    """Of an example, as models see it."""
    told: Mapping[str, Any]

    @staticmethod
    def read(value: Any, where: str) -> "Encoder | None":
        """Return what JSON says, or raise `FileError` where it is not whole."""
        if value is None:
            return None
        try:
            source, sha256, encoded, shape, told = (value[name] for name in Encoder._fields)
            found = Encoder(str(source), str(sha256), encoded, tuple(map(int, shape)), dict(told))
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{where} does not say by what its examples were encoded: {error!r}") from error
        if encoded not in ("features", "inputs") or not all(0 < size <= 2**20 for size in found.shape):
            raise FileError(f"{where} has examples encoded as {encoded!r} of shape {found.shape}")
        return found

    def __call__(self, examples: Examples) -> Tensor:
        """Return examples as the run's models see them, by the network that it was trained with.

        Texts that are longer than it reads are counted in a warning.

        Raises:
            FileError: the network is not there, or is another one than it was.
        """
        trunk = open_trunk(self.source, sha256=self.sha256)
        if told := cut_by(trunk, [] if isinstance(examples, Tensor) else examples):
            warnings.warn(told, CutTextWarning, stacklevel=4)
        if self.encoded == "features":
            return features_of(trunk, examples)
        found = trunk.inputs(examples)
        return found if trunk.takes == "texts" else found.float() / 255

    def opened(self) -> tuple[Trunk, Callable[[Tensor], Tensor]]:
        """Return the network, and what makes of its inputs what the run's models see.

        Raises:
            FileError: the network is not there, or is another one than it was.
        """
        trunk = open_trunk(self.source, sha256=self.sha256)
        if self.encoded == "features":
            return trunk, module_of(trunk)
        return trunk, _as_is if trunk.takes == "texts" else lambda x: x.float() / 255


def encoder_of(trunk: Trunk) -> Encoder:
    """Return what is kept of a frozen network whose features examples are to be, before there is any."""
    return _encoder(trunk, "features", features_of(trunk, some(trunk)))


def _encoder(trunk: Trunk, how: Encoded, found: Tensor) -> Encoder:
    told = json.loads(json.dumps(dict(trunk.told)))  # as it is read again
    return Encoder(trunk.source, trunk.sha256, how, tuple(found.shape[1:]), told)


def like_of(encoder: Encoder | None) -> dict[str, Any]:
    """Return what a model has to know of the network that examples went through, as details of tasks."""
    return {} if encoder is None else {"encoder": encoder._asdict()}


def pad_of(tasks: Tasks) -> int | None:
    """Return the id that stands behind texts, which are as long as the longest beside them; ``None`` for other inputs.

    Only what a pretrained network takes is so; all else has one shape.
    """
    encoder = tasks.details.get("encoder")
    return (
        int(encoder["told"]["pad"]) if encoder and encoder["encoded"] == "inputs" and "pad" in encoder["told"] else None
    )


def beside(parts: Sequence[Tensor], dim: int, pad: int | None) -> Tensor:
    """Join tensors along an axis; where there is a ``pad``, those whose last axis is shorter have it behind them.

    >>> beside([torch.tensor([[1, 2]]), torch.tensor([[3]])], 0, pad=9)
    tensor([[1, 2],
            [3, 9]])
    """
    if pad is not None:
        longest = max(part.shape[-1] for part in parts)
        parts = [F.pad(part, (0, longest - part.shape[-1]), value=pad) for part in parts]
    return torch.cat(list(parts), dim)


def cut_by(trunk: Trunk, texts: Sequence[str]) -> str:
    """Return how many of texts are longer than a network reads, as people read it; empty where none is."""
    if not (count := trunk.cut(texts)):
        return ""
    is_longer = "is" if count == 1 else "are"
    return (
        f"{count} of {len(texts)} texts {is_longer} longer than the {trunk.told['length']} tokens that {trunk.source}"
        " reads; what comes after counts for nothing"
    )


class Seen(NamedTuple):
    """The classes of all splits, as a pretrained network sees their examples."""

    stores: dict[str, tuple[Tensor, Tensor, Tensor, tuple[str, ...]]]
    """By split, what a `headstart.data.fewshot.ClassStore` holds."""
    view: Callable[[Tensor], Tensor] | None
    encoder: Encoder
    cut: str
    """What there is to say of texts that are longer than the network reads."""


def encoded(
    source: str | Trunk, how: Encoded, classes: Mapping[str, Mapping[str, Examples]], takes: Literal["texts", "images"]
) -> Seen:
    """Return classes of texts or images as stores of a pretrained network's features, or of its inputs.

    Args:
        source: the network.
        how: as features, computed once, or as inputs.
        classes: by split and name, the examples of each class.
        takes: what they are.

    Raises:
        ConfigError: a network for something else.
    """
    trunk = open_trunk(absolute(source)) if isinstance(source, str) else source
    if trunk.takes != takes:
        raise ConfigError(f"{trunk.source} takes {trunk.takes}, but these tasks are of {takes}")
    # all splits in one, in an order that does not depend on the split, so that one file serves them all
    order = sorted((name, split) for split, own in classes.items() for name in own)
    parts = [classes[split][name] for name, split in order]
    sizes = torch.tensor([len(part) for part in parts])
    starts = sizes.cumsum(0) - sizes
    if how == "features":
        found, view = features(trunk, parts), _as_is
    elif takes == "texts":
        pad = int(trunk.told["pad"])
        found = trunk.inputs([text for part in parts for text in part]).int()
        view = lambda ids: trimmed(ids.long(), pad)  # noqa: E731
    else:
        found, view = torch.cat([trunk.inputs(part) for part in parts]), None
    stores = {}
    for split in classes:
        own = [place for place, (_, where) in enumerate(order) if where == split]
        stores[split] = (found, starts[own], sizes[own], tuple(order[place][0] for place in own))
    cut = cut_by(trunk, [text for part in parts if not isinstance(part, Tensor) for text in part])
    return Seen(stores, view, _encoder(trunk, how, found), cut)


def _as_is(examples: Tensor) -> Tensor:
    return examples  # they are gathered, so they are nobody else's already


def trimmed(ids: Tensor, pad: int) -> Tensor:
    """Return padded ids ``(n, length)`` without the places that no text reaches."""
    longest = int((ids != pad).any(0).nonzero().max()) + 1 if bool((ids != pad).any()) else 1
    return ids[:, :longest]


def features(trunk: Trunk, parts: Sequence[Examples]) -> Tensor:
    """Return the features ``(n, width)`` of all examples in order, from the cache where they are there.

    Else they are computed so many at a time, which a bar or lines tell of, and written as they come: they need no more
    memory than a part of them. A file is there whole or not at all; where the folder cannot be written, there is a
    warning, and they are in memory alone.
    """
    # of the whole digest of the network: of one that a file makes, a part is the file's alone
    network = hashlib.sha256(trunk.sha256.encode()).hexdigest()
    name = f"{network[:32]}-{content(parts)[:32]}.safetensors"
    path = cache_dir() / "features" / name
    count = sum(map(len, parts))
    if (found := _read(path, count)) is not None:
        return found
    total, width = hashlib.sha256(), 0
    try:
        with whole(path) as temporary, temporary.open("wb") as file:
            for chunk in _encoded(trunk, parts, count):
                if not width:
                    width = chunk.shape[1]
                    file.write(_header(count, width, total.hexdigest()))
                total.update(chunk.numpy().data)
                file.write(chunk.numpy().data)
            file.seek(0)
            file.write(_header(count, width, total.hexdigest()))
    except FileError:  # of the network
        raise
    except OSError as error:
        warn_not_kept("features", path, error)
        return torch.cat([*_encoded(trunk, parts, count)])
    if (found := _read(path, count)) is None:
        raise FileError(f"{path} is not as it was written; delete it")
    return found


def _header(count: int, width: int, sha256: str) -> bytes:
    """Return what a safetensors file starts with whose one tensor is ``(count, width)``, of bytes of that digest."""
    about = {"dtype": "F32", "shape": [count, width], "data_offsets": [0, 4 * count * width]}
    header = json.dumps({"__metadata__": {"sha256": sha256}, "features": about}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header


def _read(path: Path, count: int) -> Tensor | None:
    """Return features that lie in a file, mapped into memory; ``None`` where there is no such file that is whole."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            found, told = file.get_tensor("features"), file.metadata() or {}
    except (OSError, SafetensorError, KeyError):
        return None
    fits = found.dtype == torch.float32 and found.dim() == 2 and len(found) == count
    # less work than the digest of the examples, which the file's name is made of, but for short texts
    return found if fits and hashlib.sha256(found.numpy().data).hexdigest() == told.get("sha256") else None


def content(parts: Sequence[Examples]) -> str:
    """Return the SHA-256 of examples, in order."""
    total = hashlib.sha256(_FORMAT.encode())
    for part in parts:
        if isinstance(part, Tensor):
            total.update(repr((tuple(part.shape), part.dtype)).encode())
            total.update(part.contiguous().numpy().data)
        else:
            for text in part:
                data = text.encode()
                total.update(struct.pack("<Q", len(data)) + data)
    return total.hexdigest()


def _encoded(trunk: Trunk, parts: Sequence[Examples], count: int) -> Iterator[Tensor]:
    """Yield features of so many examples at a time, with a bar on a terminal, and elsewhere a line now and then."""
    from rich.console import Console
    from rich.progress import Progress

    told, live, done, shown = f"{trunk.takes} through {trunk.source[-40:]}", sys.stderr.isatty(), 0, time.monotonic()
    with Progress(console=Console(stderr=True), transient=True, disable=not live) as bar:
        task = bar.add_task(told, total=count)
        for chunk in _chunks(parts):
            yield features_of(trunk, chunk)
            done += len(chunk)
            bar.advance(task, len(chunk))
            if not live and time.monotonic() - shown >= _LINE_SECONDS:
                print(f"{told}: {done} of {count}", file=sys.stderr, flush=True)
                shown = time.monotonic()


def _chunks(parts: Sequence[Examples]) -> Iterator[Examples]:
    """Yield so many examples at a time, of several classes."""
    waiting = list[Examples]()
    for part in parts:
        for first in range(0, len(part), _CHUNK):
            piece = part[first : first + _CHUNK]
            if sum(map(len, waiting)) + len(piece) > _CHUNK:
                yield _joined(waiting)
                waiting = []
            waiting.append(piece)
    if waiting:
        yield _joined(waiting)


def _joined(parts: Sequence[Examples]) -> Examples:
    images = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(images) if images else [text for part in parts if not isinstance(part, Tensor) for text in part]
