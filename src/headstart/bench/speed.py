"""``headstart bench speed``: an outer step of second-order MAML, by headstart and by others, side by side."""

import time
from collections.abc import Sequence
from typing import Any

from headstart.bench.figures import Figure, Report
from headstart.bench.machine import machine
from headstart.bench.peers.rounds import Race, Stable, race
from headstart.bench.plan import Plan, check, chosen
from headstart.bench.speed_cases import CONTENDERS, races, targets
from headstart.bench.two_processes import NAME, TARGET, two_processes

#: Rounds that would go beyond so many seconds are left out.
SECONDS = 780.0


def run(plan: Plan) -> Report:
    """Time every case: medians and quartiles of milliseconds, every contender in a process of its own, in turn.

    Before it is timed, each contender's meta-gradient is compared with the first one's (relative 1e-6 in float64); one
    that has another is left out, and named in ``failed``.

    Raises:
        UsageError: a plan that cannot be carried out.
    """
    plan = check(plan)
    every = races(plan.environment is not None)
    names = chosen(plan, [*(each.name for each in every), NAME])
    until = time.monotonic() + (plan.seconds or SECONDS)
    figures, failed = run_races(plan, [each for each in every if each.name in names], until)
    if NAME in names:
        plan.note(f"speed: {NAME}")
        found = two_processes(plan)
        figures += found.figures
        failed |= found.failed
    wanted = tuple(target for target in (*targets(), TARGET) if target.case in names)
    return Report("speed", tuple(figures), wanted, machine(plan), failed)


def run_races(plan: Plan, given: Sequence[Race], until: float) -> tuple[list[Figure], dict[str, str]]:
    """Return the figures of the cases, and what failed."""
    figures: list[Figure] = []
    failed: dict[str, Any] = {}
    with Stable(plan, CONTENDERS) as stable:
        for number, each in enumerate(given, start=1):
            plan.note(f"case {number}/{len(given)}: {each.name}")
            found = race(stable, each, until)
            figures += found.figures
            failed |= found.failed
    return figures, failed
