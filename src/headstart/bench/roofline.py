"""``headstart bench roofline``: how near a meta-gradient comes to what the machine can do, and where the time goes."""

import time
from typing import Any, NamedTuple

import numpy as np
import torch

from headstart.bench.machine import machine
from headstart.bench.peers.case import Case
from headstart.bench.peers.contenders.ours import episodes_of, learner_of
from headstart.bench.plan import Plan, check, chosen
from headstart.bench.roofline_floors import Floors, floors
from headstart.bench.roofline_work import Traffic, flops, shares, traffic
from headstart.bench.speed_cases import ANIL, RESNET, conv4, sine
from headstart.core.objective import meta_gradient
from headstart.engine.accelerate import accelerate
from headstart.forward.task_map import loop

CASES = (sine(1), sine(5), conv4(1, 8, 1), conv4(1, 8, 5), ANIL, RESNET)
#: A case is timed for about so long, at least `FEWEST` times.
SECONDS, FEWEST = 3.0, 3


class Row(NamedTuple):
    """A case's work, floors and time; times in milliseconds."""

    case: str
    flops: int
    """Of products and convolutions, of the tasks one by one."""
    moved: Traffic
    arithmetic: float
    """The FLOP at the rate of the large product."""
    at_own_size: float
    """The FLOP at the rate of the products or convolutions of about this case's size."""
    memory: float
    """The bytes at the rate of copying, from the cache where operations are small."""
    dispatch: float
    """The operations at the cost of an empty one."""
    measured: float
    runs: int
    shares: dict[str, float]
    """Of the time, by kind of work."""

    @property
    def floor(self) -> float:
        """The largest of the three floors: arithmetic, memory, dispatch."""
        return max(self.arithmetic, self.memory, self.dispatch)

    @property
    def reached(self) -> float:
        """Which part of the measured time the floor is."""
        return self.floor / self.measured


class Roofline(NamedTuple):
    """What was found."""

    rows: tuple[Row, ...]
    floors: tuple[Floors, ...]
    """With one thread, and with those of the cases."""
    machine: dict[str, str]


def run(plan: Plan) -> Roofline:
    """Measure the machine's floors, and count and time every case in this process.

    Raises:
        UsageError: a plan that cannot be carried out.
    """
    plan = check(plan)
    names = chosen(plan, [case.name for case in CASES])
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        plan.note("roofline: the machine's floors")
        found = tuple(floors(threads) for threads in sorted({1, plan.threads}))
        rows = []
        for case in (case for case in CASES if case.name in names):
            plan.note(f"roofline: {case.name}")
            rows.append(row(case, found[-1], plan.repeats))
    finally:
        torch.set_num_threads(before)
    return Roofline(tuple(rows), found, machine(plan))


def row(case: Case, best: Floors, repeats: int | None = None) -> Row:
    """Return what one meta-gradient of a case takes."""
    episodes = episodes_of(case)
    one_by_one, together = learner_of(case, taskmap=loop), learner_of(case)
    meta, ready = together.init(None), accelerate(together)
    meta_gradient(together, meta, episodes)  # the task map's choice is no part of what is counted
    moved = traffic(lambda: meta_gradient(together, meta, episodes))
    count = flops(lambda: meta_gradient(one_by_one, meta, episodes))
    times = _times(lambda: meta_gradient(ready, meta, episodes), repeats)
    parts = shares(lambda: meta_gradient(together, meta, episodes))
    own = best.small_product if case.model == "mlp" else best.convolution
    return Row(
        case.name,
        count,
        moved,
        count / best.product * 1e3,
        count / own * 1e3,
        moved.bytes / best.rate_of(moved.bytes / max(1, moved.operations)) * 1e3,
        moved.operations * best.operation * 1e3,
        float(np.median(times)) * 1e3,
        len(times),
        parts,
    )


def _times(function: Any, repeats: int | None) -> list[float]:
    function()
    found: list[float] = []
    while len(found) < (repeats or FEWEST) or (repeats is None and sum(found) < SECONDS):
        began = time.perf_counter()
        function()
        found.append(time.perf_counter() - began)
    return found
