"""The cases of the memory suite: long inner loops, and growth with steps, tasks, parameters and examples."""

from typing import NamedTuple

from headstart.bench.figures import Target
from headstart.bench.peers.case import Case, held
from headstart.bench.peers.contender import Contender
from headstart.bench.peers.stable import REFERENCE

_FILE = "headstart.bench.peers.contenders.inner_loops"

UNROLLED, EVERY, ROOT = "headstart", "headstart Checkpointed(every=1)", "headstart Checkpointed()"
DISK = "headstart Checkpointed(every=1), on disk"
MIXED, PEER = "headstart MixedMode()", "learn2learn"
LOOP, LOOP_ROOT = REFERENCE.name, "PyTorch loop, checkpointed"
#: The schedule that is to hold the targets of long inner loops.
LONG = DISK
#: Not a contender: what the memory of 1,000 steps is held against.
LIMIT, LIMIT_BYTES = "1 GiB", 2**30

CONTENDERS = (
    Contender(LOOP, f"{_FILE}:loop"),
    Contender(UNROLLED, f"{_FILE}:unrolled"),
    Contender(EVERY, f"{_FILE}:every_state"),
    Contender(ROOT, f"{_FILE}:square_root"),
    Contender(DISK, f"{_FILE}:on_disk"),
    Contender(MIXED, f"{_FILE}:mixed_mode"),
    Contender(PEER, f"{_FILE}:learn2learn", "learn2learn"),
    Contender(LOOP_ROOT, f"{_FILE}:loop_checkpointed"),
)


class Cell(NamedTuple):
    """A case with those that compute it."""

    case: Case
    contenders: tuple[str, ...]
    """Whose memory is measured."""
    timed: tuple[str, ...]
    """Who is timed."""
    rounds: int = 3
    compared: bool = True
    """Whether the gradient is compared at this size; otherwise at that of `COMPARED`."""


def steps(count: int) -> Case:
    """Return one task with 500 images to learn from and 500 to be judged on, and the MLP 784-256-256-10."""
    name = f"MLP 784-256-256-10, T={count:,}"
    return Case(name, "mlp", 1, 500, 500, count, held(0.01), ways=10, hidden=(256, 256))


#: What is computed in double precision besides, by all contenders of it, or by those of the targets.
DOUBLE, COMPARED = steps(10), steps(100)


def _tasks(count: int) -> Case:
    name = f"MLP 784-64-10, T=5, 20 + 20 points, {count} task{'s' * (count > 1)}"
    return Case(name, "mlp", count, 20, 20, 5, held(0.01), ways=10, hidden=(64,))


def _parameters(width: int) -> Case:
    count = 785 * width + (width + 1) * width + 10 * (width + 1)
    name = f"MLP with 2 hidden layers, T=5, 20 + 20 points, {count:,} parameters"
    return Case(name, "mlp", 1, 20, 20, 5, held(0.01), ways=10, hidden=(width, width))


def _examples(count: int) -> Case:
    return steps(5)._replace(name=f"MLP 784-256-256-10, T=5, {count:,} examples", support=count, query=count)


def cells(with_peers: bool = True) -> list[Cell]:
    """Return the cases, those with targets first; without the peers the loop stands in for learn2learn."""
    peer = PEER if with_peers else LOOP
    quick = (UNROLLED, peer, DISK, LOOP_ROOT)
    long = tuple(dict.fromkeys((LOOP, *quick, EVERY, ROOT)))
    found = [Cell(steps(1), long, quick, 5), Cell(COMPARED, long, quick, 5)]
    # too long to unroll, or to take twice
    found += [Cell(steps(1000), (DISK,), (), compared=False)]
    found += [Cell(DOUBLE, (*long, MIXED), (*quick, EVERY, ROOT, MIXED), 2)]
    grown = [_tasks(count) for count in (1, 16, 256)] + [_parameters(width) for width in (32, 512, 1024)]
    grown += [_examples(count) for count in (10, 1000, 5000)]
    return found + [Cell(case, (UNROLLED, peer), (UNROLLED, peer)) for case in grown]


def targets() -> tuple[Target, ...]:
    """Return what is to come out."""
    one, many, most = (steps(count).name for count in (1, 100, 1000))
    return (
        Target(f"{many} against T=1, memory", of_memory(many), LONG, UNROLLED, 1.5, "times the memory", of_memory(one)),
        Target(f"{many}, time against the full unroll", of_time(many), LONG, UNROLLED, 1.6, "times the time"),
        Target(f"{most}, memory", of_memory(most), LONG, LIMIT, 1.0, "times the memory"),
    )


def of_memory(case: str) -> str:
    """Return what the figures of a case's memory go by."""
    return f"memory, {case}"


def of_time(case: str) -> str:
    """Return what the figures of a case's time go by."""
    return f"time, {case}"
