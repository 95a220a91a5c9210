"""A pretrained network's features of texts, kept on disk: what the first run takes, the second, and an episode.

The first run encodes every sentence into an empty folder. Each later one is a process of its own, timed from the call
of `headstart.train` until the first step is about to be taken: the files are read and hashed, the network's, too, tasks
and learner made, and the start judged on validation tasks. What has to be imported is imported before, and timed apart.
Episodes are 5-way 5-shot with 15 queries a class, drawn and gathered. Medians, with the least and the most.

    python -m benchmarks.features --data banking77 --model hf:MINILM            # encodes for about a minute
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from benchmarks.class_means import CPU
from headstart.training.build import make_tasks
from headstart.training.config import Config, nested, resolve
from headstart.training.progress import View
from headstart.training.run import train


class _Started(Exception):  # noqa: N818 - not an error
    """Leaves a run before its first step."""


class _Until(View):
    def begin(self, step: int, steps: int, tasks_per_step: int) -> None:
        raise _Started


class Start(NamedTuple):
    """What a process takes until a run's first step."""

    imports: float
    """Seconds of importing."""
    seconds: float
    """And then, until the first step."""
    processor: float
    """Seconds of processor time of these, which others on the machine leave as they are."""
    modules: list[str]
    """What it has imported at the end."""


def start(options: Mapping[str, str | int], modules: Sequence[str]) -> Start:
    """Import modules, and then start a run."""
    begun = time.perf_counter()
    for name in modules:
        with contextlib.suppress(Exception):  # some are imported by others alone
            import_module(name)
    imported, processor = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(_Started):
        train(nested(options), Path(folder) / "run", view=_Until(), tested=False)
    seconds = time.perf_counter() - imported
    return Start(imported - begun, seconds, time.process_time() - processor, sorted(sys.modules))


def in_a_process(options: Mapping[str, str | int], modules: Sequence[str]) -> Start:
    """`start` in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(start, options, modules).result()


def episodes_a_second(config: Config, rounds: int, batch: int = 16, seconds: float = 1.0) -> list[float]:
    """Return how many training episodes a second are made, round by round."""
    tasks, found, number = make_tasks(config, CPU), [], 0
    for each in range(rounds + 1):
        begun, done = time.perf_counter(), 0
        while (passed := time.perf_counter() - begun) < seconds:
            tasks.sample("train", range(number + done, number + done + batch))
            done += batch
        number += done
        found += [done / passed] if each else []  # the first warms up
    return found


def told(values: Sequence[float], digits: int) -> str:
    """Return a median, with the least and the most."""
    middle, least, most = (f"{value:,.{digits}f}" for value in (median(values), min(values), max(values)))
    return f"{middle} ({least} to {most})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features", description="Features kept on disk.")
    parser.add_argument("--tasks", choices=("banking77", "clinc150"), default="banking77")
    parser.add_argument("--data", required=True, help="the folder of their files")
    parser.add_argument("--model", required=True, help="a pretrained network, such as hf:FOLDER")
    parser.add_argument(
        "--cache", type=Path, help="the folder of features that a run before has left, to encode nothing"
    )
    parser.add_argument("--rounds", type=int, default=9, help="how often each is measured")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of PyTorch; default: one a core")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    options = {"tasks.name": given.tasks, "tasks.data": given.data, "model.name": given.model}
    run = {**options, "run.threads": given.threads}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HEADSTART_CACHE"] = str(given.cache or folder)
        first = in_a_process(run, [])
        if given.cache is None:
            print(f"the first run starts after {first.seconds:.1f} s, with imports", flush=True)
        later = [in_a_process(run, first.modules) for _ in range(given.rounds)]
        for field in ("seconds", "processor", "imports"):
            print(f"a later one, {field}: {told([getattr(one, field) for one in later], 2)}", flush=True)
        config = resolve(nested({**options, "tasks.ways": 5, "tasks.shots": 5, "tasks.queries": 15}))
        print(f"{told(episodes_a_second(config, given.rounds), 0)} episodes a second, on {given.threads} threads")


if __name__ == "__main__":
    main()
