"""What learning an architecture as part of M finds, on tasks whose architecture is known and on icons.

python benchmarks/architecture.py known     # tasks made by a network of the search space: is it found?
python benchmarks/architecture.py icons     # search, derive, train anew; accuracy and multiply-adds beside conv4
"""

import copy
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from cyclopts import App
from torch import Tensor, nn

from headstart import conv4, fit, maml
from headstart.algorithms.architecture import choices, derive, pressed, sharpened
from headstart.core.cost import expected_cost, multiply_adds
from headstart.core.mixture import GATES, Mixture
from headstart.models.searchable4 import searchable4
from headstart.tasks.icons import icons as icon_tasks
from headstart.training.evaluate import Score, evaluate
from headstart.training.loop import State, copied, start
from headstart.types import Batch, Episodes, Learner, Meta, Tasks

app = App(help=__doc__)


def search(
    learner: Learner, tasks: Tasks, *, steps: int, tasks_per_step: int, rates: tuple[float, float], seed: int
) -> Meta:
    """Meta-train with one outer step size (Adam) for θ and another for the gates in M."""
    meta = start(learner, seed=seed).meta
    gates = [value for name, value in meta.structure.items() if name.endswith(GATES)]
    others = [value for name, value in meta.structure.items() if not name.endswith(GATES)]
    groups = [{"params": [*meta.params.values(), *others], "lr": rates[0]}, {"params": gates, "lr": rates[1]}]
    state = State(meta, torch.optim.Adam(groups))
    for _ in fit(learner, tasks, steps=steps, tasks_per_step=tasks_per_step, state=state, seed=seed, schedule="cosine"):
        pass
    return copied(state.meta)


def shares(learner: Learner, meta: Meta) -> dict[str, float]:
    """Return the candidates' proportions by path."""
    assert learner.shown is not None
    return {name: round(value.item(), 3) for name, value in learner.shown(meta).items()}


class Sine(nn.Module):
    """The sine of its input, as an activation."""

    def forward(self, x: Tensor) -> Tensor:
        """Return sin x."""
        return torch.sin(x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "sin": Sine}
INPUTS, SHOTS = 2, 20


def network(width: int, activations: list[nn.Module]) -> nn.Sequential:
    """Return a network of two hidden layers with these activations."""
    first, second = activations
    layers = {"hidden1": nn.Linear(INPUTS, width), "activation1": first, "hidden2": nn.Linear(width, width)}
    layers |= {"activation2": second, "head": nn.Linear(width, 1)}
    return nn.Sequential(OrderedDict(layers))


def known_family(seed: int, width: int = 3, spread: float = 0.05) -> tuple[list[str], Tasks]:
    """Return the names of two activations, and the tasks y = g(x; θᵢ) of the network g that has them.

    θᵢ = θ₀ + spread · (standard deviation of each of θ₀'s tensors) · noise; x is standard normal.
    """
    generator = torch.Generator().manual_seed(seed)
    names = [list(ACTIVATIONS)[k] for k in torch.randint(len(ACTIVATIONS), (2,), generator=generator).tolist()]
    first, second = (ACTIVATIONS[name]() for name in names)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    theta = [1.2 * normal(width, INPUTS) / INPUTS**0.5, normal(width), 1.7 * normal(width, width) / width**0.5]
    theta += [normal(width), 1.5 * normal(1, width) / width**0.5]

    def task(split: str, number: int) -> tuple[Tensor, Tensor]:
        key = ((3 * seed + ("train", "validation", "test").index(split)) << 32) + number
        own = torch.Generator().manual_seed(key)
        w1, b1, w2, b2, w3 = (w + spread * w.std() * torch.randn(w.shape, generator=own) for w in theta)
        x = torch.randn(2 * SHOTS, INPUTS, generator=own)
        return x, second(first(x @ w1.T + b1) @ w2.T + b2) @ w3.T

    def sample(split: str, numbers: Iterator[int]) -> Episodes:
        x, y = (torch.stack(part) for part in zip(*(task(split, number) for number in numbers)))
        return Episodes(Batch(x[:, :SHOTS], y[:, :SHOTS]), Batch(x[:, SHOTS:], y[:, SHOTS:]))

    return names, Tasks("known", sample, "regression", (INPUTS,), 1, {"seed": seed})
