"""``headstart bench memory``: the memory and time of a meta-gradient, and how they grow.

The memory of a cell is the most resident memory of a fresh process while it computes one meta-gradient, above what it
held before: with the data there, all imported, and a step on 10 examples taken. The C library may keep what is freed
for later, which hides what was needed; so the processes whose memory is measured, every contender's alike, give it back
at once (`ENVIRONMENT`). Those that are timed run as they do by default; what that makes of the memory of the cells that
have targets is told, too.
"""

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headstart.bench.figures import Figure, Report
from headstart.bench.machine import machine
from headstart.bench.memory_cases import (
    CONTENDERS,
    LIMIT,
    LIMIT_BYTES,
    LONG,
    UNROLLED,
    Cell,
    cells,
    of_memory,
    of_time,
    steps,
    targets,
)  # fmt: skip
from headstart.bench.peers.case import Case
from headstart.bench.peers.prepared import Arrays
from headstart.bench.peers.process import PeerError, Worker
from headstart.bench.peers.rounds import LOOSE, Race, Result, Stable, difference, figure_of, race
from headstart.bench.plan import Plan, check, chosen

#: glibc: one heap, and blocks from 128 KiB up are the system's as soon as they are freed; other systems ignore it.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
#: The case of the first step, for which nothing is measured.
TINY = {"support": 10, "query": 10, "steps": 1, "size": 2, "hidden": (4,)}
SECONDS = 240.0
#: How far the gradient of the long schedule may be from the unrolled one, by its length, in float64.
EXACT = 1e-6
#: Cases from so many steps on are timed once, without warming up.
LONG_STEPS = 1000
_PATIENCE = 300.0


class Measured(NamedTuple):
    """What a fresh process found."""

    bytes: int
    """The peak above the baseline."""
    baseline: int
    answer: Arrays


def run(plan: Plan) -> Report:
    """Measure memory and time of every cell.

    Answers are compared with the first contender's, in float64 where that is quick (relative 1e-6), else in float32
    (where a rounding error at the kink of a ReLU may turn a derivative by a hundredth); one that has another is left
    out, and named in ``failed``.

    Raises:
        UsageError: a plan that cannot be carried out.
    """
    plan = check(plan)
    every = cells(plan.environment is not None)
    names = chosen(plan, [cell.case.name for cell in every])
    every = [cell for cell in every if cell.case.name in names]
    until = time.monotonic() + (plan.seconds or SECONDS)
    figures, failed = peaks(plan, every)
    with Stable(plan, CONTENDERS) as stable:
        for cell in every:
            plan.note(f"memory: time of {cell.case.name}")
            there = tuple(name for name in cell.contenders if name not in failed)
            found = _timed(stable, cell._replace(contenders=there), until)
            figures += found.figures
            failed |= found.failed
    if any(cell.case.steps >= LONG_STEPS for cell in every):
        figures.append(_limit())
    told = {of_memory(name) for name in names} | {of_time(name) for name in names}
    wanted = tuple(target for target in targets() if {target.case, target.against or target.case} <= told)
    return Report("memory", tuple(_noted(figures)), wanted, {**machine(plan), "memory measured by": _by()}, failed)


def peaks(plan: Plan, every: Sequence[Cell]) -> tuple[list[Figure], dict[str, str]]:
    """Return the memory of every cell, each in a process of its own, as many at a time as there are threads."""
    stable = Stable(plan, CONTENDERS)
    failed = {name: why for cell in every for name in cell.contenders if (why := stable.missing(name))}
    # the longest first, so that the others are done meanwhile
    jobs = [(cell.case, name) for cell in reversed(every) for name in cell.contenders if name not in failed]
    jobs += [job for job in _doubles(every) if job[1] not in failed]
    plan.note(f"memory: {len(jobs)} processes, {plan.threads} at a time")
    with ThreadPoolExecutor(plan.threads) as pool:
        found = dict(zip(jobs, pool.map(lambda job: _tried(plan, stable, *job), jobs)))
    figures: list[Figure] = []
    for case, name in jobs:
        outcome = found[case, name]
        if isinstance(outcome, str):
            failed[f"{name}: {of_memory(case.name)}"] = outcome
        elif case.dtype == "float32":
            first = next(found[job] for job in jobs if job[0] == case)
            figure, why = _figure(case, name, outcome, first, found.get((case._replace(dtype="float64"), name)), found)
            figures += [figure] if not why else []
            failed |= {f"{name}: {of_memory(case.name)}": why} if why else {}
    return figures + _by_default(plan, stable, every), failed


def _doubles(every: Sequence[Cell]) -> list[tuple[Case, str]]:
    """Return what is computed in float64, too: by all at 10 steps, by the schedule of the targets at 100."""
    found: list[tuple[Case, str]] = []
    for cell in every:
        if cell.case in (steps(10), steps(100)):
            names = cell.contenders if cell.case == steps(10) else (UNROLLED, LONG)
            found += [(cell.case._replace(dtype="float64"), name) for name in names]
    return found


def _tried(
    plan: Plan, stable: Stable, case: Case, name: str, variables: Mapping[str, str] = ENVIRONMENT
) -> Measured | str:
    try:
        return measure(plan, stable.contenders[name].target, case, variables)
    except PeerError as error:
        return str(error)


def measure(plan: Plan, target: str, case: Case, variables: Mapping[str, str] = ENVIRONMENT) -> Measured:
    """Return the memory of one meta-gradient in a fresh process of one thread."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Worker(target, python=plan.python, threads=1, cores=(), variables=variables) as worker,
    ):
        # what is imported, and made once, at the first step is no part of what a step needs
        worker.ask({"do": "prepare", "case": case._replace(tasks=1, **TINY)._asdict()}, _PATIENCE)
        worker.ask({"do": "run", "steps": 1}, _PATIENCE)
        worker.ask({"do": "prepare", "case": case._asdict()}, _PATIENCE)
        worker.ask({"do": "forget peak"})
        before = worker.ask({"do": "memory"})
        worker.ask({"do": "run", "steps": 1}, _PATIENCE)
        after = worker.ask({"do": "memory"})
        path = Path(folder) / "answer.npz"
        worker.ask({"do": "answer", "answer": str(path)}, _PATIENCE)
        with np.load(path, allow_pickle=False) as stored:
            answer = {name: stored[name] for name in stored.files}
    baseline = before["now"] or before["peak"]
    return Measured(max(0, after["peak"] - baseline), baseline, answer)


def _figure(
    case: Case, name: str, outcome: Measured, first: Any, double: Any, found: Mapping[tuple[Case, str], Any]
) -> tuple[Figure, str]:
    """Return the figure, and why it does not count."""
    size = outcome.bytes / 1e6
    notes = [f"{(outcome.baseline + outcome.bytes) / 1e6:.0f} MB with what was there before"]
    why = ""
    if isinstance(first, Measured) and first is not outcome:
        distance = difference(outcome.answer, first.answer)
        notes.append(f"gradient {distance:.0e} from the first contender's in float32")
        if not distance <= LOOSE:
            why = f"its answer is another one: {distance:.1e} from the first contender's, relative"
    unrolled = found.get((case._replace(dtype="float64"), UNROLLED))
    if name != UNROLLED and isinstance(double, Measured) and isinstance(unrolled, Measured):
        distance = difference(double.answer, unrolled.answer)
        notes.append(f"{distance:.0e} in float64")
        why = why or ("" if distance <= EXACT else f"its gradient is {distance:.1e} from the unrolled one in float64")
    return Figure(of_memory(case.name), name, size, size, size, 1, "MB", ", ".join(notes)), why


def _timed(stable: Stable, cell: Cell, until: float) -> Result:
    """Return the times of a cell's contenders, each in a process of its own, in turn."""
    case = cell.case._replace(name=of_time(cell.case.name))
    if case.steps < LONG_STEPS:
        # what is measured has been compared in double precision already
        return race(
            stable, Race(case.name, case._asdict(), cell.contenders, cell.rounds, _PATIENCE, double=False), until
        )
    result = Result([], {}, {})
    for name in cell.contenders:
        try:
            worker = stable.worker(name)
            worker.ask({"do": "prepare", "case": case._asdict()}, _PATIENCE)
            seconds = worker.ask({"do": "run", "steps": 1}, _PATIENCE)["seconds"]
            result.figures.append(figure_of(case.name, name, seconds, "the first one of its process"))
        except PeerError as error:
            result.failed[f"{name}: {case.name}"] = str(error)
    return result


def _by_default(plan: Plan, stable: Stable, every: Sequence[Cell]) -> list[Figure]:
    """Return the memory of the targets' cells with the allocator as it is, which keeps what is freed."""
    figures = []
    for cell in (cell for cell in every if cell.case in (steps(1), steps(100))):
        for name in (UNROLLED, LONG):
            found = _tried(plan, stable, cell.case, name, {})
            if isinstance(found, Measured):
                size = found.bytes / 1e6
                case = f"memory with the allocator's defaults, {cell.case.name}"
                figures.append(Figure(case, name, size, size, size, 1, "MB"))
    return figures


def _limit() -> Figure:
    size = LIMIT_BYTES / 1e6
    note = "not a contender: what the memory is held against"
    return Figure(of_memory(steps(1000).name), LIMIT, size, size, size, 1, "MB", note)


def _noted(figures: Sequence[Figure]) -> list[Figure]:
    """Tell at 1,000 steps what unrolling would need, by the line through 10 and 100 steps."""
    known = {each.case: each.value for each in figures if each.contender == UNROLLED and each.unit == "MB"}
    short, long = (known.get(of_memory(steps(count).name)) for count in (10, 100))
    if short is None or long is None:
        return list(figures)
    most = long + (long - short) / 90 * 900
    text = f"unrolled, by the line through T=10 and T=100: {most:.0f} MB (not run)"
    case = of_memory(steps(1000).name)
    return [each._replace(note=f"{each.note}; {text}") if each.case == case else each for each in figures]


def _by() -> str:
    """Return how the peak is known."""
    if sys.platform.startswith("linux") and Path("/proc/self/clear_refs").exists():
        return "VmHWM of /proc/self/status, started anew by /proc/self/clear_refs"
    return "getrusage's ru_maxrss of a fresh process, imports included in the peak"
