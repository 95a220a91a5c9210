"""What a service keeps: tasks, what they were learned from, what was learned, and who may ask.

Rows are in a database: one SQLite file (`headstart.serve.sqlite`), or PostgreSQL (`headstart.serve.postgres`), where
several services share a store. What was answered with success is on the disk: a transaction is written through before
anybody is told, so that a process or a machine that dies loses nothing that was acknowledged.

Tensors are safetensors files of bytes, in the database or in an object store (`headstart.serve.blobs`), with their
SHA-256 in the row, so that a damaged one is known for what it is, and the others serve on.
"""

import contextlib
import hashlib
import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from headstart.errors import FileError, HeadstartError
from headstart.serve.database import DamagedError, Database, Execute, StoreAwayError
from headstart.serve.ids import ids

if TYPE_CHECKING:
    from headstart.serve.blobs import Blobs

#: How long an idempotency key is remembered.
REMEMBERED = timedelta(hours=24)
#: How old a blob has to be that no row knows of before it is taken for left behind.
ORPHANED = timedelta(hours=1)
#: Tasks of which what is told is held in memory.
_RECENT = 4096
#: Seconds for which a number of tasks that others may change, too, is believed, and rows that are looked at together.
_BELIEVED, _CHUNK = 1.0, 500


class ConflictError(HeadstartError):
    """A task was changed by somebody else at the same time."""


class AnsweredError(HeadstartError):
    """A request with the same idempotency key was quicker; what it was answered is remembered."""


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


#: A part of a task: its name, its SHA-256, and itself, or where it is.
_Row: TypeAlias = tuple[str, bytes, bytes | None, str | None]


class Place(NamedTuple):
    """Where a service keeps what it keeps."""

    store: str
    """The path of a file, or the URL of a PostgreSQL database."""
    blobs: str | None = None
    """The URL of an object store for tensors; ``None``: in the database."""


def is_url(store: str) -> bool:
    """Return whether a store is a database by URL, not a file."""
    return "://" in store


def open_database(store: str, reading: bool = False) -> Database:
    """Open what holds the rows, or make it; ``reading``: beside the service that writes, by one thread.

    Raises:
        ConfigError: a URL of no such database, or of one that acknowledges what is not on its disk.
        FileError: what cannot be opened, or is no store.
        StoreAwayError: a database that cannot be reached.
        UsageError: its extra is not installed.
    """
    if is_url(store):
        from headstart.serve.postgres import Postgres

        return Postgres(store, reading)
    from headstart.serve.sqlite import SqliteFile

    return SqliteFile(Path(store), reading)


def open_blobs(place: Place) -> "Blobs | None":
    """Open the object store, where there is one."""
    if place.blobs is None:
        return None
    from headstart.serve.blobs import Blobs

    return Blobs(place.blobs)


class Reader:
    """Reads parts of tasks beside the process that writes them."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._database: Database | None = None
        self._blobs = open_blobs(place)

    def part(self, task: str, part: str, revision: int) -> bytes | None:
        """Return a part of a task, ``None`` where there is none of this revision (any more).

        Raises:
            DamagedError: it is not what was written.
        """
        if self._database is None:  # not before it is there
            self._database = open_database(self._place.store, reading=True)
        query = "SELECT data, place, sha256 FROM parts WHERE task = ? AND part = ? AND revision = ?"
        for attempt in range(2):
            rows = self._database.rows(query, (task, part, revision))
            if not rows:
                return None
            data, place, digest = rows[0]
            if place is None:
                break
            if self._blobs is None:
                raise FileError(
                    f"what is kept of task {task} is in an object store; start the service with its --blobs"
                )
            data = self._blobs.get(place)
            if data is not None or attempt:
                break  # else it was perhaps replaced since: then there is no such row any more
        if data is None or hashlib.sha256(data).digest() != bytes(digest):
            raise DamagedError(f"what is kept of task {task} is damaged (its {part} is not what was written)")
        return bytes(data)


class Store:
    """The tasks of a service."""

    def __init__(self, place: Place) -> None:
        """Open a store, or make one; what is raised is said at `open_database`."""
        self._lock = threading.RLock()
        self._recent: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self._guarded, self._looked = False, -math.inf
        self._counts: dict[str, tuple[float, int]] = {}
        self.blobs = open_blobs(place)
        self.database = open_database(place.store)
        self._new_id = ids(self.database.rows("SELECT max(id) FROM tasks")[0][0])

    @property
    def where(self) -> str:
        """What the store is called, without a password."""
        return self.database.where

    @property
    def shared(self) -> bool:
        """Whether other services may write to it: then what was read may be so no more, and reading takes a while."""
        return self.database.shared

    def close(self) -> None:
        """Close it."""
        self.database.close()

    def new_id(self) -> str:
        """Return the id of a task to come."""
        return self._new_id()

    def add(self, kept: Kept, parts: dict[str, bytes], once: Once | None = None) -> bytes:
        """Keep a new task, and return its answer; what `Once` says is remembered with it.

        Raises:
            AnsweredError: a request with the same key was quicker.
        """
        with self._placed(parts) as rows:
            with self.database.writing() as execute:
                row = (*kept[:5], json.dumps(kept.told), *kept[6:])
                execute("INSERT INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
                body = _keep(execute, kept, rows, once)
        with self._lock:
            since, count = self._counts.get(kept.tenant, (-math.inf, 0))
            self._counts[kept.tenant] = since, count + 1
        return body

    def replace(self, kept: Kept, parts: dict[str, bytes], once: Once | None = None) -> bytes:
        """Keep what a task was learned to anew; its revision is one more than before.

        Raises:
            AnsweredError: a request with the same key was quicker.
            ConflictError: the task is of another revision by now, or gone.
        """
        with self._placed(parts) as rows:
            with self._changing(kept.tenant, kept.id) as execute:
                changed = execute(
                    "UPDATE tasks SET weights = ?, revision = ?, told = ?, support = ?, changed = ?"
                    " WHERE id = ? AND revision = ?",
                    (kept.weights, kept.revision, json.dumps(kept.told), kept.support, kept.changed, kept.id)
                    + (kept.revision - 1,),
                )
                if changed.rowcount != 1:
                    raise ConflictError("the task was changed at the same time by another request; ask again")
                before = _places(execute, kept.id)
                body = _keep(execute, kept, rows, once)
        if self.blobs is not None:
            with contextlib.suppress(StoreAwayError):  # then they are swept later
                self.blobs.delete(before)
        return body

    @contextmanager
    def _placed(self, parts: dict[str, bytes]) -> Iterator[list[_Row]]:
        """Put parts where they are to be, before the rows that say so: of each its name, SHA-256, and itself or where.

        Where it is certain that there will be no such rows they are taken back; else `sweep` finds them.
        """
        if self.blobs is None:
            self.database.reserve(sum(map(len, parts.values())))
            yield [(part, hashlib.sha256(data).digest(), data, None) for part, data in parts.items()]
            return
        rows: list[_Row] = []
        for part, data in parts.items():
            rows.append((part, hashlib.sha256(data).digest(), None, self.blobs.put(data)))
        try:
            yield rows
        except (ConflictError, AnsweredError):
            with contextlib.suppress(StoreAwayError):
                self.blobs.delete([place for *_, place in rows if place is not None])
            raise

    @contextmanager
    def _changing(self, tenant: str, task: str, *, reserved: bool = False) -> Iterator[Execute]:
        """Begin a transaction that changes a task, of which nothing is held in memory until it has ended."""
        with self._lock if not self.shared else contextlib.nullcontext():
            with self.database.writing(reserved=reserved) as execute:
                self._recent.pop((tenant, task), None)
                yield execute

    def remembered(self, tenant: str, key: str) -> Remembered | None:
        """Return what was answered to a tenant's idempotency key."""
        query = "SELECT request, status, body FROM answers WHERE tenant = ? AND key = ?"
        rows = self.database.rows(query, (tenant, key))
        return Remembered(*rows[0]) if rows else None

    def task(self, tenant: str, task: str) -> Kept | None:
        """Return a tenant's task, ``None`` where the tenant has none of this id.

        Where others may change it, too, it is read each time: what was deleted elsewhere is not answered here.
        """
        if self.shared:
            return self._read(tenant, task)
        with self._lock:  # nobody else writes tasks, so what was read last is as it was
            if (found := self._recent.get((tenant, task))) is None:
                if (found := self._read(tenant, task)) is None:
                    return None
                self._recent[tenant, task] = found
                if len(self._recent) > _RECENT:
                    self._recent.popitem(last=False)
            return found

    def _read(self, tenant: str, task: str) -> Kept | None:
        rows = self.database.rows("SELECT * FROM tasks WHERE id = ? AND tenant = ?", (task, tenant))
        return _kept(rows[0]) if rows else None

    def tasks(self, tenant: str, after: str, limit: int) -> list[Kept]:
        """Return a tenant's tasks behind an id, the oldest first; a damaged one says so in place of what it was."""
        query = "SELECT * FROM tasks WHERE tenant = ? AND id > ? ORDER BY id LIMIT ?"
        found = []
        for row in self.database.rows(query, (tenant, after, limit)):
            try:
                found.append(_kept(row))
            except DamagedError as error:
                blank = {"name": None, "kind": "tables", "labels": [], "counts": [], "estimate": None}
                found.append(Kept(row[0], tenant, "", "", 0, {**blank, "warnings": [str(error)]}, "", "", ""))
        return found

    def count(self, tenant: str | None = None) -> int:
        """Return how many tasks there are, of a tenant or of all."""
        if tenant is None:
            return self.database.rows("SELECT count(*) FROM tasks")[0][0]
        return self.database.rows("SELECT count(*) FROM tasks WHERE tenant = ?", (tenant,))[0][0]

    def has_room(self, tenant: str, most: int) -> bool:
        """Return whether a tenant has fewer tasks than so many.

        They are counted when there may be too many, and where others write, too, when a second has passed since.
        """
        with self._lock:
            since, count = self._counts.get(tenant, (-math.inf, 0))
        old = time.monotonic() - since > (_BELIEVED if self.shared else math.inf)
        if old or count >= most or since == -math.inf:
            began, count = time.monotonic(), self.count(tenant)
            with self._lock:
                self._counts[tenant] = began, count
        return count < most

    def delete(self, tenant: str, task: str) -> bool:
        """Delete a tenant's task with all that was kept of it; whether there was one.

        Raises:
            StoreAwayError: its rows are gone, but the object store has its tensors still; `sweep` will delete them.
        """
        places: list[str] = []
        with self._changing(tenant, task, reserved=True) as execute:
            found = execute("DELETE FROM tasks WHERE id = ? AND tenant = ?", (task, tenant)).rowcount == 1
            if found:
                places = _places(execute, task)
                execute("DELETE FROM parts WHERE task = ?", (task,))
                execute("DELETE FROM answers WHERE task = ?", (task,))
        if self.blobs is not None:
            self.blobs.delete(places)
        return found

    def sweep(self, age: timedelta = ORPHANED) -> int:
        """Delete what is remembered no longer, and blobs that no row knows of; return how many of these.

        They were left by a service that died in between. One that is younger than ``age`` may be of a task that is
        being kept now.
        """
        swept = 0
        with self.database.writing(reserved=True) as execute:
            execute("DELETE FROM answers WHERE created < ?", ((datetime.now(UTC) - REMEMBERED).isoformat(),))
        if self.blobs is not None:
            for places in self.blobs.older(datetime.now(UTC) - age, _CHUNK):
                marks = ", ".join("?" * len(places))
                known = {
                    row[0] for row in self.database.rows(f"SELECT place FROM parts WHERE place IN ({marks})", places)
                }
                left = [place for place in places if place not in known]
                self.blobs.delete(left)
                swept += len(left)
        return swept

    def check(self) -> None:
        """Raise `StoreAwayError` where the store cannot be reached."""
        self.database.rows("SELECT 1")

    def add_token(self, row: Sequence[Any]) -> None:
        """Keep a token: its id, hash, name, tenant, scopes, when it was made and until when it holds."""
        with self.database.writing() as execute:
            execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, NULL)", tuple(row))
        self._guarded = True

    def token(self, token: str) -> tuple[Any, ...] | None:
        """Return the hash, tenant, scopes, end and revocation of a token, by its id."""
        query = "SELECT hash, tenant, scopes, expires, revoked FROM tokens WHERE id = ?"
        rows = self.database.rows(query, (token,))
        return tuple(rows[0]) if rows else None

    def tokens(self) -> list[dict[str, Any]]:
        """Return all tokens without their hashes, also those that were revoked."""
        names = ("id", "name", "tenant", "scopes", "created", "expires", "revoked")
        rows = self.database.rows(f"SELECT {', '.join(names)} FROM tokens ORDER BY created")
        return [dict(zip(names, row)) for row in rows]

    def revoke(self, token: str) -> bool:
        """Revoke a token by its id; whether there is one."""
        with self.database.writing(reserved=True) as execute:
            query = "UPDATE tokens SET revoked = coalesce(revoked, ?) WHERE id = ?"
            return execute(query, (now(), token)).rowcount == 1

    def has_tokens(self) -> bool:
        """Return whether there ever was a token: to revoke the last one opens nothing.

        What another process adds is seen within a second.
        """
        if not self._guarded and time.monotonic() - self._looked > 1.0:
            self._guarded = bool(self.database.rows("SELECT EXISTS (SELECT 1 FROM tokens)")[0][0])
            self._looked = time.monotonic()
        return self._guarded


def now() -> str:
    """Return the time, as ISO 8601 has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _kept(row: Sequence[Any]) -> Kept:
    try:
        task, tenant, run, weights, revision, told, support, created, changed = row
        kept = Kept(task, tenant, run, weights, revision, json.loads(told), support, created, changed)
        "".join(value for value in row if isinstance(value, str)).encode()
        if not {"name", "labels", "counts"} <= set(kept.told):
            raise ValueError
    except (ValueError, TypeError):
        raise DamagedError(
            f"what is kept of task {ascii(row[0])[1:-1]} is damaged (what it is cannot be read)"
        ) from None
    return kept


def _places(execute: Execute, task: str) -> list[str]:
    """Return where the parts of a task are that are not in the database."""
    return [
        row[0] for row in execute("SELECT place FROM parts WHERE task = ? AND place IS NOT NULL", (task,)).fetchall()
    ]


def _keep(execute: Execute, kept: Kept, rows: Sequence[_Row], once: Once | None) -> bytes:
    """Write the parts of a task, and the answer of the request that taught it, which is returned."""
    for part, *rest in rows:
        execute(
            "INSERT INTO parts (task, part, revision, sha256, data, place) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT"
            " (task, part) DO UPDATE SET revision = excluded.revision, sha256 = excluded.sha256,"
            " data = excluded.data, place = excluded.place",
            (kept.id, part, kept.revision, *rest),
        )
    body = json.dumps(kept.public(), ensure_ascii=False, allow_nan=False).encode()
    if once is not None:
        row = (kept.tenant, once.key, once.request, kept.id, once.status, body, now())
        told = execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row)
        if told.rowcount != 1:
            raise AnsweredError("a request with this key was answered at the same time; ask again")
    return body
