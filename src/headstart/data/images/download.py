"""Fetch a data file: checked by its SHA-256, and in its place only when whole."""

import http.client
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO

from headstart.cache import sha256_of, whole
from headstart.errors import FileError

_TRIES, _TIMEOUT_SECONDS = 3, 30.0
#: Of all tries together; and what a transfer has to bring, once it has had the time of a timeout.
_MOST_SECONDS, _BYTES_A_SECOND = 900.0, 5_000
_CHUNK = 1 << 16


def download(url: str, path: Path, sha256: str, *, most: int, instead: str = "") -> Path:
    """Fetch ``url`` to ``path``, unless a file with that SHA-256 is there already; a cut connection is tried again.

    Args:
        url: address of the file.
        path: where to put it, and what is returned; folders are made.
        sha256: what the file must have, in hexadecimal.
        most: bytes that it has at most; of more, none are waited for.
        instead: what a user without a network can do, for the error message.

    Raises:
        FileError: no answer, one that takes too long, or a file that is not the expected one (which is removed).
    """
    try:
        if path.exists() and sha256_of(path) == sha256:
            return path
        with whole(path) as part:
            print(f"downloading {url}", file=sys.stderr)
            _fetch(url, part, most, instead)
            found = sha256_of(part)
            if found != sha256:
                raise FileError(
                    f"{url} is not the expected file: its SHA-256 is {found}, expected {sha256}. It was removed; the"
                    f" transfer was damaged, or the file has changed at its source. {instead}"
                )
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"cannot write {path}: {error}") from error
    return path


def _fetch(url: str, part: Path, most: int, instead: str) -> None:
    """Write what ``url`` holds to ``part``, trying again where the connection is cut or the server is busy."""
    request = urllib.request.Request(url, headers={"User-Agent": "headstart"})
    begun = time.monotonic()
    for attempt in range(1, _TRIES + 1):
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response, part.open("wb") as file:
                reason = _copied(response, file, most, begun)
            if reason is None:
                return
            last = attempt == _TRIES or reason != _CUT
        except urllib.error.HTTPError as error:
            error.close()
            reason, last = f"HTTP status {error.code} {error.reason}", attempt == _TRIES or error.code < 500
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason, last = str(error) or type(error).__name__, attempt == _TRIES
        if last:
            raise FileError(f"cannot download {url}: {reason}. {instead}")


_CUT = "the connection was cut"


def _copied(response: Any, file: BinaryIO, most: int, begun: float) -> str | None:
    """Copy an answer to a file, and say what is wrong with it; ``None`` where nothing is."""
    told, size, started = response.headers.get("Content-Length"), 0, time.monotonic()
    if told is not None and not (told.isdecimal() and len(told) < 19):
        return f"it is said to have {told[:50]!r} bytes"
    if told is not None and int(told) > most:
        return f"it has {told} bytes, and {most} are the most that it may have"
    while data := response.read1(_CHUNK):
        file.write(data)
        size, now = size + len(data), time.monotonic()
        if size > most:
            return f"it has more than the {most} bytes that it may have"
        slow = now - started > _TIMEOUT_SECONDS and size < _BYTES_A_SECOND * (now - started)
        if slow or now - begun > _MOST_SECONDS:
            return f"it is too slow, with {size} bytes in {now - started:.0f} seconds"
    return _CUT if told is not None and size != int(told) else None
