"""What is learned across tasks of texts, beside what needs no learning, on the same tasks.

A run is trained as `headstart train banking77` (or ``clinc150``) does, with no option but ``--model`` and those of
``--set``, and judged on classes that it never saw, of 5 and 20 ways and 1 and 5 shots. Beside it stand, on the same
tasks: without a pretrained network, scikit-learn's TF-IDF (letters 2 to 5 within words, log counts) with document
frequencies of the training classes' texts; with one, its features as they are. In both a query is of the class with the
nearest mean by cosine. Differences are paired, task by task; ± is 1.96 · standard deviation / √tasks.

Settings are chosen with ``--split validation``, whose tasks no reported figure is of.

    python -m benchmarks.texts --data FOLDER                                  # some minutes a fold
    python -m benchmarks.texts --data FOLDER --model hf:MINILM                # a minute a fold, once it is encoded
    python -m benchmarks.texts --tasks clinc150 --data FOLDER --model hf:MINILM --set tasks.split=domains
    python -m benchmarks.texts --data FOLDER --split validation --folds 1 --set outer.rate=0.01 --set tasks.shots=1-5
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from headstart.algorithms.frozen import frozen
from headstart.training.build import assembled, make_tasks
from headstart.training.config import Config, nested, resolve
from headstart.training.evaluate import evaluate
from headstart.training.run import open_run, train
from headstart.types import Batch, Tasks

SIZES = ((5, 1), (5, 5), (20, 1), (20, 5))


def texts_of(x: torch.Tensor) -> list[str]:
    """Return the texts of bytes ``(n, length)``."""
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in x.to(torch.uint8).numpy()]


def tfidf_scores(tasks: Tasks, split: str, count: int) -> list[float]:
    """Return the accuracies of the nearest TF-IDF class mean."""
    seen = {
        text
        for t in range(0, 128, 8)
        for part in tasks.sample("train", range(t, t + 8))
        for text in texts_of(part.x.flatten(0, 1))
    }
    encoder = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True).fit(sorted(seen))
    found = []
    for number in range(count):
        support, query = tasks.sample(split, [number])
        x, q = (encoder.transform(texts_of(part.x[0])) for part in (support, query))
        means = np.stack([np.asarray(x[row].mean(0)).ravel() for row in _rows(support)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        found.append(float(((q @ means.T).argmax(1) == query.y[0].numpy()).mean()))
    return found


def _rows(support: Batch) -> list[NDArray[Any]]:
    return [np.flatnonzero(support.y[0].numpy() == own) for own in range(int(support.y.max()) + 1)]


def run(options: Mapping[str, Any], split: str, count: int) -> list[tuple[list[float], list[float]]]:
    """Train on one fold, and return our accuracies and those of what learns nothing, by size."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        result = train(nested({"run.threads": 1, **options}), Path(folder) / "run", tested=False)
        job, checkpoint = open_run(Path(folder) / "run", "cpu")
        seconds = time.process_time() - started
        print(f"trained in {seconds:.0f} s of processor time, best after step {result.best_step}", flush=True)
    found, cpu, encoded = [], torch.device("cpu"), job.config.option("tasks.encoder") is not None
    for ways, shots in SIZES:
        sizes = {"ways": ways, "shots": shots, "queries": 15, "train_ways": None}
        tasks = make_tasks(
            resolve({"tasks": {"name": job.config.tasks.name, **job.config.tasks.options, **sizes}}), cpu
        )
        learner, _ = assembled(job.config.method, job.config.model, tasks, ways=None, seed=0, device=cpu)
        with torch.no_grad():
            ours = evaluate(learner, checkpoint.best.meta, tasks, episodes=count, split=split, batch=4).values
        found.append(
            ([*ours], frozen_scores(job.config, split, count, sizes) if encoded else tfidf_scores(tasks, split, count))
        )
    return found


def frozen_scores(config: Config, split: str, count: int, sizes: Mapping[str, Any]) -> list[float]:
    """Return the accuracies of the nearest class mean of a pretrained network's features, by cosine."""
    options = {**config.tasks.options, **sizes, "encoded": "features"}
    tasks = make_tasks(resolve({"tasks": {"name": config.tasks.name, **options}}), torch.device("cpu"))
    learner = frozen()
    return [*evaluate(learner, learner.init(None), tasks, episodes=count, split=split, batch=4).values]


def interval(values: Sequence[float]) -> str:
    """Return a mean and its interval, in points."""
    return f"{100 * statistics.mean(values):.1f} ± {196 * statistics.stdev(values) / len(values) ** 0.5:.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.texts", description="Texts beside TF-IDF.")
    parser.add_argument("--tasks", choices=("banking77", "clinc150"), default="banking77")
    parser.add_argument("--data", required=True, help="the folder of their files")
    parser.add_argument("--model", help="a pretrained network, such as hf:FOLDER")
    parser.add_argument("--folds", default="1,2,3,4,5", help="which of the five splits")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="whose tasks are judged on")
    parser.add_argument("--count", type=int, default=300, help="how many of them, of each size and fold")
    parser.add_argument("--set", action="append", default=[], help="an option, such as outer.rate=0.01")
    given = parser.parse_args(arguments)
    chosen = {"tasks.name": given.tasks, "tasks.data": given.data, **dict(one.split("=", 1) for one in given.set)}
    chosen |= {} if given.model is None else {"model.name": given.model}
    folds = [run({**chosen, "tasks.fold": int(fold)}, given.split, given.count) for fold in given.folds.split(",")]
    print("| ways, shots | class means | headstart | difference |\n|---|---|---|---|")
    for size, (ways, shots) in enumerate(SIZES):
        ours, theirs = ([value for fold in folds for value in fold[size][side]] for side in (0, 1))
        paired = [one - other for one, other in zip(ours, theirs)]
        print(f"| {ways}, {shots} | {interval(theirs)} | {interval(ours)} | {interval(paired)} |", flush=True)


if __name__ == "__main__":
    main()
