"""What a meta-step of each method costs, beside MAML's: time and peak memory, on the CPU and one thread.

A meta-step is one meta-gradient of the given tasks. All methods get the same module, tasks and number of inner steps.
Time is process time: all methods are timed in turn, again and again, the figure is the median of the repeats, and that
beside MAML's the median of the ratios within a repeat. Memory is what PyTorch's CPU allocator hands out during the step
above what was held before it, at its peak: counted, and so without noise.

Methods that change in the course of meta-training (maml_plus_plus, aware) have two figures: `end`, how training ends,
and `course`, the mean time and the highest peak over the course. For the others the two are the same.

    python -m benchmarks.cost                     # all suites and methods: some minutes on a quiet machine
    python -m benchmarks.cost --suite sine-1 --methods maml,meta_sgd --repeats 5 --out runs/cost
"""

import argparse
import gc
import inspect
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's own messages; read when torch is imported

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import headstart
from headstart import registry
from headstart.core.objective import at, meta_gradient
from headstart.errors import HeadstartError
from headstart.training.loop import seeded
from headstart.types import Batch, Episodes, Learner, Meta

BASE = "maml"
#: Points of the course of meta-training; annealing ends at a tenth or a third of it.
POINTS = 30


class Suite(NamedTuple):
    """Tasks, a module, and what methods are made with."""

    summary: str
    module: Callable[[], nn.Module]
    episodes: Callable[[], Episodes]
    steps: int
    loss: str


class Stretch(NamedTuple):
    """A part of the course of meta-training in which meta-steps cost the same."""

    learner: Learner
    share: float
    """The fraction of the outer steps."""


class Case(NamedTuple):
    """A method, ready to be measured."""

    name: str
    learner: Learner
    meta: Meta
    episodes: Episodes

    def course(self) -> list[Stretch]:
        """Return what training goes through, one stretch where it is always the same."""
        found: dict[Any, Stretch] = {}
        for point in range(POINTS):
            learner = at(self.learner, (point + 0.5) / POINTS)
            # what adapts alike by an objective of one kind costs the same
            kind = (learner.adapt, learner.objective is None)
            found[kind] = Stretch(learner, (found[kind].share if kind in found else 0) + 1 / POINTS)
        return list(found.values())


def sines() -> Episodes:
    """Return 25 sine curves, 10 support and 10 query points each."""
    return headstart.tasks.sinusoid(shots=10).sample("train", range(25))


def images(tasks: int = 4, ways: int = 5, queries: int = 15) -> Episodes:
    """Return 5-way 1-shot tasks of random images, 15 queries a class."""
    generator = torch.Generator().manual_seed(0)

    def drawn(each: int) -> Batch:
        x = torch.randn(tasks, ways * each, 1, 28, 28, generator=generator)
        return Batch(x, torch.arange(ways).repeat(tasks, each))

    return Episodes(drawn(1), drawn(queries))


def network() -> nn.Module:
    """Return the four-block network of 32 filters."""
    return headstart.conv4((1, 28, 28), ways=5, filters=32, downsample="stride")


SUITES = {
    f"sine-{steps}": Suite(
        f"sine curves: 25 tasks of 10 + 10 points, mlp 1-40-40-1, {steps} inner step{'s' * (steps != 1)}",
        lambda: headstart.mlp(1, 1),
        sines,
        steps,
        "mse",
    )
    for steps in (1, 5)
} | {
    "conv4-5": Suite(
        "images: 4 tasks of 5 classes, 1 + 15 random images of 28 x 28 each, conv4 of 32 filters with strides, "
        "5 inner steps",
        network,
        images,
        5,
        "cross_entropy",
    )
}


def make(name: str, suite: Suite) -> Case | str:
    """Return a method on a suite, or why it is left out."""
    factory = registry.load("method", name)
    accepted = inspect.signature(factory).parameters
    if "steps" not in accepted and not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        return "takes no inner steps"
    torch.manual_seed(0)
    options: dict[str, Any] = {"loss": suite.loss, "steps": suite.steps, "rate": 0.01}
    learner = factory(suite.module(), **options, **({"explain": None} if "explain" in accepted else {}))
    if learner.gradient is None:
        return "learns nothing across tasks"
    episodes = suite.episodes()
    episodes = seeded(episodes, 0, range(len(episodes.query.y)))
    case = Case(name, learner, learner.init(torch.Generator().manual_seed(0)), episodes)
    try:
        for one in (learner, *(stretch.learner for stretch in case.course())):
            meta_gradient(one, case.meta, case.episodes)  # warms up, too
    except HeadstartError as error:
        return f"cannot do these tasks: {error}"
    return case


def seconds(learner: Learner, case: Case) -> float:
    """Return the process time of one meta-step."""
    start = time.process_time()
    meta_gradient(learner, case.meta, case.episodes)
    return time.process_time() - start


def peak_bytes(learner: Learner, case: Case) -> int:
    """Return the most that is allocated during a meta-step above what was there before."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        result = meta_gradient(learner, case.meta, case.episodes)
        del result
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def timed(cases: list[Case], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Return, for each method, the seconds of every repeat: of how training ends, and the mean over its course."""
    found: dict[str, list[tuple[float, float]]] = {case.name: [] for case in cases}
    for repeat in range(repeats):
        gc.collect()
        first = repeat % len(cases)
        for case in cases[first:] + cases[:first]:
            course = case.course()
            end = seconds(case.learner, case)
            mean = end if len(course) == 1 else sum(share * seconds(learner, case) for learner, share in course)
            found[case.name].append((end, mean))
    return found


def measure(suite: Suite, methods: list[str], repeats: int) -> dict[str, Any]:
    """Return a row for each method that can do the suite, MAML first, and why the others are left out."""
    made = {name: make(name, suite) for name in dict.fromkeys((BASE, *methods))}
    cases = [case for case in made.values() if isinstance(case, Case)]
    times = timed(cases, repeats)
    rows: list[dict[str, Any]] = []
    for case in cases:
        course = [peak_bytes(stretch.learner, case) for stretch in case.course()]
        end = course[0] if len(course) == 1 else peak_bytes(case.learner, case)
        row: dict[str, Any] = {
            "method": case.name,
            "theta": sum(value.numel() for value in case.meta.params.values()),
            "m": sum(value.numel() for value in case.meta.structure.values()),
        }
        for which, (kind, peak) in enumerate((("end", end), ("course", max(course)))):
            own = [pair[which] for pair in times[case.name]]
            ratios = [mine / base[0] for mine, base in zip(own, times[BASE], strict=True)]
            row[kind] = {
                "milliseconds": 1000 * statistics.median(own),
                "time": statistics.median(ratios),
                "bytes": peak,
                "memory": peak / (rows[0]["end"]["bytes"] if rows else end),
            }
        rows.append(row)
    return {"rows": rows, "left_out": {name: why for name, why in made.items() if isinstance(why, str)}}


def circumstances(repeats: int) -> dict[str, Any]:
    """Return what the figures depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "command": shlex.join(["python", "-m", "benchmarks.cost", *sys.argv[1:]]),
        "device": f"{model or platform.machine()}, one thread",
        "versions": {
            "headstart": headstart.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "repeats": repeats,
    }


def table(suite: Suite, measured: dict[str, Any]) -> str:
    """Return what was measured on a suite as a table."""
    head = ["method", "θ", "M", "ms", "time / MAML", "over the course", "peak MiB", "memory / MAML", "over the course"]
    lines = [f"## {suite.summary[0].upper()}{suite.summary[1:]}", "", f"| {' | '.join(head)} |"]
    lines.append("|---|" + "---:|" * (len(head) - 1))
    for row in measured["rows"]:
        end, course = row["end"], row["course"]
        cells = [f"`{row['method']}`", str(row["theta"]), str(row["m"]), f"{end['milliseconds']:.1f}"]
        cells += [f"{end['time']:.2f}", f"{course['time']:.2f}", f"{end['bytes'] / 2**20:.2f}"]
        cells += [f"{end['memory']:.2f}", f"{course['memory']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    if measured["left_out"]:
        lines += ["", "Left out: " + "; ".join(f"`{name}` {why}" for name, why in measured["left_out"].items()) + "."]
    return "\n".join(lines)


def report(found: dict[str, Any]) -> str:
    """Return all tables as a document."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    text = f"""# What a meta-step costs

`{found["command"]}`: {found["device"]}; {versions}; the median of {found["repeats"]} repeats.

Time is process time of one meta-gradient; memory is the peak of what is allocated during it, above what was there
before. θ and M: how many numbers the outer loop learns. `maml_plus_plus` and `aware` change in the course of
meta-training: the columns before are of how it ends, "over the course" is the mean time and the highest peak.
"""
    return (
        "\n\n".join([text.rstrip(), *(table(SUITES[name], measured) for name, measured in found["suites"].items())])
        + "\n"
    )


def main(words: list[str] | None = None) -> None:
    """Measure, print and write `cost.json` and `cost.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=SUITES, action="append", help="may be given more than once; default: all")
    parser.add_argument("--methods", default=",".join(row.name for row in registry.METHODS))
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="a folder")
    given = parser.parse_args(words)
    methods = given.methods.split(",")
    for name in methods:
        registry.find("method", name)
    if given.repeats < 1:
        parser.error("--repeats must be at least 1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found: dict[str, Any] = {**circumstances(given.repeats), "suites": {}}
        for name in given.suite or SUITES:
            found["suites"][name] = measure(SUITES[name], methods, given.repeats)
            print(table(SUITES[name], found["suites"][name]), end="\n\n", flush=True)
    finally:
        torch.set_num_threads(threads)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "cost.json").write_text(json.dumps(found, indent=2) + "\n")
    (given.out / "cost.md").write_text(report(found))


if __name__ == "__main__":
    main()
