"""What a service holds while it runs: the store, the workers, and what it counts."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from starlette.concurrency import run_in_threadpool

from headstart.serve.contract import STATUS, RefusedError, RunTold
from headstart.serve.database import StoreAwayError
from headstart.serve.gate import LOG
from headstart.serve.metrics import metrics
from headstart.serve.pool import Pool
from headstart.serve.store import Store
from headstart.serve.tokens import LOCAL, Caller, caller
from headstart.serve.work import Failed, Lesson, Question, Request, Wanted, Work
from headstart.training.signals import locked

Found = TypeVar("Found")


class Settings(NamedTuple):
    """How a service is run."""

    work: Work
    workers: int = 1
    hosts: frozenset[str] = frozenset({"localhost", "127.0.0.1", "::1"})
    guarded: bool = False
    """Whether a token is asked for; else only where the store has one."""
    open: bool = False
    """Whether none is asked for whatever the store has."""
    token: bytes | None = None
    """The hash of a token that is not in the store, and allows all."""


class Workers(Protocol):
    """Those who compute: processes of this one (`headstart.serve.pool`), or elsewhere (`headstart.serve.on_ray`)."""

    def ready(self) -> list[tuple[RunTold, str]]:
        """Wait until one answers, and return the runs with their fingerprints."""

    def ask(self, request: Request, /) -> "asyncio.Future[Any]":
        """Return what will be the answer."""

    def forget(self, task: str, /) -> None:
        """Let go of a task that was deleted."""

    def close(self) -> None:
        """End them."""

    @property
    def alive(self) -> bool:
        """Whether one answers."""

    @property
    def waiting(self) -> int:
        """How many requests wait."""


class State:
    """What a running service holds."""

    def __init__(self, settings: Settings, workers: Callable[[], Workers] | None = None) -> None:
        """Open the store; ``workers`` makes those who compute, by default processes of this one.

        Raises:
            HeadstartError: the store cannot be opened.
        """
        self.settings, self.limits = settings, settings.work.limits
        self._held = contextlib.ExitStack()
        self.store = Store(settings.work.place)
        if not self.store.shared:  # another service would answer what was changed or deleted at this one
            where = self.store.where
            refused = f"another service keeps its tasks in {where}; give this one a --store of its own, or both one of"
            try:
                self._held.enter_context(locked(Path(f"{where}.lock"), f"{refused} PostgreSQL (docs/serving.md)"))
            except BaseException:
                self.store.close()
                raise
        self.metrics = metrics(lambda: self.pool.waiting if self.pool else 0, lambda: self.store.count())
        self._workers = workers or (lambda: Pool(settings.work, settings.workers, self.metrics.seen))
        self.pool: Workers | None = None
        self.runs: dict[str, tuple[RunTold, str]] = {}
        self.draining = False
        self.asked: set[tuple[str, str]] = set()
        """Idempotency keys of requests that are not answered yet."""

    def start(self) -> None:
        """Start workers, and wait until one answers."""
        self.pool = self._workers()
        try:
            self.runs = {told.name: (told, weights) for told, weights in self.pool.ready()}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the workers and close the store."""
        if self.pool is not None:
            self.pool.close()
        self.store.close()
        self._held.close()

    async def read(self, call: Callable[..., Found], *values: Any) -> Found:
        """Ask the store: in a thread where that takes a while, since the database is elsewhere."""
        return await run_in_threadpool(call, *values) if self.store.shared else call(*values)

    async def caller(self, token: str | None) -> Caller:
        """Return who asks, or refuse."""
        if self.settings.open:
            return LOCAL
        try:
            return await self.read(self._caller, token)
        except StoreAwayError as error:  # outside of the application, where errors are told
            raise RefusedError(503, "StoreAwayError", str(error), {"Retry-After": "10"}) from error

    def _caller(self, token: str | None) -> Caller:
        own = self.settings
        if not (own.guarded or own.token is not None or self.store.has_tokens()):
            return LOCAL
        found = None if token is None else caller(self.store, token, own.token)
        if found is None:
            told = "no token came" if token is None else "the token is none of this service, or no longer"
            fix = "send it as the header Authorization: Bearer TOKEN (`headstart tokens add` makes one)"
            raise RefusedError(401, "TokenError", f"{told}; {fix}", {"WWW-Authenticate": "Bearer"})
        return found

    async def ask(self, request: Lesson | Question | Wanted) -> Any:
        """Return what a worker answers, or raise what it says is wrong."""
        assert self.pool is not None
        seconds = self.limits.predict_seconds if isinstance(request, Question) else self.limits.adapt_seconds
        future = self.pool.ask(request)
        try:
            async with asyncio.timeout(2 * seconds):  # waiting counts, too: who asks waits for both
                answer = await future
        except TimeoutError:
            told = f"no worker had time for this in {2 * seconds:g} seconds; ask again later"
            raise RefusedError(503, "DeadlineError", told, {"Retry-After": "10"}) from None
        if isinstance(answer, Failed):
            raise _failure(answer)
        return answer


class ChangedError(Exception):
    """The revision that a worker was asked for is there no more."""


def _failure(failed: Failed) -> Exception:
    if failed.status is not None:
        return RefusedError(failed.status, failed.kind, failed.message, failed.headers)
    if failed.kind == "GoneError":
        return ChangedError()
    if failed.kind == "FileError":
        LOG.error("a file cannot be used", extra={"told": {"error": failed.message}})
        told = "a file of the run, or of the store, cannot be used any more; the service's log says which"
        return RefusedError(500, "FileError", told)
    if failed.kind == "StoreAwayError":
        LOG.error("the store is away", extra={"told": {"error": failed.message}})
        told = "what is kept cannot be reached now; nothing is lost: ask again later"
        return RefusedError(503, "StoreAwayError", told, {"Retry-After": "10"})
    if failed.kind == "InternalError":
        LOG.error("unexpected", extra={"told": {"error": failed.message}})
        return RefusedError(500, "InternalError", "this is unexpected; the service's log says where it comes from")
    headers = {"Retry-After": "10"} if failed.kind == "OutOfMemoryError" else {}
    return RefusedError(STATUS.get(failed.kind, 500), failed.kind, failed.message, headers)
