"""``python -m benchmarks keras``: an outer step of second-order MAML on Keras models, beside PyTorch.

It runs in an environment with TensorFlow, Keras and PyTorch (``make bench`` does so), every contender in a process of
its own, one thread each, in turn.
"""

from importlib.util import find_spec

from benchmarks.figures import Figure, Report, Target
from benchmarks.memory import ENVIRONMENT
from benchmarks.peers.case import Case, held
from benchmarks.peers.process import PeerError, Worker
from benchmarks.peers.race import CLOSE, LOOSE, REFERENCE, Contender, Race, Result, Stable, race
from benchmarks.plan import Plan, check, chosen
from benchmarks.report import machine
from benchmarks.speed import conv4, sine
from headstart.errors import UsageError

_FILE = "benchmarks.peers.keras"

OURS, XLA, USUAL = "headstart, Keras", "headstart, Keras, XLA", "tf.map_fn"
CHECKPOINTED = "headstart, Keras, checkpointed"
#: As `fit` has it on PyTorch in its first steps, and from then on.
EAGER, TORCH = "headstart, PyTorch, eager", "headstart, PyTorch"

CONTENDERS = (
    REFERENCE,
    Contender(OURS, f"{_FILE}:prepare"),
    Contender(XLA, f"{_FILE}:compiled"),
    Contender(CHECKPOINTED, f"{_FILE}:checkpointed"),
    Contender(USUAL, f"{_FILE}:map_fn"),
    Contender(EAGER, "benchmarks.peers.ours:prepare_unrecorded"),
    Contender(TORCH, "benchmarks.peers.ours:prepare"),
)

CONV4 = conv4(1, 8, 1)
#: One thread each, and TensorFlow's word on how it was built left out.
_VARIABLES = {"TF_CPP_MIN_LOG_LEVEL": "2"}


def races() -> list[Race]:
    """Return the cases whose steps are timed."""
    curves = (USUAL, OURS, XLA, EAGER, TORCH)
    found = [Race(sine(t).name, sine(t)._asdict(), curves, 9, 4, close=CLOSE) for t in (1, 5)]
    return [*found, Race(CONV4.name, CONV4._asdict(), (OURS, EAGER, TORCH), 6, 3, close=LOOSE)]


def long(steps: int) -> Case:
    """Return 8 tasks of images, 5 to learn from and 25 to be judged on, and conv4 with 16 filters."""
    name = f"conv4 with 16 filters, 8 tasks, T={steps}"
    return Case(name, "conv4", 8, 5, 25, steps, held(0.01), 5, filters=16)


def first_call(case: str) -> str:
    """Return what the figures of a case's first call go by."""
    return f"first call, {case}"


def of_memory(case: Case) -> str:
    """Return what the figures of a case's memory go by."""
    return f"memory, {case.name}"


def targets() -> tuple[Target, ...]:
    """Return what is to come out."""
    one, five = sine(1).name, sine(5).name
    found = [Target(f"{case}, against tf.map_fn", case, OURS, USUAL, 10.0, "times faster") for case in (one, five)]
    found += [Target(f"{case}, against PyTorch", case, OURS, EAGER, 1.0, "times the time") for case in (one, five)]
    found += [Target(f"{one}, XLA, against PyTorch", one, XLA, EAGER, 1.7 / 2.6, "times the time")]
    found += [Target(f"{five}, XLA, against PyTorch", five, XLA, EAGER, 3.7 / 10.3, "times the time")]
    found += [Target(f"{CONV4.name}, against PyTorch", CONV4.name, OURS, TORCH, 1.2, "times the time")]
    found += [
        Target(f"T=100 against T=1, memory of {name}", of_memory(long(100)), name, name, 1.6, "times the memory",
               of_memory(long(1)))
        for name in (CHECKPOINTED,)
    ]  # fmt: skip
    limits = ((one, 3.0), (five, 3.0), (CONV4.name, 15.0))
    return (*found, *(Target(f"first call, {case}", first_call(case), OURS, LIMIT, limit, "times the time")
                      for case, limit in limits))  # fmt: skip


_PATIENCE = 600.0
#: Not a contender: what first calls are held against.
LIMIT = "1 s"


def names(plan: Plan) -> list[str]:
    """Return the names of the suite's cases."""
    return [*(each.name for each in races()), *(of_memory(long(steps)) for steps in (1, 100))]


def run(plan: Plan) -> Report:
    """Time every case, its first call, and measure the memory of long inner loops.

    Each contender's meta-gradient is first compared with that of the plain loop of PyTorch (relative 1e-8 in float64);
    one that has another is left out, and named in ``failed``.

    Raises:
        UsageError: a plan that cannot be carried out, or no TensorFlow.
    """
    if find_spec("tensorflow") is None:
        raise UsageError("there is no TensorFlow here; `make bench` runs this suite in an environment that has it")
    plan = check(plan._replace(threads=1, environment=None))
    wanted = chosen(plan, names(plan))
    aims = tuple(target for target in targets() if _case_of(target) in wanted)
    total, used = Result([], {}), machine(plan)

    def report() -> Report:
        return Report("keras", tuple(total.figures), aims, used, dict(total.failed))

    with Stable(plan, CONTENDERS, _VARIABLES) as stable:
        for each in (each for each in races() if each.name in wanted):
            plan.note(f"keras: {each.name}")
            found = race(stable, each)
            for name in each.contenders:
                if stable.contenders[name].target.startswith(_FILE):
                    _first(plan, stable, each, name, found)
            case = first_call(each.name)
            found.figures.append(Figure(case, LIMIT, 1.0, 1.0, 1.0, 1, "s"))
            total.figures.extend(found.figures)
            total.failed.update(found.failed)
            plan.keep(report())
        for steps in (1, 100):
            if of_memory(long(steps)) in wanted:
                plan.note(f"keras: {of_memory(long(steps))}")
                _memory(plan, stable, long(steps), total)
                plan.keep(report())
    return report()


def _case_of(target: Target) -> str:
    return target.case.removeprefix("first call, ")


def _first(plan: Plan, stable: Stable, given: Race, name: str, result: Result) -> None:
    """Add the seconds of the first step in a fresh process, in which TensorFlow has been imported."""
    try:
        with Worker(stable.contenders[name].target, python=plan.python, threads=1, variables=_VARIABLES) as worker:
            worker.ask({"do": "prepare", "case": given.case}, given.timeout)
            (seconds,) = worker.ask({"do": "run", "steps": 1}, given.timeout)["seconds"]
    except PeerError as error:
        result.failed[f"{name}: {first_call(given.name)}"] = str(error)
        return
    case = first_call(given.name)
    result.figures.append(Figure(case, name, seconds, seconds, seconds, 1, "s", "the graph is made, and run once"))


def _memory(plan: Plan, stable: Stable, case: Case, result: Result) -> None:
    """Add the memory that the process has at the most above what it holds before the graph of a step is made.

    TensorFlow keeps what it frees, so a later step shows nothing.
    """
    for name in (OURS, CHECKPOINTED):
        target, variables = stable.contenders[name].target, {**ENVIRONMENT, **_VARIABLES}
        try:
            with Worker(target, python=plan.python, threads=1, variables=variables) as worker:
                worker.ask({"do": "prepare", "case": case._asdict()}, _PATIENCE)
                if not worker.ask({"do": "forget peak"})["done"]:
                    raise PeerError("this system cannot start the peak of a process's memory anew")
                before = worker.ask({"do": "memory"})["now"]
                worker.ask({"do": "run", "steps": 2}, _PATIENCE)
                most = worker.ask({"do": "memory"})["peak"]
        except PeerError as error:
            result.failed[f"{name}: {of_memory(case)}"] = str(error)
            continue
        size = (most - before) / 1e6
        result.figures.append(
            Figure(of_memory(case), name, size, size, size, 1, "MB", f"{most / 1e6:.0f} MB with what was there before")
        )
