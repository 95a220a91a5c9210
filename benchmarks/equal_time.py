"""Methods on the same tasks with the same time for meta-training each, on one thread.

A method's cost per outer step is measured first (process time, the mean over its course, since some methods anneal),
and its number of steps is the budget divided by it. Then each is trained and judged as by `headstart train`; killed,
the same command goes on where it was. Prints a table and writes it to OUT as JSON.

    python -m benchmarks.equal_time icons --shots 1 --seconds 240 --out runs/equal-1
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from headstart.core.objective import at, meta_gradient
from headstart.training.build import build, reproducible
from headstart.training.config import Config, Outer, resolve
from headstart.training.loop import seeded
from headstart.training.run import train

METHODS = "maml,meta_sgd,maml_plus_plus,meta_curvature,warp_grad,aware"


def seconds_per_step(config: Config, points: int = 12) -> float:
    """Return the process time of an outer step, the mean over the course of meta-training."""
    with reproducible(config):
        job = build(config)
        meta, size = job.learner.init(torch.Generator().manual_seed(0)), (config.outer or Outer()).tasks_per_step
        found = []
        for point in range(-2, points):  # the first two warm up
            numbers = range(size)
            episodes = seeded(job.tasks.sample("train", numbers), config.run.seed, numbers)
            start = time.process_time()
            meta_gradient(at(job.learner, max(point, 0) / points), meta, episodes)
            found.append(time.process_time() - start)
    return sum(found[2:]) / points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--shots", type=int)
    parser.add_argument("--seconds", type=float, default=240.0, help="of meta-training, for each method")
    parser.add_argument("--schedule", default="cosine")
    parser.add_argument("--outer-rate", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for method in given.methods.split(","):
        plain = {
            "tasks": {"name": given.tasks} | ({} if given.shots is None else {"shots": given.shots}),
            "method": method,
            "outer": {"schedule": given.schedule, "rate": given.outer_rate},
            "run": {"seed": given.seed, "threads": 1},
        }
        plan = given.out / f"{method}.json"
        if plan.exists():
            cost = json.loads(plan.read_text())["seconds_per_step"]
        else:
            cost = seconds_per_step(resolve(plain))
            plan.parent.mkdir(parents=True, exist_ok=True)
            plan.write_text(json.dumps({"seconds_per_step": cost}))
        steps = max(1, round(given.seconds / cost))
        every = {"evaluate_every": max(1, steps // 8), "save_every": max(1, steps // 8)}
        result = train(
            {**plain, "outer": {**plain["outer"], "steps": steps}, "run": {**plain["run"], **every}}, given.out / method
        )
        if result.score is None:
            return
        score = result.score
        rows.append(
            {
                "method": method,
                score.metric: round(score.mean, 4),
                "ci95": round(score.ci95, 4),
                "steps": steps,
                "milliseconds_per_step": round(1000 * cost, 1),
                "best_step": result.best_step,
            }
        )
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    (given.out / "equal_time.json").write_text(json.dumps({"seconds": given.seconds, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
