"""``headstart bench speed``: an outer step of second-order MAML, by headstart and by others, side by side."""

import time
from collections.abc import Sequence

from headstart.bench.figures import Figure, Report, Target
from headstart.bench.machine import machine
from headstart.bench.peers.rounds import Race, Result, race
from headstart.bench.peers.stable import Stable
from headstart.bench.plan import Plan, check, chosen
from headstart.bench.speed_cases import CONTENDERS, one_thread, races, targets
from headstart.bench.two_processes import NAME, TARGET, two_processes

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
