"""From a configuration to the things themselves: device, tasks, model and learner."""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

import torch
from torch import nn

from headstart.core.adjoints import Checkpointed, MixedMode, Unrolled
from headstart.errors import ConfigError, UsageError
from headstart.registry import load
from headstart.training.config import TrainConfig
from headstart.training.loop import MakeOptimizer, fused
from headstart.training.options import frequency_range
from headstart.types import Learner, Meta, Tasks


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
_ARGUMENTS = {
    "inner_steps": "steps",
    "inner_rate": "rate",
    "task_map": "taskmap",
    "image_size": "size",
    "validation_share": "validation",
    "test_share": "test",
    "curve_kernel": "kernel",
    "soft_trees": "trees",
}
_TASK_OPTIONS = (
    "data", "ways", "shots", "queries", "noise", "curve_kernel", "seed", "split", "rotations", "image_size", "channels",
    "on_short", "strict", "task_column", "target", "time_column", "target_kind", "on_duplicates", "validation_share",
    "test_share",
)  # fmt: skip
_METHOD_OPTIONS = (
    "inner_steps", "inner_rate", "task_map", "buffers", "adjoint", "kernel", "mean", "trees", "leaves", "estimator",
    "trials", "samples", "deviation", "strength", "damping", "iterations",
)  # fmt: skip
_MODEL_OPTIONS = ("hidden", "filters", "downsample", "norm", "soft_trees", "depth", "widths")
_ADJOINTS = {"unrolled": Unrolled(), "checkpointed": Checkpointed(), "mixed_mode": MixedMode()}

#: Methods that need classes, and methods that need target values.
_CLASSIFIERS = frozenset({"proto_maml", "prototypes", "nearest", "svm", "logistic"})
_REGRESSORS = frozenset({"gaussian_process", "dkt", "alpaca", "cnp", "anp"})
#: Methods with a head of their own, for which the model is an embedding.
_EMBEDDINGS = frozenset({"prototypes", "ridge", "logistic", "svm", "dkt", "alpaca"})


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


def make_tasks(config: TrainConfig, device: torch.device, seed: int | None = None) -> Tasks:
    """Make the tasks that a resolved configuration names; ``seed`` draws others, of the same split."""
    options = _chosen(config, _TASK_OPTIONS)
    options["seed"] = config.seed if seed is None else seed
    if isinstance(config.shots, str):
        low, _, high = config.shots.partition("-")
        options["shots"] = (int(low), int(high))
    if config.tasks == "table":
        options["split_seed"] = config.seed
        options["support"] = options.pop("shots", config.support_first)
        options["order"] = "random" if config.support_first is None else "first"
        options["columns"] = config.columns
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
    _refuse_kind(config, tasks)
    factory = load("method", config.method)
    module = make_model(config, tasks)
    options = _chosen(config, _METHOD_OPTIONS)
    accepted = inspect.signature(factory).parameters
    if config.model == "identity" and accepted["module"].default is None:
        module = None  # heads have intercepts, and alpaca a start, of their own for inputs as they are
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    if ("loss" in accepted or takes_any) and config.method != "proto_maml":
        options["loss"] = "cross_entropy" if tasks.kind == "classification" else "mse"
    if "ways" in accepted:
        # without a number of its own, the learner counts the classes of each batch
        options["ways"] = None if config.train_ways is not None or tasks.kind == "regression" else tasks.output_size
    sizes = {"inputs": prod(tasks.input_shape), "outputs": tasks.output_size}
    if module is not None and {"inputs", "features"} <= accepted.keys():
        sizes = {"features": _features(module, tasks.input_shape), "outputs": tasks.output_size}
    options |= {name: size for name, size in sizes.items() if name in accepted}
    if "device" in accepted:
        options["device"] = device
    if "explain" in accepted:
        options["explain"] = explain
    if "adjoint" in options:
        options["adjoint"] = _ADJOINTS[options["adjoint"]]
    if module is None:
        learner = _placed(factory(**options), device)
        return learner, sum(value.numel() for value in learner.init(None).params.values())
    parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return factory(module.to(device), **options), parameters


def _refuse_kind(config: TrainConfig, tasks: Tasks) -> None:
    """Refuse a method that does not do this kind of tasks."""
    if config.method in (_REGRESSORS if tasks.kind == "classification" else _CLASSIFIERS):
        does, others = (
            ("predicts numbers", "ridge, prototypes or maml")
            if tasks.kind == "classification"
            else ("classifies", "gaussian_process, ridge or maml")
        )
        raise ConfigError(
            f"the method {config.method!r} {does}, but the tasks {tasks.name!r} are {tasks.kind};"
            f" take another --method, such as {others}"
        )


def _features(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Return how many values a module makes of an input."""
    with torch.no_grad():
        return copy.deepcopy(module).eval()(torch.zeros(1, *shape)).numel()


def _placed(learner: Learner, device: torch.device) -> Learner:
    """Return a learner that was made without a model with its values on the device."""

    def init(generator: torch.Generator | None = None) -> Meta:
        return Meta(*({name: value.to(device) for name, value in part.items()} for part in learner.init(generator)))

    return learner._replace(init=init)


def make_model(config: TrainConfig, tasks: Tasks) -> nn.Module | None:
    """Make the model of a resolved configuration; its weights depend on the seed alone."""
    if config.model is None:
        return None
    options = _chosen(config, _MODEL_OPTIONS)
    for name in {"hidden", "widths"} & options.keys():
        options[name] = tuple(int(width) for width in options[name].split(","))
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
    return fused(kinds[config.optimizer or "adam"], lr=config.outer_rate)


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
