"""Neural and Gaussian processes on curves whose true process is known: log-likelihood, coverage and width.

Each method is meta-trained on `gp_curves` (RBF kernel, 3 to 20 support points, noise 0.1), its weights are those with
the least negative log-likelihood on validation tasks, and it is judged on the same test tasks as the true process,
whose log-likelihood is the upper bound. Prints a table and writes it to OUT as JSON; weights that are in OUT already
are not trained again.

    python -m benchmarks.processes --out runs/processes
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from headstart.data.curves.gp_curves import gp_curves, true_distribution
from headstart.training.calibration import gaussian_nll
from headstart.training.evaluate import Score, evaluate
from headstart.training.loop import fit, flat, start
from headstart.types import Adapted, Batch, Info, Learner, Meta, Tasks


class Method(NamedTuple):
    """How a method is trained here."""

    make: Callable[[], Learner]
    steps: int
    rate: float


def methods() -> dict[str, Method]:
    """Return the methods by name, with settings chosen on validation tasks."""
    from headstart.algorithms.bayesian_linear import alpaca
    from headstart.algorithms.gaussian_process import dkt, gaussian_process
    from headstart.algorithms.neural_process import anp, cnp
    from headstart.models.mlp import mlp

    def network(outputs: int) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return mlp(1, outputs, hidden=(64, 64))

    return {
        "cnp": Method(lambda: cnp(inputs=1), 6_000, 1e-3),
        "anp": Method(lambda: anp(inputs=1), 3_000, 1e-3),
        "dkt": Method(lambda: dkt(network(16), taskmap="vmap"), 600, 1e-2),
        "gaussian_process": Method(lambda: gaussian_process(inputs=1, mean="constant", kernel="rbf"), 300, 1e-1),
        "alpaca": Method(lambda: alpaca(network(32), taskmap="vmap"), 2_000, 1e-2),
    }


def truth(tasks: Tasks) -> Learner:
    """Return the learner that knows the process that drew the tasks."""

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        there = torch.ones(support.y.shape[:2], dtype=torch.bool) if support.mask is None else support.mask
        known = {"x": support.x, "y": support.y, "there": there}
        return Adapted(meta, known, {}, None), Info(support.x.new_zeros(0, len(there)))

    def distribution(adapted: Adapted, x: Any) -> Any:
        own = adapted.params
        return true_distribution(tasks, Batch(own["x"], own["y"], own["there"]), x)

    return Learner(
        init=lambda generator=None: Meta({}, {}),
        adapt=adapt,
        predict=lambda adapted, x: distribution(adapted, x).mean,
        loss=lambda outputs, batch: (outputs - batch.y).square().mean((1, 2)),
        gradient=None,
        distribution=distribution,
    )


@torch.no_grad()
def validation_nll(learner: Learner, meta: Meta, tasks: Tasks, episodes: int = 400) -> float:
    assert learner.distribution is not None
    support, query = tasks.sample("validation", range(episodes))
    adapted, _ = learner.adapt(meta, support)
    return gaussian_nll(learner.distribution(adapted, query.x), query).mean().item()


def trained(name: str, method: Method, tasks: Tasks, seed: int) -> tuple[Meta, float]:
    """Return the best weights of ten looks at validation tasks, and the seconds of process time."""
    learner, began = method.make(), time.process_time()
    meta = learner.init(torch.Generator().manual_seed(seed))
    if learner.prepare is not None:
        meta = learner.prepare(meta, tasks, seed)
    state = start(learner, optimizer=lambda tensors: torch.optim.Adam(tensors, lr=method.rate), meta=meta)
    best, least = state.meta, float("inf")
    for record in fit(learner, tasks, steps=method.steps, state=state, schedule="cosine", seed=seed):
        if record.step % max(1, method.steps // 10) == 0:
            found = validation_nll(learner, state.meta, tasks)
            print(f"{name} step {record.step} validation log-likelihood {-found:.4f}", flush=True)
            if found < least:
                best = Meta(*({k: v.clone() for k, v in part.items()} for part in state.meta))
                least = found
    return best, time.process_time() - began


def weights(name: str, method: Method, tasks: Tasks, seed: int, out: Path) -> tuple[Meta, float | None]:
    """Return the method's weights, trained or read, and the seconds that training took where it is known."""
    file, plan = out / f"{name}.safetensors", out / f"{name}.json"
    if file.exists():
        found = load_file(file)
        parts = ({k[len(p) + 1 :]: v for k, v in found.items() if k.startswith(f"{p}.")} for p in Meta._fields)
        return Meta(*parts), json.loads(plan.read_text())["seconds"]
    meta, seconds = trained(name, method, tasks, seed)
    plan.write_text(json.dumps({"seconds": seconds, "steps": method.steps, "rate": method.rate}) + "\n")
    save_file({k: v.contiguous() for k, v in flat(meta).items()}, file)
    return meta, seconds


def row(name: str, score: Score, seconds: float | None, method: Method | None) -> dict[str, Any]:
    assert score.calibration is not None
    return {
        "method": name,
        "log_likelihood": round(-score.calibration.nll.mean, 4),
        "ci95": round(score.calibration.nll.ci95, 4),
        "coverage": round(score.calibration.coverage, 4),
        "width": round(score.calibration.width, 4),
        "mse": round(score.mean, 4),
        "steps": None if method is None else method.steps,
        "rate": None if method is None else method.rate,
        "seconds": None if seconds is None else round(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="cnp,anp,dkt,gaussian_process,alpaca")
    parser.add_argument("--kernel", default="rbf")
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--steps", type=int, help="outer steps of every method")
    parser.add_argument("--rate", type=float, help="outer rate of every method")
    parser.add_argument("--episodes", type=int, default=2000, help="test tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    tasks = gp_curves(kernel=given.kernel, noise=given.noise, seed=given.seed)
    table = [row("truth", evaluate(truth(tasks), Meta({}, {}), tasks, episodes=given.episodes), None, None)]
    print("  ".join(f"{key} {value}" for key, value in table[0].items()), flush=True)
    known = methods()
    for name in given.methods.split(","):
        method = known[name]._replace(
            **{key: getattr(given, key) for key in ("steps", "rate") if getattr(given, key) is not None}
        )
        meta, seconds = weights(name, method, tasks, given.seed, given.out)
        score = evaluate(method.make(), meta, tasks, episodes=given.episodes)
        table.append(row(name, score, seconds, method))
        print("  ".join(f"{key} {value}" for key, value in table[-1].items()), flush=True)
    details = {key: value for key, value in tasks.details.items() if key not in ("source", "licence")}
    (given.out / "processes.json").write_text(json.dumps({"tasks": details, "rows": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
