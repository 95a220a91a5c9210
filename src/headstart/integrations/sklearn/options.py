"""What an estimator is asked to do, checked once, and the learner that does it."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from annotated_types import Ge, Le, Lt, MaxLen

from headstart.data.kind import unsampled
from headstart.data.rows import Order
from headstart.errors import ConfigError
from headstart.registry import Target, default_method, find, load
from headstart.schema import Count, Positive, Size, Whole, allowed, checked, options_of as options_of_factory
from headstart.training.build import assembled
from headstart.training.config import Part
from headstart.types import Learner, Tasks

_HIDDEN = (32, 32)
Hidden: TypeAlias = Annotated[tuple[Size, ...], MaxLen(98)]


class Options(NamedTuple):
    """An estimator's parameters."""

    method: str
    support: Count | tuple[Count, Count]
    order: Order
    tasks_per_step: Count
    inner_steps: Whole
    inner_rate: Positive
    validation_fraction: Annotated[float, Ge(0), Lt(1)]
    on_short: Literal["error", "skip"]
    pooled_rows: Count
    verbose: bool | Whole
    hidden: Hidden | None = None
    steps: Whole | None = None
    outer_rate: Positive | None = None

    @property
    def supports(self) -> tuple[int, int]:
        """The least and the most support rows."""
        return (self.support, self.support) if isinstance(self.support, int) else self.support


class Spec(NamedTuple):
    """All that a learner is made of."""

    method: str
    kind: Target
    inputs: Size
    outputs: Size
    """Target values, or classes."""
    hidden: Hidden | None
    """Widths of the hidden layers; ``None``: those of the method."""
    inner_steps: Annotated[int, Ge(0), Le(10_000)]
    inner_rate: float

    @property
    def any_classes(self) -> bool:
        """Whether a task's classes may be new: nothing in the network stands for a class."""
        return find("method", self.method).classes == "any"


def options_of(params: Mapping[str, Any], kind: Target) -> Options:
    """Check an estimator's parameters; a value of the wrong type or out of range is a `ConfigError`."""
    found: dict[str, Any] = {}
    for name, option in options_of_factory(Options).items():
        value = params[name].item() if isinstance(params[name], np.generic) else params[name]
        try:
            found[name] = None if value is None is option.default else checked(option, value)
            if isinstance(value, str) and found[name] != value:
                raise ConfigError(f"is {value!r}, but must be {allowed(option.type)}")
        except ConfigError as error:
            raise ConfigError(f"{name} {error}") from error
    if found["method"] == "auto":
        found["method"] = default_method(find("data", "tables"), kind)
    find("method", found["method"])
    return Options(**found)


@lru_cache(maxsize=64)
def learner_of(spec: Spec, ways: int | None = None, seed: int = 0, device: str = "cpu") -> Learner:
    """Make the learner, in float64, its first weights by ``seed``; one that cannot do such tasks is a `ConfigError`.

    Args:
        spec: what it is made of.
        ways: the number of a task's classes where they are not those of `fit`.
        seed: decides the network's initial weights.
        device: where they are; on ``"meta"`` they have no numbers.
    """
    row = find("method", spec.method)
    if spec.kind not in row.targets:
        does, needs, estimator = "classifies", "regresses", "FewShotRegressor"
        if spec.kind == "classification":
            does, needs, estimator = needs, does, "FewShotClassifier"
        raise ConfigError(f"method {spec.method!r} {does}; {estimator} needs one that {needs}, such as maml")
    accepted = options_of_factory(load("method", spec.method))
    offered = {"steps": spec.inner_steps, "rate": spec.inner_rate, "taskmap": "vmap"}
    options: dict[str, Any] = {name: value for name, value in offered.items() if name in accepted}
    hidden = _HIDDEN if spec.hidden is None else spec.hidden
    model = Part("mlp", {"hidden": hidden})
    if row.model == "none":
        model = None
        if spec.hidden is not None and "hidden" in accepted:
            one = isinstance(accepted["hidden"].default, int)
            if one and len(hidden) != 1:
                raise ConfigError(f"method {spec.method!r} has one width for all layers; give hidden=({_HIDDEN[0]},)")
            options["hidden"] = hidden[0] if one else hidden
    elif row.model == "embedding" and not hidden:
        model = Part("identity", {})
    method = Part(spec.method, options)
    like = like_of(spec, ways)
    return assembled(
        method, model, like, ways=like.output_size, seed=seed, device=torch.device(device), dtype=torch.float64
    )[0]


def like_of(spec: Spec, ways: int | None = None) -> Tasks:
    """Return what is known of the tasks; ``ways`` as in `learner_of`."""
    shared = spec.kind == "classification" and ways is None
    return Tasks(spec.method, unsampled, spec.kind, (spec.inputs,), ways or spec.outputs, {}, shared_classes=shared)
