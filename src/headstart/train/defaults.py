"""Which defaults go with which tasks, model and method, as one visible table."""

import os
from typing import Any, TypeAlias

from headstart.errors import ConfigError
from headstart.registry import find, rows
from headstart.train.config import Options, TrainConfig, flag

Layer: TypeAlias = dict[str, Any]

_IMAGES: Layer = {
    "model": "conv4", "ways": 5, "shots": 1, "queries": 15, "on_short": "error", "rotations": False,
    "steps": 1000, "tasks_per_step": 4,
}  # fmt: skip

#: By tasks. The sinusoid's are those of Finn, Abbeel, Levine 2017, but for fewer steps (theirs: 70,000).
TASKS: dict[str, Layer] = {
    "sinusoid": {"model": "mlp", "shots": 10, "queries": 10, "steps": 10_000, "tasks_per_step": 25},
    "icons": {**_IMAGES, "filters": 32},
    "omniglot": {**_IMAGES, "queries": 5, "rotations": True},
    "folder": {**_IMAGES, "filters": 32, "image_size": 28, "channels": 1, "strict": True},
}

#: By model.
MODELS: dict[str, Layer] = {
    "mlp": {"hidden": "40,40"},
    "conv4": {"filters": 64, "downsample": "pool", "norm": "batch"},
}

_OUTER: Layer = {"optimizer": "adam", "outer_rate": 0.001, "schedule": "constant", "task_map": "vmap", "buffers": "batch"}
_UNROLLED: Layer = {**_OUTER, "adjoint": "unrolled"}

#: By method.
METHODS: dict[str, Layer] = {
    "maml": _UNROLLED,
    "fomaml": _OUTER,
    "anil": _UNROLLED,
    "boil": _UNROLLED,
    "meta_sgd": _UNROLLED,
    "reptile": {**_OUTER, "optimizer": "sgd", "outer_rate": 1.0, "schedule": "linear"},
    "prototypes": _OUTER,
    "joint": _OUTER,
    "scratch": {"task_map": "vmap", "buffers": "batch"},
    "nearest": {},
}

#: Methods with an inner loop, and how it goes by default: on curves, and on images.
_INNER = frozenset(METHODS) - {"prototypes", "nearest"}
_INNER_CURVES: Layer = {"inner_steps": 1, "inner_rate": 0.01}
_INNER_IMAGES: Layer = {"inner_steps": 5, "inner_rate": 0.1}

#: Options that belong to one model; they fill in only where that model is used.
_MODEL_OPTIONS = frozenset(name for layer in MODELS.values() for name in layer)


def resolve(config: TrainConfig) -> TrainConfig:
    """Return ``config`` with every option that applies filled in; those that do not apply stay ``None``.

    A folder given as tasks becomes the tasks ``folder`` with that data.

    Raises:
        UnknownNameError: tasks, a method or a model that do not exist.
        ConfigError: an option that does not go with the others.
    """
    config = _with_folder(config)
    find("task", config.tasks)
    find("method", config.method)
    by_tasks = TASKS.get(config.tasks, {})
    model = config.model or by_tasks.get("model")
    if model is None:
        raise ConfigError(f"tasks {config.tasks!r} have no default model; name one with --model")
    find("model", model)
    by_model = MODELS.get(model, {})
    table = {
        **by_model,
        **{name: value for name, value in by_tasks.items() if name in by_model or name not in _MODEL_OPTIONS},
        **_inner(config, by_tasks),
        **METHODS.get(config.method, {}),
        "model": model,
    }
    values = config.model_dump()
    filled = {name: table.get(name) if value is None else value for name, value in values.items()}
    _refuse_other_models(config, model)
    return TrainConfig.model_validate(filled)


def _with_folder(config: TrainConfig) -> TrainConfig:
    if config.data is not None:
        config = config.model_copy(update={"data": os.path.abspath(os.path.expanduser(config.data))})
    names = {row.name for row in rows("task")}
    path = os.path.expanduser(config.tasks)
    if config.tasks in names or not os.path.isdir(path):
        if config.tasks not in names and os.sep in config.tasks:
            raise ConfigError(f"TASKS is {config.tasks!r}, which is neither a folder nor one of {', '.join(sorted(names))}")
        return config
    if config.data is not None:
        raise ConfigError(f"TASKS is the folder {config.tasks!r}, so --data must not be set")
    return config.model_copy(update={"tasks": "folder", "data": os.path.abspath(path)})


def _inner(config: TrainConfig, by_tasks: Layer) -> Layer:
    if config.method not in _INNER:
        return {}
    return _INNER_CURVES if by_tasks.get("model") == "mlp" else _INNER_IMAGES


def _refuse_other_models(config: Options, model: str) -> None:
    foreign = [name for name in sorted(_MODEL_OPTIONS - set(MODELS.get(model, {}))) if getattr(config, name) is not None]
    if model in MODELS and foreign:
        raise ConfigError(f"{flag(foreign[0])} does not apply to the model {model!r}; leave it out")
