"""Contenders in turn: each is checked against the same answer, then timed in rounds, one contender after another."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headstart.bench.figures import Figure
from headstart.bench.peers.prepared import Arrays
from headstart.bench.peers.process import PeerError, Worker
from headstart.bench.plan import Plan

#: How far an answer may be from the first contender's, by the length of that.
TOLERANCE = 1e-6
#: Answers are compared in double precision, and for so many tasks: in single precision a rounding error at the kink of
#: a ReLU, or at the maximum of a pool, may turn a derivative by a hundredth.
CHECKED: Mapping[str, Any] = {"dtype": "float64", "tasks": 2}
#: Where that would take too long, the case itself is compared.
LOOSE = 0.05
#: Steps of one contender in one round take about so long, where one alone does not take longer.
ROUND_SECONDS = 0.25
MOST_STEPS = 200
#: Where preparing and checking took longer, no step is spent on warming up, unless the first one compiles.
SLOW = 20.0


class Contender(NamedTuple):
    """Who computes."""

    name: str
    target: str
    """``module:function``, a `Prepare`."""
    package: str = ""
    """The package that must be there; empty for our own."""
    compiles: bool = False
    """Its first step takes much longer than the others."""


class Race(NamedTuple):
    """One case."""

    name: str
    case: Mapping[str, Any]
    contenders: tuple[str, ...]
    """The first one's answer is what the others' are held against."""
    rounds: int = 7
    timeout: float = 240.0
    """Seconds that a contender may take to prepare, or for one round."""
    double: bool = True
    """Whether to compare answers in double precision."""


class Result(NamedTuple):
    """What a case found."""

    figures: list[Figure]
    failed: dict[str, str]
    preparing: dict[str, float]
    """Seconds of preparing, compilation and the check included, by contender."""


class Stable:
    """The processes of the contenders, each started when it is first asked for."""

    def __init__(self, plan: Plan, contenders: Sequence[Contender], variables: Mapping[str, str] | None = None) -> None:
        self.plan = plan
        self.variables = variables
        self.contenders = {each.name: each for each in contenders}
        self.workers: dict[str, Worker] = {}

    def worker(self, name: str) -> Worker:
        """Return the process of a contender, anew where the last one has ended."""
        if name not in self.workers or not self.workers[name].alive:
            contender = self.contenders[name]
            self.workers[name] = Worker(
                contender.target, python=self.plan.python, threads=self.plan.threads, variables=self.variables
            )
        return self.workers[name]

    def missing(self, name: str) -> str:
        """Return why a contender cannot run, or nothing."""
        package = self.contenders[name].package
        if not package or (self.plan.environment and package in self.plan.environment.versions):
            return ""
        if self.plan.environment is None:
            return "left out on request"
        return self.plan.environment.failed.get(package, "not installed")

    def __enter__(self) -> "Stable":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers.values():
            worker.close()


def race(stable: Stable, given: Race, until: float | None = None) -> Result:
    """Check and time the contenders of a case.

    Args:
        stable: the processes.
        given: the case.
        until: the time (of ``time.monotonic``) after which no more rounds than two begin.
    """
    result = Result([], {}, {})
    notes = _checked(stable, given, result)
    times: dict[str, list[float]] = {name: [] for name in notes}
    steps = dict.fromkeys(notes, 1)
    for number in range(stable.plan.repeats or given.rounds):
        if number >= 2 and until is not None and time.monotonic() > until:
            break
        for name in [*list(times)[number % max(1, len(times)) :], *list(times)[: number % max(1, len(times))]]:
            try:
                found = stable.worker(name).ask({"do": "run", "steps": steps[name]}, given.timeout)["seconds"]
            except PeerError as error:
                result.failed[f"{name}: {given.name}"] = str(error)
                del times[name]
                continue
            times[name] += found
            steps[name] = int(min(MOST_STEPS, max(1, ROUND_SECONDS / max(1e-9, float(np.median(found))))))
    for name, seconds in times.items():
        result.figures.append(figure_of(given.name, name, seconds, notes[name]))
    for worker in stable.workers.values():
        if worker.alive:
            worker.ask({"do": "drop"})
    return result


def figure_of(case: str, contender: str, seconds: Sequence[float], note: str = "") -> Figure:
    """Return the median and quartiles in milliseconds."""
    low, middle, high = (float(each) for each in np.percentile(np.asarray(seconds) * 1e3, (25, 50, 75)))
    return Figure(case, contender, middle, low, high, len(seconds), "ms", note)


def _checked(stable: Stable, given: Race, result: Result) -> dict[str, str]:
    """Prepare the contenders; return the notes of those that are there and agree with the first one."""
    notes: dict[str, str] = {}
    first: Arrays | None = None
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(given.contenders):
            if missing := stable.missing(name):
                result.failed[name] = missing
                continue
            path = Path(folder) / f"{number}.npz"
            request = {"do": "prepare", "case": given.case, "answer": None if given.double else str(path)}
            try:
                if given.double:
                    small = {**given.case, **CHECKED, "tasks": min(CHECKED["tasks"], given.case["tasks"])}
                    stable.worker(name).ask({**request, "case": small, "answer": str(path)}, given.timeout)
                reply = stable.worker(name).ask(request, given.timeout)
                if reply["seconds"] < SLOW or stable.contenders[name].compiles:
                    stable.worker(name).ask({"do": "run", "steps": 1}, given.timeout)  # what is only slow once
                answer = _read(path)
                first = first or answer
                _agree(answer, first, given)
            except PeerError as error:
                result.failed[f"{name}: {given.name}"] = str(error)
                continue
            notes[name], result.preparing[name] = reply["note"], reply["seconds"]
    return notes


def _read(path: Path) -> Arrays:
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _agree(answer: Arrays, expected: Arrays, given: Race) -> None:
    if set(answer) != set(expected):
        raise PeerError(f"its answer has other parts: {', '.join(sorted(set(answer) ^ set(expected)))}")
    distance = difference(answer, expected)
    tolerance = TOLERANCE if given.double else LOOSE
    if not distance <= tolerance:
        raise PeerError(
            f"its answer is another one: {distance:.1e} from it, relative, where {tolerance:.0e} is allowed"
        )


def difference(answer: Arrays, expected: Arrays) -> float:
    """Return the length of the difference by the length of what is expected, over all arrays together."""
    if not expected:
        return 0.0
    pairs = [(answer[name].astype(float).ravel(), value.astype(float).ravel()) for name, value in expected.items()]
    found, wanted = (np.concatenate(each) for each in zip(*pairs))
    return float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), 1e-30))
