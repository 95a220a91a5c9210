"""Contenders in turn: each is checked against the same answer, then timed in rounds, one contender after another."""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from benchmarks.figures import Figure
from benchmarks.peers.environment import Environment
from benchmarks.peers.prepared import Arrays
from benchmarks.peers.process import PeerError, Worker
from benchmarks.plan import Plan


class Contender(NamedTuple):
    """Who computes."""

    name: str
    target: str
    """``module:function``, a `Prepare`."""
    package: str = ""
    """The package that must be there; empty for our own."""
    threads: int = 0
    """Threads that it has; 0: those of the plan."""


def missing(contender: Contender, environment: Environment | None) -> str:
    """Return why a contender cannot run, or nothing."""
    if not contender.package:
        return ""
    if environment is None:
        return "left out: there is no environment with other libraries"
    if contender.package in environment.versions:
        return ""
    return environment.failed.get(contender.package, "not installed")


#: In double precision.
EXACT = 1e-8
#: In single precision.
CLOSE = 1e-4
#: In single precision through ReLUs and the maxima of pools. One unit of a support image within a rounding error of its
#: kink moves the first inner step, and with it hundreds of units of the query images: with 25 images and 5 steps the
#: gradient may be off by a third, in any library. That the mathematics is the same is held to `EXACT` besides.
LOOSE = 0.6
#: What is small beside the whole is held against this share of the whole's length: it may be a sum of zeros.
_SHARE = 0.01


def read(path: Path) -> Arrays:
    """Return the arrays of an .npz file; raise `PeerError` where there is none."""
    if not path.exists():
        raise PeerError("it has no answer to compare")
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def compared(answer: Arrays, expected: Arrays, tolerance: float) -> float:
    """Return how far an answer is from what is expected.

    Raises:
        PeerError: farther than ``tolerance``, or an answer with other parts.
    """
    if set(answer) != set(expected):
        raise PeerError(f"its answer has other parts: {', '.join(sorted(set(answer) ^ set(expected)))}")
    for name, value in expected.items():
        if answer[name].shape != value.shape:
            raise PeerError(f"its answer has a {name} of shape {answer[name].shape} in place of {value.shape}")
    distance = difference(answer, expected)
    if not distance <= tolerance:
        raise PeerError(
            f"its answer is another one: {distance:.1e} from it, relative, where {tolerance:.0e} is allowed"
        )
    return distance


def difference(answer: Arrays, expected: Arrays) -> float:
    """Return the largest relative distance of the arrays, by the length of each, or by a hundredth of all together.

    >>> ones = np.ones(4)
    >>> round(difference({"a": ones, "b": ones + 0.1}, {"a": ones, "b": ones}), 6)
    0.1
    """
    if not expected:
        raise PeerError("there is nothing to compare with")
    lengths = {name: float(np.linalg.norm(value.astype(float))) for name, value in expected.items()}
    least = max(_SHARE * float(np.linalg.norm(list(lengths.values()))), 1e-30)
    distances = [
        float(np.linalg.norm(answer[name].astype(float) - value.astype(float))) / max(lengths[name], least)
        for name, value in expected.items()
    ]
    return float(np.max(distances))  # which, other than max, tells of a NaN


#: The plain loop of PyTorch: what it answers is right.
REFERENCE = Contender("PyTorch loop", "benchmarks.peers.libraries:loop")


class Stable:
    """The processes of the contenders, each started when it is first asked for.

    Args:
        plan: what is asked of the suite.
        contenders: those that may be asked for.
        variables: more of the processes' environment.
        reference: whose answers are right.
    """

    def __init__(
        self,
        plan: Plan,
        contenders: Sequence[Contender],
        variables: Mapping[str, str] | None = None,
        reference: Contender = REFERENCE,
    ) -> None:
        self.plan, self.variables, self.reference = plan, variables, reference
        self.contenders = {each.name: each for each in (reference, *contenders)}
        self.workers: dict[str, Worker] = {}
        self._right: dict[str, Arrays | str] = {}
        self._checked: dict[tuple[str, str], str] = {}

    def worker(self, name: str) -> Worker:
        """Return the process of a contender, anew where the last one has ended."""
        known = self.workers.get(name)
        if known is not None and known.alive:
            return known
        if known is not None:
            known.close()
        each = self.contenders[name]
        threads = each.threads or self.plan.threads
        self.workers[name] = Worker(each.target, python=self.plan.python, threads=threads, variables=self.variables)
        return self.workers[name]

    def missing(self, name: str) -> str:
        """Return why a contender cannot run, or nothing."""
        return missing(self.contenders[name], self.plan.environment)

    def answer(self, name: str, case: Mapping[str, Any], timeout: float) -> tuple[Arrays, str]:
        """Prepare a case and return what the contender answers, and its note; raises `PeerError`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "answer.npz"
            request = {"do": "prepare", "case": case, "answer": str(path)}
            note = str(self.worker(name).ask(request, timeout)["note"])
            return read(path), note

    def right(self, case: Mapping[str, Any], timeout: float) -> Arrays:
        """Return the reference's answer; raises `PeerError`."""
        key = _key(case)
        if key not in self._right:
            try:
                self._right[key] = self.answer(self.reference.name, case, timeout)[0]
            except PeerError as error:
                self._right[key] = f"{self.reference.name}, which it would be compared with, failed: {error}"
        found = self._right[key]
        if isinstance(found, str):
            raise PeerError(found)
        return found

    def remembered(self, name: str, case: Mapping[str, Any]) -> bool:
        """Return whether a contender has had this case checked; raise `PeerError` where it failed then."""
        why = self._checked.get((name, _key(case)))
        if why:
            raise PeerError(why)
        return why is not None

    def remember(self, name: str, case: Mapping[str, Any], why: str = "") -> None:
        """Remember that a contender passed the check of a case, or why not."""
        self._checked[name, _key(case)] = why

    def drop(self) -> None:
        """Let all contenders let go of their cases."""
        for worker in self.workers.values():
            if worker.alive:
                try:
                    worker.ask({"do": "drop"})
                except PeerError:  # it will be started anew
                    worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers.values():
            worker.close()


def _key(case: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in case.items() if name != "name"}, sort_keys=True)


#: Answers are first compared in double precision, and for so many tasks.
SMALL: Mapping[str, Any] = {"dtype": "float64", "tasks": 2}
#: Steps of one contender in one round take about so long, where one alone does not take longer.
ROUND_SECONDS = 0.25
MOST_STEPS = 200


class Race(NamedTuple):
    """One case."""

    name: str
    case: Mapping[str, Any]
    contenders: tuple[str, ...]
    rounds: int = 7
    least: int = 2
    """Rounds that there are however late it is."""
    timeout: float = 240.0
    """Seconds that a contender may take to prepare, or for one round."""
    close: float = CLOSE
    """How far the answer to the case itself, in its own precision, may be from the reference's."""
    small: Mapping[str, Any] = {}
    """What the case that is compared in double precision has otherwise, besides `SMALL`."""
    checked: bool = True
    """Whether answers are compared here."""
    warm: bool = True
    """Whether other libraries, too, take the case once before they are timed, when that answer is compared."""
    growth: bool = False
    """Whether it only shows how time grows: such a case is left out when it is late."""


class Result(NamedTuple):
    """What a case found."""

    figures: list[Figure]
    failed: dict[str, str]


def race(stable: Stable, given: Race, until: float | None = None) -> Result:
    """Check and time the contenders of a case.

    Args:
        stable: the processes.
        given: the case.
        until: the time (of ``time.monotonic``) after which no more rounds than the least begin.
    """
    result = Result([], {})
    notes = _ready(stable, given, result.failed)
    times: dict[str, list[list[float]]] = {name: [] for name in notes}
    for number in range(stable.plan.repeats or given.rounds):
        if number >= given.least and until is not None and time.monotonic() > until:
            break
        turn = number % max(1, len(times))
        for name in [*list(times)[turn:], *list(times)[:turn]]:
            steps = _steps(times[name])
            try:
                times[name].append(stable.worker(name).ask({"do": "run", "steps": steps}, given.timeout)["seconds"])
            except PeerError as error:
                result.failed[f"{name}: {given.name}"] = str(error)
                del times[name]
    result.figures.extend(figure_of(given.name, name, rounds, notes[name]) for name, rounds in times.items())
    stable.drop()
    return result


def _steps(rounds: Sequence[Sequence[float]]) -> int:
    """Return how many steps the next round has."""
    if not rounds:
        return 1
    return int(min(MOST_STEPS, max(1, ROUND_SECONDS / max(1e-9, float(np.median(rounds[-1]))))))


def figure_of(case: str, contender: str, rounds: Sequence[Sequence[float]], note: str = "") -> Figure:
    """Return the median and quartiles of the rounds' medians, in milliseconds."""
    medians = [float(np.median(each)) * 1e3 for each in rounds]
    low, middle, high = (float(each) for each in np.percentile(medians, (25, 50, 75)))
    return Figure(case, contender, middle, low, high, sum(map(len, rounds)), "ms", note, tuple(medians))


def _ready(stable: Stable, given: Race, failed: dict[str, str]) -> dict[str, str]:
    """Prepare the contenders; return the notes of those that are there and agree with the reference."""
    notes: dict[str, str] = {}
    for name in given.contenders:
        if missing := stable.missing(name):
            failed[name] = missing
            continue
        try:
            notes[name] = _prepared(stable, given, name)
        except PeerError as error:
            failed[f"{name}: {given.name}"] = str(error)
    if stable.reference.name not in notes and stable.reference.name in stable.workers:
        stable.worker(stable.reference.name).ask({"do": "drop"})
    return notes


def _prepared(stable: Stable, given: Race, name: str) -> str:
    """Prepare a contender, warm and checked, and return its note.

    Raises:
        PeerError: it failed, or its answer is another one.
    """
    if not given.checked:
        note = str(stable.worker(name).ask({"do": "prepare", "case": given.case}, given.timeout)["note"])
        stable.worker(name).ask({"do": "run", "steps": 1}, given.timeout)  # what is only slow once
        return note
    _check_small(stable, given, name)
    if stable.contenders[name].package and not given.warm:
        return str(stable.worker(name).ask({"do": "prepare", "case": given.case}, given.timeout)["note"])
    right = stable.right(given.case, given.timeout)
    answer, note = stable.answer(name, given.case, given.timeout)
    distance = compared(answer, right, given.close)
    if distance <= CLOSE:
        return note
    return "; ".join(filter(None, (note, f"{distance:.0e} from the loop's answer in {given.case.get('dtype')}")))


def _check_small(stable: Stable, given: Race, name: str) -> None:
    """Compare a contender's answer in double precision, which is done once for cases of the same mathematics."""
    small = {**given.case, **SMALL, **given.small}
    small["tasks"] = min(small["tasks"], given.case["tasks"])
    if stable.remembered(name, small):
        return
    try:
        compared(stable.answer(name, small, given.timeout)[0], stable.right(small, given.timeout), EXACT)
    except PeerError as error:
        stable.remember(name, small, str(error))
        raise
    stable.remember(name, small)
