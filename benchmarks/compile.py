"""``python -m benchmarks compile``: compiled headstart beside replayed and jitted JAX, and what compiling costs."""

import tempfile
import time

from benchmarks.figures import Figure, Report, Target
from benchmarks.peers.process import PeerError, Worker
from benchmarks.peers.race import Contender, Race, Result, Stable, race
from benchmarks.plan import Plan, check, chosen
from benchmarks.report import machine
from benchmarks.speed import COMPILED, CONTENDERS, REPLAYED, against_best, one_thread, sine

SECONDS = 300.0
#: Compiling may take so long.
_PATIENCE = 420.0


def races() -> list[Race]:
    """Return the cases."""
    contenders = (REPLAYED, COMPILED, "learn2learn", one_thread("learn2learn"), "JAX")
    return [Race(sine(steps).name, sine(steps)._asdict(), contenders, 11, 5, _PATIENCE) for steps in (1, 5, 100)]


def names(plan: Plan) -> list[str]:
    """Return the names of the suite's cases."""
    return [each.name for each in races()]


def targets() -> tuple[Target, ...]:
    """Return what compiled headstart is to reach."""
    found = []
    for steps, ratio in ((1, 30.0), (5, 45.0), (100, 45.0)):
        name = sine(steps).name
        found.append(
            Target(f"{name}, compiled, against learn2learn", name, COMPILED, "learn2learn", ratio, "times faster")
        )
        found.append(Target(f"{name}, compiled, against jitted JAX", name, COMPILED, "JAX", 1.2, "times the time"))
    return tuple(found)


def run(plan: Plan) -> Report:
    """Time compiled steps, and the seconds until the first of them is done, with nothing cached.

    Raises:
        UsageError: a plan that cannot be carried out.
    """
    plan = check(plan)
    wanted = chosen(plan, names(plan))
    until = time.monotonic() + (plan.seconds or SECONDS)
    total, used = Result([], {}), machine(plan)

    def report() -> Report:
        held = tuple(against_best(target, total.figures) for target in targets() if target.case in wanted)
        return Report("compile", tuple(total.figures), held, used, dict(total.failed))

    for each in (each for each in races() if each.name in wanted):
        found = _case(plan, each, until)
        total.figures.extend(found.figures)
        total.failed.update(found.failed)
        plan.keep(report())
    return report()


def _case(plan: Plan, given: Race, until: float) -> Result:
    """Measure a case, with folders of its own for all that compilers keep."""
    firsts: list[Figure] = []
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = {"HEADSTART_CACHE": folder, "TMPDIR": folder, "JAX_ENABLE_COMPILATION_CACHE": "false"}
        with Stable(plan, CONTENDERS, place) as stable:
            for name in (REPLAYED, COMPILED, "JAX"):
                if stable.missing(name):
                    continue
                plan.note(f"compile: {given.name}, {name} compiling")
                try:
                    firsts.append(_first(plan, given, stable.contenders[name], place))
                except PeerError as error:
                    failed[f"{name}: {given.name}"] = str(error)
            plan.note(f"compile: {given.name}")
            there = tuple(name for name in given.contenders if f"{name}: {given.name}" not in failed)
            found = race(stable, given._replace(contenders=there), until)
    # what is timed comes from the first one's cache
    figures = [each._replace(note="") if each.contender == COMPILED else each for each in found.figures]
    plain = next((first for first in firsts if first.contender == REPLAYED), None)
    return Result([*figures, *(_repaid(first, plain, found.figures) for first in firsts)], failed | found.failed)


def _first(plan: Plan, given: Race, contender: Contender, place: dict[str, str]) -> Figure:
    """Return the seconds until the first step is done, in a new process, imports (PyTorch too) included."""
    with Worker(contender.target, python=plan.python, threads=plan.threads, variables=place) as worker:
        worker.ask({"do": "memory"}, given.timeout)  # it has started
        began = time.perf_counter()
        worker.ask({"do": "prepare", "case": given.case}, given.timeout)
        worker.ask({"do": "run", "steps": 1}, given.timeout)
        seconds = time.perf_counter() - began
    return Figure(f"{given.name}, until the first step is done", contender.name, seconds, seconds, seconds, 1, "s")


def _repaid(first: Figure, plain: Figure | None, figures: list[Figure]) -> Figure:
    """Note after how many steps the seconds are repaid that it takes longer than headstart that is replayed."""
    medians = {figure.contender: figure.value for figure in figures}
    if plain is None or first is plain or not {REPLAYED, first.contender} <= {*medians}:
        return first
    won = medians[REPLAYED] - medians[first.contender]
    if won <= 0:
        return first._replace(note="never repaid against replaying")
    steps = max(0.0, first.value - plain.value) * 1e3 / won
    return first._replace(note=f"repaid after {steps:.0f} steps against replaying")
