"""What learning an architecture as part of M finds, on tasks whose architecture is known and on icons.

python benchmarks/architecture.py known     # tasks made by a network of the search space: is it found?
python benchmarks/architecture.py icons     # search, derive, train anew; accuracy and multiply-adds beside conv4
"""

import copy
import json
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from cyclopts import App
from torch import Tensor, nn
from torch.func import functional_call

from headstart import FirstOrder, conv4, fit, maml
from headstart.algorithms.architecture import choices, derive, pressed, sharpened
from headstart.core.cost import expected_cost, multiply_adds
from headstart.core.objective import at
from headstart.core.mixture import GATES, Mixture, Skip
from headstart.models.searchable4 import searchable4
from headstart.tasks.icons import icons as icon_tasks
from headstart.training.evaluate import Score, evaluate
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
    """Meta-train with one outer step size (Adam) for θ and another for M, which is left alone for ``warmup`` steps."""
    state = start(learner, seed=seed)
    theta, m = list(state.meta.params.values()), list(state.meta.structure.values())
    options = {"tasks_per_step": tasks_per_step, "seed": seed}
    if warmup:
        state = State(state.meta, torch.optim.Adam([{"params": theta, "lr": rates[0]}, {"params": m, "lr": 0.0}]))
        deque(fit(at(learner, 0.0), tasks, steps=warmup, state=state, **options), maxlen=0)
    optimizer = torch.optim.Adam([{"params": theta, "lr": rates[0]}, {"params": m, "lr": rates[1]}])
    state = State(state.meta, optimizer)
    deque(fit(learner, tasks, steps=steps, state=state, schedule="cosine", **options), maxlen=0)
    return copied(state.meta)


def shares(learner: Learner, meta: Meta) -> dict[str, float]:
    """Return the candidates' proportions by path."""
    assert learner.shown is not None
    return {name: round(value.item(), 3) for name, value in learner.shown(meta).items()}


CHANNELS, LENGTH, SHOTS = 2, 16, 5
REACH = {"near": 1, "middle": 2, "far": 3}


def layer_of(kind: str, inputs: int, outputs: int) -> nn.Module:
    """Return a convolution on a ring that sees two points, so many places to the left and to the right."""
    reach = REACH[kind]
    return nn.Conv1d(inputs, outputs, 2, dilation=2 * reach, padding=reach, padding_mode="circular")


def network(first: nn.Module, second: nn.Module) -> nn.Sequential:
    """Return two layers with a hyperbolic tangent and the mean of two neighbours between them.

    The halving makes layers that trade places another function, even where the tangent is almost a straight line.
    """
    return nn.Sequential(OrderedDict(layer1=first, tanh=nn.Tanh(), mean=nn.AvgPool1d(2), layer2=second))


def known_family(seed: int, width: int, spread: float = 0.05) -> tuple[list[str], Tasks]:
    """Return the kinds of some layers, and the tasks y = g(x; θᵢ) of a network g of these layers.

    θᵢ = θ₀ + spread · noise, with weights in θ₀ of variance 2 / (inputs of a unit) and biases of variance 0.1; x is
    standard normal.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = [list(REACH)[k] for k in torch.randint(len(REACH), (2,), generator=generator).tolist()]
    model = network(layer_of(kinds[0], CHANNELS, width), layer_of(kinds[1], width, CHANNELS)).requires_grad_(False)
    theta = {}
    for name, w in model.named_parameters():
        variance = 2 / w[0].numel() if name.endswith("weight") else 0.1
        theta[name] = variance**0.5 * torch.randn(w.shape, generator=generator)

    def task(split: str, number: int) -> tuple[Tensor, Tensor]:
        key = ((3 * seed + ("train", "validation", "test").index(split)) << 32) + number
        own = torch.Generator().manual_seed(key)
        params = {name: w + spread * torch.randn(w.shape, generator=own) for name, w in theta.items()}
        x = torch.randn(2 * SHOTS, CHANNELS, LENGTH, generator=own)
        return x, functional_call(model, params, (x,))

    def sample(split: str, numbers: Sequence[int]) -> Episodes:
        x, y = (torch.stack(part) for part in zip(*(task(split, number) for number in numbers)))
        return Episodes(Batch(x[:, :SHOTS], y[:, :SHOTS]), Batch(x[:, SHOTS:], y[:, SHOTS:]))

    return kinds, Tasks("known", sample, "regression", (CHANNELS, LENGTH), CHANNELS * LENGTH, {"seed": seed})


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


def found_on_icons(
    tasks: Tasks, *, steps: int, warmup: int, strength: float, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Search around conv4, and return the derived network with new random weights, and what was found."""
    begun = perf_counter()
    torch.manual_seed(seed)
    module = searchable4(SHAPE, 5, 32, "stride")
    learner = maml(module, steps=2, rate=0.1, taskmap="vmap", adjoint=FirstOrder())
    learner = sharpened(pressed(learner, expected_cost(module, SHAPE), strength), end=0.2)
    meta = search(learner, tasks, steps=steps, warmup=warmup, tasks_per_step=4, rates=(0.001, 0.02), seed=seed)
    torch.manual_seed(seed)
    anew = searchable4(SHAPE, 5, 32, "stride")
    report = {"choices": choices(module, meta), "shares": shares(learner, meta), "seconds": perf_counter() - begun}
    return derive(anew, Meta(maml(anew).init(None).params, meta.structure)), report
