"""Contenders in turn: each is checked against the same answer, then timed in rounds, one contender after another."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from headstart.bench.figures import Figure
from headstart.bench.peers.answers import CLOSE, EXACT, check
from headstart.bench.peers.process import PeerError
from headstart.bench.peers.stable import Stable

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
    distance = check(answer, right, given.close)
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
        check(stable.answer(name, small, given.timeout)[0], stable.right(small, given.timeout), EXACT)
    except PeerError as error:
        stable.remember(name, small, str(error))
        raise
    stable.remember(name, small)
