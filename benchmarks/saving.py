"""``python -m benchmarks.saving``: what it costs a run to save a checkpoint every so many steps.

Each case is trained by `headstart train` with one thread. The half of the steps that follows a checkpoint, which is
begun by the training and written beside it, is timed against the other half before the next one, when all is written:
so what else the machine does meets both alike. What is said is the mean over checkpoints, with its 95 % interval.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from headstart.cli.output import print_json, print_table
from headstart.training.config import Tree
from headstart.training.files import make_folder, to_json, write
from headstart.training.loop import StepRecord
from headstart.training.progress import View
from headstart.training.run import train


class Case(NamedTuple):
    """What is trained, and for how many steps."""

    tree: Tree
    warm: int
    """Steps that are not timed: records are made and programs compiled in them."""
    saves: int
    """How many checkpoints are timed."""


_SINE: Tree = {"tasks": {"name": "sinusoid", "shots": 10, "queries": 10}, "outer": {"tasks_per_step": 25}}
CASES = {
    "sine T=1, 25 tasks": Case(_SINE, 350, 150),
    "sine T=5, 25 tasks": Case(_SINE | {"method": {"name": "maml", "steps": 5}}, 350, 60),
    "compiled sine T=1, 25 tasks": Case(_SINE | {"run": {"compile": True}}, 150, 200),
    "icons conv4 T=1, 4 tasks": Case(
        {
            "tasks": {"name": "icons"},
            "method": {"name": "maml", "steps": 1},
            "outer": {"tasks_per_step": 4},
        },
        50,
        24,
    ),
}


class Clock(View):
    """Notes when each step had been taken; the checkpoint after it, if any, is begun only then."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self, record: StepRecord, validation: str) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


def timed(case: Case, every: int) -> list[tuple[float, float]]:
    """Return the seconds of both halves of the steps between checkpoints, for each checkpoint."""
    first = -(-case.warm // every) * every
    clock, steps = Clock(), first + every * case.saves
    own = {"threads": 1, "save_every": every, "evaluate_every": 10 * steps, "evaluate_tasks": 2}
    outer, run = case.tree["outer"] | {"steps": steps}, case.tree.get("run", {}) | own
    with tempfile.TemporaryDirectory() as place:
        train({**case.tree, "outer": outer, "run": run}, place, view=clock, tested=False)
    half = every // 2
    ends = [clock.times[step - 1] for step in range(first, steps + 1)]
    return [
        (ends[at + half] - ends[at], ends[at + 2 * half] - ends[at + half]) for at in range(0, steps - first, every)
    ]


def rows(names: list[str], every: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each case."""
    for name in names:
        halves = timed(CASES[name], every)
        usual = statistics.mean(after for _, after in halves)
        more = [before - after for before, after in halves]
        spread = 1.96 * statistics.stdev(more) / len(more) ** 0.5
        yield {
            "case": name,
            "milliseconds a step": 2000 * usual / every,
            "checkpoints": len(halves),
            "milliseconds a checkpoint": 1000 * statistics.mean(more),
            "more with saving, %": 50 * statistics.mean(more) / usual,
            "±": 50 * spread / usual,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help=f"joined by semicolons, of: {'; '.join(CASES)}; default: all")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--out", type=Path, help="a folder for saving.json")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    given = parser.parse_args()
    names = [part.strip() for part in given.cases.split(";")] if given.cases else list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"there is no case {unknown[0]!r}; there are {'; '.join(CASES)}")
    table = list(rows(names, given.every))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    told = {"cores": os.cpu_count(), "load": load, "torch": torch.__version__, "every": given.every, "rows": table}
    if given.out:
        make_folder(given.out)
        write(given.out / "saving.json", to_json(told))
    if given.json:
        print_json(told)
        return
    shown = [tuple(f"{one:.4g}" if isinstance(one, float) else str(one) for one in row.values()) for row in table]
    print_table(f"a checkpoint every {given.every} steps", tuple(table[0]), shown)


if __name__ == "__main__":
    main()
