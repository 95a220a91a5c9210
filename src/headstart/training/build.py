"""From a configuration to the things themselves: device, tasks, model and learner."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from headstart.core.adjoint import Checkpointed, Unrolled
from headstart.errors import ConfigError, UsageError
from headstart.registry import load
from headstart.training.config import TrainConfig, frequency_range
from headstart.training.loop import MakeOptimizer
from headstart.types import Learner, Tasks


class Job(NamedTuple):
    """What a resolved configuration describes."""

    config: TrainConfig
    device: torch.device
    tasks: Tasks
    learner: Learner
    parameters: int
    """Number of trainable values of the model."""
    notes: tuple[str, ...] = ()
    """What the method says of the model."""


#: By which argument a factory takes an option, where the names differ.
_ARGUMENTS = {"inner_steps": "steps", "inner_rate": "rate", "task_map": "taskmap", "image_size": "size"}
_TASK_OPTIONS = (
    "data", "ways", "shots", "queries", "noise", "seed", "split", "rotations", "image_size", "channels", "on_short",
    "strict",
)  # fmt: skip
_METHOD_OPTIONS = ("inner_steps", "inner_rate", "task_map", "buffers", "adjoint")
_MODEL_OPTIONS = ("hidden", "filters", "downsample", "norm")
_ADJOINTS = {"unrolled": Unrolled(), "checkpointed": Checkpointed()}

#: Methods that start from class means, and so need classes.
_CLASSIFIERS = frozenset({"proto_maml"})
#: Methods that classify by class means, and so learn an embedding, not a head.
_EMBEDDINGS = frozenset({"prototypes"})


def build(config: TrainConfig) -> Job:
    """Make what a resolved configuration (`headstart.training.defaults.resolve`) describes.

    Raises:
        UsageError: a device that is not there, or a method that cannot do the tasks.
        ShapeError: a model that cannot take the tasks' inputs.
    """
    device = find_device(config.device)
    tasks = make_tasks(config, device)
    notes: list[str] = []
    learner, parameters = make_learner(config, tasks, device, notes.append)
    return Job(config, device, tasks, learner, parameters, tuple(notes))


def find_device(name: str) -> torch.device:
    """Return the device called ``name``; 'auto' takes cuda, else mps, else cpu.

    Raises:
        UsageError: this machine, or this PyTorch, has no such device.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, usable in there.items() if usable)
    if not there.get(name, False):
        usable = ", ".join(device for device, found in there.items() if found)
        raise UsageError(f"--device {name}: PyTorch finds no such device here; there is {usable} (or use auto)")
    return torch.device(name)


def make_tasks(config: TrainConfig, device: torch.device) -> Tasks:
    """Make the tasks that a resolved configuration names."""
    options = _chosen(config, _TASK_OPTIONS)
    if isinstance(config.shots, str):
        low, _, high = config.shots.partition("-")
        options["shots"] = (int(low), int(high))
    if config.frequency is not None:
        options["frequency"] = frequency_range(config.frequency)
    if config.train_ways is not None:
        options["train_ways"] = config.train_ways
    return load("task", config.tasks)(**options, device=device)


def make_learner(
    config: TrainConfig, tasks: Tasks, device: torch.device, explain: Callable[[str], None] | None = None
) -> tuple[Learner, int]:
    """Make the learner of a resolved configuration for tasks like these, and count its model's parameters.

    ``explain`` is told what the method chooses by itself, line by line.
    """
    factory = load("method", config.method)
    options = _chosen(config, _METHOD_OPTIONS)
    accepted = inspect.signature(factory).parameters
    takes_loss = "loss" in accepted or any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    if takes_loss and config.method not in _CLASSIFIERS:
        options["loss"] = "cross_entropy" if tasks.kind == "classification" else "mse"
    elif tasks.kind != "classification":
        raise ConfigError(f"the method {config.method!r} classifies, but the tasks {tasks.name!r} are {tasks.kind}")
    if "ways" in accepted:
        # without a number of its own, the learner counts the classes of each batch
        options["ways"] = tasks.output_size if config.train_ways is None else None
    if "explain" in accepted:
        options["explain"] = explain
    if "adjoint" in options:
        options["adjoint"] = _ADJOINTS[options["adjoint"]]
    module = make_model(config, tasks)
    parameters = sum(p.numel() for p in module.parameters() if p.requires_grad) if module else 0
    return factory(module.to(device) if module else None, **options), parameters


def make_model(config: TrainConfig, tasks: Tasks) -> nn.Module | None:
    """Make the model of a resolved configuration; its weights depend on the seed alone."""
    if config.model is None:
        return None
    options = _chosen(config, _MODEL_OPTIONS)
    if "hidden" in options:
        options["hidden"] = tuple(int(width) for width in options["hidden"].split(","))
    outputs = None if config.method in _EMBEDDINGS else tasks.output_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return load("model", config.model)(tasks.input_shape, outputs, **options)


def _chosen(config: TrainConfig, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the options that apply, by the factories' names for them."""
    values = {_ARGUMENTS.get(name, name): getattr(config, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def make_optimizer(config: TrainConfig) -> MakeOptimizer:
    """Return what makes the outer optimiser of a resolved configuration."""
    kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    return partial(kinds[config.optimizer or "adam"], lr=config.outer_rate)


@contextlib.contextmanager
def reproducible(config: TrainConfig) -> Iterator[None]:
    """Within it, the same computation gives the same bits where PyTorch can; settings are put back afterwards."""
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    before = (cudnn.deterministic, cudnn.benchmark)
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.set_num_threads(config.threads or threads)
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
        torch.set_num_threads(threads)
