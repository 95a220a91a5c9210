"""``python -m benchmarks sampler``: few-shot episodes a second, beside other libraries, out of the same images."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from benchmarks.figures import Figure, Report, Target
from benchmarks.peers.process import PeerError, Worker
from benchmarks.peers.race import Contender, missing, read
from benchmarks.plan import Plan, check, chosen
from benchmarks.report import machine
from benchmarks.samplers import SamplerCase, fault, omniglot_folder

ROUNDS = 7
#: Of all turns together, by default; starting the contenders comes on top.
SECONDS = 45.0
_START_SECONDS, _TURN_SECONDS = 600.0, 300.0
_WARM = 6  # more batches than a loader's workers fetch ahead


_FILES = "benchmarks.samplers"

OURS = Contender("headstart", f"{_FILES}:ours")
PEERS = (
    Contender("easyfsl", f"{_FILES}:easyfsl", "easyfsl"),
    Contender("easyfsl, 2 workers", f"{_FILES}:easyfsl", "easyfsl"),
    Contender("learn2learn", f"{_FILES}:learn2learn", "learn2learn"),
    Contender("torchmeta", f"{_FILES}:torchmeta", "torchmeta"),
    Contender("torchmeta, 2 workers", f"{_FILES}:torchmeta", "torchmeta"),
)
#: Processes that load for a contender, where there are any.
WORKERS = {"easyfsl, 2 workers": 2, "torchmeta, 2 workers": 2}
RATIO = 20.0


def names(plan: Plan) -> list[str]:
    """Return the names of the suite's cases."""
    return [name_of(SamplerCase(omniglot=omniglot_folder(plan.data)))]


def run(plan: Plan) -> Report:
    """Let every contender have its turns, one after the other, and return their rates in episodes a second.

    Every contender has a process of its own, and first shows one batch, which is checked. A turn starts the loader
    anew, leaves out its first batches, and counts the episodes of the others by the seconds that they took. Without
    Omniglot's zips in ``plan.data``, or in ``omniglot`` there, the images are the icons that headstart brings.

    Raises:
        UsageError: a plan that cannot be carried out.
        PeerError: headstart's own sampler failed.
    """
    plan = check(plan)
    case = SamplerCase(omniglot=omniglot_folder(plan.data))
    (name,) = chosen(plan, names(plan))
    rounds = plan.repeats or ROUNDS
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        ready, failed = _start(plan, case, stack)
        seconds = (plan.seconds or SECONDS) / (rounds * len(ready))
        for number in range(1, rounds + 1):
            plan.note(f"sampler: round {number} of {rounds}")
            for contender, worker in list(ready.items()):
                try:
                    rate = _turn(worker, _with(case, contender), seconds)
                    rates.setdefault(contender.name, []).append(rate)
                except PeerError as error:
                    _leave_out(plan, contender, error, failed)
                    del ready[contender]
    rates = {who: found for who, found in rates.items() if who not in failed}
    figures = tuple(figure(name, who, found) for who, found in rates.items())
    return Report("sampler", figures, targets(name, rates), machine(plan), failed)


def name_of(case: SamplerCase) -> str:
    """Return what a case is called."""
    images = "icons" if case.omniglot is None else "Omniglot"
    return f"{images} {case.ways}-way {case.shots}-shot {case.queries}-query"


def figure(case: str, contender: str, rates: list[float]) -> Figure:
    """Return the figure of a contender's rates, one a round."""
    low, _, high = quantiles(rates, n=4, method="inclusive") if len(rates) > 1 else (rates[0],) * 3
    return Figure(case, contender, median(rates), low, high, len(rates), "episodes/s", rounds=tuple(rates))


def targets(case: str, rates: Mapping[str, list[float]]) -> tuple[Target, ...]:
    """Hold headstart against every library at its best number of workers."""
    found = []
    for package in dict.fromkeys(peer.package for peer in PEERS):
        ways = [peer.name for peer in PEERS if peer.package == package and peer.name in rates]
        best = max(ways, key=lambda name: median(rates[name]), default=package)
        found.append(Target(f"{case}, against {best}", case, OURS.name, best, RATIO, "times the rate"))
    return tuple(found)


def _start(plan: Plan, case: SamplerCase, stack: ExitStack) -> tuple[dict[Contender, Worker], dict[str, str]]:
    """Start every contender and check a batch of it; return those that passed, and why the others did not."""
    ready: dict[Contender, Worker] = {}
    failed: dict[str, str] = {}
    for contender in (OURS, *PEERS):
        if why := missing(contender, plan.environment):
            failed[contender.name] = why
            continue
        plan.note(f"sampler: starting {contender.name}")
        worker = stack.enter_context(Worker(contender.target, python=plan.python, threads=plan.threads))
        try:
            _show(worker, _with(case, contender))
            ready[contender] = worker
        except PeerError as error:
            _leave_out(plan, contender, error, failed)
            worker.close()
    return ready, failed


def _leave_out(plan: Plan, contender: Contender, error: PeerError, failed: dict[str, str]) -> None:
    if contender is OURS:
        raise error
    failed[contender.name] = str(error)
    plan.note(f"sampler: {contender.name} is left out: {error}")


def _with(case: SamplerCase, contender: Contender) -> SamplerCase:
    return case._replace(workers=WORKERS.get(contender.name, 0))


def _show(worker: Worker, case: SamplerCase) -> None:
    """Check a batch of a contender's.

    Raises:
        PeerError: it failed, or what it gives is not what is asked for.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder, "batch.npz")
        worker.ask({"do": "prepare", "case": case._asdict(), "answer": str(path)}, _START_SECONDS)
        wrong = fault(read(path), case)
    worker.ask({"do": "drop"})
    if wrong is not None:
        raise PeerError(f"its episodes are not sound: {wrong}")


def _turn(worker: Worker, case: SamplerCase, seconds: float) -> float:
    """Return a contender's episodes a second."""
    worker.ask({"do": "prepare", "case": case._asdict(), "answer": None}, _TURN_SECONDS)
    first = worker.ask({"do": "run", "steps": _WARM}, _TURN_SECONDS)["seconds"]
    steps = min(max(round(seconds * _WARM / sum(first)), 2 * _WARM), 10_000)
    # the first of these were fetched while nothing was asked for
    taken = worker.ask({"do": "run", "steps": _WARM + steps}, _TURN_SECONDS)["seconds"][_WARM:]
    worker.ask({"do": "drop"})
    return case.tasks * len(taken) / sum(taken)
