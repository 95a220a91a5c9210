"""The memory of one meta-gradient, each in a fresh process, and whether that computed the right one.

The memory is the most resident memory of the process meanwhile, above what it held before: with the data there, all
imported, and a step on 10 examples taken. The C library may keep what is freed for later, which hides what was needed;
so these processes, every contender's alike, give it back at once (`ENVIRONMENT`).
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

from headstart.bench.figures import Figure
from headstart.bench.memory_cases import COMPARED, DOUBLE, LONG, LOOP, UNROLLED, Cell, of_memory, of_time, steps
from headstart.bench.peers.answers import CLOSE, EXACT, check, read
from headstart.bench.peers.case import Case
from headstart.bench.peers.prepared import Arrays
from headstart.bench.peers.process import PeerError, Worker
from headstart.bench.peers.rounds import Result
from headstart.bench.peers.stable import Stable
from headstart.bench.plan import Plan

#: glibc: one heap, and blocks from 128 KiB up are the system's as soon as they are freed; other systems ignore it.
ENVIRONMENT = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
#: The case of the first step, for which nothing is measured.
TINY = {"support": 10, "query": 10, "steps": 1, "size": 2, "hidden": (4,)}
_PATIENCE = 300.0
#: The processes whose memory is measured now.
_RUNNING: set[Worker] = set()


class Measured(NamedTuple):
    """What a fresh process found."""

    bytes: int
    """The peak above the baseline."""
    baseline: int
    seconds: float
    """Of the step."""
    answer: Arrays
    note: str = ""


Job: TypeAlias = tuple[Case, str]
Outcome: TypeAlias = Measured | str
"""What was measured, or why not."""


def peaks(plan: Plan, stable: Stable, every: Sequence[Cell]) -> Result:
    """Return the memory of every cell, each in a process of its own, as many at a time as there are threads.

    A contender whose gradient is not found to be equal to the loop's has no figure: in single precision at its own
    size, where the loop can be unrolled at that, and in double precision where `doubles` says.
    """
    missing = {name: why for cell in every for name in cell.contenders if (why := stable.missing(name))}
    jobs = [(cell.case, name) for cell in every for name in cell.contenders] + doubles(every)
    # the longest first, so that the others are done meanwhile
    jobs = sorted((job for job in jobs if job[1] not in missing), key=_work)
    plan.note(f"memory: {len(jobs)} processes, {plan.threads} at a time")
    found = _measured(plan, stable, jobs, ENVIRONMENT)
    found |= {(cell.case, LOOP): _right(stable, cell.case) for cell in every if (cell.case, LOOP) not in found}
    result = Result([], missing)
    for cell in every:
        for name in (name for name in cell.contenders if name not in missing):
            add(result, cell, name, found)
    return result


def _work(job: Job) -> float:
    """Return what is less the more there is to do."""
    return -float(job[0].steps * job[0].support * job[0].tasks)


def _right(stable: Stable, case: Case) -> Outcome:
    """Return the loop's gradient where its memory is not measured; at a length that it can be unrolled at."""
    if case.steps > COMPARED.steps:
        return "it would take too much memory"
    try:
        return Measured(0, 0, 0.0, stable.right(case._asdict(), _PATIENCE))
    except PeerError as error:
        return str(error)


def _measured(plan: Plan, stable: Stable, jobs: Sequence[Job], variables: Mapping[str, str]) -> dict[Job, Outcome]:
    """Measure as many at a time as there are threads."""

    def tried(job: Job) -> Outcome:
        try:
            return measure(plan, stable.contenders[job[1]].target, job[0], variables)
        except PeerError as error:
            return str(error)

    pool = ThreadPoolExecutor(plan.threads)
    try:
        return dict(zip(jobs, pool.map(tried, jobs)))
    except BaseException:
        # an interrupt reaches this process alone
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in tuple(_RUNNING):
            worker.close()
        raise
    finally:
        pool.shutdown()


def doubles(every: Sequence[Cell]) -> list[Job]:
    """Return what is computed in float64, too: by all at 10 steps, by those of the targets at 100."""
    found: list[Job] = []
    for cell in every:
        if cell.case == DOUBLE:
            found += [(_double(DOUBLE), name) for name in (LOOP, *cell.contenders)]
        if cell.case == COMPARED or not cell.compared:
            found += [(_double(COMPARED), name) for name in (LOOP, UNROLLED, LONG)]
    return list(dict.fromkeys(found))


def add(result: Result, cell: Cell, name: str, found: Mapping[Job, Outcome]) -> None:
    """Add a contender's figures, or why it has none."""
    measured = found[cell.case, name]
    try:
        if isinstance(measured, str):
            raise PeerError(measured)
        note = "; ".join(text for text in (measured.note, *_compared(cell, name, found)) if text)
    except PeerError as error:
        result.failed[f"{name}: {of_memory(cell.case.name)}"] = str(error)
        return
    size = measured.bytes / 1e6
    whole = f"{(measured.baseline + measured.bytes) / 1e6:.0f} MB with what was there before"
    result.figures.append(Figure(of_memory(cell.case.name), name, size, size, size, 1, "MB", f"{whole}; {note}"))
    if not cell.timed:
        time = measured.seconds * 1e3
        told = "the step whose memory was measured"
        result.figures.append(Figure(of_time(cell.case.name), name, time, time, time, 1, "ms", told))


def _compared(cell: Cell, name: str, found: Mapping[Job, Outcome]) -> list[str]:
    """Return how far a gradient is from the loop's; raise `PeerError` where it is too far, or is not known."""
    if name == LOOP:
        return ["what the others' gradients are compared with"]
    told = []
    if cell.compared:
        told.append(f"gradient {_distance(cell.case, name, found, CLOSE):.0e} from the loop's in float32")
    double = _double(cell.case if cell.compared else COMPARED)
    if (double, name) in found:
        place = "" if cell.compared else f" at T={COMPARED.steps}"
        told.append(f"{_distance(double, name, found, EXACT):.0e} in float64{place}")
    elif not cell.compared:
        raise PeerError("nothing says that its gradient is right")
    return told


def _distance(case: Case, name: str, found: Mapping[Job, Outcome], tolerance: float) -> float:
    own, right = found[case, name], found.get((case, LOOP), "it was not run")
    for who, outcome in ((LOOP, right), (name, own)):
        if isinstance(outcome, str):
            raise PeerError(f"its gradient cannot be compared in {case.dtype}: {who} failed: {outcome}")
    assert isinstance(own, Measured) and isinstance(right, Measured)
    return check(own.answer, right.answer, tolerance)


def _double(case: Case) -> Case:
    return case._replace(dtype="float64")


def measure(plan: Plan, target: str, case: Case, variables: Mapping[str, str] = ENVIRONMENT) -> Measured:
    """Return the memory of one meta-gradient in a fresh process of one thread.

    Raises:
        PeerError: the contender failed, or the system does not tell how much memory a step has held.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        _running(Worker(target, python=plan.python, threads=1, cores=(), variables=variables)) as worker,
    ):
        # what is imported, and made once, at the first step is no part of what a step needs
        worker.ask({"do": "prepare", "case": case._replace(tasks=1, **TINY)._asdict()}, _PATIENCE)
        worker.ask({"do": "run", "steps": 1}, _PATIENCE)
        note = worker.ask({"do": "prepare", "case": case._asdict()}, _PATIENCE)["note"]
        if not worker.ask({"do": "forget peak"})["done"]:
            raise PeerError("this system cannot start the peak of a process's memory anew")
        before = worker.ask({"do": "memory"})["now"]
        (seconds,) = worker.ask({"do": "run", "steps": 1}, _PATIENCE)["seconds"]
        after = worker.ask({"do": "memory"})["peak"]
        if not 0 < before < after:
            raise PeerError(f"its memory cannot be told: {before} bytes before the step, {after} at the most")
        path = Path(folder) / "answer.npz"
        worker.ask({"do": "answer", "answer": str(path)}, _PATIENCE)
        return Measured(after - before, before, seconds, read(path), str(note))


@contextmanager
def _running(worker: Worker) -> Iterator[Worker]:
    _RUNNING.add(worker)
    try:
        with worker:
            yield worker
    finally:
        _RUNNING.discard(worker)


def by_default(plan: Plan, stable: Stable, every: Sequence[Cell]) -> list[Figure]:
    """Return the memory of the targets' cells with the allocator as it is, which keeps what is freed."""
    jobs = [(cell.case, name) for cell in every if cell.case in (steps(1), COMPARED) for name in (UNROLLED, LONG)]
    figures = []
    for (case, name), outcome in _measured(plan, stable, jobs, {}).items():
        if isinstance(outcome, Measured):
            size = outcome.bytes / 1e6
            figures.append(
                Figure(f"memory with the allocator's defaults, {case.name}", name, size, size, size, 1, "MB")
            )
    return figures
