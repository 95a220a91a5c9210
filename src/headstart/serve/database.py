"""What holds the rows of a store, which tables it has, and what it says where something is wrong with it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from headstart.errors import HeadstartError

FORMAT = 2


def schema(text: str, blob: str, ordered: str) -> str:
    """Return the tables, in a database's own words.

    Args:
        text: the type of ids and keys, which sort byte by byte.
        blob: the type of bytes.
        ordered: what is said of a table that has no order but that of its key.
    """
    return f"""
CREATE TABLE tasks (
    id {text} PRIMARY KEY, tenant {text} NOT NULL, run TEXT NOT NULL, weights TEXT NOT NULL, revision INTEGER NOT NULL,
    told TEXT NOT NULL, support TEXT NOT NULL, created TEXT NOT NULL, changed TEXT NOT NULL
) {ordered};
CREATE INDEX tasks_of ON tasks (tenant, id);
CREATE TABLE parts (
    task {text} NOT NULL, part TEXT NOT NULL, revision INTEGER NOT NULL, sha256 {blob} NOT NULL, data {blob},
    place {text}, PRIMARY KEY (task, part)
);
CREATE INDEX parts_at ON parts (place) WHERE place IS NOT NULL;
CREATE TABLE answers (
    tenant {text} NOT NULL, key {text} NOT NULL, request {blob} NOT NULL, task {text} NOT NULL,
    status INTEGER NOT NULL, body {blob} NOT NULL, created {text} NOT NULL, PRIMARY KEY (tenant, key)
) {ordered};
CREATE INDEX answers_of ON answers (task);
CREATE INDEX answers_since ON answers (created);
CREATE TABLE tokens (
    id {text} PRIMARY KEY, hash {blob} NOT NULL, name TEXT NOT NULL, tenant TEXT NOT NULL, scopes TEXT NOT NULL,
    created TEXT NOT NULL, expires TEXT, revoked TEXT
) {ordered};
"""


class DamagedError(HeadstartError):
    """What is kept of a task is not what was written."""


class StoreFullError(HeadstartError):
    """There is no room to keep more; nothing that was kept is lost."""


class StoreAwayError(HeadstartError):
    """The database, or the object store, cannot be reached now."""


class Execute(Protocol):
    """Runs a statement of a transaction, and returns a cursor."""

    def __call__(self, query: str, values: Sequence[Any] = (), /) -> Any: ...


class Database(Protocol):
    """What holds rows. Queries are of the SQL that all databases here speak, with ``?`` for values."""

    where: str
    """What it is called, without a password."""
    shared: bool
    """Whether other services may write to it, too."""

    def rows(self, query: str, values: Sequence[Any] = (), /) -> list[Any]:
        """Return the rows of a query."""

    def writing(self, *, reserved: bool = False) -> AbstractContextManager[Execute]:
        """Begin a transaction, which is on the disk when the block ends, or never was.

        ``reserved``: one that takes what is kept from the store, or from who may ask, and so has to be possible where
        the disk is full; what was deleted is overwritten, where the database lets us.
        """

    def reserve(self, size: int) -> None:
        """Keep the room that it takes to delete a task of so many bytes; `StoreFullError` where there is none."""

    def close(self) -> None:
        """Close it."""
