"""The rows of a store in one SQLite file, of one service.

A transaction is written through (``synchronous=FULL``) before it ends. Workers read beside the process that writes
(WAL, so the file has to lie on a local disk).

To delete takes room, too: what freed pages are overwritten by is logged before. So a file beside (``-reserve``) holds
as much as that may take, and is given back for as long as it lasts: nobody has to keep what was to be deleted since the
disk is full.
"""

import contextlib
import errno
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headstart.errors import FileError
from headstart.serve.database import FORMAT, DamagedError, Execute, StoreFullError, schema

_SETTINGS = ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "secure_delete=ON")
#: Bytes that are reserved whatever is kept: the log comes into the file when it has 1000 pages of 4096.
_ROOM = 2**23
_FULL = (
    "what is kept cannot grow ({}); nothing is lost: make room on the disk of the store, and ask again (tasks can be"
    " deleted meanwhile)"
)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" in str(error) or "disk I/O" in str(error):
            raise StoreFullError(_FULL.format(error)) from error
        raise FileError(f"the store {path.name} cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise DamagedError(f"the store is damaged there ({error}); other tasks are served on") from error


class SqliteFile:
    """A file of rows; of several threads one is in it at a time."""

    shared = False

    def __init__(self, path: Path, reading: bool) -> None:
        """Open a file, or make one; ``reading``: of one that is there, beside who writes it.

        Raises:
            FileError: a file that cannot be opened, or is no store.
        """
        self.path, self.where = path, str(path)
        self._lock = threading.RLock()
        self._reserve, self._reserved = Path(f"{path}-reserve"), 0
        self._largest = 0
        """Bytes of the largest task that there was."""
        with _told(path):
            if reading:
                uri = f"{path.absolute().as_uri()}?mode=ro"
                self._connection = sqlite3.connect(uri, uri=True)
                self._connection.execute("PRAGMA busy_timeout=5000")
                return
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                new = not path.exists()
                self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
                # a text that was damaged is told by who reads it, and keeps nobody from the other rows
                self._connection.text_factory = lambda data: data.decode(errors="surrogateescape")
                if new:  # what people have shown is nobody else's
                    path.chmod(0o600)
                for setting in _SETTINGS:
                    self._connection.execute(f"PRAGMA {setting}")
                self._begin()
                query = "SELECT max(size) FROM (SELECT sum(length(data)) AS size FROM parts GROUP BY task)"
                with contextlib.suppress(StoreFullError):  # which nothing that is there has to wait for
                    self.reserve(self._connection.execute(query).fetchone()[0] or 0)
            except FileError:
                self._connection.close()
                raise
            except OSError as error:
                raise FileError(f"the store {path} cannot be opened: {error.strerror}") from error
            except sqlite3.DatabaseError as error:
                raise FileError(f"{path} is no store of a service, or damaged from its start: {error}") from error

    def _begin(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version == 0 and tables == 0:
            tables = schema("TEXT", "BLOB", "WITHOUT ROWID")
            self._connection.executescript(f"BEGIN IMMEDIATE; {tables} PRAGMA user_version={FORMAT}; COMMIT;")
        elif version != FORMAT:
            raise FileError(f"{self.path} is no store of format {FORMAT} (it says {version}); choose another file")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def writing(self, *, reserved: bool = False) -> Iterator[Execute]:
        """Begin a transaction, which is on the disk when the block ends, or never was.

        ``reserved``: with the room that is kept for it, and what was deleted is overwritten before the end.
        """
        with self._lock, _told(self.path), self._given_back() if reserved else contextlib.nullcontext():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def reserve(self, size: int) -> None:
        """Keep the room that it takes to delete a task of so many bytes, and each that there was.

        Raises:
            StoreFullError: there is none.
        """
        with self._lock:
            self._largest = max(self._largest, size)
            # it is logged whole, and before that what lies in the log still has to come into the file
            room = _ROOM + 2 * self._largest
            if room <= self._reserved:
                return
            try:
                with self._reserve.open("ab") as file:
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, room)
                    else:
                        file.write(bytes(max(0, room - file.tell())))
                        file.flush()
                        os.fsync(file.fileno())
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise StoreFullError(_FULL.format(error.strerror)) from error
                raise FileError(f"{self._reserve} cannot be written: {error.strerror}") from error
            self._reserved = room

    @contextmanager
    def _given_back(self) -> Iterator[None]:
        """Let a block have the room that is reserved, and empty the log of what it has deleted."""
        self._reserve.unlink(missing_ok=True)
        self._reserved = 0
        try:
            yield
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            with contextlib.suppress(StoreFullError):
                self.reserve(0)

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query."""
        with self._lock, _told(self.path):
            return self._connection.execute(query, values).fetchall()
