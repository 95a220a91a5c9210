"""What is learned across tasks beside class means, which learn nothing, on the same tasks.

Differences are paired, task by task; ± is 1.96 · standard deviation / √tasks.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from headstart.algorithms.frozen import frozen
from headstart.training.build import assembled, make_tasks
from headstart.training.config import Config, nested, resolve
from headstart.training.evaluate import evaluate
from headstart.training.run import open_run, train
from headstart.types import Tasks

CPU = torch.device("cpu")


class Size(NamedTuple):
    """Of a task."""

    ways: int
    shots: int
    queries: int


Means: TypeAlias = Callable[[Config, Size, str, int], Sequence[float]]
"""``(configuration, size, split, count) ->`` the accuracies of class means."""
Both: TypeAlias = tuple[Sequence[float], Sequence[float]]
"""Our accuracies and those of class means, task by task."""


def tasks_of(config: Config, size: Size, **changed: Any) -> Tasks:
    """Return the tasks of a run in another size."""
    options = {**config.tasks.options, **size._asdict(), "train_ways": None, **changed}
    tree = {"tasks": {"name": config.tasks.name, **options}, "run": {"seed": config.run.seed}}
    return make_tasks(resolve(tree), CPU)


def frozen_means(config: Config, size: Size, split: str, count: int) -> Sequence[float]:
    """Judge the nearest class mean of a pretrained network's features, by cosine."""
    tasks, learner = tasks_of(config, size, encoded="features"), frozen()
    return evaluate(learner, learner.init(None), tasks, episodes=count, split=split, batch=4).values


def compared(
    options: Mapping[str, Any], sizes: Sequence[Size], split: str, count: int, means: Means = frozen_means
) -> list[Both]:
    """Train a run, and judge it and class means on the same tasks of each size.

    Args:
        options: of the run, such as ``{"tasks.name": "emoji", "model.name": "hf:FOLDER"}``.
        sizes: of the tasks that are judged on.
        split: which they are of.
        count: how many, of each size.
        means: judges class means.
    """
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        result = train(nested({"run.threads": 1, **options}), Path(folder) / "run", tested=False)
        seconds = time.process_time() - started
        print(f"trained in {seconds:.0f} s of processor time, best after step {result.best_step}", flush=True)
        job, checkpoint = open_run(Path(folder) / "run", "cpu")
    config, found = job.config, list[Both]()
    for size in sizes:
        tasks = tasks_of(config, size)
        learner, _ = assembled(config.method, config.model, tasks, ways=None, seed=config.run.seed, device=CPU)
        with torch.no_grad():
            ours = evaluate(learner, checkpoint.best.meta, tasks, episodes=count, split=split, batch=4).values
        found.append((ours, means(config, size, split, count)))
    return found


def asked(parser: argparse.ArgumentParser, count: str) -> None:
    """Add what every comparison is asked for."""
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="whose tasks are judged on")
    parser.add_argument("--count", type=int, default=300, help=f"how many of them, of each size and {count}")
    parser.add_argument("--set", action="append", default=[], help="an option, such as outer.rate=0.01")


def settings(given: argparse.Namespace) -> dict[str, str]:
    """Return the options that ``--set`` and ``--model`` say."""
    network = {} if given.model is None else {"model.name": given.model}
    return network | dict(one.split("=", 1) for one in given.set)


def table(sizes: Sequence[Size], runs: Sequence[Sequence[Both]]) -> Iterable[str]:
    """Return the lines of a table, over all runs."""
    yield "| ways, shots | class means | headstart | difference |\n|---|---|---|---|"
    for place, size in enumerate(sizes):
        ours, theirs = ([value for run in runs for value in run[place][side]] for side in (0, 1))
        paired = [one - other for one, other in zip(ours, theirs)]
        yield f"| {size.ways}, {size.shots} | {interval(theirs)} | {interval(ours)} | {interval(paired)} |"


def interval(values: Sequence[float]) -> str:
    """Return a mean and its interval, in points."""
    return f"{100 * statistics.mean(values):.1f} ± {196 * statistics.stdev(values) / len(values) ** 0.5:.1f}"
