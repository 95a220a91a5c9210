"""What searching the hyper-parameters of an estimator across tasks buys: scikit-learn's defaults beside those found.

The tasks are few-shot classification of real images as raw pixels. The search sees training tasks alone; both sides are
then fitted on the support set of the same test tasks, whose classes no training task has, and judged on their query
sets. The defaults are scikit-learn's own, asked without any part of headstart. ± is 1.96 · standard deviation / √tasks;
the difference is paired, task by task.

    python -m benchmarks.search                             # some minutes on a quiet machine
    python -m benchmarks.search --estimators svm --trials 5 --tasks 20 --out runs/search
    python -m benchmarks.search --suite omniglot-5 --data FOLDER
"""

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import headstart
from headstart.algorithms.search import kind_of, loaded, search
from headstart.data.images.icons import icons
from headstart.data.images.omniglot import omniglot
from headstart.types import Batch, Episodes, Learner, Meta, Tasks

LOSS = "cross_entropy"
WAYS, SIDE = 5, 14
#: Trials, and training tasks that each is tried on: fewer for what takes long.
BUDGETS = {"svm": (40, 32), "random_forest": (20, 16), "logistic": (40, 32), "neighbors": (40, 32)}


class Suite(NamedTuple):
    """Tasks, and what is said of them."""

    summary: str
    tasks: Callable[[Path | None], Tasks]


def suite(name: str, shots: int) -> Suite:
    """Return few-shot tasks of one of the data sets; an icon has 12 drawings at least, a character 20."""
    if name == "icons":
        summary, queries = "icons", 12 - shots
    else:
        summary, queries = "Omniglot", 15
    options: dict[str, Any] = {"ways": WAYS, "shots": shots, "queries": queries}
    return Suite(
        f"{summary}: {WAYS} classes of {shots} + {queries} images of {SIDE} x {SIDE} pixels",
        lambda data: reduced(icons(**options) if name == "icons" else omniglot(data=data, **options)),
    )


SUITES = {f"{name}-{shots}": suite(name, shots) for name in ("icons", "omniglot") for shots in (1, 5)}


def reduced(tasks: Tasks) -> Tasks:
    """Return the tasks with images made smaller by averaging areas, as rows of pixels."""

    def rows(batch: Batch) -> Batch:
        small = nn.functional.adaptive_avg_pool2d(batch.x.flatten(0, 1), SIDE)
        return batch._replace(x=small.flatten(1).unflatten(0, batch.x.shape[:2]))

    def sample(split: str, numbers: Sequence[int]) -> Episodes:
        return Episodes(*(rows(batch) for batch in tasks.sample(split, numbers)))

    return tasks._replace(sample=sample, input_shape=(SIDE * SIDE,))


def of_defaults(name: str, episodes: Episodes) -> list[float]:
    """Return the accuracy of scikit-learn's own estimator on each task."""
    make, found = loaded(kind_of(name, LOSS)), []
    for support, labels, query, truth in zip(
        episodes.support.x, episodes.support.y, episodes.query.x, episodes.query.y
    ):
        estimator = make(random_state=0) if name == "random_forest" else make()
        estimator.fit(support.double().numpy(), labels.numpy())
        found.append(float((estimator.predict(query.double().numpy()) == truth.numpy()).mean()))
    return found


def of_learner(learner: Learner, meta: Meta, episodes: Episodes) -> list[float]:
    """Return the accuracy of a learner on each task."""
    adapted, _ = learner.adapt(meta, episodes.support)
    right: Tensor = learner.predict(adapted, episodes.query.x).argmax(-1) == episodes.query.y
    return right.double().mean(1).tolist()


def interval(values: list[float]) -> dict[str, float]:
    """Return the mean and half the width of its 95 % interval."""
    return {"mean": statistics.fmean(values), "ci95": 1.96 * statistics.stdev(values) / len(values) ** 0.5}


def measure(name: str, tasks: Tasks, given: argparse.Namespace) -> dict[str, Any]:
    """Search, and judge both sides on the same test tasks."""
    trials, each = BUDGETS[name]
    trials, each = given.trials or trials, given.tasks_per_trial or each
    learner = search(
        name,
        inputs=tasks.input_shape[0],
        outputs=WAYS,
        loss=LOSS,
        trials=trials,
        tasks_per_trial=each,
    )
    begun = time.perf_counter()
    meta = learner.prepare(learner.init(None), tasks, given.seed, None)  # type: ignore[misc]
    searched = time.perf_counter() - begun
    sides: dict[str, list[float]] = {"defaults": [], "searched": []}
    for first in range(0, given.tasks, 20):
        episodes = tasks.sample("test", range(first, min(first + 20, given.tasks)))
        sides["defaults"] += of_defaults(name, episodes)
        sides["searched"] += of_learner(learner, meta, episodes)
    gaps = [ours - theirs for ours, theirs in zip(sides["searched"], sides["defaults"], strict=True)]
    assert learner.shown is not None
    return {
        "estimator": name,
        "trials": trials,
        "tasks_per_trial": each,
        **{side: interval(values) for side, values in sides.items()},
        "difference": interval(gaps),
        "search_seconds": searched,
        "found": {key: value.item() for key, value in learner.shown(meta).items() if value.item() != 0},
    }


def table(summary: str, rows: list[dict[str, Any]]) -> str:
    """Return what was measured as a table, accuracies in percent."""
    lines = [f"## {summary[0].upper()}{summary[1:]}", "", "| estimator | defaults | searched | difference |"]
    lines.append("|---|---:|---:|---:|")
    for row in rows:
        cells = [f"{100 * row[side]['mean']:.1f} ± {100 * row[side]['ci95']:.1f}" for side in ("defaults", "searched")]
        gap = f"{100 * row['difference']['mean']:+.1f} ± {100 * row['difference']['ci95']:.1f}"
        lines.append(f"| `{row['estimator']}` | {cells[0]} | {cells[1]} | {gap} |")
    for row in rows:
        found = ", ".join(f"{name} {value:.4g}" if value != 1 else name for name, value in row["found"].items())
        budget = f"{row['trials']} trials on {row['tasks_per_trial']} training tasks each"
        lines += ["", f"Found for `{row['estimator']}` by {budget}: {found}."]
    return "\n".join(lines)


def report(found: dict[str, Any]) -> str:
    """Return all tables as a document."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    head = f"""# What searching hyper-parameters across tasks buys

`{found["command"]}`: {versions}.

Accuracy in percent on {found["tasks"]} test tasks, mean ± 95 % interval; the difference is paired, task by task.
The first trial is the defaults. No test class is in a training task, but test tasks share classes with one another."""
    return "\n\n".join([head, *(table(SUITES[name].summary, rows) for name, rows in found["suites"].items())]) + "\n"


def main(words: list[str] | None = None) -> None:
    """Search, judge, print and write `search.json` and `search.md`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--suite", choices=SUITES, action="append", help="may be given more than once; default: icons-1"
    )
    parser.add_argument("--estimators", default="svm,random_forest")
    parser.add_argument("--trials", type=int, help="default: 40, of random_forest 20")
    parser.add_argument("--tasks-per-trial", type=int, help="default: 32, of random_forest 16")
    parser.add_argument("--tasks", type=int, default=200, help="test tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder of the Omniglot files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="a folder")
    given = parser.parse_args(words)
    names = given.estimators.split(",")
    for name in names:
        kind_of(name, LOSS)
    if given.tasks < 2 or min(given.trials or 1, given.tasks_per_trial or 1) < 1:
        parser.error("--tasks must be at least 2, --trials and --tasks-per-trial at least 1")
    found: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.search", *(sys.argv[1:] if words is None else words)]),
        "versions": {
            "headstart": headstart.__version__,
            "scikit-learn": metadata.version("scikit-learn"),
            "optuna": metadata.version("optuna"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        **{name: getattr(given, name) for name in ("tasks", "seed")},
        "suites": {},
    }
    for name in given.suite or ["icons-1"]:
        tasks = SUITES[name].tasks(given.data)
        found["suites"][name] = [measure(estimator, tasks, given) for estimator in names]
        print(table(SUITES[name].summary, found["suites"][name]), end="\n\n", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "search.json").write_text(json.dumps(found, indent=2) + "\n")
    (given.out / "search.md").write_text(report(found))


if __name__ == "__main__":
    main()
