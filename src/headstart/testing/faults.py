"""Faults on purpose: kill a training at a chosen moment, fill its disk, let it hang, damage its files.

Nothing of headstart is written with faults in mind or changed for them: Python's audit hooks tell of every file of a
folder that is opened to write, renamed or removed, PyTorch's hook of every step of an optimiser, and ``os.fsync``,
which neither tells of, is wrapped. A real process is put under a fault by running it through this module::

    python -m headstart.testing.faults --folder RUN --fault '{"what": "SIGKILL", "at": "step", "count": 17}' \\
        headstart train sinusoid --out RUN

and the steps of a program or a test by `injected`. `headstart.training.soak` puts whole trainings through many.
"""

import argparse
import contextlib
import errno
import fnmatch
import os
import random
import re
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from pydantic import TypeAdapter, ValidationError
from torch.optim.optimizer import register_optimizer_step_post_hook

from headstart.errors import ConfigError, UsageError, check_known

At: TypeAlias = Literal["step", "open", "sync", "rename", "remove", "change"]
"""Moments that are told of: an optimiser has stepped; a file or folder is about to be made or opened to write, brought
to the disk, renamed (told by its new name), or removed; ``change`` is any of the latter four."""

_OWN = ("power", "hang", "slow", "move")
_ERRORS = {name: number for number, name in errno.errorcode.items()}
#: What takes room on a disk.
_FULL: tuple[str, ...] = ("ENOSPC", "EDQUOT")
_EXAMPLE = '{"what": "SIGKILL", "at": "rename", "name": "checkpoints/step-*", "count": 2}'
#: Files have random parts in their names while they are unfinished, and checkpoints the number of their step.
_RANDOM = ((re.compile(r"\.tmp-[0-9a-f]{6,}"), ".tmp-*"), (re.compile(r"\b(step|damaged)-[^/]+"), r"\1-*"))


class Fault(NamedTuple):
    """What happens, and when."""

    what: str = "SIGKILL"
    """A signal that the process sends itself (``SIGKILL``, ``SIGTERM``, ``SIGINT``, ``SIGSTOP``); an error by which
    the system refuses this change and all later ones (``EROFS``, ``EACCES``, ``EIO``; ``ENOSPC``, a full disk, which
    still lets files be renamed and removed); ``power``: a kill after which all that this process has not brought to
    the disk is cut short; ``hang``: stand still for good; ``slow``: from then on wait a while, ``seconds``, at each
    such moment; ``move``: rename the folder."""
    at: At = "step"
    """At which kind of moment; an error needs one of those before a change."""
    count: int = 1
    """At the how manieth such moment, from 1."""
    name: str = "*"
    """Of which files, as a pattern of their paths in the folder, such as ``checkpoints/step-*``, in which a star stands
    for no slash; ``*`` is all files, and ``.`` the folder itself."""
    rank: int | None = None
    """In which of several processes; by default in each."""
    seconds: float = 0.1

    def __str__(self) -> str:
        where = "" if self.at == "step" or self.name == "*" else f" {self.name}"
        rank = "" if self.rank is None else f" in process {self.rank}"
        return f"{self.what} at {self.at} {self.count}{where}{rank}"


def check_fault(fault: Fault) -> None:
    """Raise `ConfigError` for a fault that there is not."""
    check_known("fault", fault.what, {*_OWN, *signal.Signals.__members__, *_ERRORS})
    check_known("moment", fault.at, get_args(At))
    if fault.count < 1:
        raise ConfigError(f"count is {fault.count}; moments are counted from 1")
    if fault.what in _ERRORS and fault.at == "step":
        raise ConfigError(
            f"{fault.what} is an answer to a change of a file; give at open, sync, rename, remove, change"
        )


@contextlib.contextmanager
def injected(fault: Fault | None, folder: str | Path, log: str | Path | None = None) -> Iterator[list[str]]:
    """Let a fault happen within, in this process and as often as it says.

    Args:
        fault: what, and when; ``None``: nothing happens, and all moments are told.
        folder: the folder whose files are meant; it need not be there yet.
        log: a file, outside of the folder, that gets a line a moment as soon as it has come: time, kind, path. What
            stands in it is what a killed process came to.

    Yields:
        The list of moments so far, such as ``open checkpoints/.tmp-*-step-*``, without what is random in
        names.

    Raises:
        ConfigError: a fault that there is not.

    >>> import tempfile
    >>> from headstart.training.files import write
    >>> with tempfile.TemporaryDirectory() as folder, injected(Fault("ENOSPC", "sync"), folder) as moments:
    ...     write(Path(folder, "results.json"), b"{}")
    Traceback (most recent call last):
    headstart.errors.FileError: cannot write .../results.json: the disk is full; free some space and run again
    >>> moments
    ['open .tmp-*-results.json', 'sync .tmp-*-results.json', 'remove .tmp-*-results.json']
    """
    if fault is not None:
        check_fault(fault)
    handle = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    watch = _Watch(os.path.abspath(folder), fault, handle)
    own = os.fsync

    def fsync(fd: Any) -> None:
        number = fd if isinstance(fd, int) else fd.fileno()
        watch.change("sync", _path_of(number))
        own(number)
        watch.synced(number)

    hook = register_optimizer_step_post_hook(lambda *_: watch.moment("step", ""))
    _watch_changes()
    _WATCHES.append(watch)
    os.fsync = fsync
    try:
        yield watch.moments
    finally:
        os.fsync = own
        _WATCHES.remove(watch)
        hook.remove()
        if handle is not None:
            os.close(handle)


def flip(path: str | Path, place: int | None = None, seed: int = 0) -> int:
    """Flip a bit of a file, by default one drawn by ``seed``, and return at which byte."""
    data = bytearray(Path(path).read_bytes())
    draw = random.Random(seed)
    place = draw.randrange(len(data)) if place is None else place
    data[place] ^= 1 << draw.randrange(8)
    Path(path).write_bytes(data)
    return place


def truncate(path: str | Path, size: int | None = None, seed: int = 0) -> int:
    """Cut a file short, by default to a size drawn by ``seed``, and return its size."""
    size = random.Random(seed).randrange(os.path.getsize(path)) if size is None else size
    os.truncate(path, size)
    return size


@dataclass(eq=False)
class _Watch:
    """Counts the moments of a folder, and lets the fault happen."""

    folder: str
    fault: Fault | None
    log: int | None
    moments: list[str] = field(default_factory=list)
    count: int = 0
    lock: Any = field(default_factory=threading.RLock)
    busy: threading.local = field(default_factory=threading.local)
    sizes: dict[int, int] = field(default_factory=dict)
    """How much of each file, by its inode, this process has brought to the disk, or has found there."""
    opened: set[str] = field(default_factory=set)
    """Paths of files that this process has opened to write."""

    def __post_init__(self) -> None:
        if self.fault is not None and self.fault.what == "power":
            for path in _files(self.folder):
                self.sizes[os.stat(path).st_ino] = os.path.getsize(path)

    def renamed(self, old: str, new: str) -> None:
        """A file or folder is about to have another name."""
        inside = {path for path in self.opened if path == old or path.startswith(old + os.sep)}
        self.opened = self.opened - inside | {new + path[len(old) :] for path in inside}

    def change(self, at: At, path: str | None) -> None:
        """A file is about to be changed."""
        if path is None or getattr(self.busy, "now", False):
            return
        if path == self.folder or path.startswith(self.folder + os.sep):
            self.moment(at, os.path.relpath(path, self.folder))

    def synced(self, number: int) -> None:
        """A file was brought to the disk."""
        status = os.fstat(number)
        self.sizes[status.st_ino] = status.st_size

    def moment(self, at: At, name: str) -> None:
        """Tell of a moment, and let happen what is to happen now."""
        with self.lock:
            shown = f"{at} {general(name)}".rstrip()
            self.moments.append(shown)
            if self.log is not None:
                os.write(self.log, f"{time.time():.6f} {shown}\n".encode(errors="replace"))
            fault = self.fault
            if fault is None:
                return
            kinds = ("open", "sync", "rename", "remove") if fault.at == "change" else (fault.at,)
            meant = at in kinds and _fits(name, fault.name)
            self.count += meant
            later = meant if fault.what == "slow" else fault.what in _ERRORS and at != "step"
            if self.count < fault.count or not (later or (meant and self.count == fault.count)):
                return
        if fault.what not in _FULL or at in ("open", "sync"):
            self.happen(fault, name)

    def happen(self, fault: Fault, name: str) -> None:
        """Let the fault happen."""
        self.busy.now = True
        try:
            if fault.what in _ERRORS:
                code = _ERRORS[fault.what]
                raise OSError(code, os.strerror(code), os.path.join(self.folder, name))
            if fault.what == "power":
                self.lose()
                os.kill(os.getpid(), signal.SIGKILL)
            elif fault.what == "slow":
                time.sleep(fault.seconds)
            elif fault.what == "move":
                os.rename(self.folder, moved(self.folder))
            elif fault.what == "hang":
                while True:
                    time.sleep(60)
            else:
                os.kill(os.getpid(), signal.Signals[fault.what])
        finally:
            self.busy.now = False

    def lose(self) -> None:
        """Cut each file somewhere in what was not brought to the disk."""
        for path in filter(os.path.isfile, self.opened):
            size, kept = os.path.getsize(path), self.sizes.get(os.stat(path).st_ino, 0)
            if kept < size:
                os.truncate(path, random.Random(size).randrange(kept, size))


def general(name: str) -> str:
    """Return a file's name without what is random in it, and without the numbers of steps.

    >>> general("checkpoints/step-000000200.safetensors"), general(".tmp-0123456789ab-README.md")
    ('checkpoints/step-*', '.tmp-*-README.md')
    """
    for pattern, text in _RANDOM:
        name = pattern.sub(text, name)
    return name


def _fits(name: str, pattern: str) -> bool:
    parts, wanted = name.split("/"), pattern.split("/")
    return pattern == "*" or (len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted)))


def moved(folder: str | Path) -> str:
    """Return where the fault ``move`` moves a folder to."""
    return f"{os.fspath(folder)}-moved"


_WATCHES: list[_Watch] = []
#: By the event that Python tells of: the moment, and at which places of its arguments path and open folder stand.
_EVENTS: dict[str, tuple[At, int, int | None]] = {
    "open": ("open", 0, None),
    "os.mkdir": ("open", 0, 2),
    "os.rename": ("rename", 1, 3),
    "os.remove": ("remove", 0, 1),
    "os.rmdir": ("remove", 0, 1),
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCHES or event not in _EVENTS:
        return
    at, place, opened = _EVENTS[event]
    path = arguments[place]
    if isinstance(path, int) or path is None or (event == "open" and not arguments[2] & _WRITES):
        return
    path, handle = os.fsdecode(path), -1 if opened is None else arguments[opened]
    if handle != -1 and not os.path.isabs(path):  # as shutil.rmtree removes what is in a folder
        folder = _path_of(handle)
        if folder is None:
            return
        path = os.path.join(folder, path)
    path = os.path.abspath(path)
    for watch in list(_WATCHES):
        watch.change(at, path)
        if event == "open":
            watch.opened.add(path)
        elif event == "os.rename":
            watch.renamed(os.path.abspath(os.fsdecode(arguments[0])), path)


_begun: list[Callable[..., None]] = []


def _watch_changes() -> None:
    if not _begun:  # such a hook stays for as long as the process
        _begun.append(_audit)
        sys.addaudithook(_audit)


def _path_of(number: int) -> str | None:
    """Return the path of an open file, where the system tells."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{number}")
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        return fcntl.fcntl(number, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0").decode()  # type: ignore[attr-defined]
    return None


def _files(folder: str) -> list[str]:
    found = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]
    return [path for path in found if os.path.isfile(path) and not os.path.islink(path)]


def from_text(text: str) -> Fault:
    """Return the fault that JSON tells of.

    Raises:
        ConfigError: a text that is no fault.

    >>> from_text('{"what": "ENOSPC", "at": "sync", "count": 3}')
    Fault(what='ENOSPC', at='sync', count=3, name='*', rank=None, seconds=0.1)
    """
    try:
        fault = TypeAdapter(Fault).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{text} is no fault: {'.'.join(map(str, first['loc']))} {first['msg']}") from error
    check_fault(fault)
    return fault


def main(words: Sequence[str] | None = None) -> None:
    """Run a module as ``python -m`` does, under a fault; of several processes, in that of the fault's rank.

    Each process adds its rank to the name of the log, and where ``torchrun`` starts processes anew, nothing happens to
    those any more.
    """
    about = "Run a Python module under a fault, or have what it does to the files of a folder told."
    parser = argparse.ArgumentParser(prog="python -m headstart.testing.faults", description=about)
    parser.add_argument("--folder", required=True, help="the folder whose files are meant")
    parser.add_argument("--fault", help=f"as JSON, such as {_EXAMPLE}")
    parser.add_argument("--moments", help="a file that gets a line a moment; .RANK is added to its name")
    parser.add_argument("module", help="a module that can be run, such as headstart")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="the words behind it")
    given = parser.parse_args(words)
    try:
        fault = None if given.fault is None else from_text(given.fault)
    except UsageError as error:
        parser.error(str(error))
    rank, again = int(os.environ.get("RANK", "0")), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if fault is not None and (again or fault.rank not in (None, rank)):
        fault = None
    sys.argv = [given.module, *given.words]
    with injected(fault, given.folder, given.moments and f"{given.moments}.{rank}"):
        runpy.run_module(given.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
