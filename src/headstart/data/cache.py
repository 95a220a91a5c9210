"""Where what can be computed or fetched again is kept, so that this is done once."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
