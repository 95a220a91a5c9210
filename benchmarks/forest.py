"""How well forests learn a new table of ten rows: headstart's against scikit-learn's of the task alone and of all rows.

Tasks are `plateaus`: where targets jump is the same in all tasks, how far is each task's own. Every method but
`per-task forest` and `task mean` has the same training tasks, 256 of them; all are judged by the squared error on the
query rows of the same test tasks. Options of scikit-learn's forests are chosen by the error on validation tasks, from
the grids below; "pooled forest + offset" adds the mean residual of the task's support rows, shrunk.

    python -m benchmarks.forest                       # some minutes on one core
    python -m benchmarks.forest --tasks 100 --steps 100 --out runs/forest
"""

import argparse
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor

import headstart
from headstart.algorithms.forest import forest
from headstart.data.curves.plateaus import plateaus
from headstart.models.soft_forest import soft_forest
from headstart.training.evaluate import evaluate, interval
from headstart.training.loop import fit, start
from headstart.types import Episodes, Learner, Meta, Tasks

Array = NDArray[np.float64]
#: Trees of each of scikit-learn's forests, and the validation tasks that their options are chosen on; training tasks.
TREES, VALIDATION, TRAIN = 50, 30, 256
#: More tasks than are ever asked for.
ENDLESS = 2**31
PER_TASK = [
    partial(make, n_estimators=TREES, min_samples_leaf=rows, max_features=features, n_jobs=1, random_state=0)
    for make in (RandomForestRegressor, ExtraTreesRegressor)
    for rows in (1, 2)
    for features in (0.33, 1.0)
]
POOLED = [
    partial(RandomForestRegressor, TREES, min_samples_leaf=rows, max_features=features, n_jobs=1, random_state=0)
    for rows in (5, 50)
    for features in (0.33, 1.0)
]
#: Rows that a task's offset is shrunk by.
SHRINKAGE = (0.0, 0.5, 1.0, 2.0)


def limited(tasks: Tasks, count: int) -> Tasks:
    """Return a family with ``count`` training tasks, which come again and again."""

    def sample(which: str, numbers: Sequence[int]) -> Episodes:
        return tasks.sample(which, [number % count for number in numbers] if which == "train" else numbers)

    return tasks._replace(sample=sample, counts={"train": count, "validation": ENDLESS, "test": ENDLESS})


def split(episodes: Episodes) -> Iterator[tuple[Array, Array, Array, Array]]:
    """Return the support x and y and the query x and y of one task after another."""
    for task in range(len(episodes.query.y)):
        parts = (episodes.support.x, episodes.support.y, episodes.query.x, episodes.query.y)
        x, y, new, truth = (part[task].double().numpy() for part in parts)
        yield x, y[:, 0], new, truth[:, 0]


def errors(predict: Callable[[Array, Array, Array], Array], episodes: Episodes) -> list[float]:
    """Return the mean squared error on each task's query rows of ``predict(support x, support y, query x)``."""
    return [float(((predict(x, y, new) - truth) ** 2).mean()) for x, y, new, truth in split(episodes)]


def best(candidates: Iterable[Any], cost: Callable[[Any], float]) -> Any:
    """Return the candidate that costs least."""
    return min(candidates, key=cost)


def per_task(tasks: Tasks, test: Episodes) -> tuple[list[float], str]:
    def predict(make: Any, x: Array, y: Array, new: Array) -> Array:
        return make().fit(x, y).predict(new)

    validation = tasks.sample("validation", range(VALIDATION))
    chosen = best(PER_TASK, lambda make: float(np.mean(errors(partial(predict, make), validation))))
    return errors(partial(predict, chosen), test), described(chosen)


def pooled(tasks: Tasks, train: int, test: Episodes) -> Iterator[tuple[str, list[float], str]]:
    """Yield the forest of all training rows, without and with an offset of the task."""
    episodes, validation = tasks.sample("train", range(train)), tasks.sample("validation", range(VALIDATION))
    x, y = (torch.cat([getattr(batch, part).flatten(0, 1) for batch in episodes]).numpy() for part in "xy")
    fitted = {make: make().fit(x, y[:, 0]) for make in POOLED}

    def plain(model: Any, x: Array, y: Array, new: Array) -> Array:
        return model.predict(new)

    def shifted(model: Any, shrinkage: float, x: Array, y: Array, new: Array) -> Array:
        return model.predict(new) + (y - model.predict(x)).sum() / (len(y) + shrinkage)

    chosen = best(POOLED, lambda make: float(np.mean(errors(partial(plain, fitted[make]), validation))))
    yield "pooled forest", errors(partial(plain, fitted[chosen]), test), described(chosen)
    pairs = [(make, shrinkage) for make in POOLED for shrinkage in SHRINKAGE]
    chosen, shrinkage = best(
        pairs, lambda pair: float(np.mean(errors(partial(shifted, fitted[pair[0]], pair[1]), validation)))
    )
    found = errors(partial(shifted, fitted[chosen], shrinkage), test)
    yield "pooled forest + offset", found, f"{described(chosen)}, shrinkage {shrinkage:g}"


def described(make: Any) -> str:
    options = {name: value for name, value in make.keywords.items() if name in ("min_samples_leaf", "max_features")}
    return f"{make.func.__name__}, " + ", ".join(f"{name} {value}" for name, value in options.items())


def meta_trained(learner: Learner, tasks: Tasks, steps: int, prepared: Meta | None = None) -> Meta:
    """Return what gradient steps on 16 tasks each make of θ and M."""
    state = start(learner, optimizer=partial(torch.optim.Adam, lr=0.01), meta=prepared)
    for _ in fit(learner, tasks, steps=steps, tasks_per_step=16, state=state, schedule="cosine"):
        pass
    return state.meta


def ours(tasks: Tasks, steps: int, maml_steps: int) -> Iterator[tuple[str, Learner, Meta, str]]:
    """Yield name, learner, what it has learned across tasks, and a description."""
    size = tasks.input_shape[0]
    blind = forest(inputs=size, signs=0)
    assert blind.prepare is not None
    yield "forest, signs=0, no outer step", blind, blind.prepare(blind.init(None), tasks, 0), "grown on pooled targets"
    learner = forest(inputs=size)
    assert learner.prepare is not None
    meta = learner.prepare(learner.init(None), tasks, 0)
    yield "forest, no outer step", learner, meta, "trees and strengths read off the training tasks"
    yield "forest", learner, meta_trained(learner, tasks, steps, meta), f"{steps} outer steps of 16 tasks"
    torch.manual_seed(0)
    options: dict[str, Any] = {"loss": "mse", "steps": 5, "rate": 0.1, "taskmap": "vmap"}
    soft = headstart.maml(soft_forest(size, 1), **options)
    how = f"5 inner steps, {maml_steps} outer steps of 16 tasks"
    yield "soft_forest, maml", soft, meta_trained(soft, tasks, maml_steps), how


def compare(common: float, seed: int, count: int, steps: int, maml_steps: int) -> list[dict[str, Any]]:
    """Return a row for each method, the best first."""
    tasks = limited(plateaus(common=common, family=seed, seed=seed), TRAIN)
    test = tasks.sample("test", range(count))
    rows: list[dict[str, Any]] = []

    def told(name: str, values: list[float] | tuple[float, ...], how: str, began: float) -> None:
        mean, ci95 = interval(values)
        seconds = time.process_time() - began
        rows.append({"method": name, "mse": mean, "ci95": ci95, "rmse": math.sqrt(mean), "how": how, "s": seconds})
        print(f"  {name}: {mean:.3f} ± {ci95:.3f} ({how}; {seconds:.0f} s)", flush=True)

    began = time.process_time()
    told("task mean", errors(lambda x, y, new: np.full(len(new), y.mean()), test), "of the support rows", began)
    began = time.process_time()
    told("per-task forest", *per_task(tasks, test), began)
    began = time.process_time()
    for name, values, how in pooled(tasks, TRAIN, test):
        told(name, values, how, began)
    began = time.process_time()
    for name, learner, meta, how in ours(tasks, steps, maml_steps):
        told(name, evaluate(learner, meta, tasks, episodes=count, batch=50).values, how, began)
        began = time.process_time()
    return sorted(rows, key=lambda row: row["mse"])


def main(words: list[str] | None = None) -> None:
    """Measure, print and write `forest.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=600, help="test tasks")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the family and its tasks; our defaults were chosen on those of seed 0"
    )
    parser.add_argument("--steps", type=int, default=100, help="outer steps of forest")
    parser.add_argument("--maml-steps", type=int, default=200, help="outer steps of soft_forest")
    parser.add_argument(
        "--common", type=float, action="append", help="shares of cell values that all tasks have in common"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="a folder")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    versions = {"headstart": headstart.__version__, "torch": torch.__version__, "scikit-learn": sklearn.__version__}
    found: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.forest", *sys.argv[1:]]),
        "versions": versions | {"python": platform.python_version()},
        "metric": f"mean squared error on the query rows of {given.tasks} test tasks, 10 support rows each",
        "noise_variance": plateaus().details["noise_variance"],
        "suites": {},
    }
    given.out.mkdir(parents=True, exist_ok=True)
    for common in given.common or (0.2, 0.0):
        print(f"plateaus, common {common:g}", flush=True)
        rows = compare(common, given.seed, given.tasks, given.steps, given.maml_steps)
        found["suites"][f"plateaus, common {common:g}"] = rows
        print("\n| method | mse | rmse |\n|---|---:|---:|")
        for row in rows:
            print(f"| {row['method']} | {row['mse']:.3f} ± {row['ci95']:.3f} | {row['rmse']:.3f} |")
        print(flush=True)
        (given.out / "forest.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
