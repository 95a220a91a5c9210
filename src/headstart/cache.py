"""Where what can be computed or fetched again is kept, so that this is done once."""

import hashlib
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NotKeptWarning(UserWarning):
    """What was computed cannot be kept, so it has to be computed the next time, too."""


def cache_dir() -> Path:
    """Return the user's cache folder: ``$HEADSTART_CACHE``, ``$XDG_CACHE_HOME/headstart`` or ``~/.cache/headstart``."""
    named = os.environ.get("HEADSTART_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headstart"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give another name to write to, which then replaces ``path``: no reader meets half a file. Folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # two threads, and processes of two machines that share a folder, may have the same number
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # a machine that stops leaves no name without its contents
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def warn_not_kept(what: str, path: Path, error: OSError) -> None:
    """Warn that there is no file of this name, nor can there be one."""
    warnings.warn(
        f"{what} cannot be kept in {path.parent} ({error.strerror or error}), so they are in memory, and made anew each"
        " time; make room there, or name another folder by HEADSTART_CACHE",
        NotKeptWarning,
        stacklevel=4,
    )
