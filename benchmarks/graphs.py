"""``python -m benchmarks.graphs``: what graphs of a GPU save of an outer step, and what memory they take.

The same learner steps as it is and with ``accelerate(learner, graphs=True)``, in turn. What is said is the median of
the times until the GPU is done with a step, and the most memory that one takes.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.case import Case
from benchmarks.peers.ours import episodes_of, heard, learner_of, soon
from benchmarks.speed import conv4, sine
from headstart.cli.output import print_json, print_table
from headstart.core.objective import meta_gradient
from headstart.core.tree import mapped
from headstart.engine.accelerate import accelerate
from headstart.training.files import make_folder, to_json, write

CASES = {case.name: case for case in (sine(1), sine(5), sine(100), conv4(1, 32, 1), conv4(5, 32, 5))}
#: Steps that are not timed: graphs are made in them.
WARM = 4


def row(case: Case, device: torch.device, repeats: int) -> dict[str, Any]:
    """Return the milliseconds and MiB of a step as it is and by graphs, and why there are none where that is so."""
    on_gpu = device.type == "cuda"
    with device:
        plain = learner_of(case)
    # records are made of shapes that come often
    learners = {"as it is": plain, "graphs": soon(accelerate(plain, graphs=True))}
    episodes = mapped(lambda leaf: leaf.to(device), episodes_of(case))
    meta = mapped(lambda leaf: leaf.to(device), plain.init(None))

    def seconds(learner: Any) -> float:
        began = time.perf_counter()
        meta_gradient(learner, meta, episodes)
        if on_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    peaks = {}
    with heard() as lines:
        for name, learner in learners.items():
            for _ in range(WARM):
                seconds(learner)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats(device)
            seconds(learner)
            peaks[name] = torch.cuda.max_memory_allocated(device) if on_gpu else 0
    times: dict[str, list[float]] = {name: [] for name in learners}
    for _ in range(repeats):
        for name, learner in learners.items():
            times[name].append(seconds(learner))
    found = {name: 1000 * statistics.median(own) for name, own in times.items()}
    return {
        "case": case.name,
        **{f"{name}, ms": value for name, value in found.items()},
        "times as fast": found["as it is"] / found["graphs"],
        **{f"{name}, MiB": peak / 2**20 for name, peak in peaks.items()},
        "why not": next((line for line in lines if "not graphed" in line), ""),
    }


def rows(names: list[str], device: torch.device, repeats: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each case."""
    for name in names:
        yield row(CASES[name], device, repeats)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help=f"joined by semicolons, of: {'; '.join(CASES)}; default: all")
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="default: cuda")
    parser.add_argument("--repeats", type=int, default=50, help="steps that are timed")
    parser.add_argument("--out", type=Path, help="a folder for graphs.json")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    given = parser.parse_args()
    names = [part.strip() for part in given.cases.split(";")] if given.cases else list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"there is no case {unknown[0]!r}; there are {'; '.join(CASES)}")
    if given.device.type == "cuda" and not torch.cuda.is_available():
        print("error: there is no GPU here, which graphs are for", file=sys.stderr)
        return 1
    table = list(rows(names, given.device, given.repeats))
    machine = torch.cuda.get_device_name(given.device) if given.device.type == "cuda" else given.device.type
    told = {"device": machine, "torch": torch.__version__, "rows": table}
    if given.out:
        make_folder(given.out)
        write(given.out / "graphs.json", to_json(told))
    if given.json:
        print_json(told)
        return 0
    reasons = {each["case"]: each.pop("why not") for each in table}
    shown = [tuple(f"{one:.4g}" if isinstance(one, float) else str(one) for one in each.values()) for each in table]
    print_table(f"an outer step on {machine}", tuple(table[0]), shown)
    print(*(f"{case}: {why}" for case, why in reasons.items() if why), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
