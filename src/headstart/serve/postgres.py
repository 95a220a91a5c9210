"""The rows of a store in a PostgreSQL database, which several services may share.

A transaction is written through before it ends, which is PostgreSQL's default; a database that is set to acknowledge
what is not on its disk is refused. No message has the URL, which may hold a password: `where` is it without one.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from headstart.errors import ConfigError, FileError, UsageError
from headstart.serve.database import FORMAT, DamagedError, Execute, StoreAwayError, StoreFullError, schema

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
    from psycopg_pool import ConnectionPool, PoolTimeout
except ImportError as error:
    raise UsageError(f"a store in PostgreSQL needs {error.name}: `pip install headstart[postgres]`") from error

#: Connections of the process that speaks HTTP; each of its workers has one more.
_CONNECTIONS = 8
#: Seconds in which a connection has to be made, or to be free.
_SECONDS = 5.0
#: What services that make the tables at the same time wait for.
_LOCK = 0x6865616473746172
#: Of `DELETE`: services let go of a task that another one deleted.
_DELETED = "headstart_deleted"


def named(url: str) -> str:
    """Return a URL without its password and options, as it may be shown.

    Raises:
        ConfigError: none of a PostgreSQL database; the message has nothing of it.

    >>> named("postgresql://anna:secret@db.example.org:5433/tasks?sslmode=require")
    'postgresql://anna@db.example.org:5433/tasks'
    """
    kind = url.partition("://")[0]
    if kind not in ("postgresql", "postgres"):
        raise ConfigError(
            "the store is a URL of another kind; expected postgresql://USER@HOST:PORT/DATABASE, or a file"
        )
    try:
        told = conninfo_to_dict(url)
    except psycopg.Error:
        raise ConfigError(
            "the store's URL cannot be read; expected postgresql://USER@HOST:PORT/DATABASE, with what is special in it"
            " as %XX (a password is better kept in PGPASSWORD, or in the file that PGPASSFILE names)"
        ) from None
    user, host, port = (str(told.get(key) or "") for key in ("user", "host", "port"))
    where = (f"{user}@" if user else "") + host + (f":{port}" if port else "")
    return f"postgresql://{where}/{told.get('dbname') or ''}"


class Postgres:
    """A database of rows, asked by several threads at a time."""

    shared = True

    def __init__(self, url: str, reading: bool) -> None:
        """Open a database, and make the tables where there are none; ``reading``: those that are there.

        Raises:
            ConfigError: a URL of no such database, or one that acknowledges what is not on its disk.
            FileError: a database that is no store.
            StoreAwayError: it cannot be reached.
        """
        self.where, self._url = named(url), url
        settings: dict[str, Any] = {"autocommit": True, "connect_timeout": int(_SECONDS)}
        try:
            # what the pool itself would say when it waits in vain is less than what the server says
            psycopg.connect(url, **settings).close()
        except psycopg.Error as error:
            raise StoreAwayError(f"the database {self.where} cannot be reached: {_first(error)}") from None
        most = 1 if reading else _CONNECTIONS
        # a database that is back is asked at once: the pool's own attempts grow rare
        self._pool = ConnectionPool(
            url, kwargs=settings, min_size=1, max_size=most, timeout=_SECONDS, reconnect_timeout=1.0, open=True
        )
        if not reading:
            try:
                self._begin()
            except BaseException:
                self.close()
                raise

    def _begin(self) -> None:
        with self.writing() as execute:
            for setting in ("synchronous_commit", "fsync"):
                if execute("SELECT current_setting(?)", (setting,)).fetchone()[0] == "off":
                    raise ConfigError(
                        f"the database {self.where} acknowledges what is not on its disk yet ({setting} = off), so that"
                        f" a crash would lose what was learned; turn {setting} on"
                    )
            execute("SELECT pg_advisory_xact_lock(?)", (_LOCK,))
            if execute("SELECT to_regclass('store_format')").fetchone()[0] is None:
                if execute("SELECT to_regclass('tasks')").fetchone()[0] is not None:
                    raise FileError(f"the database {self.where} has other tables called as ours; choose another one")
                execute(schema('TEXT COLLATE "C"', "BYTEA", ""))
                # tensors are hardly made smaller by compression, which takes longer than to write them
                execute("ALTER TABLE parts ALTER COLUMN data SET STORAGE EXTERNAL")
                execute("CREATE TABLE store_format (version INTEGER NOT NULL)")
                execute("INSERT INTO store_format VALUES (?)", (FORMAT,))
            (version,) = execute("SELECT version FROM store_format").fetchone()
            if version != FORMAT:
                raise FileError(
                    f"the database {self.where} is no store of format {FORMAT} (it says {version}); choose another one"
                )

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except psycopg.errors.DiskFull as error:
            raise StoreFullError(
                "what is kept cannot grow, since the database's disk is full; nothing is lost: make room, and ask again"
            ) from error
        except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction) as error:
            raise StoreAwayError("the database cannot be reached now; nothing is lost: ask again later") from error
        except psycopg.InternalError as error:
            raise DamagedError("the database is damaged there; other tasks are served on") from error
        except psycopg.Error as error:
            raise FileError(f"the database of the store cannot be used: {_first(error)}") from error

    @contextmanager
    def writing(self, *, reserved: bool = False) -> Iterator[Execute]:
        """Begin a transaction, which is on the disk when the block ends, or never was.

        What was deleted PostgreSQL frees when it vacuums, and reuses it.
        """
        with self._told(), contextlib.ExitStack() as stack:
            connection = stack.enter_context(self._pool.connection())
            try:
                stack.enter_context(connection.transaction())
            except psycopg.OperationalError:
                # perhaps the database was started anew since it was asked last: nothing has been done yet
                stack.close()
                self._pool.check()
                connection = stack.enter_context(self._pool.connection())
                stack.enter_context(connection.transaction())

            def execute(query: str, values: Sequence[Any] = (), /) -> Any:
                return connection.execute(_own(query), values or None)

            yield execute

    def reserve(self, size: int) -> None:
        """Leave it to who runs the database."""

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query."""
        with self._told():
            try:
                return self._rows(query, values)
            except PoolTimeout:
                raise
            except psycopg.OperationalError:
                self._pool.check()
                return self._rows(query, values)

    def _rows(self, query: str, values: Sequence[Any]) -> list[Any]:
        with self._pool.connection() as connection:
            return connection.execute(_own(query), values or None).fetchall()


def _own(query: str) -> bytes:
    """Return a query as this client has it; none has a ``?`` or a ``%`` of its own."""
    return query.replace("?", "%s").encode()


def _first(error: Exception) -> str:
    """Return the first line of what PostgreSQL says, which has no passwords."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
