"""``python -m benchmarks speed``: an outer step of second-order MAML, by headstart and by others, side by side."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Report, Target
from benchmarks.peers.case import Case, held
from benchmarks.peers.prepared import Arrays
from benchmarks.peers.process import PeerError, Worker, available_cores
from benchmarks.peers.race import (
    CLOSE,
    EXACT,
    LOOSE,
    REFERENCE,
    SMALL,
    Contender,
    Race,
    Result,
    Stable,
    compared,
    figure_of,
    race,
    read,
)
from benchmarks.plan import Plan, check, chosen
from benchmarks.report import machine

_OURS, _LIBRARIES = "benchmarks.peers.ours", "benchmarks.peers.libraries"

OURS, COMPILED, LOOP = "headstart", "headstart compiled", REFERENCE.name
REPLAYED, UNRECORDED = "headstart, not compiled", "headstart, not compiled, in its first 50 steps"


def one_thread(name: str) -> str:
    """Return what a library with one thread goes by."""
    return f"{name}, 1 thread"


_LOOPS = (
    Contender("learn2learn", f"{_LIBRARIES}:learn2learn", "learn2learn"),
    Contender("higher", f"{_LIBRARIES}:higher", "higher"),
    Contender("TorchOpt", f"{_LIBRARIES}:torchopt", "torchopt"),
    Contender("iteryne", f"{_LIBRARIES}:iteryne", "iteryne"),
)

CONTENDERS = (
    REFERENCE,
    Contender(OURS, f"{_OURS}:prepare"),
    Contender(REPLAYED, f"{_OURS}:prepare_replayed"),
    Contender(UNRECORDED, f"{_OURS}:prepare_unrecorded"),
    Contender(COMPILED, f"{_OURS}:prepare_compiled"),
    *_LOOPS,
    *(each._replace(name=one_thread(each.name), threads=1) for each in _LOOPS),
    Contender("parallel-metalearn", f"{_LIBRARIES}:parallel_metalearn", "parallel-metalearn"),
    Contender("JAX", "benchmarks.peers.jax:prepare", "jax"),
)

_PEERS = tuple(each.name for each in _LOOPS)
_SINE = (LOOP, OURS, REPLAYED, UNRECORDED, *_PEERS, *map(one_thread, _PEERS), "parallel-metalearn", "JAX")
_FEW = (LOOP, OURS, "learn2learn")


def sine(steps: int, tasks: int = 25) -> Case:
    """Return the regression of sine curves, 10 points to learn from and 10 to be judged on, by the MLP 1-40-40-1."""
    name = f"sine T={steps}" + (f", {tasks} task{'s' * (tasks > 1)}" if tasks != 25 else "")
    return Case(name, "mlp", tasks, support=10, query=10, steps=steps, rate=held(0.01))


def conv4(shots: int, tasks: int, steps: int) -> Case:
    """Return the classification of 28 x 28 images, 5 ways, 5 queries a class, by conv4 with 64 filters."""
    name = f"conv4 {shots}-shot T={steps}, {tasks} task{'s' * (tasks > 1)}"
    return Case(name, "conv4", tasks, support=5 * shots, query=25, steps=steps, rate=held(0.1), ways=5)


ANIL = conv4(1, 8, 5)._replace(name="ANIL conv4 5-shot T=5, 8 tasks", support=25, what="anil")
LARGE_IMAGES = Case("conv4 84x84 1-shot T=5, 4 tasks", "conv4", 4, 5, 25, 5, held(0.01), 5, 84, 3, 32)
RESNET = Case("ResNet-12 84x84 1-shot T=1, 1 task", "resnet12", 1, 5, 5, 1, held(0.01), 5, 84, 3)
TRANSFORMER = Case("transformer, adapters T=3, 8 tasks", "transformer", 8, 10, 10, 3, held(0.1), 5, 24, what="adapters")
ADAPT = conv4(1, 1, 5)._replace(name="adapt one task, conv4 1-shot T=5", what="adapt")
ADAPT_HEAD = Case(
    "adapt one task, head of 384 features 5-shot T=20",
    "mlp",
    1,
    25,
    25,
    20,
    held(0.01),
    5,
    8,
    6,
    hidden=(),
    what="adapt",
)


def races(with_peers: bool = True) -> list[Race]:
    """Return the cases, those with targets first; without the peers the loop stands in for learn2learn."""
    pair = ("learn2learn", OURS) if with_peers else (LOOP, OURS)
    found = [_race(sine(steps), _SINE, 7) for steps in (1, 5)]
    found += [_race(sine(100), (*pair, REPLAYED, "JAX"), 4)]
    found += [_race(each, (LOOP, OURS), 15) for each in (ADAPT, ADAPT_HEAD)]
    found += [_race(ANIL, _FEW, 5)]
    found += [_race(conv4(1, 8, 1), (*_FEW, "higher", "TorchOpt", "iteryne", "parallel-metalearn"), 5)]
    found += [_race(conv4(1, 8, 5), _FEW, 4), _race(conv4(5, 8, 1), _FEW, 5)]
    found += [
        _race(conv4(1, 32, 1), (*pair, REPLAYED), 5),
        _race(conv4(5, 8, 5), pair, 4),
        _race(conv4(5, 32, 1), pair, 4),
    ]
    found += [_race(conv4(1, 32, 5), pair, 4), _race(conv4(5, 32, 5), pair, 4)._replace(warm=False)]
    found += [_race(conv4(1, tasks, 1), pair, 4) for tasks in (1, 4, 16)]
    return found + [each._replace(growth=True, least=2) for each in _growth(pair)]


def _growth(pair: tuple[str, ...]) -> list[Race]:
    """Return the cases without targets."""
    found = [_race(LARGE_IMAGES, pair, 3), _race(TRANSFORMER, (LOOP, OURS), 5)]
    found += [_race(sine(5, tasks), pair, 5) for tasks in (1, 16, 256)]
    found += [_race(sine(10), (*_FEW, "parallel-metalearn", "JAX"), 5)]
    # of 84 x 84 images in double precision the check would take longer than all rounds
    return [*found, _race(RESNET, pair, 2)._replace(small={"size": 32}, warm=False)]


def _race(case: Case, contenders: tuple[str, ...], rounds: int) -> Race:
    close = CLOSE if case.model == "mlp" else LOOSE
    return Race(case.name, case._asdict(), tuple(dict.fromkeys(contenders)), rounds, min(rounds, 4), close=close)


#: Cases that JAX computes, too.
_IN_JAX = tuple(sine(steps).name for steps in (1, 5, 100))


def targets() -> tuple[Target, ...]:
    """Return what headstart is to reach."""
    found = [_faster(sine(steps).name, peer, 10.0) for steps in (1, 5) for peer in _PEERS]
    found += [Target(f"{each}, against jitted JAX", each, OURS, "JAX", 1.2, "times the time") for each in _IN_JAX]
    for steps in (1, 5):
        for shots in (1, 5):
            found += [
                _faster(conv4(shots, tasks, steps).name, "learn2learn", 2.2 if tasks == 32 else 1.0)
                for tasks in (8, 32)
            ]
    found += [_faster(conv4(1, tasks, 1).name, "learn2learn", 1.0) for tasks in (1, 4, 16)]
    found += [_faster(ANIL.name, "learn2learn", 2.3), *(_faster(each.name, LOOP, 2.0) for each in (ADAPT, ADAPT_HEAD))]
    return tuple(found)


def _faster(case: str, theirs: str, ratio: float) -> Target:
    return Target(f"{case}, against {theirs}", case, OURS, theirs, ratio, "times faster")


NAME = "conv4 1-shot T=1, 16 tasks, by processes"
ONE, TWO = f"{OURS}, one process x one thread", f"{OURS}, two processes x one thread"
HALVES = f"{ONE}, half of the tasks after the other"
TARGET = Target(f"{NAME}: two against one", NAME, TWO, ONE, 1.7, "times faster")

_NOTE = "each has half of the tasks; from a common start until both have exchanged gradients and stepped, the later one"
_SECONDS = 240.0


def two_processes(plan: Plan) -> Result:
    """Time both in turn, once their gradients have been found to be equal; needs two cores."""
    cores = available_cores()
    if len(cores) < 2:
        return Result([], {TWO: "needs two cores to hold processes to, and there are not"})
    case = conv4(1, 16, 1)
    times: dict[str, list[list[float]]] = {ONE: [], HALVES: [], TWO: []}
    place: dict[str, Any] = {"python": plan.python, "threads": 1}
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            whole, halves = (
                [stack.enter_context(Worker(f"{_OURS}:{kind}", cores=cores[:1], **place))]
                for kind in ("whole", "in_halves")
            )
            two = [stack.enter_context(Worker(f"{_OURS}:part", cores=[core], **place)) for core in cores[:2]]
            groups = {ONE: whole, HALVES: halves, TWO: two}
            for checked, tolerance in ((case._replace(**SMALL), EXACT), (case, LOOSE)):
                right, *found = [_answer(workers, checked, folder) for workers in groups.values()]
                for answer in found:
                    compared(answer, right, tolerance)
            for _ in range(plan.repeats or 7):
                for name, workers in groups.items():
                    times[name].append([max(each["seconds"][0] for each in _asked(workers, {"do": "run", "steps": 1}))])
    except PeerError as error:
        return Result([], {TWO: str(error)})
    notes = {TWO: _NOTE}
    return Result([figure_of(NAME, name, rounds, notes.get(name, "")) for name, rounds in times.items()], {})


def _asked(workers: list[Worker], *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask all at the same time: one request for all, or one for each."""
    for worker, request in zip(workers, requests * len(workers) if len(requests) == 1 else requests):
        worker.send(request)
    return [worker.receive(_SECONDS) for worker in workers]


def _answer(workers: list[Worker], case: Case, folder: Path) -> Arrays:
    """Let the workers share a case's tasks, and return the gradient that the first one has then."""
    meeting = str(folder / f"{case.dtype}-meeting")
    share = case.tasks // len(workers)
    parts = [case._replace(tasks=share, first=number * share) for number in range(len(workers))]
    places = [{"rank": number, "of": len(workers), "meeting": meeting} for number in range(len(workers))]
    paths = [folder / f"{number}.npz" for number in range(len(workers))]
    _asked(workers, *({"do": "prepare", "case": {**part._asdict(), **place}, "answer": str(path)}
                      for part, place, path in zip(parts, places, paths)))  # fmt: skip
    return read(paths[0])


#: Rounds that would go beyond so many seconds are left out, and so are cases that only show growth.
SECONDS = 970.0


def names(plan: Plan) -> list[str]:
    """Return the names of the suite's cases."""
    found = [each.name for each in races(plan.environment is not None)]
    return [*found, NAME]


def run(plan: Plan) -> Report:
    """Time every case: medians and quartiles of milliseconds, every contender in a process of its own, in turn.

    Before it is timed, each contender's meta-gradient is compared with that of the plain loop (relative 1e-8 in
    float64), and so is what is timed; one that has another is left out, and named in ``failed``.

    Raises:
        UsageError: a plan that cannot be carried out.
    """
    plan = check(plan)
    wanted = chosen(plan, names(plan))
    until = time.monotonic() + (plan.seconds or SECONDS)
    every = [each for each in races(plan.environment is not None) if each.name in wanted]
    aims = [target for target in (*targets(), TARGET) if target.case in wanted]
    total, used = Result([], {}), machine(plan)

    def report() -> Report:
        held = tuple(against_best(target, total.figures) for target in aims)
        return Report("speed", tuple(total.figures), held, used, dict(total.failed))

    def add(found: Result) -> None:
        total.figures.extend(found.figures)
        total.failed.update(found.failed)
        plan.keep(report())

    with Stable(plan, CONTENDERS) as stable:
        for growth in (False, True):
            if growth and NAME in wanted:
                plan.note(f"speed: {NAME}")
                add(two_processes(plan))
            for each in (each for each in every if each.growth is growth):
                add(_raced(stable, each, until, f"case {every.index(each) + 1}/{len(every)}: {each.name}"))
    return report()


def _raced(stable: Stable, given: Race, until: float, said: str) -> Result:
    if given.growth and time.monotonic() > until:
        return Result([], {given.name: "there was no time left for it"})
    stable.plan.note(said)
    return race(stable, given, until)


def against_best(target: Target, figures: Sequence[Figure]) -> Target:
    """Hold headstart against a library with as many threads as are best for it."""
    names = (target.theirs, one_thread(target.theirs))
    there = [each for each in figures if each.case == target.case and each.contender in names]
    best = min(there, key=lambda each: each.value, default=None)
    if best is None or best.contender == target.theirs:
        return target
    return target._replace(name=f"{target.name} (1 thread)", theirs=best.contender)
