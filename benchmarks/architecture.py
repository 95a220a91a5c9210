"""What learning an architecture as part of M finds, on tasks whose architecture is known and on icons.

python -m benchmarks.architecture known     # tasks made by a network of the search space: is it found?
python -m benchmarks.architecture icons     # search, derive, train anew; accuracy and multiply-adds beside conv4
"""

import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from cyclopts import App
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.searchable4 import searchable4
from headstart import FirstOrder, conv4, fit, maml
from headstart.algorithms.architecture import choices, derive, pressed, sharpened
from headstart.core.objective import at
from headstart.data.images.icons import icons as icon_tasks
from headstart.forward.cost import expected_cost, multiply_adds
from headstart.forward.mixture import Mixture, Skip
from headstart.training.evaluate import Score, evaluate, interval
from headstart.training.loop import State, copied, start
from headstart.types import Batch, Episodes, Learner, Meta, Tasks

app = App(help=__doc__)


def search(
    learner: Learner,
    tasks: Tasks,
    *,
    steps: int,
    warmup: int,
    tasks_per_step: int,
    rates: tuple[float, float],
    seed: int,
) -> Meta:
    """Meta-train with one outer step size (Adam) for θ and another for M, which is left alone for ``warmup`` steps.

    Where there is a warm-up, the step sizes go down to 0 after it; without one they are constant.
    """
    state = start(learner, seed=seed)
    theta, m = list(state.meta.params.values()), list(state.meta.structure.values())
    options = {"tasks_per_step": tasks_per_step, "seed": seed}
    if warmup:
        state = State(state.meta, torch.optim.Adam([{"params": theta, "lr": rates[0]}, {"params": m, "lr": 0.0}]))
        deque(fit(at(learner, 0.0), tasks, steps=warmup, state=state, **options), maxlen=0)
    optimizer = torch.optim.Adam([{"params": theta, "lr": rates[0]}, {"params": m, "lr": rates[1]}])
    state = State(state.meta, optimizer)
    deque(
        fit(learner, tasks, steps=steps, state=state, schedule="cosine" if warmup else "constant", **options), maxlen=0
    )
    return copied(state.meta)


def shares(learner: Learner, meta: Meta) -> dict[str, float]:
    """Return the candidates' proportions by path."""
    assert learner.shown is not None
    return {name: round(value.item(), 3) for name, value in learner.shown(meta).items()}


WIDTH, SHOTS = 4, 10
KINDS = ("tanh", "leaky", "skip")


def layer_of(kind: str) -> nn.Module:
    """Return a linear layer with an activation, or the identity."""
    if kind == "skip":
        return Skip()
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh() if kind == "tanh" else nn.LeakyReLU(0.1))


class Chain(nn.ModuleList):
    """Layers one after another, whose output is what each of them says, side by side."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(n, layers · WIDTH)`` for ``(n, WIDTH)``."""
        said = [x]
        for layer in self:
            said.append(layer(said[-1]))
        return torch.cat(said[1:], -1)


def known_family(seed: int, depth: int, spread: float = 0.1) -> tuple[list[str], Tasks]:
    """Return the kinds of some layers, and the tasks y = g(x; θᵢ) of a `Chain` g of these layers.

    θᵢ = θ₀ + spread · noise, where θ₀ has variance 2 / WIDTH; x is standard normal.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = [KINDS[k] for k in torch.randint(len(KINDS), (depth,), generator=generator).tolist()]
    model = Chain(layer_of(kind) for kind in kinds).requires_grad_(False)
    theta = {n: (2 / WIDTH) ** 0.5 * torch.randn(w.shape, generator=generator) for n, w in model.named_parameters()}

    def task(split: str, number: int) -> tuple[Tensor, Tensor]:
        key = ((3 * seed + ("train", "validation", "test").index(split)) << 32) + number
        own = torch.Generator().manual_seed(key)
        params = {name: w + spread * torch.randn(w.shape, generator=own) for name, w in theta.items()}
        x = torch.randn(2 * SHOTS, WIDTH, generator=own)
        return x, functional_call(model, params, (x,))

    def sample(split: str, numbers: Sequence[int]) -> Episodes:
        x, y = (torch.stack(part) for part in zip(*(task(split, number) for number in numbers)))
        return Episodes(Batch(x[:, :SHOTS], y[:, :SHOTS]), Batch(x[:, SHOTS:], y[:, SHOTS:]))

    return kinds, Tasks("known", sample, "regression", (WIDTH,), depth * WIDTH, {"seed": seed})


@app.command
def known(first: int = 10, count: int = 10, depth: int = 2, out: Path | None = None) -> None:
    """Search on families whose layers are known, for seeds FIRST … FIRST + COUNT - 1; settings were chosen on 0 … 5."""
    rows = []
    for seed in range(first, first + count):
        begun = perf_counter()
        truth, tasks = known_family(seed, depth)
        torch.manual_seed(seed)
        module = Chain(Mixture({kind: layer_of(kind) for kind in KINDS}) for _ in range(depth))
        learner = sharpened(maml(module, loss="mse", steps=1, rate=0.5, taskmap="vmap"), end=0.05)
        meta = search(learner, tasks, steps=500, warmup=100, tasks_per_step=4, rates=(0.03, 0.01), seed=seed)
        found = list(choices(module, meta).values())
        seconds = round(perf_counter() - begun, 1)
        rows.append({"seed": seed, "known": truth, "found": found, "shares": shares(learner, meta), "seconds": seconds})
        print(f"seed {seed}: known {', '.join(truth)}; found {', '.join(found)}", flush=True)
    right = sum(row["known"] == row["found"] for row in rows)
    print(f"{right} of {count} found; by chance {count / len(KINDS) ** depth:.1f}")
    save(out, {"right": right, "of": count, "rows": rows})


def save(out: Path | None, report: dict[str, Any]) -> None:
    """Write a report as JSON, where a path for it is given."""
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n")


SHAPE = (1, 28, 28)


def trained(learner: Learner, tasks: Tasks, *, steps: int, seed: int, every: int = 250) -> tuple[Meta, Score]:
    """Meta-train as ``headstart train icons`` does, and return the best weights by 100 validation tasks."""
    best: tuple[Meta, Score] | None = None
    state = start(learner, seed=seed)
    for record in fit(learner, tasks, steps=steps, tasks_per_step=4, state=state, seed=seed):
        if record.step % every == 0 or record.step == steps:
            score = evaluate(learner, state.meta, tasks, episodes=100, split="validation")
            if best is None or score.mean > best[1].mean:
                best = copied(state.meta), score
    assert best is not None
    return best


def found_on_icons(tasks: Tasks, *, steps: int, strength: float, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Search around conv4, and return the derived network with new random weights, and what was found."""
    begun = perf_counter()
    torch.manual_seed(seed)
    module = searchable4(SHAPE, 5, 32, "stride")
    learner = maml(module, steps=2, rate=0.1, taskmap="vmap", adjoint=FirstOrder())
    learner = sharpened(pressed(learner, expected_cost(module, SHAPE), strength), end=0.2)
    meta = search(learner, tasks, steps=steps, warmup=0, tasks_per_step=4, rates=(0.001, 0.02), seed=seed)
    torch.manual_seed(seed)
    anew = searchable4(SHAPE, 5, 32, "stride")
    report = {"choices": choices(module, meta), "shares": shares(learner, meta), "seconds": perf_counter() - begun}
    return derive(anew, Meta(maml(anew).init(None).params, meta.structure)), report


@app.command
def icons(strength: float = 0.1, steps: int = 300, retrain: int = 1000, seed: int = 0, out: Path | None = None) -> None:
    """Search around conv4 on 5-way 1-shot icons, train what was derived from new weights, and test it beside conv4.

    STRENGTH was chosen among 0.1 and 0.5 by the validation score after training anew. Both networks are trained as
    ``headstart compare icons`` trains conv4: RETRAIN steps of 4 tasks, 5 inner steps of 0.1.
    """
    tasks = icon_tasks(seed=seed)
    network, report = found_on_icons(tasks, steps=steps, strength=strength, seed=seed)
    print(f"found in {report['seconds']:.0f} s: {', '.join(report['choices'].values())}", flush=True)
    torch.manual_seed(seed)
    values: dict[str, Tensor] = {}
    for name, model in (("derived", network), ("conv4", conv4(SHAPE, 5, 32, "stride"))):
        learner = maml(model, steps=5, rate=0.1, taskmap="vmap")
        best, validation = trained(learner, tasks, steps=retrain, seed=seed)
        score = evaluate(learner, best, tasks)
        values[name] = torch.tensor(score.values)
        costs = {"multiply_adds": multiply_adds(model, SHAPE), "parameters": sum(p.numel() for p in model.parameters())}
        report[name] = {"accuracy": score.mean, "ci95": score.ci95, "validation": validation.mean, **costs}
        print(f"{name}: {100 * score.mean:.1f} ± {100 * score.ci95:.1f} %, {costs}", flush=True)
    gap = interval((values["derived"] - values["conv4"]).tolist())
    print(f"derived - conv4 on the same {len(values['conv4'])} tasks: {100 * gap.mean:.2f} ± {100 * gap.ci95:.2f} %")
    save(out, {**report, "difference": gap._asdict()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    app()
