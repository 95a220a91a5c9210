"""``python -m benchmarks.scaling``: what an outer step takes in up to 1,024 processes, by a model measured here.

In W processes that have the B tasks of a step between them, it takes

    T(W, B) = f + c · ⌈B / W⌉ + m(W),    m(W) = 2 (W − 1) λ + 2 (W − 1) / W · V / β for W > 1

where f is what a process spends whatever its tasks, c what a task takes, and m(W) what a ring of W takes to sum a
message of V bytes, with λ seconds a hop and β bytes a second through each process. f and c are fitted to steps of one
process with several numbers of tasks, λ and β to messages of several sizes between two processes of this machine, and
what comes of it is held against steps that two processes take here. For a network, λ and β are those that are given.

It knows of no process that is slower than the others, on which all wait, and of nothing but steps: looks at validation
tasks are shared in whole batches, and one process saves.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import headstart
from benchmarks.workers import CASES, Case, in_processes, measured, said_by_first, sent
from headstart.cli.output import print_json, print_table
from headstart.training.files import make_folder, to_json, write

WORKERS = tuple(2**power for power in range(11))
TASKS = (16, 256, 4096)
#: Tasks of the steps of one process that f and c are fitted to, as parts of a case's own number.
_PARTS = (1 / 8, 1 / 4, 1 / 2, 1)
_SHOWN = (2, 8, 32, 128, 1024)
_MESSAGES = tuple(4**power for power in range(5, 13))


class Costs(NamedTuple):
    """What the model is made of, in seconds and bytes."""

    fixed: float
    """f"""
    task: float
    """c"""
    message: int
    """V"""

    def step(self, workers: int, tasks: int, network: "Network") -> float:
        """Return T(W, B)."""
        return self.fixed + self.task * math.ceil(tasks / workers) + network.sums(workers, self.message)


class Network(NamedTuple):
    """What messages go by."""

    hop: float
    """λ, seconds."""
    rate: float
    """β, bytes a second."""

    def sums(self, workers: int, message: int) -> float:
        """Return m(W).

        >>> Network(1e-4, 1e9).sums(2, 1_000_000)
        0.0012
        """
        if workers == 1:
            return 0.0
        return 2 * (workers - 1) * self.hop + 2 * (workers - 1) / workers * message / self.rate


def fitted(x: list[float], y: list[float]) -> tuple[float, float]:
    """Return a ≥ 0 and b ≥ 0 of y = a + b x, by least squares of the relative errors.

    >>> [round(value, 6) for value in fitted([1, 2, 4], [3, 5, 9])]
    [1.0, 2.0]
    """
    from scipy.optimize import nnls

    wanted = np.asarray(y, float)
    found, _ = nnls(np.stack([np.ones(len(x)), np.asarray(x, float)], 1) / wanted[:, None], np.ones(len(x)))
    return float(found[0]), float(found[1])


def costs(case: Case, message: int) -> Costs:
    """Measure f and c of a case by steps of this process."""
    counts = [max(1, round(part * case.tasks_per_step)) for part in _PARTS]
    steps = [measured(case._replace(tasks_per_step=count)).step for count in counts]
    return Costs(*fitted([float(count) for count in counts], steps), message)


def limit(costs: Costs, network: Network, tasks: int, workers: int) -> str:
    """Return what keeps a step in so many processes from being as many times as fast: the largest part beside tasks."""
    apart = {
        "messages": network.sums(workers, costs.message),
        "what each does anyway": costs.fixed * (1 - 1 / workers),
        "tasks that cannot be divided": costs.task * (math.ceil(tasks / workers) - tasks / workers),
    }
    return max(apart, key=apart.__getitem__)


def forecast(costs: Costs, network: Network) -> list[dict[str, Any]]:
    """Return a row for each number of tasks and of processes."""
    rows: list[dict[str, Any]] = []
    for tasks in TASKS:
        alone = costs.step(1, tasks, network)
        for workers in WORKERS:
            took = costs.step(workers, tasks, network)
            row = {"tasks": tasks, "processes": workers, "milliseconds": 1000 * took, "times as fast": alone / took}
            row |= {"efficiency": alone / took / workers}
            rows.append(row | {"limited by": limit(costs, network, tasks, workers) if workers > 1 else ""})
    return rows


def here(repeats: int) -> Network:
    """Measure λ and β between two processes of this machine."""
    words = ["-m", "benchmarks.scaling", "--messages"]
    told = [json.loads(said_by_first(words, 2)) for _ in range(repeats)]
    hop, byte = fitted(list(map(float, _MESSAGES)), [statistics.median(own) for own in zip(*told)])
    return Network(hop / 2, 1 / byte)  # of two processes m is 2 λ + V / β


def messages() -> list[float]:
    """Return the seconds that messages take, in each of several processes."""
    with headstart.processes():
        return [sent(torch.zeros(size // 4), 50 if size < 2**20 else 7) for size in _MESSAGES]


def in_two(name: str, costs: Costs, network: Network, repeats: int) -> dict[str, Any]:
    """Return what a step takes in two processes here, in milliseconds, and what the model says."""
    took = statistics.median(in_processes(name, 2).step for _ in range(repeats))
    return {"measured": 1000 * took, "model": 1000 * costs.step(2, CASES[name].tasks_per_step, network)}


def told(name: str, repeats: int, local: Network, network: Network) -> dict[str, Any]:
    """Return all that there is to say of a case."""
    found = costs(CASES[name], in_processes(name, 2).bytes)
    parts = {"fixed, ms": 1000 * found.fixed, "a task, ms": 1000 * found.task, "message, bytes": found.message}
    return {"case": name, **parts, "two": in_two(name, found, local, repeats), "rows": forecast(found, network)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hop", type=float, default=3e-5, help="λ of the network, seconds; default: 30 µs")
    parser.add_argument("--rate", type=float, default=1.25e9, help="β, bytes a second; default: 10 Gbit/s")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of what two processes do here")
    parser.add_argument("--out", type=Path, help="a folder for scaling.json")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--messages", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.messages:
        print(json.dumps(messages()))
        return
    local = here(given.repeats)
    cases = [told(name, given.repeats, local, Network(given.hop, given.rate)) for name in CASES]
    whole = {"here": local._asdict(), "network": {"hop": given.hop, "rate": given.rate}, "cases": cases}
    if given.out:
        make_folder(given.out)
        write(given.out / "scaling.json", to_json(whole))
    if given.json:
        print_json(whole)
        return
    print(f"between two processes here: λ = {1e6 * local.hop:.0f} µs, β = {local.rate / 1e9:.2f} GB/s")
    for case in cases:
        two = case["two"]
        title = f"{case['case']}: {case['fixed, ms']:.3g} ms + {case['a task, ms']:.3g} ms a task; in two processes"
        columns = ("tasks", *(f"{workers} processes" for workers in _SHOWN), "half as fast as could be", "limited by")
        print_table(f"{title} {two['measured']:.3g} ms, by the model {two['model']:.3g}", columns, shown(case["rows"]))


def shown(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return, for each number of tasks, how many times as fast some numbers of processes are, and where it ends."""
    found = []
    for tasks in TASKS:
        own = {row["processes"]: row for row in rows if row["tasks"] == tasks}
        below = [workers for workers, row in own.items() if row["efficiency"] < 0.5]
        ends = (f"from {below[0]} on", own[below[0]]["limited by"]) if below else ("no", "")
        found.append((str(tasks), *(f"{own[workers]['times as fast']:.3g}" for workers in _SHOWN), *ends))
    return found


if __name__ == "__main__":
    main()
