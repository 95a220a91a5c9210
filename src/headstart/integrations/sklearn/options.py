"""What an estimator is asked to do, checked once, and the learner that does it."""

import inspect
from collections.abc import Mapping, Sequence
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import nn

from headstart.data.rows import Order
from headstart.errors import ConfigError, unknown_name
from headstart.models.mlp import mlp
from headstart.registry import load, rows
from headstart.types import Learner

Kind = Literal["classification", "regression"]
OnShort = Literal["error", "skip"]

#: What ``method="auto"`` means: closed forms, which adapt in one step and learn quickly across tasks.
AUTO: dict[Kind, str] = {"regression": "gaussian_process", "classification": "prototypes"}
#: Methods that make a new head of a task's rows, and so need a network without one and take any classes.
HEADS = frozenset({"prototypes", "nearest", "ridge", "svm", "logistic", "dkt"})

_HIDDEN = (32, 32)


class Options(NamedTuple):
    """An estimator's parameters."""

    method: str
    hidden: tuple[int, ...] | None
    support: tuple[int, int]
    """The least and the most support rows."""
    order: Order
    steps: int | None
    tasks_per_step: int
    outer_rate: float | None
    inner_steps: int
    inner_rate: float
    validation_fraction: float
    on_short: OnShort
    pooled_rows: int
    verbose: bool


class Spec(NamedTuple):
    """All that a learner is made of."""

    method: str
    kind: Kind
    inputs: int
    outputs: int
    """Target values, or classes."""
    hidden: tuple[int, ...] | None
    """Widths of the hidden layers; ``None``: those of the method."""
    inner_steps: int
    inner_rate: float

    @property
    def any_classes(self) -> bool:
        """Whether a task's classes may be new: nothing in the network stands for a class."""
        return self.method in HEADS


def options_of(params: Mapping[str, Any], kind: Kind) -> Options:
    """Check an estimator's parameters.

    Raises:
        ConfigError: a value of the wrong type or out of range.
        UnknownNameError: a method that does not exist.
    """
    method = params["method"]
    if not isinstance(method, str):
        raise ConfigError(f"method must be 'auto' or the name of a method, got {method!r}")
    return Options(
        method=AUTO[kind] if method == "auto" else _registered(method),
        hidden=None if params["hidden"] is None else _widths(params["hidden"]),
        support=_range(params["support"]),
        order=cast(Order, _among("order", params["order"], get_args(Order))),
        steps=None if params["steps"] is None else _whole("steps", params["steps"], 0),
        tasks_per_step=_whole("tasks_per_step", params["tasks_per_step"], 1),
        outer_rate=None if params["outer_rate"] is None else _positive("outer_rate", params["outer_rate"]),
        inner_steps=_whole("inner_steps", params["inner_steps"], 0),
        inner_rate=_positive("inner_rate", params["inner_rate"]),
        validation_fraction=_fraction(params["validation_fraction"]),
        on_short=cast(OnShort, _among("on_short", params["on_short"], get_args(OnShort))),
        pooled_rows=_whole("pooled_rows", params["pooled_rows"], 1),
        verbose=bool(params["verbose"]),
    )


def spec_of(options: Options, kind: Kind, inputs: int, outputs: int) -> Spec:
    """Return what the learner for such data is made of."""
    return Spec(options.method, kind, inputs, outputs, options.hidden, options.inner_steps, options.inner_rate)


@lru_cache(maxsize=64)
def learner_of(spec: Spec, seed: int = 0) -> Learner:
    """Make the learner, in float64; ``seed`` decides its network's initial weights.

    Raises:
        ConfigError: a method that cannot do this kind of task.
    """
    factory = load("method", spec.method)
    accepted = inspect.signature(factory).parameters
    passes_on = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    if spec.kind == "regression" and "loss" not in accepted and not passes_on and "outputs" not in accepted:
        raise ConfigError(f"method {spec.method!r} classifies; FewShotRegressor needs one that regresses, such as maml")
    handed_on = {"loss", "steps", "rate", "taskmap"} if passes_on else set[str]()
    offered = _offered(spec, accepted)
    options = {name: value for name, value in offered.items() if name in accepted or name in handed_on}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # a method that asks for the number of inputs makes its own network
        if "inputs" not in accepted:
            options["module"] = _network(spec)
            if options["module"] is None and accepted["module"].default is inspect.Parameter.empty:
                raise ConfigError(f"method {spec.method!r} needs a network; give hidden={_HIDDEN} or the like")
        learner = factory(**options)
    if spec.kind == "classification" and learner.distribution is not None:
        raise ConfigError(f"method {spec.method!r} regresses; FewShotClassifier needs one that classifies")
    return learner


def _offered(spec: Spec, accepted: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Return what there is for a factory to take."""
    offered: dict[str, Any] = {
        "loss": "cross_entropy" if spec.kind == "classification" else "mse",
        "steps": spec.inner_steps,
        "rate": spec.inner_rate,
        "taskmap": "vmap",
        "inputs": spec.inputs,
        "outputs": spec.outputs,
        "ways": None,
        "explain": None,
        "dtype": torch.float64,
    }
    if spec.hidden is not None:
        one_width = "hidden" in accepted and isinstance(accepted["hidden"].default, int)
        if one_width and len(spec.hidden) != 1:
            raise ConfigError(f"method {spec.method!r} has one width for all layers; give hidden=({_HIDDEN[0]},)")
        offered["hidden"] = spec.hidden[0] if one_width else spec.hidden
    return offered


def _network(spec: Spec) -> nn.Module | None:
    """Return an embedding for methods that make a head, and else a network with one; ``None``: the features as is."""
    hidden = _HIDDEN if spec.hidden is None else spec.hidden
    if spec.method not in HEADS:
        return mlp(spec.inputs, spec.outputs, hidden).double()
    return mlp(spec.inputs, None, hidden).double() if hidden else None


def _registered(method: str) -> str:
    known = [row.name for row in rows("method")]
    if method not in known:
        raise unknown_name("method", method, ["auto", *known])
    return method


def _whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)


def _positive(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < float(value) < float("inf"):
        raise ConfigError(f"{name} must be a number above 0, got {value!r}")
    return float(value)


def _fraction(value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < 1:
        raise ConfigError(f"validation_fraction must be a number from 0 up to, but not, 1; got {value!r}")
    return float(value)


def _widths(value: Any) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"hidden must be a sequence of layer widths such as (64, 64), got {value!r}")
    return tuple(_whole("a width in hidden", width, 1) for width in value)


def _range(value: Any) -> tuple[int, int]:
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        low, high = (_whole("an end of support", end, 1) for end in value)
        if low <= high:
            return low, high
        raise ConfigError(f"support must go from less to more rows, got {value!r}")
    least = _whole("support", value, 1)
    return least, least


def _among(name: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, known))}; got {value!r}")
    return value
