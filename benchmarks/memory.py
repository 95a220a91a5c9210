"""``python -m benchmarks memory``: the memory and time of a meta-gradient, and how they grow."""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeAlias

from benchmarks.figures import Figure, Report, Target
from benchmarks.peers.case import Case, held
from benchmarks.peers.prepared import Arrays
from benchmarks.peers.process import PeerError, Worker
from benchmarks.peers.race import CLOSE, EXACT, REFERENCE, Contender, Race, Result, Stable, compared, race, read
from benchmarks.plan import Plan, check, chosen
from benchmarks.report import machine

_FILE = "benchmarks.peers.inner_loops"

UNROLLED, EVERY, ROOT = "headstart", "headstart Checkpointed(every=1)", "headstart Checkpointed()"
DISK = "headstart Checkpointed(every=1), on disk"
PEER = "learn2learn"
LOOP, LOOP_ROOT = REFERENCE.name, "PyTorch loop, checkpointed"
#: The schedule that is to hold the targets of long inner loops.
LONG = DISK
#: Not a contender: what the memory of 1,000 steps is held against.
LIMIT, LIMIT_BYTES = "1 GiB", 2**30

CONTENDERS = (
    Contender(LOOP, f"{_FILE}:loop"),
    Contender(UNROLLED, f"{_FILE}:unrolled"),
    Contender(EVERY, f"{_FILE}:every_state"),
    Contender(ROOT, f"{_FILE}:square_root"),
    Contender(DISK, f"{_FILE}:on_disk"),
    Contender(PEER, f"{_FILE}:learn2learn", "learn2learn"),
    Contender(LOOP_ROOT, f"{_FILE}:loop_checkpointed"),
)


class Cell(NamedTuple):
    """A case with those that compute it."""

    case: Case
    contenders: tuple[str, ...]
    """Whose memory is measured."""
    timed: tuple[str, ...]
    """Who is timed."""
    rounds: int = 3
    compared: bool = True
    """Whether the gradient is compared at this size; otherwise at that of `COMPARED`."""


def steps(count: int) -> Case:
    """Return one task with 500 images to learn from and 500 to be judged on, and the MLP 784-256-256-10."""
    name = f"MLP 784-256-256-10, T={count:,}"
    return Case(name, "mlp", 1, 500, 500, count, held(0.01), ways=10, hidden=(256, 256))


#: What is computed in double precision besides, by all contenders of it, or by those of the targets.
DOUBLE, COMPARED = steps(10), steps(100)


def _tasks(count: int) -> Case:
    name = f"MLP 784-64-10, T=5, 20 + 20 points, {count} task{'s' * (count > 1)}"
    return Case(name, "mlp", count, 20, 20, 5, held(0.01), ways=10, hidden=(64,))


def _parameters(width: int) -> Case:
    count = 785 * width + (width + 1) * width + 10 * (width + 1)
    name = f"MLP with 2 hidden layers, T=5, 20 + 20 points, {count:,} parameters"
    return Case(name, "mlp", 1, 20, 20, 5, held(0.01), ways=10, hidden=(width, width))


def _examples(count: int) -> Case:
    return steps(5)._replace(name=f"MLP 784-256-256-10, T=5, {count:,} examples", support=count, query=count)


def cells(with_peers: bool = True) -> list[Cell]:
    """Return the cases, those with targets first; without the peers the loop stands in for learn2learn."""
    peer = PEER if with_peers else LOOP
    quick = (UNROLLED, peer, DISK, LOOP_ROOT)
    long = tuple(dict.fromkeys((LOOP, *quick, EVERY, ROOT)))
    found = [Cell(steps(1), long, quick, 5), Cell(COMPARED, long, quick, 5)]
    # too long to unroll, or to take twice
    found += [Cell(steps(1000), (DISK,), (), compared=False)]
    found += [Cell(DOUBLE, long, (*quick, EVERY, ROOT), 2)]
    grown = [_tasks(count) for count in (1, 16, 256)] + [_parameters(width) for width in (32, 512, 1024)]
    grown += [_examples(count) for count in (10, 1000, 5000)]
    return found + [Cell(case, (UNROLLED, peer), (UNROLLED, peer)) for case in grown]


def targets() -> tuple[Target, ...]:
    """Return what is to come out."""
    one, many, most = (steps(count).name for count in (1, 100, 1000))
    return (
        Target(f"{many} against T=1, memory", of_memory(many), LONG, UNROLLED, 1.5, "times the memory", of_memory(one)),
        Target(f"{many}, time against the full unroll", of_time(many), LONG, UNROLLED, 1.6, "times the time"),
        Target(f"{most}, memory", of_memory(most), LONG, LIMIT, 1.0, "times the memory"),
    )


def of_memory(case: str) -> str:
    """Return what the figures of a case's memory go by."""
    return f"memory, {case}"


def of_time(case: str) -> str:
    """Return what the figures of a case's time go by."""
    return f"time, {case}"


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
    return compared(own.answer, right.answer, tolerance)


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


SECONDS = 345.0
_PATIENCE = 300.0


def names(plan: Plan) -> list[str]:
    """Return the names of the suite's cases."""
    return [cell.case.name for cell in cells(plan.environment is not None)]


def run(plan: Plan) -> Report:
    """Measure memory and time of every cell.

    Gradients are compared with the plain loop's, relative 1e-4 in float32 at every size that can be unrolled, and 1e-8
    in float64 at two of them; one that has another, or cannot be compared, is left out, and named in ``failed``.

    Raises:
        UsageError: a plan that cannot be carried out.
    """
    plan = check(plan)
    wanted = chosen(plan, names(plan))
    every = [cell for cell in cells(plan.environment is not None) if cell.case.name in wanted]
    until = time.monotonic() + (plan.seconds or SECONDS)
    used = machine(plan)
    told = {of_memory(name) for name in wanted} | {of_time(name) for name in wanted}
    aims = tuple(target for target in targets() if {target.case, target.against or target.case} <= told)

    def report() -> Report:
        return Report("memory", tuple(_noted(total.figures)), aims, used, dict(total.failed))

    with Stable(plan, CONTENDERS) as stable:
        total = peaks(plan, stable, every)
        total.figures.extend([*by_default(plan, stable, every), *_limit(every)])
        plan.keep(report())
        for cell in every:
            found = _timed(stable, cell, total.failed, until)
            total.figures.extend(found.figures)
            total.failed.update(found.failed)
            plan.keep(report())
    return report()


def _timed(stable: Stable, cell: Cell, failed: dict[str, str], until: float) -> Result:
    """Return the times of those of a cell's contenders whose gradients were found to be right."""
    case = cell.case._replace(name=of_time(cell.case.name))
    # without a right gradient there is no figure of memory, and none of time
    there = [name for name in cell.timed if not {name, f"{name}: {of_memory(cell.case.name)}"} & set(failed)]
    if not there:
        return Result([], {})
    if time.monotonic() > until and cell.case not in (steps(1), DOUBLE, COMPARED):
        return Result([], {case.name: "there was no time left for it"})
    stable.plan.note(case.name)
    given = Race(case.name, case._asdict(), tuple(there), cell.rounds, timeout=_PATIENCE, checked=False)
    return race(stable, given, until)


def _limit(every: Sequence[Cell]) -> list[Figure]:
    size = LIMIT_BYTES / 1e6
    note = "not a contender: what the memory is held against"
    long = [cell for cell in every if not cell.compared]
    return [Figure(of_memory(cell.case.name), LIMIT, size, size, size, 1, "MB", note) for cell in long]


def _noted(figures: Sequence[Figure]) -> list[Figure]:
    """Tell of the longest loops what they are beside those of one step, and what unrolling would need."""
    known = {(each.case, each.contender): each.value for each in figures if each.unit == "MB"}

    def of(count: int, contender: str) -> float | None:
        return known.get((of_memory(steps(count).name), contender))

    found = []
    own, short, long = of(1, LONG), of(10, UNROLLED), of(100, UNROLLED)
    for each in figures:
        note = each.note
        if each.contender == LONG and each.unit == "MB" and own and each.case == of_memory(COMPARED.name):
            note += f"; {each.value / own:.2f} times its own with T=1"
        if each.case == of_memory(steps(1000).name) and each.contender != LIMIT and short and long:
            most = long + (long - short) / 90 * 900
            note += f"; unrolled, by the line through T=10 and T=100: {most:.0f} MB (not run)"
        found.append(each._replace(note=note))
    return found
