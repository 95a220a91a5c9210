"""``headstart bench compile``: compiled headstart beside eager, learn2learn and jitted JAX; what compiling costs."""

import tempfile
import time

from headstart.bench.figures import Figure, Report, Target
from headstart.bench.machine import machine
from headstart.bench.peers.process import PeerError, Worker
from headstart.bench.peers.rounds import Contender, Race, Stable, race
from headstart.bench.plan import Plan, check, chosen
from headstart.bench.speed_cases import COMPILED, CONTENDERS, LOOP, OURS, conv4, sine

SECONDS = 300.0
#: Compiling may take so long.
_PATIENCE = 420.0


def races() -> list[Race]:
    """Return the cases."""
    small = (LOOP, OURS, COMPILED, "learn2learn", "JAX")
    found = [Race(sine(steps).name, sine(steps)._asdict(), small, 15, _PATIENCE) for steps in (1, 5)]
    large = conv4(1, 8, 1)
    # compiled once only, since that takes minutes
    return [*found, Race(large.name, large._asdict(), (LOOP, OURS, COMPILED), 5, _PATIENCE, double=False)]


def targets() -> tuple[Target, ...]:
    """Return what compiled headstart is to reach."""
    found = []
    for steps, ratio in ((1, 30.0), (5, 45.0)):
        name = sine(steps).name
        found.append(
            Target(f"{name}, compiled, against learn2learn", name, COMPILED, "learn2learn", ratio, "times faster")
        )
        found.append(Target(f"{name}, compiled, against jitted JAX", name, COMPILED, "JAX", 1.2, "times the time"))
    return tuple(found)


def run(plan: Plan) -> Report:
    """Time compiled steps, and the seconds until the first of them is done, with nothing cached."""
    plan = check(plan)
    names = chosen(plan, [each.name for each in races()])
    until = time.monotonic() + (plan.seconds or SECONDS)
    figures: list[Figure] = []
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as cache:
        place = {"TORCHINDUCTOR_CACHE_DIR": cache}
        with Stable(plan, CONTENDERS, place) as stable:
            for each in (each for each in races() if each.name in names):
                plan.note(f"compile: {each.name}, compiling")
                firsts = []
                for name in (
                    name for name in each.contenders if name in (COMPILED, "JAX") and not stable.missing(name)
                ):
                    try:
                        firsts.append(_first(plan, each, stable.contenders[name], place))
                    except PeerError as error:
                        failed[f"{name}: {each.name}"] = str(error)
                plan.note(f"compile: {each.name}")
                found = race(stable, each, until)
                figures += [*found.figures, *(_repaid(first, each, found.figures) for first in firsts)]
                failed |= found.failed
    wanted = tuple(target for target in targets() if target.case in names)
    return Report("compile", tuple(figures), wanted, machine(plan), failed)


def _first(plan: Plan, given: Race, contender: Contender, place: dict[str, str]) -> Figure:
    """Return the seconds until the first step is done, in a new process, imports of the contender included."""
    with Worker(contender.target, python=plan.python, threads=plan.threads, variables=place) as worker:
        worker.ask({"do": "versions", "of": []}, given.timeout)  # it has started
        began = time.perf_counter()
        worker.ask({"do": "prepare", "case": given.case}, given.timeout)
        worker.ask({"do": "run", "steps": 1}, given.timeout)
        seconds = time.perf_counter() - began
    return Figure(f"{given.name}, until the first step is done", contender.name, seconds, seconds, seconds, 1, "s")


def _repaid(first: Figure, given: Race, figures: list[Figure]) -> Figure:
    """Note after how many steps compiling is repaid, against eager headstart."""
    medians = {figure.contender: figure.value for figure in figures}
    won = medians.get(OURS, 0.0) - medians.get(first.contender, float("inf"))
    if won <= 0:
        return first._replace(note="never repaid against eager headstart") if OURS in medians else first
    return first._replace(note=f"repaid after {first.value * 1e3 / won:.0f} steps against eager headstart")
