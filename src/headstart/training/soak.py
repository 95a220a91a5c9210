"""The same training twice, once undisturbed and once under many faults, compared byte for byte.

::

    OUT/
      options.json        the options of both
      undisturbed/run     the run's folder of the one
      disturbed-1/run     that of the other, which is started again after every fault until it has ended
      logs/               of every start what it printed, and the moments that it came to (`headstart.testing.faults`)
      soak.json           every fault, and what became of it

Half of the kills come at random times; the others at moments drawn from all that the undisturbed training was seen to
have, each as likely as any: before a checkpoint is on the disk, before it gets its name, before the old one goes, …
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count, zip_longest
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeAlias

import torch

from headstart.errors import ConfigError, FileError
from headstart.testing.faults import Fault, flip, moved, truncate
from headstart.training.checkpoint import FOLDER, listed
from headstart.training.choose import shortlist
from headstart.training.config import Tree, resolve
from headstart.training.files import explained, from_safetensors, from_sealed, make_folder, read, to_json, write
from headstart.training.progress import View

#: Those that come at random times: one in two gives no warning.
_SIGNALS = ("SIGKILL", "SIGTERM", "SIGKILL", "SIGINT")
#: Those at chosen moments, where a power cut differs from a kill.
_SUDDEN = ("SIGKILL", "power")
_KILLS = {*_SIGNALS, *_SUDDEN}
#: How a process ends by each (by a signal before it listens to them, as any program does), and what it has to say.
_CODES = {"SIGTERM": {143, -15, 0}, "SIGINT": {130, -2, 0}, "ENOSPC": {1, 0}, "move": {1, 0}, "slow": {0}}
_SAYS = {"ENOSPC": "the disk is full", "move": "was moved to"}
_DAMAGES = {"flip": flip, "truncate": truncate}
#: Seconds that a start may take on a busy machine, besides ten times as long as the undisturbed one.
_PATIENCE = 120.0
#: Seconds after which a single process that stands still is killed.
_STILL = 2.0

Moments: TypeAlias = list[tuple[float, str]]
"""The moments of a process: the time of each, and what it was, as ``sync checkpoints/step-*``."""


class Start(NamedTuple):
    """A start of the training under a fault, and what became of it."""

    what: str
    """The fault: one of `Fault`, or ``flip`` and ``truncate``, which damage the newest checkpoint before the start; or
    ``none``."""
    planned: str
    """When it was to come."""
    met: bool
    """Whether it came; if not, the training had ended before."""
    last: str
    """The last moment that the process came to."""
    code: int | None
    """How the process ended; ``None`` where it did not in time."""
    step: int
    """The newest checkpoint's step, afterwards."""
    first_step: float | None
    """Seconds from the command to the first step; ``None`` where it took none."""
    wrong: str
    """What it did that is not promised; empty where there is nothing."""


class Difference(NamedTuple):
    """A file that is not the same."""

    name: str
    why: str


class Soaked(NamedTuple):
    """How a training did under faults."""

    starts: tuple[Start, ...]
    trainings: int
    """How many were taken to their end under faults."""
    compared: int
    """Files that were compared."""
    differences: tuple[Difference, ...]
    first_step: float | None
    """Seconds from the command to the first step of the undisturbed training, …"""
    first_new_step: float | None
    """… and the median of those that went on after a fault."""

    @property
    def kills(self) -> int:
        """How many kills, power cuts and signals there were."""
        return sum(start.met and start.what in _KILLS for start in self.starts)

    @property
    def wrong(self) -> list[str]:
        """What was done that is not promised."""
        return [f"{start.what} {start.planned}: {start.wrong}" for start in self.starts if start.wrong]

    @property
    def holds(self) -> bool:
        """Whether all that is promised was kept."""
        return not self.differences and not self.wrong


class _Seen(NamedTuple):
    """What the undisturbed training was seen to do."""

    steps: int
    begin: float
    """Seconds to the first step, …"""
    pace: float
    """… a step, …"""
    end: float
    """… and behind the last one."""
    training: Counter[str]
    """How often each moment came until the last step, …"""
    ending: Counter[str]
    """… and those that came behind it alone."""
    again: set[str]
    """Those that come in a training that goes on: all behind the first step, and whatever else has been seen there."""


class _Trial(NamedTuple):
    """A fault to be met."""

    what: str
    planned: str
    fault: Fault | None = None
    """One in the process itself, …"""
    number: signal.Signals | None = None
    """… or a signal from without, …"""
    seconds: float = 0.0
    """… so long after the command, …"""
    behind: str = ""
    """… or after this moment …"""
    after: int = 1
    """… has come so often."""


class _Wish(NamedTuple):
    """A fault that is wanted."""

    what: str
    how: str
    """``time``, ``moment`` or ``step``: by what it is to come."""
    late: bool = False
    """Whether behind the last step."""


class _Place(NamedTuple):
    """Where the training takes place."""

    out: Path
    processes: int
    numbers: Iterator[int]
    """Numbers of the starts."""


def soak(
    tree: Tree, out: str | Path, *, kills: int = 50, hangs: int = 0, processes: int = 1, view: View | None = None
) -> Soaked:
    """Train undisturbed and under faults, and compare the two folders byte for byte.

    Besides the kills there are, one for ten of them, a full disk, a moved folder, a damaged newest checkpoint (a bit
    flipped, or cut short) and, of several processes, a slow one. Where the training ends before all have been met, it
    is trained once more from the start. The faults are drawn by the run's seed.

    What may differ, and is left out: ``damaged-…``, which is what was damaged, put aside; and the checkpoint before
    the last one, which is of the step after which a signal had the run saved.

    Args:
        tree: the options of the training.
        out: a new folder.
        kills: how many kills, power cuts and signals; a fifth of them come behind the last step.
        hangs: how many times a process is to stand still.
        processes: of how many processes the training is; several are started by ``torchrun``.
        view: where to report progress to.

    Raises:
        ConfigError: options that do not go together, or a folder that is not empty.
        FileError: the undisturbed training fails.
    """
    out, view = Path(out).absolute(), view or View()
    config = next(iter(shortlist(tree).values()), None) or resolve(tree)
    if kills < 1 or hangs < 0 or processes < 1:
        raise ConfigError(f"expected at least one kill and one process, got {kills}, {processes} and {hangs} hangs")
    with explained("use", out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"{out} is not empty; choose a new folder for --out")
        make_folder(out / "logs")
        write(out / "options.json", to_json(tree))
        place = _Place(out, processes, count())
        found = _soaked(place, random.Random(config.run.seed), kills, hangs, view)
        write(out / "soak.json", to_json(to_values(found)))
    return found


def to_values(found: Soaked) -> dict[str, Any]:
    """Return what was found as JSON."""
    told = {name: getattr(found, name) for name in ("holds", "kills", "trainings", "compared")}
    told |= {name: getattr(found, name) for name in ("first_step", "first_new_step", "wrong")}
    told["differences"] = [one._asdict() for one in found.differences]
    return told | {"starts": [start._asdict() for start in found.starts]}


def rows(found: Soaked) -> list[tuple[str, str, str, str]]:
    """Return a table: fault, where it came, how often it was met, and how often something was wrong."""
    places: dict[tuple[str, str], list[Start]] = {}
    for start in (start for start in found.starts if start.what != "none" or start.wrong):
        places.setdefault((start.what, _where(start)), []).append(start)
    return [
        (*names, str(sum(one.met for one in starts)), str(sum(bool(one.wrong) for one in starts)))
        for names, starts in sorted(places.items())
    ]


def _where(start: Start) -> str:
    """Return roughly where a fault came."""
    if not start.met:
        return "not met"
    at, _, name = start.last.partition(" ")
    if not at:
        return "while starting"
    return "after a step" if at == "step" else f"at {'a checkpoint' if name.startswith(FOLDER) else 'another file'}"


def _soaked(place: _Place, draw: random.Random, kills: int, hangs: int, view: View) -> Soaked:
    view.note("training undisturbed")
    whole = place.out / "undisturbed" / "run"
    seen = _undisturbed(place, whole)
    view.note(f"{seen.steps} steps; {len(seen.training)} kinds of moments until the last, {len(seen.ending)} behind it")
    wanted = _wanted(draw, kills, hangs, place.processes)
    starts, differences, compared = list[list[Start]](), list[Difference](), 0
    for number in count(1):
        folder = place.out / f"disturbed-{number}" / "run"
        own, wanted = _trained(place, folder, wanted, seen, draw, view)
        starts.append(own)
        if own[-1].code == 0:
            found, files = compare(whole, folder)
            differences += [one._replace(name=f"{folder.parent.name}/run/{one.name}") for one in found]
            compared += files
        if not wanted or differences or own[-1].code != 0 or not any(one.met for one in own):
            break
    times = [start.first_step for own in starts for start in own[1:] if start.first_step is not None]
    flat = tuple(start for own in starts for start in own)
    first = seen.begin if seen.steps else None
    return Soaked(flat, len(starts), compared, tuple(differences), first, median(times) if times else None)


def _wanted(draw: random.Random, kills: int, hangs: int, processes: int) -> list[_Wish]:
    late = kills // 5
    early = [
        _Wish(_SIGNALS[place // 2 % 4], "time")
        if place % 2
        else _Wish(_SUDDEN[place // 2 % 2], "moment" if place % 6 else "step")
        for place in range(kills - late)
    ]
    others = ["ENOSPC", "move", "slow"] if processes > 1 else ["ENOSPC", "move"]
    each = kills // 10
    early += [_Wish(what, "moment" if what == "ENOSPC" else "step") for what in others for _ in range(each)]
    early += [_Wish(list(_DAMAGES)[place % 2], "step") for place in range(each)]
    early += [_Wish("hang", "step") for _ in range(hangs)]
    draw.shuffle(early)
    pattern = [_Wish("SIGKILL", "moment", True), _Wish("SIGTERM", "time", True), _Wish("power", "moment", True)]
    pattern += [_Wish("SIGKILL", "time", True), _Wish("ENOSPC", "moment", True), _Wish("SIGINT", "time", True)]
    return early + [pattern[place % len(pattern)] for place in range(late)]


def _trained(
    place: _Place, folder: Path, wanted: Sequence[_Wish], seen: _Seen, draw: random.Random, view: View
) -> tuple[list[Start], list[_Wish]]:
    """Train to the end, and return the starts and those faults that have not been met."""
    starts, left, unmet = list[Start](), list(wanted), list[_Wish]()
    ended, tries, spoilt = False, 10, 0
    while True:
        steps = seen.steps - _newest(folder)
        early = [wish for wish in left if not wish.late] if steps else []
        late = [wish for wish in left if wish.late]
        if ended and not (late and tries):
            return starts, unmet + left
        wish = next(iter(early or late), None)
        if wish is not None:
            left.remove(wish)
        if wish is not None and wish.what in _DAMAGES:
            if not _damaged(folder, wish.what, draw):
                unmet.append(wish)
                continue
            spoilt += 1
        trial = (
            _Trial("none", "")
            if wish is None
            else _drawn(wish, draw, seen, min(steps, math.ceil(2 * steps / (len(early) or 1))), folder.exists(), place)
        )
        start = _start(place, folder, trial, seen)
        if len(list((folder / FOLDER).glob("damaged-*"))) > spoilt:
            start = start._replace(wrong=start.wrong or "it met a checkpoint that faults before had left damaged")
            spoilt += 1
        starts.append(start)
        if wish is not None:
            view.note(f"{start.what} {start.planned}: {start.wrong or _told(start)}")
            again = wish.late and not (
                start.met or start.wrong
            )  # what has ended is judged once more by the same command
            tries -= again
            left += [wish] if again else []
            unmet += [] if start.met or again else [wish]
        ended = start.code == 0 or wish is None


def _told(start: Start) -> str:
    first = "" if start.first_step is None else f"first step after {start.first_step:.1f} s, "
    return (
        f"{first}{'ended' if start.code == 0 else 'stopped'} at {start.last or 'its start'}; step {start.step} is safe"
    )


def _drawn(wish: _Wish, draw: random.Random, seen: _Seen, steps: int, goes_on: bool, place: _Place) -> _Trial:
    """Draw when a fault comes: within so many steps, or behind the last one."""
    if wish.how == "time":
        name = signal.Signals[wish.what]
        if wish.late:
            behind, most = next(iter(seen.ending), ""), seen.end
        elif draw.random() < 0.25:
            behind, most = "", seen.begin
        else:
            behind, most = "step", steps * seen.pace
        seconds = draw.uniform(0, most)
        return _Trial(wish.what, f"{seconds:.2f} s after {behind or 'the command'}", None, name, seconds, behind)
    what = "SIGKILL" if wish.what in _DAMAGES else wish.what  # some steps later
    alone = place.processes > 1 and (what in ("hang", "slow", "move") or draw.random() < 0.5)
    rank = (0 if what == "move" else draw.randrange(place.processes)) if alone else None
    moments = seen.ending if wish.late else seen.training
    if goes_on and not wish.late:
        moments = Counter({moment: often for moment, often in moments.items() if moment in seen.again})
    if wish.how == "step" or not moments:
        fault = Fault(what, "step", 1 + draw.randrange(steps or 1), rank=rank)
    else:
        moment = draw.choice(list(moments))
        often = moments[moment] if wish.late else round(moments[moment] * steps / (seen.steps or 1))
        fault = _at(what, moment, 1 + draw.randrange(max(1, often)))
    trial = _Trial(wish.what, str(fault).partition(" ")[2], fault)
    if what == "hang" and place.processes == 1:  # nobody is there to notice but who started it
        return trial._replace(number=signal.SIGKILL, seconds=_STILL, behind="step", after=fault.count)
    return trial


def _at(what: str, moment: str, number: int) -> Fault:
    at, _, name = moment.partition(" ")
    return Fault(what, at, number, name)  # type: ignore[arg-type]


def _undisturbed(place: _Place, folder: Path) -> _Seen:
    log, told = _files(place)
    began = time.time()
    code = _run(_command(place, folder, None, log), told, _Trial("", ""), log, None)
    if code != 0:
        raise FileError(f"the undisturbed training failed; what it said is in {told}:\n{_read(told)[-2000:]}")
    moments = _moments(log)[0]
    steps = [when for when, what in moments if what == "step"]
    last = steps[-1] if steps else began
    training = Counter(what for when, what in moments if when <= last and what != "step")
    ending = Counter(what for when, what in moments if when > last and what not in training)
    begin = steps[0] - began if steps else moments[0][0] - began
    pace = (last - steps[0]) / (len(steps) - 1) if len(steps) > 1 else begin
    again = {what for when, what in moments if steps and when > steps[0]}
    return _Seen(len(steps), begin, pace, time.time() - last, training, ending, again)


def _start(place: _Place, folder: Path, trial: _Trial, seen: _Seen) -> Start:
    """Start the training under a fault, wait for its end, and judge how it behaved."""
    log, told = _files(place)
    began, goes_on = time.time(), folder.exists()
    most = _PATIENCE + 10 * (seen.begin + seen.steps * seen.pace + seen.end)
    code = _run(_command(place, folder, trial.fault, log), told, trial, log, most)
    moments = _moments(log)
    if trial.fault is None:
        met = trial.number is not None and code != 0
    else:
        met = any(_count(own, trial.fault) >= trial.fault.count for own in moments)
    if goes_on:
        seen.again.update(what for own in moments for _, what in own)
    text, wrong = _read(told), ""
    what = "SIGKILL" if trial.what in _DAMAGES else trial.what
    expected = _CODES.get(what, {-9}) if met else {0}
    first = [next((when for when, moment in own if moment == "step"), math.inf) for own in moments]
    begun = max(first, default=math.inf) < math.inf
    if code is None:
        wrong = f"it went on for more than {most:.0f} s"
    elif code not in expected and not (met and place.processes > 1 and code != 0):
        wrong = f"it ended with exit code {code}"
    elif "this is unexpected" in text:
        wrong = "it ended by an error that nobody has foreseen"
    elif met and code != 0 and _SAYS.get(trial.what, "") not in text:
        wrong = f"it does not say that {_SAYS[trial.what]!r}"
    elif trial.what in _DAMAGES and begun and "cannot be used, going back" not in text:
        wrong = "the damaged checkpoint was not told of"
    if os.path.exists(moved(folder)):
        if folder.exists():
            wrong = wrong or "a folder that had been moved was made anew"
        else:
            os.rename(moved(folder), folder)
    if wrong:
        wrong += f"; {told.name} in {told.parent} has what it said"
    last = max((own[-1] for own in moments if own), default=(0.0, ""))[1]
    seconds = max(first) - began if begun else None
    return Start(trial.what, trial.planned, met or what != trial.what, last, code, _newest(folder), seconds, wrong)


def _command(place: _Place, folder: Path, fault: Fault | None, log: Path) -> list[str]:
    many = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(place.processes), "-m"]
    words = [sys.executable, "-m", *(many if place.processes > 1 else []), "headstart.testing.faults"]
    words += ["--folder", str(folder), "--moments", str(log)]
    words += [] if fault is None else ["--fault", json.dumps(fault._asdict())]
    return [*words, "headstart", "train", "--config", str(place.out / "options.json"), "--out", str(folder)]


def _files(place: _Place) -> tuple[Path, Path]:
    number = next(place.numbers)
    return place.out / "logs" / f"{number:03d}.moments", place.out / "logs" / f"{number:03d}.txt"


def _run(words: Sequence[str], told: Path, trial: _Trial, log: Path, most: float | None) -> int | None:
    """Run a command to its end, and send it what is to come from without."""
    end = math.inf if most is None else time.monotonic() + most
    with told.open("wb") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        if trial.number is not None:
            while process.poll() is None and not _came(log, trial) and time.monotonic() < end:
                time.sleep(0.005)
            with suppress(subprocess.TimeoutExpired):
                process.wait(trial.seconds)
            if process.poll() is None:
                _send(process, trial.number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(None if most is None else max(0, end - time.monotonic()))
        return process.poll()
    finally:
        if process.poll() is None:
            _send(process, signal.SIGKILL)
            process.wait()


def _send(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    """Send a signal as a system does: to all processes where none can answer, else to the first of them."""
    for one in _family(process.pid) if number == signal.SIGKILL else [process.pid]:
        with suppress(ProcessLookupError):
            os.kill(one, number)


def _family(number: int) -> list[int]:
    """Return a process and all that it has started: torchrun's are in sessions, thus groups, of their own."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [number]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _moments(log: Path) -> list[Moments]:
    """Return the moments of each process."""
    found = list[Moments]()
    for path in _logs(log):
        lines = [line.partition(" ") for line in _read(path).split("\n")[:-1]]
        found.append([(float(when), what) for when, _, what in lines])
    return found


def _came(log: Path, trial: _Trial) -> bool:
    """Return whether the moment has come after which a signal is to be sent."""
    wanted = f" {trial.behind}\n"
    return not trial.behind or any(_read(path).count(wanted) >= trial.after for path in _logs(log))


def _count(moments: Moments, fault: Fault) -> int:
    wanted = "step" if fault.at == "step" else f"{fault.at} {fault.name}"
    return sum(what == wanted for _, what in moments)


def _logs(log: Path) -> list[Path]:
    return sorted(log.parent.glob(f"{log.name}.*"))


def _newest(folder: Path) -> int:
    """Return the step of the newest checkpoint, 0 where there is none."""
    return next((step for step, _ in listed(folder)), 0)


def _damaged(folder: Path, what: str, draw: random.Random) -> bool:
    """Damage the newest checkpoint, where there are two that are whole; return whether there were."""
    two = [path for _, path in listed(folder)[:2]]
    try:
        for path in two:
            from_sealed(read(path), str(path))
    except FileError:
        return False
    if len(two) < 2:
        return False
    _DAMAGES[what](two[0], seed=draw.randrange(1 << 30))
    return True


def compare(one: Path, other: Path) -> tuple[list[Difference], int]:
    """Return how two runs' folders differ, and the number of files compared, but for what may differ (`soak`)."""
    names, found = (_compared(one), _compared(other)), list[Difference]()
    for name in sorted(names[0] ^ names[1]):
        where = "undisturbed" if name in names[0] else "disturbed"
        found.append(Difference(name, f"only in the {where} run"))
    both = sorted(names[0] & names[1])
    for name in both:
        data, theirs = (one / name).read_bytes(), (other / name).read_bytes()
        if data != theirs:
            found.append(Difference(name, _first_difference(name, data, theirs)))
    return found, len(both)


def _compared(run: Path) -> set[str]:
    before = {path for holder in run.rglob(FOLDER) for _, path in listed(holder.parent)[1:]}
    paths = [path.relative_to(run) for path in run.rglob("*") if path.is_file() and path not in before]
    return {path.as_posix() for path in paths if not any(part.startswith("damaged-") for part in path.parts)}


def _first_difference(name: str, data: bytes, theirs: bytes) -> str:
    """Return where two files differ first: the tensor, the line or the byte."""
    if name.endswith(".safetensors"):
        with suppress(FileError):
            pair = from_safetensors(data, name), from_safetensors(theirs, name)
            for key in sorted(pair[0].keys() | pair[1].keys()):
                values = [tensors.get(key) for tensors in pair]
                if values[0] is None or values[1] is None or values[0].shape != values[1].shape:
                    return f"the tensor {key!r} is not of one shape in both"
                if not torch.equal(values[0], values[1]):
                    most = (values[0].double() - values[1].double()).abs().max()
                    return f"the tensor {key!r} differs by up to {most:.3g}"
    if name.endswith((".json", ".jsonl", ".csv", ".md")):
        lines = zip_longest(data.splitlines(), theirs.splitlines(), fillvalue=b"")
        for number, (own, other) in enumerate(lines, start=1):
            if own != other:
                return (
                    f"line {number}: {own[:100].decode(errors='replace')!r}, {other[:100].decode(errors='replace')!r}"
                )
    place = next((place for place, pair in enumerate(zip(data, theirs)) if pair[0] != pair[1]), None)
    return f"{len(data)} and {len(theirs)} bytes" if place is None else f"byte {place} of {len(data)}"
