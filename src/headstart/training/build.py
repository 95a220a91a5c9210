"""From a configuration to the things themselves: device, tasks, model and learner."""

import contextlib
import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

import torch

from headstart.errors import ConfigError, UsageError
from headstart.registry import Method, Target, find, load, rows
from headstart.training.by_inputs import ByInputs, started_by_inputs
from headstart.training.config import Config, Outer, Part, resolve
from headstart.training.loop import MakeOptimizer, fused, pool_of
from headstart.types import Learner, Meta, Tasks


class Job(NamedTuple):
    """What a configuration describes."""

    config: Config
    device: torch.device
    tasks: Tasks
    learner: Learner
    parameters: int
    """Number of trainable values of the model."""
    notes: tuple[str, ...] = ()
    """What there is to say of the tasks, and what the method says of the model."""


def build(config: Config, allow: Callable[[int], None] | None = None) -> Job:
    """Make what a configuration describes.

    Args:
        config: the options.
        allow: told how many bytes the weights will have, to raise where that cannot be right.

    Raises:
        UsageError: a device that is not there, a method that cannot do the tasks, or batch normalisation over padding.
        ShapeError: a model that cannot take the tasks' inputs.
    """
    device = find_device(config.run.device)
    shots, varied = config.tasks.options.get("shots"), config.tasks.options.get("sampler") == "meta_dataset"
    by_batch = config.model is not None and config.model.options.get("norm") == "batch"
    if (varied or isinstance(shots, tuple)) and by_batch and config.method.options.get("buffers") != "frozen":
        given = "--sampler is meta_dataset" if varied or not shots else f"--shots is {shots[0]}-{shots[1]}"
        raise ConfigError(
            f"{given}, so tasks have different numbers of examples, and --norm batch would "
            "count the padding of the smaller ones; take --norm group, layer or instance, or one number of shots"
        )
    tasks = make_tasks(config, device)
    notes = list[str](tasks.details.get("notes", ()))
    if allow is not None:
        allow(size_of(config, tasks))
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


def make_tasks(config: Config, device: torch.device, seed: int | None = None) -> Tasks:
    """Make the tasks of a configuration; ``seed`` draws others, of the same split."""
    factory = load("task", config.tasks.name)
    own = config.run.seed
    given = {"seed": own if seed is None else seed, "split_seed": own, "device": device}
    accepted = inspect.signature(factory).parameters
    return factory(**config.tasks.options, **{name: value for name, value in given.items() if name in accepted})


def target_of(parts: Mapping[str, Mapping[str, Any]]) -> Target:
    """Return what the tasks of a configuration's parts are to be predicted; where it depends on data, they are made."""
    if len(targets := find("task", parts["tasks"]["name"]).targets) == 1:
        return targets[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training makes the tasks again, and warns then
        own = resolve({owner: part for owner, part in parts.items() if owner in ("tasks", "run")})
        return make_tasks(own, torch.device("cpu")).kind


def make_learner(
    config: Config, tasks: Tasks, device: torch.device, explain: Callable[[str], None] | None = None
) -> tuple[Learner, int]:
    """Make the learner of a configuration for tasks like these, and count its model's parameters.

    ``explain`` is told what the method chooses by itself, line by line.
    """
    ways = None if config.tasks.options.get("train_ways") is not None else tasks.output_size
    seed = config.run.seed
    return assembled(config.method, config.model, tasks, ways=ways, seed=seed, device=device, explain=explain)


def for_new_tasks(config: Config) -> Config:
    """Return a configuration whose learner normalises by the support set where it did by batches (``--buffers batch``).

    So a prediction does not depend on which others are asked for.
    """
    if config.option("method.buffers") != "batch":
        return config
    own = config.method
    return config._replace(method=own._replace(options={**own.options, "buffers": "task"}))


def size_of(config: Config, tasks: Tasks) -> int:
    """Return how many bytes θ and M of a configuration have at the start, without memory for their numbers."""
    blank = torch.device("meta")
    with blank:
        meta = make_learner(config, tasks, blank)[0].init(None)
    return sum(value.numel() * value.itemsize for part in meta for value in part.values())


def assembled(
    method: Part,
    model: Part | None,
    tasks: Tasks,
    *,
    ways: int | None,
    seed: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    explain: Callable[[str], None] | None = None,
) -> tuple[Learner, int]:
    """Make a learner for tasks like these, and count its parameters.

    A method's factory is given what its signature asks for: the model, the loss, sizes, device and type.

    Args:
        method: its name and options.
        model: the network's; ``None`` for methods that use none.
        tasks: what is known of the tasks; none is sampled.
        ways: number of classes; ``None``: the learner counts those of each batch.
        seed: decides the network's initial weights.
        device, dtype: where and in what precision to compute.
        explain: told what the method chooses by itself, line by line.

    Raises:
        ConfigError: a method that does not predict such targets.
        ShapeError: a model that cannot take the tasks' inputs.
    """
    row, factory = find("method", method.name), load("method", method.name)
    refuse_target(row, tasks.kind, tasks.name)
    refuse_ways(row, tasks)
    accepted = inspect.signature(factory).parameters
    given: dict[str, Any] = {
        "loss": "cross_entropy" if tasks.kind == "classification" else "mse",
        "ways": ways if tasks.kind == "classification" else None,
        "shared_classes": tasks.shared_classes,
        "inputs": prod(tasks.input_shape),
        "outputs": tasks.output_size,
        "classes": None if (pool := pool_of(tasks)) is None else pool.count,
        "device": device,
        "dtype": dtype,
        "explain": explain,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = None
        if model is not None:
            outputs = None if row.model == "embedding" else tasks.output_size
            make, encoder = load("model", model.name), tasks.details.get("encoder") or {}
            known = {"sha256": encoder.get("sha256")} if "sha256" in inspect.signature(make).parameters else {}
            module = make(tasks.input_shape, outputs, **model.options, **known)
            if model.name == "identity" and "module" in accepted and accepted["module"].default is None:
                module = None  # heads have intercepts, and alpaca a start, of their own for inputs as they are
        if module is not None:
            given["module"] = module = module.to(device=device, dtype=dtype)
            if {"inputs", "features"} <= accepted.keys():
                with torch.no_grad():
                    blank = torch.zeros(
                        1, *tasks.input_shape, device=device, dtype=torch.int64 if tasks.integers else dtype
                    )
                    out = copy.deepcopy(module).eval()(blank)
                given["features"] = out.numel()
                del given["inputs"]
        made = factory(**method.options, **{name: value for name, value in given.items() if name in accepted})
    if module is not None:
        made = started_by_inputs(made, module) if isinstance(module, ByInputs) else made
        return made, sum(p.numel() for p in module.parameters() if p.requires_grad)

    def init(generator: torch.Generator | None = None) -> Meta:
        return Meta(*({name: value.to(device) for name, value in part.items()} for part in made.init(generator)))

    return made._replace(init=init), sum(value.numel() for value in made.init(None).params.values())


def refuse_target(row: Method, target: Target, tasks: str) -> None:
    """Refuse a method that does not predict such targets.

    Raises:
        ConfigError: it does not.
    """
    if target not in row.targets:
        tried = find("data", find("task", tasks).kind).compared
        others = [name for name in tried if target in find("method", name).targets]
        does = "classifies" if row.targets == ("classification",) else "predicts numbers"
        raise ConfigError(
            f"the method {row.name!r} {does}, but the tasks {tasks!r} are {target}; take another --method,"
            f" such as {', '.join(others)} (`headstart list methods` has more)"
        )


def refuse_ways(row: Method, tasks: Tasks) -> None:
    """Refuse a method that is made for one number of classes where that differs by task.

    Raises:
        ConfigError: it is, and does.
    """
    ways = tasks.details.get("ways")
    if isinstance(ways, tuple) and row.classes == "trained":
        others = [other.name for other in rows("method") if other.classes == "any" and tasks.kind in other.targets]
        drawn = tasks.details.get("sampler") == "meta_dataset"
        why, fix = (" (--sampler meta_dataset)", "--sampler balanced, or ") if drawn else ("", "")
        raise ConfigError(
            f"the tasks {tasks.name!r} have {ways[0]} to {ways[1]} classes{why}, and the method"
            f" {row.name!r} is made for one number of them; take {fix}a method that takes"
            f" any number: {', '.join(others)}"
        )


def make_optimizer(config: Config) -> MakeOptimizer:
    """Return what makes the outer optimiser of a configuration."""
    outer = config.outer or Outer()
    kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    return fused(kinds[outer.optimizer], lr=outer.rate)


@contextlib.contextmanager
def reproducible(config: Config) -> Iterator[None]:
    """Within it, the same computation gives the same bits where PyTorch can; settings are put back afterwards."""
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    before = (cudnn.deterministic, cudnn.benchmark)
    cudnn.deterministic, cudnn.benchmark = True, False
    # how many threads share an operation may show in its bits
    torch.set_num_threads(config.run.threads or (1 if config.run.same_bits else threads))
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
        torch.set_num_threads(threads)
