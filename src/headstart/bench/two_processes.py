"""Two processes of one thread, each with half of the tasks, against one process of one thread with all of them."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from headstart.bench.figures import Target
from headstart.bench.peers.answers import EXACT, LOOSE, check, read
from headstart.bench.peers.case import Case
from headstart.bench.peers.prepared import Arrays
from headstart.bench.peers.process import PeerError, Worker, available_cores
from headstart.bench.peers.rounds import SMALL, Result, figure_of
from headstart.bench.plan import Plan
from headstart.bench.speed_cases import OURS, conv4

NAME = "conv4 1-shot T=1, 16 tasks, by processes"
ONE, TWO = f"{OURS}, one process x one thread", f"{OURS}, two processes x one thread"
HALVES = f"{ONE}, half of the tasks after the other"
TARGET = Target(f"{NAME}: two against one", NAME, TWO, ONE, 1.7, "times faster")

_NOTE = "each has half of the tasks; from a common start until both have exchanged gradients and stepped, the later one"
_FILES = "headstart.bench.peers.contenders.shared"
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
                [stack.enter_context(Worker(f"{_FILES}:{kind}", cores=cores[:1], **place))]
                for kind in ("whole", "in_halves")
            )
            two = [stack.enter_context(Worker(f"{_FILES}:part", cores=[core], **place)) for core in cores[:2]]
            groups = {ONE: whole, HALVES: halves, TWO: two}
            for checked, tolerance in ((case._replace(**SMALL), EXACT), (case, LOOSE)):
                right, *found = [_answer(workers, checked, folder) for workers in groups.values()]
                for answer in found:
                    check(answer, right, tolerance)
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
