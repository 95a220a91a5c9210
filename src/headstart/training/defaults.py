"""Which options go with which tasks, model and method, and their defaults: one visible table.

A row names every option that its tasks, model or method take. An option that is set but that no chosen row names is
refused, so nothing that a user asks for is silently left out.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

from headstart.errors import ConfigError
from headstart.registry import find
from headstart.training.config import TrainConfig, flag, make_config
from headstart.training.named_tasks import with_data

Row: TypeAlias = dict[str, Any]

_IMAGES: Row = {"ways": 5, "shots": 1, "queries": 15, "on_short": "error"}

#: What the tasks take. The sinusoid's are those of Finn, Abbeel, Levine 2017, the curves' of Vuorio et al. 2019.
TASKS: dict[str, Row] = {
    "sinusoid": {"shots": 10, "queries": 10, "frequency": 1.0},
    "curves": {"shots": 10, "queries": 10, "noise": 0.3},
    "gp_curves": {"shots": "3-20", "queries": 50, "noise": 0.1, "curve_kernel": "rbf"},
    "plateaus": {"shots": 10, "queries": 20, "noise": 0.3},
    "icons": {**_IMAGES, "queries": 7, "rotations": True},
    "omniglot": {**_IMAGES, "queries": 5, "data": None, "split": "characters"},
    "table": {
        "shots": 5,
        "queries": None,
        "on_short": "error",
        "data": None,
        "task_column": None,
        "target": None,
        "columns": None,
        "time_column": None,
        "support_first": None,
        "target_kind": "auto",
        "on_duplicates": "error",
        "validation_share": 0.2,
        "test_share": 0.2,
    },
    "folder": {**_IMAGES, "data": None, "image_size": 28, "channels": 3, "strict": False},
}

#: What the models take.
MODELS: dict[str, Row] = {
    "mlp": {"hidden": "40,40"},
    "conv4": {"filters": 32, "downsample": "stride", "norm": "batch"},
    "resnet12": {"widths": "64,160,320,640", "norm": "batch"},
    "soft_forest": {"soft_trees": 16, "depth": 4},
    "identity": {},
}

_MODULE: Row = {"task_map": "vmap", "buffers": "batch"}
_OUTER: Row = {
    "optimizer": "adam",
    "outer_rate": 0.001,
    "schedule": "constant",
    "tasks_per_step": None,
    "steps": None,
}
_INNER: Row = {**_MODULE, "inner_steps": None, "inner_rate": None}
_EXACT: Row = {**_INNER, **_OUTER, "adjoint": "unrolled"}

#: What the methods take; ``None`` where the tasks decide (see `_BY_KIND`), or the method itself does.
METHODS: dict[str, Row] = {
    "maml": _EXACT,
    "fomaml": {**_INNER, **_OUTER},
    "imaml": {**_INNER, **_OUTER, "strength": 2.0, "damping": 1.0, "iterations": 5},
    "anil": _EXACT,
    "boil": _EXACT,
    "meta_sgd": _EXACT,
    "meta_curvature": _EXACT,
    "maml_plus_plus": {**_EXACT, "schedule": "cosine"},
    "alfa": _EXACT,
    "t_net": _EXACT,
    "mt_net": _EXACT,
    "warp_grad": _EXACT,
    "cavia": _EXACT,
    "mmaml": _EXACT,
    "l2f": _EXACT,
    "proto_maml": _EXACT,
    # it chooses how to differentiate by the number of steps
    "aware": {**_EXACT, "schedule": "cosine", "adjoint": None},
    "reptile": {**_INNER, **_OUTER, "optimizer": "sgd", "outer_rate": 1.0, "schedule": "linear"},
    "prototypes": {"train_ways": None, **_MODULE, **_OUTER},
    "es_maml": {**_INNER, **_OUTER, "samples": 32, "deviation": 0.05},
    "ridge": {**_MODULE, **_OUTER},
    "logistic": {**_MODULE, **_OUTER, "kernel": "linear"},
    "svm": {**_MODULE, **_OUTER, "kernel": "linear"},
    "gaussian_process": {**_OUTER, "kernel": "exponential", "mean": "network"},
    "dkt": {**_MODULE, **_OUTER, "kernel": "rbf"},
    "alpaca": {**_MODULE, **_OUTER},
    "cnp": _OUTER,
    "anp": _OUTER,
    "forest": {**_OUTER, "trees": 50, "leaves": 16},
    "search": {"estimator": "svm", "trials": 50},
    "joint": {**_INNER, **_OUTER},
    "scratch": _INNER,
    "nearest": {},
}

#: What curves and images start from, in the outer and the inner loop.
_CURVES: Row = {"model": "mlp", "steps": 10_000, "tasks_per_step": 25, "inner_steps": 1, "inner_rate": 0.01}
_PICTURES: Row = {"model": "conv4", "steps": 1000, "tasks_per_step": 4, "inner_steps": 5, "inner_rate": 0.1}
_TABLES: Row = {**_CURVES, "steps": 500, "tasks_per_step": 16, "inner_steps": 5, "inner_rate": 0.05}
_BY_KIND: dict[str, Row] = {
    "sinusoid": _CURVES,
    # the best rate for maml and mmaml alike, of four on validation tasks
    "curves": {**_CURVES, "inner_steps": 5, "inner_rate": 0.005},
    "gp_curves": {**_CURVES, "tasks_per_step": 16, "inner_steps": 5},
    "plateaus": {**_CURVES, "steps": 2000},
    "table": _TABLES,
    "icons": _PICTURES,
    "omniglot": _PICTURES,
    "folder": _PICTURES,
}

#: Where a method starts from something else than the tasks' defaults.
_EXCEPTIONS: dict[tuple[str, str], Row] = {
    ("reptile", "curves"): {"inner_steps": 10, "inner_rate": 0.02},
    ("reptile", "images"): {"inner_rate": 0.001},
    ("imaml", "curves"): {"inner_steps": 16},
    ("imaml", "images"): {"inner_steps": 16},
    ("imaml", "tables"): {"inner_steps": 16},
    # rates by step mean nothing with a single one
    ("maml_plus_plus", "curves"): {"inner_steps": 5},
    # what moves is not weights, so the rate is of another kind
    ("cavia", "curves"): {"inner_rate": 0.1},
    ("cavia", "images"): {"inner_rate": 1.0},
    ("gaussian_process", "curves"): {"steps": 1000, "outer_rate": 0.01, "schedule": "cosine"},
    # chosen on other splits of the panels than `headstart bench tables` reports; all tasks of a table at once
    ("gaussian_process", "tables"): {"steps": 300, "outer_rate": 0.02, "schedule": "cosine", "tasks_per_step": 128},
    ("alpaca", "tables"): {"steps": 300, "outer_rate": 0.02, "schedule": "cosine", "tasks_per_step": 128},
    ("cnp", "curves"): {"steps": 20_000, "schedule": "cosine"},
    ("anp", "curves"): {"steps": 10_000, "schedule": "cosine"},
    ("cnp", "tables"): {"steps": 500},
    ("anp", "tables"): {"steps": 500},
    ("forest", "curves"): {"steps": 200, "outer_rate": 0.01},
    ("forest", "tables"): {"steps": 100},
    # the best of a small grid on validation tasks of icons, so that the baselines are not made to look weak
    ("joint", "images"): {"inner_steps": 20, "inner_rate": 0.5},
    ("scratch", "images"): {"inner_steps": 20, "inner_rate": 0.5},
}

#: Methods that use no model at all.
MODEL_FREE = frozenset({"nearest", "gaussian_process", "cnp", "anp", "forest", "search"})


def resolve(config: TrainConfig) -> TrainConfig:
    """Return ``config`` with every option that applies filled in; those that do not apply are ``None``.

    A folder given as tasks becomes the tasks ``folder`` with that data, and a CSV or Parquet file the tasks ``table``.

    Raises:
        UnknownNameError: tasks, a method or a model that do not exist.
        ConfigError: an option that the tasks, the model or the method do not take.

    >>> resolve(TrainConfig(tasks="sinusoid")).inner_rate
    0.01
    """
    config = with_data(config)
    find("task", config.tasks)
    find("method", config.method)
    kind = _BY_KIND.get(config.tasks, {})
    model = None if config.method in MODEL_FREE else config.model or kind.get("model")
    if model is not None:
        find("model", model)
    _refuse("tasks", config.tasks, TASKS, config)
    _refuse("method", config.method, METHODS, config)
    _refuse("model", model, MODELS, config)
    if model is None and config.model is not None:
        raise ConfigError(f"--model does not apply to the method {config.method!r}, which uses no model; leave it out")
    defaults = {
        **TASKS[config.tasks],
        **MODELS.get(model or "", {}),
        "model": model,
        **_of_method(config, kind),
    }
    values = {name: defaults.get(name) if value is None else value for name, value in config.model_dump().items()}
    if isinstance(values["shots"], str):
        _check_range_of_shots(values, kind)
    if values["tasks"] == "table":
        _check_table(values, config)
    return make_config(values)


def compared(config: TrainConfig, classes: bool = False) -> tuple[str, ...]:
    """Return the methods that are compared on the tasks of ``config`` where nobody names any.

    Args:
        config: the options, of which the tasks decide.
        classes: whether a table's target is classes.

    >>> compared(TrainConfig(tasks="sinusoid"))
    ('maml', 'joint', 'scratch')
    """
    kind = _BY_KIND.get(with_data(config).tasks, {})
    if kind is _TABLES:
        return ("prototypes" if classes else "gaussian_process"), "forest", "maml", "joint", "scratch"
    return ("maml", "joint", "scratch") if _are_curves(kind) else ("maml", "prototypes", "joint", "scratch", "nearest")


def taken_by(config: TrainConfig) -> frozenset[str]:
    """Return the options that the tasks, the model and the method of ``config`` take between them.

    Raises:
        UnknownNameError: tasks, a method or a model that do not exist.
    """
    config = with_data(config)
    find("task", config.tasks)
    find("method", config.method)
    rows_taken = [TASKS[config.tasks], METHODS[config.method]]
    model = config.model or _BY_KIND[config.tasks]["model"]
    if config.method not in MODEL_FREE:
        find("model", model)
        rows_taken.append(MODELS[model])
    somebodys = {name for table in (TASKS, MODELS, METHODS) for row in table.values() for name in row}
    everybodys = set(TrainConfig.model_fields) - somebodys - ({"model"} if config.method in MODEL_FREE else set())
    return frozenset(everybodys.union(*rows_taken))


def _check_range_of_shots(values: Row, kind: Row) -> None:
    """Refuse tasks with different numbers of examples where tasks or model cannot have them."""
    if values["tasks"] == "gp_curves":
        return
    if _are_curves(kind):
        raise ConfigError(
            f"--shots is {values['shots']!r}, but {values['tasks']} takes one number of shots, such as 10"
        )
    if values["norm"] == "batch" and values["buffers"] != "frozen":
        raise ConfigError(
            f"--shots is {values['shots']!r}, so tasks have different numbers of examples, and --norm batch would "
            "count the padding of the smaller ones; take --norm group, layer or instance, or one number of shots"
        )


def _check_table(values: Row, config: TrainConfig) -> None:
    """Refuse a table without a task column or a target; ``support_first`` takes the place of ``shots``."""
    for name in ("task_column", "target"):
        if values[name] is None:
            raise ConfigError(f"a table needs {flag(name)}: {TrainConfig.model_fields[name].description}")
    if values["support_first"] is not None:
        if config.shots is not None:
            raise ConfigError("--shots draws support rows at random, --support-first takes the first; leave one out")
        values["shots"] = None


def _are_curves(kind: Row) -> bool:
    return kind.get("model") == _CURVES["model"]


def _of_method(config: TrainConfig, kind: Row) -> Row:
    """Return the method's options: its own defaults, and the tasks' where it has none."""
    row = METHODS[config.method]
    special = _EXCEPTIONS.get((config.method, "curves" if _are_curves(kind) else "images"), {})
    if kind is _TABLES:
        special = special | _EXCEPTIONS.get((config.method, "tables"), {})
    return {name: special.get(name, kind.get(name) if value is None else value) for name, value in row.items()}


def _refuse(what: str, name: str | None, table: Mapping[str, Row], config: TrainConfig) -> None:
    """Refuse options that belong to other rows of ``table`` than the chosen one."""
    taken = table[name] if name is not None else {}
    others = {option for row in table.values() for option in row} - set(taken)
    wrong = [option for option in TrainConfig.model_fields if option in others and getattr(config, option) is not None]
    if wrong:
        owner = f"{what} {name!r}" if name is not None else f"method {config.method!r}"
        takes = ", ".join(flag(option) for option in sorted(taken)) or "no option of this kind"
        raise ConfigError(
            f"{flag(wrong[0])} does not apply to the {owner}; leave it out ({name or 'it'} takes {takes})"
        )
