"""The methods of the registry on panels: meta-train on the training tasks, adapt to the unseen ones, predict."""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from headstart.bench.problem import Array, Predict, Predicted, Problem, Sample, joined
from headstart.data.rows import Rows, row_tasks
from headstart.errors import DataError
from headstart.registry import load
from headstart.training.loop import Schedule, copied, fit, start
from headstart.types import Adapted, Batch, Learner, Meta, Tasks


class Setting(NamedTuple):
    """How a method is meta-trained."""

    method: str
    """Its name in the registry."""
    options: Mapping[str, Any] = {}
    """Of its factory."""
    network: str | None = "mlp"
    """The network's name in the registry; ``None``: the method brings its own, or has none."""
    sizes: Mapping[str, Any] = {"hidden": (32, 32)}
    """Of the network."""
    embedding: int | None = None
    """Outputs of the network, where it is an embedding."""
    steps: int = 150
    """Outer steps, each with all training tasks."""
    rate: float = 0.02
    """Outer step size."""
    schedule: Schedule = "cosine"
    optimizer: str = "adam"
    validation: float = 0.2
    """The share of the training tasks that is held out for choosing the best weights; 0: the last weights are kept."""
    looks: int = 15
    """How often the validation tasks are looked at."""


_OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def meta_learned(setting: Setting) -> Predict:
    """Return the method as a function from problems to predictions; the same problem gives the same answer."""

    def predict(problem: Problem) -> Predicted:
        tasks = tasks_of(problem, setting.validation)
        learner = make(setting, tasks)
        meta, best = trained(learner, tasks, setting)
        asked = tasks.sample("test", range((tasks.counts or {})["test"]))
        with torch.no_grad():
            adapted, _ = learner.adapt(meta, asked.support)
            return _answer(learner, adapted, asked.query, {"best step": best})

    return predict


def tasks_of(problem: Problem, validation: float) -> Tasks:
    """Return the problem as tasks, whose unseen ones have zeros where the targets of the query rows would be.

    Args:
        problem: the problem.
        validation: the share of the training tasks that becomes validation tasks.

    Raises:
        DataError: too few training tasks for that.
    """
    rows = joined(problem.train, joined(problem.support, Sample(problem.x, np.zeros(len(problem.x)), problem.task)))
    count, total = int(problem.train.task.max()) + 1, int(rows.task.max()) + 1
    held = max(1, round(validation * count)) if validation else 0
    if count - held < 1:
        raise DataError(f"meta-learning with validation needs at least 2 training tasks, got {count}")
    x, y = (torch.tensor(part, dtype=torch.float32) for part in (rows.x, rows.y[:, None]))
    splits = {"train": range(count - held), "validation": range(count - held, count), "test": range(count, total)}
    used = {name: tasks for name, tasks in splits.items() if len(tasks)}
    names = tuple(map(str, range(total)))
    return row_tasks(Rows(x, y, torch.tensor(rows.task), names), used, support=problem.shots, order="first")


def make(setting: Setting, tasks: Tasks) -> Learner:
    """Make the method's learner, with a network for these tasks where it has one."""
    factory = load("method", setting.method)
    accepted = inspect.signature(factory).parameters
    sizes = {"inputs": tasks.input_shape[0], "outputs": tasks.output_size, "explain": None}
    options: dict[str, Any] = {name: value for name, value in sizes.items() if name in accepted}
    if "loss" in accepted or "options" in accepted:
        options["loss"] = "mse"
    options |= setting.options
    if setting.network is None:
        return factory(**options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = load("model", setting.network)
        module = network(tasks.input_shape, setting.embedding or tasks.output_size, **setting.sizes)
    return factory(module, **options)


def trained(learner: Learner, tasks: Tasks, setting: Setting) -> tuple[Meta, int]:
    """Meta-train, and return the weights with the best loss on the validation tasks, and after which step they were."""
    counts = tasks.counts or {}
    state = start(learner, optimizer=partial(_OPTIMIZERS[setting.optimizer], lr=setting.rate), tasks=tasks)
    best, meta, at = _validation(learner, state.meta, tasks), copied(state.meta), 0
    if learner.gradient is None or not setting.steps:
        return meta, at
    every = max(1, setting.steps // setting.looks)
    for record in fit(
        learner, tasks, steps=setting.steps, tasks_per_step=counts["train"], state=state, schedule=setting.schedule
    ):
        if record.step == setting.steps or ("validation" in counts and record.step % every == 0):
            value = _validation(learner, state.meta, tasks)
            if value < best or "validation" not in counts:
                best, meta, at = value, copied(state.meta), record.step
    return meta, at


@torch.no_grad()
def _validation(learner: Learner, meta: Meta, tasks: Tasks) -> float:
    """Return the mean squared error of all query rows of the validation tasks, infinite where it is no number."""
    if "validation" not in (tasks.counts or {}):
        return float("inf")
    episodes = tasks.sample("validation", range((tasks.counts or {})["validation"]))
    found = learner.predict(learner.adapt(meta, episodes.support)[0], episodes.query.x)
    value = float(_flat(found - episodes.query.y, episodes.query).square().mean())
    return value if np.isfinite(value) else float("inf")


def _answer(learner: Learner, adapted: Adapted, query: Batch, counts: Mapping[str, int]) -> Predicted:
    if learner.distribution is None:
        return Predicted(_numpy(learner.predict(adapted, query.x), query), None, counts)
    found = learner.distribution(adapted, query.x)
    return Predicted(_numpy(found.mean, query), _numpy(found.variance, query), counts)


def _numpy(values: Tensor, query: Batch) -> Array:
    return _flat(values, query).double().numpy()


def _flat(values: Tensor, query: Batch) -> Tensor:
    """Return the values of one target ``(B, n, 1)`` of the rows that are there, in order."""
    return values[..., 0].flatten() if query.mask is None else values[..., 0][query.mask]
