"""The cases of the memory suite: long inner loops, and growth with steps, tasks, parameters and examples."""

from typing import NamedTuple

from headstart.bench.figures import Target
from headstart.bench.peers.case import Case
from headstart.bench.peers.rounds import Contender

_FILE = "headstart.bench.memory_contenders"

UNROLLED, EVERY, ROOT = "headstart", "headstart Checkpointed(every=1)", "headstart Checkpointed()"
SMALL, LARGE = "headstart Checkpointed(memory='16MiB')", "headstart Checkpointed(memory='768MiB')"
DISK = "headstart Checkpointed(every=1), on disk"
MIXED, PEER = "headstart MixedMode()", "learn2learn"
LOOP, LOOP_ROOT = "PyTorch loop", "PyTorch loop, checkpointed"
#: The schedule that is to hold the targets of 100 steps, and that of 1,000.
LONG, LONGEST = DISK, DISK
#: Not a contender: what the memory of 1,000 steps is held against.
LIMIT, LIMIT_BYTES = "1 GiB", 2**30

CONTENDERS = (
    Contender(UNROLLED, f"{_FILE}:unrolled"),
    Contender(EVERY, f"{_FILE}:every_state"),
    Contender(ROOT, f"{_FILE}:square_root"),
    Contender(SMALL, f"{_FILE}:within_16_mib"),
    Contender(LARGE, f"{_FILE}:within_768_mib"),
    Contender(DISK, f"{_FILE}:on_disk"),
    Contender(MIXED, f"{_FILE}:mixed_mode"),
    Contender(PEER, f"{_FILE}:learn2learn", "learn2learn"),
    Contender(LOOP, f"{_FILE}:loop"),
    Contender(LOOP_ROOT, f"{_FILE}:loop_checkpointed"),
)


class Cell(NamedTuple):
    """A case with those that compute it."""

    case: Case
    contenders: tuple[str, ...]
    rounds: int = 3


def steps(count: int) -> Case:
    """Return one task with 500 images to learn from and 500 to be judged on, and the MLP 784-256-256-10."""
    name = f"MLP 784-256-256-10, T={count:,}"
    return Case(name, "mlp", 1, 500, 500, count, 0.01, ways=10, hidden=(256, 256))


def _tasks(count: int) -> Case:
    name = f"MLP 784-64-10, T=5, 20 + 20 points, {count} task{'s' * (count > 1)}"
    return Case(name, "mlp", count, 20, 20, 5, 0.01, ways=10, hidden=(64,))


def _parameters(width: int) -> Case:
    count = 785 * width + (width + 1) * width + 10 * (width + 1)
    name = f"MLP with 2 hidden layers, T=5, 20 + 20 points, {count:,} parameters"
    return Case(name, "mlp", 1, 20, 20, 5, 0.01, ways=10, hidden=(width, width))


def _examples(count: int) -> Case:
    return steps(5)._replace(name=f"MLP 784-256-256-10, T=5, {count:,} examples", support=count, query=count)


def cells(with_peers: bool = True) -> list[Cell]:
    """Return the cases, the quick ones first; without the peers the loop stands in for learn2learn."""
    pair = (UNROLLED, PEER if with_peers else LOOP)
    long = (*pair, EVERY, ROOT, DISK, LOOP_ROOT)
    found = [Cell(_tasks(count), pair) for count in (1, 4, 16, 64, 256)]
    found += [Cell(_parameters(width), pair) for width in (32, 128, 512, 1024)]
    found += [Cell(_examples(count), pair) for count in (10, 100, 1000, 5000)]
    found += [Cell(steps(1), long, 5), Cell(steps(10), (*long, MIXED), 3), Cell(steps(50), long, 2)]
    return [*found, Cell(steps(100), (*long, SMALL, MIXED), 2), Cell(steps(1000), (LARGE, DISK), 1)]


def targets() -> tuple[Target, ...]:
    """Return what is to come out."""
    one, many, most = (steps(count).name for count in (1, 100, 1000))
    return (
        Target(f"{many} against T=1, memory", of_memory(many), LONG, UNROLLED, 1.5, "times the memory", of_memory(one)),
        Target(f"{many}, time against the full unroll", of_time(many), LONG, UNROLLED, 1.6, "times the time"),
        Target(f"{most}, memory", of_memory(most), LONGEST, LIMIT, 1.0, "times the memory"),
    )


def of_memory(case: str) -> str:
    """Return what the figures of a case's memory go by."""
    return f"memory, {case}"


def of_time(case: str) -> str:
    """Return what the figures of a case's time go by."""
    return f"time, {case}"
