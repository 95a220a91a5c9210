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
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from benchmarks.class_means import Size, asked, compared, frozen_means, settings, table, tasks_of
from headstart.training.config import Config
from headstart.types import Batch

SIZES = (Size(5, 1, 15), Size(5, 5, 15), Size(20, 1, 15), Size(20, 5, 15))


def texts_of(x: torch.Tensor) -> list[str]:
    """Return the texts of bytes ``(n, length)``."""
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in x.to(torch.uint8).numpy()]


def tfidf_means(config: Config, size: Size, split: str, count: int) -> Sequence[float]:
    """Judge the nearest TF-IDF class mean."""
    tasks = tasks_of(config, size)
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.texts", description="Texts beside class means.")
    parser.add_argument("--tasks", choices=("banking77", "clinc150"), default="banking77")
    parser.add_argument("--data", required=True, help="the folder of their files")
    parser.add_argument("--model", help="a pretrained network, such as hf:FOLDER")
    parser.add_argument("--folds", default="1,2,3,4,5", help="which of the five splits")
    parser.add_argument("--shots", default="1,5", help="of the tasks that are judged on")
    asked(parser, "fold")
    given = parser.parse_args(arguments)
    chosen = {"tasks.name": given.tasks, "tasks.data": given.data, **settings(given)}
    sizes = [size for size in SIZES if str(size.shots) in given.shots.split(",")]
    means = tfidf_means if given.model is None else frozen_means
    runs = [
        compared({**chosen, "tasks.fold": int(fold)}, sizes, given.split, given.count, means)
        for fold in given.folds.split(",")
    ]
    print(*table(sizes, runs), sep="\n")


if __name__ == "__main__":
    main()
