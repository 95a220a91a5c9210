"""The contract of a registered method: what a run makes of its row keeps the promises of a learner."""

import copy
import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from headstart.registry import find, load
from headstart.testing.contract import mapped
from headstart.testing.episodes import random_episodes
from headstart.testing.learners import check_learner
from headstart.types import Episodes, Learner


def check_method(name: str, module: nn.Module | None = None, options: dict[str, Any] | None = None, **how: Any) -> None:
    """Check a registered method with `check_learner`, once for each kind of target that its row names.

    Args:
        name: of the method; one that another package registers is found alike.
        module: float64, with 3 values in and 3 out; by default a small one.
        options: of the method's factory; by default 2 steps of 0.1 where it takes such.
        how: what else `check_learner` is told.

    Raises:
        ContractError: the contract that is broken, by how much, and what that means.

    >>> check_method("ridge")
    """
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double() if module is None else module
    for episodes in episodes_of(name, random_episodes((3,)), random_episodes((3,), regression=True)):
        learner = partial(made, name, network, episodes, **(options or {}))
        check_learner(learner, episodes, module=network, **how)


def episodes_of(name: str, classes: Episodes, numbers: Episodes) -> Iterator[Episodes]:
    """Yield those of the episodes whose targets a method can predict."""
    kinds = {"classification": classes, "regression": numbers}
    yield from (kinds[target] for target in find("method", name).targets)


def made(name: str, module: nn.Module | None, episodes: Episodes, taskmap: str = "vmap", /, **options: Any) -> Learner:
    """Return the learner of a registered method as a run makes it, with 2 steps of 0.1 unless ``options`` differ.

    The ``episodes`` tell the sizes of inputs and targets, and their kind; the module is left out where there is no use.
    """
    factory = load("method", name)
    takes = inspect.signature(factory).parameters
    x, y = episodes.support.x, episodes.support.y
    numbers = y.is_floating_point()
    outputs = y.shape[2:].numel() if numbers else int(y.max()) + 1
    supplied = {
        "loss": "mse" if numbers else "cross_entropy",
        "ways": None if numbers else outputs,
        "inputs": x.shape[2:].numel(),
        "outputs": outputs,
        "dtype": x.dtype,
        "explain": None,
        "taskmap": taskmap,
        "steps": 2,
        "rate": 0.1,
    }
    none = find("method", name).model == "none"
    if not none and "features" in takes:
        with torch.no_grad():
            supplied["features"] = copy.deepcopy(module).eval()(x[0, :1]).numel()  # type: ignore[union-attr]
    given = {key: value for key, value in {**supplied, **options}.items() if key in takes or key in options}
    if not none:
        return factory(module, **given)
    learner = factory(**given)
    # it starts in this type, whatever it was made in
    return learner._replace(init=lambda *seed: mapped(lambda value: value.to(x.dtype), learner.init(*seed)))
