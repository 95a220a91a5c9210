"""What a service keeps: tasks, what they were learned from, what was learned, and who may ask.

One SQLite file. What was answered with success is on the disk: a transaction is written through
(``synchronous=FULL``) before anybody is told, so that a process or a machine that dies loses nothing that was
acknowledged. There is one service a file; its workers read beside it (WAL, so the file has to lie on a local disk).

Tensors are safetensors files of bytes with their SHA-256 beside them, so that a damaged one is known for what it is,
and the others serve on.
"""

import hashlib
import json
import math
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from headstart.errors import FileError, HeadstartError
from headstart.serve.ids import ids

FORMAT = 1
#: How long an idempotency key is remembered.
REMEMBERED = timedelta(hours=24)
#: Tasks of which what is told is held in memory.
_RECENT = 4096

_SCHEMA = """
CREATE TABLE tasks (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, run TEXT NOT NULL, weights TEXT NOT NULL, revision INTEGER NOT NULL,
    told TEXT NOT NULL, support TEXT NOT NULL, created TEXT NOT NULL, changed TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX tasks_of ON tasks (tenant, id);
CREATE TABLE parts (
    task TEXT NOT NULL, part TEXT NOT NULL, revision INTEGER NOT NULL, sha256 BLOB NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (task, part)
);
CREATE TABLE answers (
    tenant TEXT NOT NULL, key TEXT NOT NULL, request BLOB NOT NULL, task TEXT NOT NULL, status INTEGER NOT NULL,
    body BLOB NOT NULL, created TEXT NOT NULL, PRIMARY KEY (tenant, key)
) WITHOUT ROWID;
CREATE INDEX answers_of ON answers (task);
CREATE TABLE tokens (
    id TEXT PRIMARY KEY, hash BLOB NOT NULL, name TEXT NOT NULL, tenant TEXT NOT NULL, scopes TEXT NOT NULL,
    created TEXT NOT NULL, expires TEXT, revoked TEXT
) WITHOUT ROWID;
"""


class DamagedError(HeadstartError):
    """What is kept of a task is not what was written."""


class ConflictError(HeadstartError):
    """A task was changed by somebody else at the same time."""


class StoreFullError(HeadstartError):
    """There is no room to keep more; nothing that was kept is lost."""


class Kept(NamedTuple):
    """A task as it is kept."""

    id: str
    tenant: str
    run: str
    """The name of what it was learned by."""
    weights: str
    """The fingerprint of that."""
    revision: int
    """How often it was learned: anew where examples are added."""
    told: dict[str, Any]
    """Its name, labels, counts, estimate and warnings, as the service tells them."""
    support: str
    """The SHA-256 of what it was learned from."""
    created: str
    changed: str

    def public(self) -> dict[str, Any]:
        """Return what the service says of it."""
        return {"id": self.id, "run": self.run, **self.told, "created": self.created, "changed": self.changed}


class Remembered(NamedTuple):
    """What was answered to a request with an idempotency key."""

    request: bytes
    """The SHA-256 of what was asked."""
    status: int
    body: bytes


class Once(NamedTuple):
    """What is to be remembered with a change: under which key, of which request, with which status."""

    key: str
    request: bytes
    status: int


def now() -> str:
    """Return the time, as ISO 8601 has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


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


class Reader:
    """Reads parts of tasks beside the process that writes them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def part(self, task: str, part: str, revision: int) -> bytes | None:
        """Return a part of a task, ``None`` where there is none of this revision (any more).

        Raises:
            DamagedError: it is not what was written.
        """
        with _told(self._path):
            if self._connection is None:
                self._connection = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)
                self._connection.execute("PRAGMA busy_timeout=5000")
            row = self._connection.execute(
                "SELECT data, sha256 FROM parts WHERE task = ? AND part = ? AND revision = ?", (task, part, revision)
            ).fetchone()
        if row is None:
            return None
        if hashlib.sha256(row[0]).digest() != row[1]:
            raise DamagedError(f"what is kept of task {task} is damaged (its {part} is not what was written)")
        return bytes(row[0])


class Store:
    """The tasks of a service, in a file; of several threads one writes at a time."""

    def __init__(self, path: Path) -> None:
        """Open a store, or make one.

        Raises:
            FileError: a file that cannot be opened, or is no store.
        """
        self.path = path
        self._lock = threading.RLock()
        self._recent: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self._guarded, self._looked = False, -math.inf
        with _told(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                new = not path.exists()
                self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
                if new:  # what people have shown is nobody else's
                    path.chmod(0o600)
                for setting in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "secure_delete=ON"):
                    self._connection.execute(f"PRAGMA {setting}")
                self._begin()
            except FileError:
                self._connection.close()
                raise
            except OSError as error:
                raise FileError(f"the store {path} cannot be opened: {error.strerror}") from error
            except sqlite3.DatabaseError as error:
                raise FileError(f"{path} is no store of a service, or damaged from its start: {error}") from error
            self._new_id = ids(self._connection.execute("SELECT max(id) FROM tasks").fetchone()[0])

    def _begin(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version == 0 and tables == 0:
            self._connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={FORMAT}; COMMIT;")
        elif version != FORMAT:
            raise FileError(f"{self.path} is no store of format {FORMAT} (it says {version}); choose another file")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _told(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock, _told(self.path):
            return self._connection.execute(query, values).fetchall()

    def new_id(self) -> str:
        """Return the id of a task to come."""
        return self._new_id()

    def add(self, kept: Kept, parts: dict[str, bytes], once: Once | None = None) -> bytes:
        """Keep a new task, and return its answer; what `Once` says is remembered with it."""
        with self._writing() as connection:
            row = (*kept[:5], json.dumps(kept.told), *kept[6:])
            connection.execute("INSERT INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            return self._keep(connection, kept, parts, once)

    def replace(self, kept: Kept, parts: dict[str, bytes], once: Once | None = None) -> bytes:
        """Keep what a task was learned to anew; its revision is one more than before.

        Raises:
            ConflictError: it is of another revision by now, or gone.
        """
        with self._writing() as connection:
            self._recent.pop((kept.tenant, kept.id), None)
            changed = connection.execute(
                "UPDATE tasks SET weights = ?, revision = ?, told = ?, support = ?, changed = ?"
                " WHERE id = ? AND revision = ?",
                (kept.weights, kept.revision, json.dumps(kept.told), kept.support, kept.changed, kept.id)
                + (kept.revision - 1,),
            )
            if changed.rowcount != 1:
                raise ConflictError("the task was changed at the same time by another request; ask again")
            return self._keep(connection, kept, parts, once)

    def _keep(self, connection: sqlite3.Connection, kept: Kept, parts: dict[str, bytes], once: Once | None) -> bytes:
        for part, data in parts.items():
            values = (kept.id, part, kept.revision, hashlib.sha256(data).digest(), data)
            connection.execute("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?)", values)
        body = json.dumps(kept.public(), ensure_ascii=False, allow_nan=False).encode()
        if once is not None:
            old = (datetime.now(UTC) - REMEMBERED).isoformat()
            connection.execute("DELETE FROM answers WHERE created < ?", (old,))
            row = (kept.tenant, once.key, once.request, kept.id, once.status, body, now())
            connection.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return body

    def remembered(self, tenant: str, key: str) -> Remembered | None:
        """Return what was answered to a tenant's idempotency key."""
        rows = self._rows("SELECT request, status, body FROM answers WHERE tenant = ? AND key = ?", (tenant, key))
        return Remembered(*rows[0]) if rows else None

    def task(self, tenant: str, task: str) -> Kept | None:
        """Return a tenant's task, ``None`` where the tenant has none of this id."""
        with self._lock:  # nobody else writes tasks, so what was read last is as it was
            if (found := self._recent.get((tenant, task))) is None:
                rows = self._rows("SELECT * FROM tasks WHERE id = ? AND tenant = ?", (task, tenant))
                if not rows:
                    return None
                found = self._recent[tenant, task] = self._kept(rows[0])
                if len(self._recent) > _RECENT:
                    self._recent.popitem(last=False)
            return found

    def tasks(self, tenant: str, after: str, limit: int) -> list[Kept]:
        """Return a tenant's tasks behind an id, the oldest first."""
        query = "SELECT * FROM tasks WHERE tenant = ? AND id > ? ORDER BY id LIMIT ?"
        return [self._kept(row) for row in self._rows(query, (tenant, after, limit))]

    def count(self, tenant: str | None = None) -> int:
        """Return how many tasks there are, of a tenant or of all."""
        if tenant is None:
            return self._rows("SELECT count(*) FROM tasks")[0][0]
        return self._rows("SELECT count(*) FROM tasks WHERE tenant = ?", (tenant,))[0][0]

    @staticmethod
    def _kept(row: Sequence[Any]) -> Kept:
        task, tenant, run, weights, revision, told, support, created, changed = row
        return Kept(task, tenant, run, weights, revision, json.loads(told), support, created, changed)

    def delete(self, tenant: str, task: str) -> bool:
        """Delete a tenant's task with all that was kept of it; whether there was one.

        What was freed is overwritten, and the log of changes, which still has it, is emptied.
        """
        with self._writing() as connection:
            self._recent.pop((tenant, task), None)
            found = connection.execute("DELETE FROM tasks WHERE id = ? AND tenant = ?", (task, tenant)).rowcount == 1
            if found:
                connection.execute("DELETE FROM parts WHERE task = ?", (task,))
                connection.execute("DELETE FROM answers WHERE task = ?", (task,))
        if found:
            self._rows("PRAGMA wal_checkpoint(TRUNCATE)")
        return found

    def add_token(self, row: Sequence[Any]) -> None:
        """Keep a token: its id, hash, name, tenant, scopes, when it was made and until when it holds."""
        with self._writing() as connection:
            connection.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, NULL)", tuple(row))
            self._guarded = True

    def token(self, token: str) -> tuple[Any, ...] | None:
        """Return the hash, tenant, scopes, end and revocation of a token, by its id."""
        query = "SELECT hash, tenant, scopes, expires, revoked FROM tokens WHERE id = ?"
        rows = self._rows(query, (token,))
        return tuple(rows[0]) if rows else None

    def tokens(self) -> list[dict[str, Any]]:
        """Return all tokens without their hashes, also those that were revoked."""
        names = ("id", "name", "tenant", "scopes", "created", "expires", "revoked")
        return [dict(zip(names, row)) for row in self._rows(f"SELECT {', '.join(names)} FROM tokens ORDER BY created")]

    def revoke(self, token: str) -> bool:
        """Revoke a token by its id; whether there is one."""
        with self._writing() as connection:
            query = "UPDATE tokens SET revoked = coalesce(revoked, ?) WHERE id = ?"
            return connection.execute(query, (now(), token)).rowcount == 1

    def has_tokens(self) -> bool:
        """Return whether there ever was a token: to revoke the last one opens nothing.

        What another process adds is seen within a second.
        """
        if not self._guarded and time.monotonic() - self._looked > 1.0:
            self._guarded = bool(self._rows("SELECT EXISTS (SELECT 1 FROM tokens)")[0][0])
            self._looked = time.monotonic()
        return self._guarded
