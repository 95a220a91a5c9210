"""A process that computes for the service: it holds what new tasks are learned by, and the tasks asked for last.

It reads nothing but what the service sends it and the parts of tasks in the store, and writes nothing. It may be
killed at any moment: what it was asked is asked of the next one.
"""

import contextlib
import ctypes
import os
import signal
from collections import OrderedDict
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from headstart.errors import HeadstartError
from headstart.serve.database import DamagedError
from headstart.serve.store import Reader
from headstart.serve.work import Failed, GoneError, Lesson, Question, Wanted, Work


class Memory:
    """Tasks by id and revision, of so many bytes at most."""

    def __init__(self, most: int) -> None:
        self._most, self.bytes = most, 0
        self._held: OrderedDict[tuple[str, int], tuple[Any, int]] = OrderedDict()

    def get(self, key: tuple[str, int]) -> Any:
        """Return a task, ``None`` where it is not there (any more)."""
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key][0]

    def put(self, key: tuple[str, int], value: Any, size: int) -> None:
        """Hold a task; what was asked for longest ago goes where there is no room for it."""
        self._drop(key)
        self._held[key] = value, size
        self.bytes += size
        while self.bytes > self._most and len(self._held) > 1:
            self._drop(next(iter(self._held)))

    def forget(self, tasks: Iterable[str]) -> None:
        """Let go of tasks, of whatever revision."""
        gone = set(tasks)
        for key in [key for key in self._held if key[0] in gone]:
            self._drop(key)

    def clear(self) -> None:
        """Let go of all tasks."""
        self._held.clear()
        self.bytes = 0

    def _drop(self, key: tuple[str, int]) -> None:
        if key in self._held:
            self.bytes -= self._held.pop(key)[1]


def main(connection: Connection, work: Work) -> None:
    """Answer what comes until nobody is there to ask."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the service says when to end: it closes the connection
        signal.signal(number, signal.SIG_IGN)
    try:
        answer = _opened(work)
    except Exception as error:
        connection.send(_failed(error))
        return
    with contextlib.suppress(EOFError, OSError):
        connection.send(answer.told)
        while True:
            forget, requests = connection.recv()
            connection.send(answer(forget, requests))


class _Opened(NamedTuple):
    told: list[Any]
    answers: Callable[[Iterable[str], list[Any]], list[Any]]

    def __call__(self, forget: Iterable[str], requests: list[Any]) -> list[Any]:
        return self.answers(forget, requests)


def _opened(work: Work) -> _Opened:
    import torch

    from headstart.models.trunks.trunk import keep_open
    from headstart.serve import learning
    from headstart.training.build import find_device

    keep_memory()
    keep_open()
    torch.set_num_threads(work.threads)
    device = find_device(work.device)
    served = {
        one.name: one for one in (learning.open_served(source, device, work.unknown_share) for source in work.sources)
    }
    memory, reader = Memory(work.memory), Reader(work.place)

    def support(lesson: Lesson) -> Any:
        if not lesson.grown:
            return None
        before = lesson.revision - 1
        data = reader.part(lesson.task, "support", before)
        if data is None:
            raise GoneError("the task was changed or deleted meanwhile")
        return learning.read_support(data)

    def task(question: Question | Wanted) -> Any:
        key = question.task, question.revision
        if (held := memory.get(key)) is None:
            held = _kept(question)
            memory.put(key, held, learning.size_of(held))
        return held

    def _kept(question: Question | Wanted) -> Any:
        run = served[question.run]
        try:
            data = reader.part(question.task, "adapted", question.revision)
            if data is None:
                raise GoneError("the task was changed or deleted meanwhile")
            return learning.read_adapted(run, data, question.labels, question.counts)
        except DamagedError:
            # what it was learned from is kept, too
            data = reader.part(question.task, "support", question.revision)
            if data is None:
                raise
            (found,) = learning.teach(run, [learning.read_support(data)])
            if isinstance(found, Exception):
                raise found from None
            return found

    def answers(forget: Iterable[str], requests: list[Any]) -> list[Any]:
        memory.forget(forget)
        found: list[Any] = [None] * len(requests)
        groups: dict[tuple[str, type], list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault((request.run, type(request)), []).append(place)
        for (name, kind), places in groups.items():
            some = [requests[place] for place in places]
            run = served[name]
            if kind is Lesson:
                for place, (outcome, one) in zip(places, learning.lessons(run, some, support, work.limits)):
                    found[place] = outcome
                    if one is not None:
                        held = learning.owned(one)
                        memory.put((requests[place].task, requests[place].revision), held, learning.size_of(held))
            elif kind is Question:
                for place, outcome in zip(places, learning.questions(run, some, task)):
                    found[place] = outcome if isinstance(outcome, Exception) else learning.written(outcome)
            else:
                for place in places:
                    found[place] = learning.exported(run, requests[place], task)
        if any(isinstance(one, MemoryError) for one in found):
            memory.clear()
        return [
            _failed(one, served[request.run]) if isinstance(one, Exception) else one
            for one, request in zip(found, requests)
        ]

    return _Opened([(learning.told_of(one, work.limits), one.weights) for one in served.values()], answers)


def keep_memory() -> None:
    """Let the process keep memory that it is done with for what comes next, where its C library is GNU's.

    That gives feature maps of some megabytes back each time, and the next ones come as thousands of pages that the
    kernel has to clear: half of the time of a small network.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_MAPPED, _MOST_MAPPED)
        library.mallopt(_TRIMMED, _MOST_KEPT)


#: M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of mallopt(3), and bytes from which on memory goes back.
_MAPPED, _TRIMMED, _MOST_MAPPED, _MOST_KEPT = -3, -1, 2**25, 2**28


#: Letters of what is told, from its start and from its end: some errors have a value in them, which may be long.
_HALF = 300


def _failed(error: Exception, served: Any = None) -> Failed:
    """Return an error without this machine's paths."""
    if not isinstance(error, HeadstartError):
        import traceback

        # where it comes from is for the log alone; what was asked is not in it
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        told = " < ".join(f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in reversed(frames))
        return Failed("InternalError", f"{type(error).__name__} at {told}")
    text = str(error)
    if served is not None:
        from headstart.serve.learning import scrubbed

        text = scrubbed(served, text)
    return Failed(type(error).__name__, text if len(text) <= 2 * _HALF else f"{text[:_HALF]}…{text[-_HALF:]}")
