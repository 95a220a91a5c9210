"""Two processes of one thread, each with half of the tasks, against one process of one thread with all of them."""

from typing import Any

from headstart.bench.figures import Target
from headstart.bench.peers.process import PeerError, Worker, available_cores
from headstart.bench.peers.rounds import Result, figure_of
from headstart.bench.plan import Plan
from headstart.bench.speed_cases import OURS, conv4

NAME = "conv4 1-shot T=1, 16 tasks, by processes"
ONE, TWO = f"{OURS}, one process x one thread", f"{OURS}, two processes x one thread"
TARGET = Target(f"{NAME}: two against one", NAME, TWO, ONE, 1.7, "times faster")

_NOTE = "each has half of the tasks; the time of the slower one; gradients are not exchanged (0.5 MB a step)"
_SECONDS = 240.0


def two_processes(plan: Plan) -> Result:
    """Time both in turn; needs two cores."""
    cores = available_cores()
    if len(cores) == 1:
        return Result([], {TWO: "needs two cores, and this process may use only one"}, {})
    case = conv4(1, 16, 1)
    half = case.tasks // 2
    parts = [case._replace(tasks=half), case._replace(tasks=half, first=half)]
    place: dict[str, Any] = {"python": plan.python, "threads": 1}
    target = "headstart.bench.peers.contenders.ours:prepare"
    alone: list[float] = []
    together: list[float] = []
    try:
        with (
            Worker(target, cores=cores[:1], **place) as whole,
            Worker(target, cores=cores[:1], **place) as first,
            Worker(target, cores=cores[1:2], **place) as second,
        ):
            for worker, each in zip((whole, first, second), (case, *parts)):
                worker.ask({"do": "prepare", "case": each._asdict()}, _SECONDS)
                worker.ask({"do": "run", "steps": 1}, _SECONDS)
            for _ in range(plan.repeats or 7):
                alone += whole.ask({"do": "run", "steps": 1}, _SECONDS)["seconds"]
                for worker in (first, second):
                    worker.send({"do": "run", "steps": 1})
                together.append(max(worker.receive(_SECONDS)["seconds"][0] for worker in (first, second)))
    except PeerError as error:
        return Result([], {TWO: str(error)}, {})
    return Result([figure_of(NAME, ONE, alone), figure_of(NAME, TWO, together, _NOTE)], {}, {})
