"""The rows of a store in one SQLite file, of one service.

A transaction is written through (``synchronous=FULL``) before it ends. Workers read beside the process that writes
(WAL, so the file has to lie on a local disk).
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headstart.errors import FileError
from headstart.serve.database import FORMAT, DamagedError, Execute, StoreFullError, schema

_SETTINGS = ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "secure_delete=ON")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if "full" in str(error) or "disk I/O" in str(error):
            raise StoreFullError(
                f"what is kept cannot grow ({error}); nothing is lost: make room on the disk of the store, and ask"
                " again"
            ) from error
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
    def writing(self) -> Iterator[Execute]:
        """Begin a transaction, which is on the disk when the block ends, or never was."""
        with self._lock, _told(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query."""
        with self._lock, _told(self.path):
            return self._connection.execute(query, values).fetchall()

    def erase(self) -> None:
        """Empty the log of changes, which has what was deleted; freed pages are overwritten already."""
        self.rows("PRAGMA wal_checkpoint(TRUNCATE)")
