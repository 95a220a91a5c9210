"""What the process that speaks HTTP asks of workers, and what they answer: plain values. Nothing imports PyTorch."""

from typing import Any, NamedTuple, TypeAlias

from headstart.errors import HeadstartError
from headstart.serve.contract import Limits
from headstart.serve.store import Place


class Work(NamedTuple):
    """What a worker is started with."""

    sources: tuple[str, ...]
    """Runs, and networks as they are."""
    store: str
    """A file, or the URL of a database."""
    device: str
    threads: int
    memory: int
    """Bytes of tasks that are kept in memory; the least lately asked for goes first."""
    limits: Limits
    blobs: str | None = None
    """The URL of an object store for tensors; ``None``: they are in the store."""
    unknown_share: float | None = None
    """Which share of what is asked is of none of the classes, where a request does not say; by default as at home."""

    @property
    def place(self) -> Place:
        """Where tasks are kept."""
        return Place(self.store, self.blobs)


class Failed(NamedTuple):
    """What is wrong with a request, as it goes from process to process."""

    kind: str
    message: str
    status: int | None = None
    """What HTTP calls it, where that is said already."""
    headers: dict[str, str] | None = None


class Lesson(NamedTuple):
    """A task to learn."""

    task: str
    """Its id."""
    revision: int
    run: str
    values: tuple[Any, ...] = ()
    """Images as the bytes of files, texts, or rows."""
    labels: tuple[str, ...] = ()
    grown: bool = False
    """Whether what the revision before was learned from counts, too."""
    without: str | None = None
    """A class that is to be forgotten."""


class Taught(NamedTuple):
    """What came of a lesson."""

    told: dict[str, Any]
    parts: dict[str, bytes]
    """What is to be kept: ``adapted``, a safetensors file, and ``support``, names and counts before one."""
    support: str
    """The SHA-256 of what it was learned from."""


class Question(NamedTuple):
    """Inputs that a task is to answer."""

    task: str
    revision: int
    run: str
    labels: tuple[str, ...]
    counts: tuple[int, ...]
    values: tuple[Any, ...]
    reject: float | None = None
    unknown_share: float | None = None


class Wanted(NamedTuple):
    """A task that is to be written as files for elsewhere."""

    task: str
    revision: int
    run: str
    labels: tuple[str, ...]
    counts: tuple[int, ...]
    to: str


class GoneError(HeadstartError):
    """The task is of another revision by now, or was deleted."""


Request: TypeAlias = Lesson | Question | Wanted
