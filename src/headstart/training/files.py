"""Files that are whole or not there, hold data only, and are checked before they are used.

Weights are safetensors and everything else is JSON: nothing is ever unpickled. A file is written beside its place,
brought to the disk, and renamed, so that a crash or a full disk leaves what was there before. A folder's files belong
together by its ``manifest.json``, their sizes and SHA-256: written last, and read first. A file that stands alone is
*sealed*: it holds its own SHA-256.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import stat
import struct
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from headstart.errors import FileError, HeadstartError

_JSON_BYTES = 16 << 20
_HEADER_BYTES = 4 << 20
_TENSORS = 40_000
#: Where what is told beside the tensors stands in a sealed file: one text, since several are written in any order.
_TOLD = "headstart"
#: How a sealed file's header begins to tell it: with the digest.
_DIGEST = re.compile(rb'\\"sha256\\": \\"([0-9a-f]{64})\\"')
#: safetensors' names of the types that headstart writes.
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL")
#: What can be done about what the system refuses.
_FIXES = {
    errno.ENOSPC: "the disk is full; free some space and run again",
    errno.EDQUOT: "your quota is used up; free some space and run again",
    errno.EFBIG: "the file would be larger than allowed",
    errno.EACCES: "permission denied; choose another folder or change its permissions",
    errno.EPERM: "permission denied; choose another folder or change its permissions",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.ENOENT: "there is no such file or folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EISDIR: "it is a folder, but a file is wanted",
    errno.EEXIST: "a file of that name is in the way",
    errno.EMFILE: "too many files are open; hold fewer adaptations kept on disk, or allow more open files",
    errno.ENFILE: "too many files are open; hold fewer adaptations kept on disk, or allow more open files",
}

TEMPORARY = ".tmp-"
"""What the names of unfinished files and folders start with."""
MANIFEST = "manifest.json"


def make_folder(path: Path) -> None:
    """Make a folder and its parents, or raise `FileError`."""
    with explained("make the folder", path):
        path.mkdir(parents=True, exist_ok=True)


def write(path: Path, data: bytes) -> None:
    """Write a whole file or nothing, as `writing` does."""
    with writing(path) as file:
        file.write(data)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write whole or not at all: beside its place, flushed to the disk at the end, then renamed.

    Raises:
        FileError: the folder cannot be written or is full; what was at ``path`` before is intact.
    """
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")
    with explained("write", path):
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Bring a folder's list of names to the disk, where the system can."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read(path: Path, most: int | None = None) -> bytes:
    """Return the bytes of an ordinary file; links are refused, for they could lead anywhere.

    Raises:
        FileError: no such file, a link, a folder or a device, or more than ``most`` bytes.
    """
    with explained("read", path):
        if path.is_symlink():
            raise FileError(f"{path} is a link; headstart reads ordinary files only")
        # a pipe is opened without waiting for a writer, to be refused below
        flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(path, os.O_RDONLY | flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FileError(f"{path} is not an ordinary file")
            if most is not None and status.st_size > most:
                raise FileError(f"{path} has {status.st_size} bytes; expected at most {most}")
            return file.read()


def to_json(value: Any) -> bytes:
    """Return ``value`` as indented JSON; numbers that JSON has no name for are an error."""
    return (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def finite(value: Any) -> Any:
    """Return a JSON value with null in place of the numbers that JSON has no name for.

    >>> finite({"mean": 1.5, "ci95": float("nan")})
    {'mean': 1.5, 'ci95': None}
    """
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """Read strict JSON: no repeated keys, no NaN, at most 16 MB.

    Raises:
        FileError: a file that cannot be read, or is not such JSON.
    """
    return from_json(read(path, _JSON_BYTES), str(path))


def from_json(data: bytes, where: str) -> Any:
    """Return what the bytes of a strict JSON file say, as `read_json` does."""
    if len(data) > _JSON_BYTES:
        raise FileError(f"{where} has {len(data)} bytes; expected at most {_JSON_BYTES}")
    try:
        return _strict_json(data)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where} is not valid JSON: {error or 'nested too deeply'}") from error


def _strict_json(data: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key is there twice")
        return found

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    def number(text: str) -> float:
        if math.isinf(value := float(text)):
            raise ValueError(f"{text} is too large a number")
        return value

    return json.loads(data, object_pairs_hook=unique, parse_constant=refuse, parse_float=number)


def fingerprint(data: bytes) -> dict[str, Any]:
    """Return the size and the SHA-256 of a file's bytes, as manifests have them."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def manifest(contents: Mapping[str, bytes]) -> bytes:
    """Return the manifest of files that belong together."""
    return to_json({"files": {name: fingerprint(data) for name, data in contents.items()}})


def write_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write the files of a folder, and then their manifest: without it they are not read.

    Raises:
        FileError: the folder cannot be written.
    """
    make_folder(folder)
    for name, data in {**contents, MANIFEST: manifest(contents)}.items():
        write(folder / name, data)


def read_together(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Return the bytes of a folder's files, each what the manifest says that it is.

    Raises:
        FileError: a file, or the manifest, that is missing or damaged.
    """
    told = read_json(folder / MANIFEST)
    listed = told.get("files") if isinstance(told, dict) else None
    if not isinstance(listed, dict) or set(listed) != set(names):
        raise FileError(f"{folder / MANIFEST} does not list the files {', '.join(names)}")
    contents = {name: read(folder / name) for name in names}
    for name, data in contents.items():
        found = fingerprint(data)
        if found != listed[name]:
            raise FileError(
                f"{folder / name} is damaged: it has {found['bytes']} bytes and SHA-256 {found['sha256'][:12]}…,"
                f" not what its manifest says"
            )
    return contents


def to_safetensors(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return tensors as the bytes of a safetensors file."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    if any(value.dtype == torch.bfloat16 for value in plain.values()):  # numpy has no such type
        return safetensors.torch.save({name: value.clone() for name, value in plain.items()}, metadata)
    # a third of the time, and tensors may share memory
    return safetensors.numpy.save({name: value.numpy() for name, value in plain.items()}, metadata)


def from_safetensors(data: bytes, where: str) -> dict[str, Tensor]:
    """Read a safetensors file's bytes, after checks of our own of its header.

    Raises:
        FileError: bytes that are not a small, complete safetensors file of finite numbers.
    """
    return _from_safetensors(data, where)[0]


def unsealed(tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> bytes:
    """Return tensors and JSON as the bytes of a safetensors file with a place for its own SHA-256."""
    return to_safetensors(tensors, {_TOLD: to_json({"sha256": "0" * 64, **told}).decode()})


def sealed(data: bytes, where: str) -> bytes:
    """Return such a file's bytes with the SHA-256 that fits: that of all of them with zeros in the digest's place.

    >>> from_sealed(sealed(unsealed({"a": torch.ones(2)}, {"step": 3}), "here"), "here")[1]["step"]
    3

    Raises:
        FileError: bytes that have no place for a digest.
    """
    found = _DIGEST.search(data, 0, _HEADER_BYTES)
    if found is None:
        raise FileError(f"{where} is damaged: it does not tell its own SHA-256")
    before, behind = memoryview(data)[: found.start(1)], memoryview(data)[found.end(1) :]
    digest = hashlib.sha256(before)
    digest.update(b"0" * 64)
    digest.update(behind)
    return digest.hexdigest().encode().join((before, behind))


def from_sealed(data: bytes, where: str) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors and the JSON of a sealed file, no byte of which is another than was written.

    Raises:
        FileError: bytes that are not such a file, or are damaged.
    """
    if sealed(data, where) != data:
        raise FileError(f"{where} is damaged: it has {len(data)} bytes, and not the SHA-256 that it tells itself")
    tensors, metadata = _from_safetensors(data, where)
    return tensors, from_json(metadata.get(_TOLD, "").encode(), where)


def _from_safetensors(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else -1
    if not 2 <= size <= min(_HEADER_BYTES, len(data) - 8):
        raise FileError(f"{where} is not a complete safetensors file: it has {len(data)} bytes")
    try:
        header = _strict_json(data[8 : 8 + size])
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
        unknown = [name for name, entry in entries.items() if entry["dtype"] not in _DTYPES]
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise FileError(f"{where} is not a valid safetensors file: its header cannot be read") from error
    if len(entries) > _TENSORS or unknown:
        what = f"a tensor of an unexpected type ({unknown[0]!r})" if unknown else f"{len(entries)} tensors"
        raise FileError(f"{where} holds {what}; headstart writes no such file")
    if max(ends, default=0) != len(data) - 8 - size:
        raise FileError(f"{where} is cut off or has something appended: it has {len(data)} bytes")
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise FileError(f"{where} is not a valid safetensors file: {error}") from error
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise FileError(f"{where}: tensor {name!r} holds numbers that are not finite")
    return tensors, header.get("__metadata__") or {}


@contextlib.contextmanager
def explained(action: str, path: Path | None = None) -> Iterator[None]:
    """Turn the system's errors into a `FileError` that says what could not be done, and the fix.

    ``@explained("use")`` is for functions that are given paths at which nobody has looked.
    """
    try:
        yield
    except (HeadstartError, BrokenPipeError):
        raise
    except OSError as error:
        reason = _FIXES.get(error.errno or 0, error.strerror or str(error))
        raise FileError(f"cannot {action} {path or error.filename or 'a file'}: {reason}") from error
    except ValueError as error:
        if not str(error).startswith("embedded null"):
            raise
        raise FileError(f"cannot {action} a path that has a zero byte in it: there is none such") from error
    except RuntimeError as error:  # as Path.resolve says it
        if not str(error).startswith("Symlink loop"):
            raise
        raise FileError(f"cannot {action} {path or 'a file'}: it is a link that leads to itself") from error
