"""``headstart bench memory``: the memory and time of a meta-gradient, and how they grow."""

import time
from collections.abc import Sequence

from headstart.bench.figures import Figure, Report
from headstart.bench.machine import machine
from headstart.bench.memory_cases import (
    COMPARED,
    CONTENDERS,
    DOUBLE,
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
from headstart.bench.memory_peaks import by_default, peaks
from headstart.bench.peers.rounds import Race, Result, race
from headstart.bench.peers.stable import Stable
from headstart.bench.plan import Plan, check, chosen

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
