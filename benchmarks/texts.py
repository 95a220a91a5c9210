"""What is learned across tasks of texts, beside TF-IDF class means on the same tasks.

A run is trained as `headstart train banking77` does, with no option but those of ``--set``, and judged on classes that
it never saw, of 5 and 20 ways and 1 and 5 shots. TF-IDF is scikit-learn's (letters 2 to 5 within words, log counts),
its document frequencies those of the training classes' texts; a query is of the class with the nearest mean by cosine.
Differences are paired, task by task; ± is 1.96 · standard deviation / √tasks.

Settings are chosen with ``--split validation``, whose tasks no reported figure is of.

    python -m benchmarks.texts --data FOLDER                                  # some minutes a fold
    python -m benchmarks.texts --data FOLDER --split validation --folds 1,2 --set outer.rate=0.01 --set tasks.shots=1-5
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

from headstart.training.build import assembled, make_tasks
from headstart.training.config import nested, resolve
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


def run(
    data: Path, fold: int, chosen: Mapping[str, str], split: str, count: int
) -> list[tuple[list[float], list[float]]]:
    """Train on one fold, and return our and TF-IDF's accuracies by size."""
    tree = nested({"tasks.name": "banking77", "tasks.data": str(data), "tasks.fold": fold, "run.threads": 1, **chosen})
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        result = train(tree, Path(folder) / "run", tested=False)
        job, checkpoint = open_run(Path(folder) / "run", "cpu")
        seconds = time.process_time() - started
        print(f"fold {fold}: trained in {seconds:.0f} s, best after step {result.best_step}", flush=True)
    found, cpu = [], torch.device("cpu")
    for ways, shots in SIZES:
        parts = {"name": "banking77", "data": str(data), "fold": fold, "ways": ways, "shots": shots, "queries": 15}
        tasks = make_tasks(resolve({"tasks": parts}), cpu)
        learner, _ = assembled(job.config.method, job.config.model, tasks, ways=None, seed=0, device=cpu)
        with torch.no_grad():
            ours = evaluate(learner, checkpoint.best.meta, tasks, episodes=count, split=split, batch=4).values
        found.append(([*ours], tfidf_scores(tasks, split, count)))
    return found


def interval(values: Sequence[float]) -> str:
    """Return a mean and its interval, in points."""
    return f"{100 * statistics.mean(values):.1f} ± {196 * statistics.stdev(values) / len(values) ** 0.5:.1f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.texts", description="Texts beside TF-IDF.")
    parser.add_argument("--data", type=Path, required=True, help="the folder of train.csv and test.csv of BANKING77")
    parser.add_argument("--folds", default="1,2,3,4,5", help="which of the five splits")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="whose tasks are judged on")
    parser.add_argument("--tasks", type=int, default=300, help="how many, of each size and fold")
    parser.add_argument("--set", action="append", default=[], help="an option, such as outer.rate=0.01")
    given = parser.parse_args(arguments)
    chosen = dict(option.split("=", 1) for option in given.set)
    folds = [run(given.data, int(fold), chosen, given.split, given.tasks) for fold in given.folds.split(",")]
    print("| ways, shots | TF-IDF class means | headstart | difference |\n|---|---|---|---|")
    for size, (ways, shots) in enumerate(SIZES):
        ours, theirs = ([value for fold in folds for value in fold[size][side]] for side in (0, 1))
        paired = [one - other for one, other in zip(ours, theirs)]
        print(f"| {ways}, {shots} | {interval(theirs)} | {interval(ours)} | {interval(paired)} |", flush=True)


if __name__ == "__main__":
    main()
