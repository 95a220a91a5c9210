"""``python -m benchmarks.workers``: an outer step in several processes of one thread each, beside one of them.

Every round starts the processes anew, one after two after one, so that what else the machine does meets all alike. Of a
round it takes the median step; of the rounds the median, and the least and the largest beside it. The message of a step
(the gradient, the losses and the flags) is also sent alone, as often, to see what it takes.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import headstart
from headstart.cli.output import print_json, print_table
from headstart.data.curves.sinusoid import sinusoid
from headstart.engine.accelerate import accelerate
from headstart.training.distributed import group
from headstart.training.files import make_folder, to_json, write
from headstart.training.loop import fit, start, tensors_of
from headstart.types import Batch, Episodes, Learner, Tasks


class Case(NamedTuple):
    """What is trained, and for how many steps."""

    learner: Callable[[], Learner]
    tasks: Callable[[], Tasks]
    tasks_per_step: int
    warm: int
    """Steps that are not timed: records are made and programs compiled in them."""
    steps: int


def pictures(ways: int = 5, shots: int = 1, queries: int = 5, different: int = 64) -> Tasks:
    """Return tasks of random pictures that are there already, so that it is the step that is timed."""
    draw = torch.Generator().manual_seed(0)

    def batch(each: int) -> Batch:
        x = torch.randn(different, ways * each, 1, 28, 28, generator=draw)
        return Batch(x, torch.arange(ways).repeat_interleave(each).expand(different, -1).contiguous())

    support, query = batch(shots), batch(queries)

    def sample(split: str, numbers: Any) -> Episodes:
        rows = torch.tensor([number % different for number in numbers])
        return Episodes(*(Batch(one.x[rows], one.y[rows]) for one in (support, query)))

    return Tasks("pictures", sample, "classification", (1, 28, 28), ways, {})


def _conv4() -> Learner:
    return headstart.maml(headstart.conv4((1, 28, 28), ways=5), steps=5, rate=0.1, taskmap="vmap")


def _sine() -> Learner:
    net = headstart.mlp(1, 1, hidden=(40, 40))
    return accelerate(headstart.maml(net, loss="mse", steps=1, rate=0.01, taskmap="vmap"), compile=True)


CASES = {
    "conv4 1-shot T=5, 8 tasks": Case(_conv4, pictures, 8, 2, 8),
    "compiled sine T=1, 256 tasks": Case(_sine, lambda: sinusoid(shots=10, queries=10), 256, 30, 300),
}


class Measured(NamedTuple):
    """What one process of a round says."""

    step: float
    """Seconds of the median outer step."""
    message: float
    """Seconds of the median message, sent alone."""
    bytes: int
    """Of a message."""


def measured(case: Case) -> Measured:
    """Train, within `headstart.processes`, and return what steps and messages take."""
    torch.manual_seed(0)
    learner, seconds, before = case.learner(), list[float](), 0.0
    state = start(learner)
    for record in fit(
        learner, case.tasks(), state=state, steps=case.warm + case.steps, tasks_per_step=case.tasks_per_step
    ):
        now = time.perf_counter()
        if record.step > case.warm:
            seconds.append(now - before)
        before = now
    message = torch.zeros(sum(one.numel() for one in tensors_of(state.meta)) + case.tasks_per_step + 3)
    return Measured(statistics.median(seconds), sent(message, case.steps), message.nbytes)


def sent(message: torch.Tensor, times: int) -> float:
    """Return the seconds of the median of so many sums over all processes."""
    found = []
    for _ in range(times):
        before = time.perf_counter()
        group().sum([message])
        found.append(time.perf_counter() - before)
    return statistics.median(found)


def in_processes(name: str, count: int) -> Measured:
    """Measure a case in so many processes of one thread each."""
    return Measured(*json.loads(said_by_first(["-m", "benchmarks.workers", "--measure", name], count)))


def said_by_first(words: Sequence[str], count: int) -> str:
    """Run Python with these words in so many processes of one thread each, and return the first one's last line.

    Raises:
        RuntimeError: one of them failed.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    environment = {**os.environ, **{key: str(value) for key, value in where.items()}, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, *words], env={**environment, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(count)
    ]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"{' '.join(words)} in {count} processes failed; see above")
    return said[0].splitlines()[-1]


def rounds(names: list[str], counts: list[int], repeats: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each case and number of processes."""
    for name in names:
        found: dict[int, list[Measured]] = {count: [] for count in counts}
        for _ in range(repeats):
            for count in counts:
                found[count].append(in_processes(name, count))
                print(f"{name}, {count} processes: {1000 * found[count][-1].step:.3f} ms a step", file=sys.stderr)
        one = statistics.median(each.step for each in found[counts[0]])
        for count, all_of in found.items():
            steps = [each.step for each in all_of]
            middle = statistics.median(steps)
            yield {
                "case": name,
                "processes": count,
                "milliseconds": 1000 * middle,
                "from": 1000 * min(steps),
                "to": 1000 * max(steps),
                "times as fast": one / middle,
                "message, bytes": all_of[0].bytes if count > 1 else 0,
                "message, milliseconds": 1000 * statistics.median(each.message for each in all_of),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help=f"joined by semicolons, of: {'; '.join(CASES)}; default: all")
    parser.add_argument("--processes", default="1,2", help="numbers of processes; the first is what others are beside")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--out", type=Path, help="a folder for workers.json")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        torch.set_num_threads(1)
        with headstart.processes():
            print(json.dumps(measured(CASES[given.measure])))
        return
    names = [part.strip() for part in given.cases.split(";")] if given.cases else list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"there is no case {unknown[0]!r}; there are {'; '.join(CASES)}")
    table = list(rounds(names, [int(count) for count in given.processes.split(",")], given.repeats))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    told = {"cores": os.cpu_count(), "load": load, "torch": torch.__version__, "rows": table}
    if given.out:
        make_folder(given.out)
        write(given.out / "workers.json", to_json(told))
    if given.json:
        print_json(told)
        return
    shown = [tuple(f"{one:.4g}" if isinstance(one, float) else str(one) for one in row.values()) for row in table]
    print_table("processes of one thread each", tuple(table[0]), shown)


if __name__ == "__main__":
    main()
