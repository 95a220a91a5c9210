"""The tensors of tasks in an object store: S3, or what speaks as it does, or a folder.

A blob gets a name that there never was, and is never written again: what is read is what a row speaks of, or is not
there. Whose it is only the row says. Credentials come from the environment (``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``; ``AWS_ENDPOINT_URL`` where it is not Amazon's) or from the machine's role.
"""

import errno
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from headstart.errors import ConfigError, FileError, UsageError
from headstart.serve.database import StoreAwayError, StoreFullError

try:
    import obstore
    from obstore.exceptions import BaseError
    from obstore.store import LocalStore, S3Store
except ImportError as error:
    raise UsageError(f"an object store needs {error.name}: `pip install headstart[blobs]`") from error

#: Who does not answer is asked again, but not for as long as a request may take.
_AGAIN: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=8)}


class Blobs:
    """Bytes by name, in a bucket under a prefix, or in a folder."""

    def __init__(self, url: str) -> None:
        """Open an object store, and see that it answers.

        Args:
            url: ``s3://BUCKET/PREFIX``, or ``file:///FOLDER``.

        Raises:
            ConfigError: another URL.
            FileError: a folder that cannot be made.
            StoreAwayError: it does not answer, or not to us.
        """
        parts = urlsplit(url)
        self._folder: Path | None = None
        self._store: Any
        if parts.scheme == "s3" and parts.netloc and "@" not in parts.netloc:
            told = os.environ.get("AWS_ENDPOINT_URL", "")
            options: Any = {"timeout": "10s", "connect_timeout": "3s", "allow_http": told.startswith("http://")}
            prefix = parts.path.strip("/") or None
            self._store = S3Store(parts.netloc, prefix=prefix, client_options=options, retry_config=_AGAIN)
        elif parts.scheme == "file" and not parts.netloc and parts.path.strip("/"):
            self._folder = Path(url2pathname(parts.path))
            try:  # what people have shown is nobody else's
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise FileError(f"the folder of blobs cannot be made: {error.strerror}") from error
            self._store = LocalStore(self._folder)
        else:
            raise ConfigError("--blobs is no place of blobs; expected s3://BUCKET/PREFIX or file:///FOLDER")
        try:
            next(iter(obstore.list(self._store, chunk_size=1)), None)
        except (BaseError, OSError) as error:
            where = f"{parts.scheme}://{parts.netloc}{parts.path}"
            raise StoreAwayError(f"the object store {where} cannot be used: {_first(error)}") from None

    def put(self, data: bytes) -> str:
        """Keep bytes, and return the name that they got; they are on the disk then, or what the store calls so."""
        name = uuid.uuid4().hex
        key = f"{name[:2]}/{name}"
        with _told():
            if self._folder is None:
                obstore.put(self._store, key, data)
            else:
                _write(self._folder / key, data)
        return key

    def get(self, key: str) -> bytes | None:
        """Return bytes by their name, ``None`` where there are none."""
        with _told():
            try:
                return bytes(obstore.get(self._store, key).bytes())
            except FileNotFoundError:
                return None

    def delete(self, keys: Sequence[str]) -> None:
        """Delete bytes by their names; also where some were deleted before."""
        with _told():
            for key in keys:
                try:
                    obstore.delete(self._store, key)
                except FileNotFoundError:
                    continue

    def older(self, than: datetime, together: int) -> Iterator[list[str]]:
        """Give the names of what was written before a time, so many together."""
        with _told():
            for found in obstore.list(self._store, chunk_size=together):
                if old := [one["path"] for one in found if one["last_modified"] < than]:
                    yield old


def _write(path: Path, data: bytes) -> None:
    """Write a file of which nobody knows yet, and bring it and its name to the disk."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    for folder in (path.parent, path.parent.parent) if os.name == "posix" else ():
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFullError("the disk of the blobs is full; nothing is lost: make room, and ask again") from error
        raise StoreAwayError("the object store cannot be reached now; nothing is lost: ask again later") from error


def _first(error: Exception) -> str:
    """Return the first line of what is told; what follows are details of the library."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
