"""Fetch a data file: checked by its SHA-256, resumed after a cut, renamed into place only when whole."""

import contextlib
import hashlib
import http
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from headstart.errors import FileError

_BLOCK = 1 << 18
_TRIES = 3
_TIMEOUT_SECONDS = 30.0

_Show: TypeAlias = Callable[[int, int | None], object]


def cache_dir() -> Path:
    """Return the user's cache folder, ``$XDG_CACHE_HOME/headstart`` or ``~/.cache/headstart``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headstart"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, path: Path, sha256: str, *, instead: str = "") -> Path:
    """Fetch ``url`` to ``path``, unless a file with that SHA-256 is there already.

    What has arrived is kept in ``<path>.part``: the next try, or the next call, asks for the rest (an HTTP
    range), and starts over where the server does not do that. A lock makes a second process wait for the
    first. Progress goes to standard error.

    Args:
        url: address of the file.
        path: where to put it; folders are made.
        sha256: what the file must have, in hexadecimal.
        instead: what a user without a network can do, for the error message.

    Returns:
        ``path``.

    Raises:
        FileError: no answer, or a file that is not the expected one (which is removed).
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f".{path.name}.lock")):
            if path.exists() and sha256_of(path) == sha256:
                return path
            if not (part.exists() and sha256_of(part) == sha256):
                _fetch(url, part, instead)
            found = sha256_of(part)
            if found != sha256:
                part.unlink()
                raise FileError(
                    f"{url} is not the expected file: its SHA-256 is {found}, expected {sha256}. It was"
                    f" removed; the transfer was damaged, or the file has changed at its source. {instead}"
                )
            part.replace(path)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot write {path}: {error}") from error
    return path


def _fetch(url: str, part: Path, instead: str) -> None:
    """Bring ``part`` to its full length, trying again where the connection is cut."""
    reason = ""
    with _progress(url) as show:
        for _ in range(_TRIES):
            try:
                if _fetch_rest(url, part, show):
                    return
                reason = "the connection was cut"
            except urllib.error.HTTPError as error:
                error.close()
                reason = f"HTTP status {error.code} {error.reason}"
                if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    part.unlink(missing_ok=True)
                elif error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR:
                    break
            except urllib.error.URLError as error:
                reason = str(error.reason)
            except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
    kept = f" What has arrived is kept in {part}: run again to go on." if part.exists() else ""
    raise FileError(f"cannot download {url}: {reason}.{kept} {instead}")


def _fetch_rest(url: str, part: Path, show: _Show) -> bool:
    """Append what ``part`` lacks, or write it anew; return whether the whole file has arrived."""
    have = part.stat().st_size if part.exists() else 0
    wanted = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(url, headers={"User-Agent": "headstart", **wanted})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if resumed else "wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                have += len(block)
                show(have, total)
    return total is None or have == total


@contextlib.contextmanager
def _progress(url: str) -> Iterator[_Show]:
    """Yield ``show(bytes so far, bytes in all)``: a bar on a terminal, one line elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"downloading {url}", soft_wrap=True, highlight=False, markup=False)
        yield lambda completed, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(url.rpartition("/")[2], total=None)
        yield lambda completed, total: progress.update(task, completed=completed, total=total)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that other processes on this machine wait for; no lock where the system has none."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
