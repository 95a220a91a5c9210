"""The queue to the workers, who take all that waits at once, and what becomes of those that do not answer.

A request that is alone never waits: it is sent to a worker that has nothing to do. While all have, requests gather, and
the next worker gets all of one sort together, which cost little more than one (`headstart.serve.learning`).

A worker that takes longer than a request may, or dies, is killed and replaced. What it was asked is asked again, one at
a time, so that what killed it is found out and takes nothing else with it.
"""

import asyncio
import contextlib
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from headstart.errors import FileError, HeadstartError
from headstart.serve.contract import RefusedError, RunTold, refused_later
from headstart.serve.work import Failed, Lesson, Question, Request, Work

#: Requests, and values in them, that are asked at once, and seconds that they are to take: others wait as long.
_TOGETHER, _VALUES, _SECONDS = 64, 1024, 0.05
#: Values that go together however long they are expected to take: what few take each tells nothing of many.
_FEW = 16
#: How often a request is asked of a worker that dies.
_ATTEMPTS = 3
#: What is loaded once, so that a worker that was killed is replaced in a moment: all that takes long to import.
_LOADED = [
    "headstart.serve.learning",
    "headstart.data.images.kind",
    "headstart.data.text.kind",
    "headstart.data.tables.kind",
    "headstart.algorithms.heads.head",
    "torch._dynamo",
]
#: Seconds in which a worker has to open what it serves.
_OPENING = 120.0


class Job(NamedTuple):
    """A request that waits for its answer."""

    request: Request
    future: "asyncio.Future[Any]"
    since: float
    attempts: int = 0


class Pool:
    """Workers, and the requests that wait for them."""

    def __init__(
        self, work: Work, workers: int = 1, seen: Callable[[str, float], None] = lambda what, value: None
    ) -> None:
        """Start workers; `ready` waits for the first.

        Args:
            work: what they do.
            workers: how many.
            seen: told of what is counted: "batch" (requests asked at once), "restart", "wait" (seconds).
        """
        self._work, self._seen = work, seen
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_LOADED)
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._forget: list[set[str]] = [set() for _ in range(workers)]
        self._alive = [False] * workers
        self._told: list[tuple[RunTold, str]] = []
        self._error: HeadstartError | None = None
        self._took: dict[tuple[type, str], float] = {}
        """Seconds that a value of a request of a sort took lately."""
        self.processes: list[BaseProcess | None] = [None] * workers
        self._threads = [threading.Thread(target=self._drive, args=(place,), daemon=True) for place in range(workers)]
        for thread in self._threads:
            thread.start()

    def ready(self, seconds: float = _OPENING) -> list[tuple[RunTold, str]]:
        """Wait until a worker answers, and return the runs with their fingerprints.

        Raises:
            HeadstartError: they cannot be opened.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._told or self._error or self._closed, seconds)
            if self._error is not None:
                raise self._error
            if not self._told:
                raise FileError("no worker of the service starts; the log above may say why")
            return self._told

    @property
    def alive(self) -> bool:
        """Whether a worker answers."""
        return any(self._alive)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def ask(self, request: Request) -> "asyncio.Future[Any]":
        """Return what will be the answer, in the loop that runs.

        Raises:
            RefusedError: too many wait already.
        """
        job = Job(request, asyncio.get_running_loop().create_future(), time.monotonic())
        with self._changed:
            if self._closed:
                raise refused_later("the service is about to end", 5, 503)
            if len(self._waiting) >= self._work.limits.queue:
                raise refused_later(f"{len(self._waiting)} requests wait already; ask again in a second")
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def forget(self, task: str) -> None:
        """Let workers forget a task that was deleted."""
        with self._changed:
            for one in self._forget:
                one.add(task)
            self._changed.notify_all()

    def close(self) -> None:
        """End the workers; what waits is refused."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(10)

    def _drive(self, place: int) -> None:
        """Keep one worker at work."""
        while not self._closed and self._error is None:
            process, connection = self._start()
            self.processes[place] = process
            try:
                if self._opened(place, connection):
                    self._serve(place, connection)
            finally:
                self._alive[place] = False
                connection.close()
                process.kill()
                process.join()
                process.close()
                self.processes[place] = None
            if not self._closed:
                self._seen("restart", 1)
        with self._changed:
            left, self._waiting = list(self._waiting), deque()
        ended = refused_later("the service is about to end", 5, 503)
        _settle([(job, ended) for job in left])

    def _start(self) -> tuple[BaseProcess, Connection]:
        from headstart.serve.worker import main

        own, other = self._context.Pipe()
        process = self._context.Process(target=main, args=(other, self._work), daemon=True)
        process.start()
        other.close()
        return process, own

    def _opened(self, place: int, connection: Connection) -> bool:
        try:
            told = connection.recv() if connection.poll(_OPENING) else None
        except (EOFError, OSError):
            told = None
        with self._changed:
            if isinstance(told, Failed) and not self._told:
                self._error = FileError(told.message)
            elif isinstance(told, list):
                self._told, self._alive[place] = told, True
            self._changed.notify_all()
        if not isinstance(told, list):
            time.sleep(1.0)  # nobody is helped by a worker that dies a thousand times a second
        return isinstance(told, list)

    def _serve(self, place: int, connection: Connection) -> None:
        """Send what waits, and settle what is answered, until the worker is to be replaced."""
        limits = self._work.limits
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting or self._forget[place], 1.0)
                if self._closed:
                    return
                jobs, (forget, self._forget[place]) = self._take(), (self._forget[place], set())
            process = self.processes[place]
            if not jobs and not forget:
                if process is None or not process.is_alive():
                    return
                continue
            for job in jobs:
                self._seen("wait", time.monotonic() - job.since)
            if jobs:
                self._seen("batch", len(jobs))
            began = time.monotonic()
            seconds = limits.predict_seconds if jobs and isinstance(jobs[0].request, Question) else limits.adapt_seconds
            try:
                connection.send((forget, [job.request for job in jobs]))
                answers = connection.recv() if connection.poll(seconds) else None
            except (EOFError, OSError):
                answers = []
            if not answers and jobs:
                self._again(jobs, answers is None, seconds)
                return
            if jobs:
                self._noted(jobs, time.monotonic() - began)
            _settle(list(zip(jobs, answers or ())))

    def _noted(self, jobs: Sequence[Job], seconds: float) -> None:
        sort, each = _sort(jobs[0]), seconds / sum(map(_values, jobs))
        self._took[sort] = (self._took.get(sort, each) + each) / 2

    def _take(self) -> list[Job]:
        """Take the request that waits longest, and with it those of its sort that fit beside it."""
        taken, self._waiting = together(self._waiting, lambda job: self._took.get(_sort(job), 0.0) * _values(job))
        return taken

    def _again(self, jobs: Sequence[Job], late: bool, seconds: float) -> None:
        """Ask once more what a worker did not answer, unless it is what killed it."""
        back = []
        for job in jobs:
            attempts = job.attempts + 1
            if late and len(jobs) == 1:
                told = f"this takes longer than the {seconds:g} seconds that a request may; ask for less at once"
                _settle([(job, RefusedError(503, "DeadlineError", told, {"Retry-After": "10"}))])
            elif attempts >= _ATTEMPTS:
                told = "the worker that computed this died each time; the request may ask for more than there is memory"
                _settle([(job, RefusedError(503, "UnavailableError", told, {"Retry-After": "10"}))])
            else:
                back.append(job._replace(attempts=attempts))
        with self._changed:
            self._waiting.extendleft(reversed(back))
            self._changed.notify()


def together(waiting: Iterable[Job], seconds: Callable[[Job], float]) -> tuple[list[Job], "deque[Job]"]:
    """Return the job that waits longest, with those of its sort that are to be asked with it, and those that wait on.

    Args:
        waiting: jobs, from the first that came; those that nobody waits for any more are left out.
        seconds: how long a job is expected to take.
    """
    taken: list[Job] = []
    left: deque[Job] = deque()
    values, expected = 0, 0.0
    for job in waiting:
        if job.future.cancelled():
            continue
        first, size, more = taken[0] if taken else job, _values(job), seconds(job)
        fits = not taken or (
            type(job.request) is type(first.request)
            and first.attempts == job.attempts == 0
            and len(taken) < _TOGETHER
            and values + size <= _VALUES
            and (expected + more <= _SECONDS or values + size <= _FEW)
            and not _both(job, taken)
        )
        if fits:
            taken.append(job)
            values, expected = values + size, expected + more
        else:
            left.append(job)
    return taken, left


def _values(job: Job) -> int:
    return max(1, len(getattr(job.request, "values", ())))


def _sort(job: Job) -> tuple[type, str]:
    return type(job.request), job.request.run


def _both(job: Job, taken: Sequence[Job]) -> bool:
    """Return whether two lessons are of one task, which have to come one after the other."""
    return isinstance(job.request, Lesson) and any(one.request.task == job.request.task for one in taken)


def _settle(answered: Sequence[tuple[Job, Any]]) -> None:
    """Hand answers to who waits for them, those of one loop at once: to wake it costs more than to answer."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[Job, Any]]] = {}
    for one in answered:
        loops.setdefault(one[0].future.get_loop(), []).append(one)
    for loop, own in loops.items():
        with contextlib.suppress(RuntimeError):  # a loop that is closed waits for nothing
            loop.call_soon_threadsafe(_told, own)


def _told(answered: Iterable[tuple[Job, Any]]) -> None:
    for job, answer in answered:
        if job.future.done():  # nobody waits for it any more
            continue
        if isinstance(answer, Exception):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)
