"""What is needed to turn rows of a table into numbers, as learned from the training tasks; JSON in and out."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast, get_args

from headstart.errors import FileError

FeatureKind = Literal["number", "boolean", "date", "category"]
TargetKind = Literal["regression", "classification"]

FORMAT = "headstart-table-1"


class Feature(NamedTuple):
    """How one column becomes inputs."""

    column: str
    kind: FeatureKind
    mean: float = 0.0
    """Of the training tasks' values; a missing value takes its place. 0 for a category."""
    scale: float = 1.0
    """Their standard deviation. 1 for a category."""
    categories: tuple[str, ...] = ()
    """Those of the training tasks, sorted; one input each."""
    date_format: str = ""
    """Which of the formats of `headstart.data.tables.values` dates are in."""
    missing: bool = False
    """Whether an input tells where the value is missing: if it is so in some row of the training tasks."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs."""
        values = tuple(f"{self.column}={name}" for name in self.categories) or (self.column,)
        return (*values, f"{self.column} missing") if self.missing else values


class Schema(NamedTuple):
    """How a table's rows become examples of tasks."""

    task_column: str
    target: str
    time_column: str | None
    kind: TargetKind
    features: tuple[Feature, ...]
    mean: float = 0.0
    """Of the training tasks' targets; 0 in classification."""
    scale: float = 1.0
    """Their standard deviation; 1 in classification."""
    classes: tuple[str, ...] = ()
    """Those of the training tasks, sorted, then those that only other tasks have; empty in regression."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of all inputs."""
        return tuple(name for feature in self.features for name in feature.inputs)


def schema_to_json(schema: Schema) -> dict[str, Any]:
    """Return a schema as a JSON object.

    >>> schema = Schema("pig", "weight", None, "regression", (Feature("week", "number", 6.5, 3.5),), 60.0, 25.0)
    >>> schema_from_json(schema_to_json(schema), "here") == schema
    True
    """
    features = [{**feature._asdict(), "categories": list(feature.categories)} for feature in schema.features]
    return {"format": FORMAT, **schema._asdict(), "features": features, "classes": list(schema.classes)}


def schema_from_json(value: Any, where: str) -> Schema:
    """Return the schema that a JSON object holds; nothing may be missing, unknown or of another type.

    Raises:
        FileError: anything else, with ``where`` it came from and the key.
    """
    try:
        fields = _checked(value, {"format": _one_of(FORMAT), **_SCHEMA}, "")
        features: list[dict[str, Any]] = [
            _checked(one, _FEATURE, f"features[{place}].") for place, one in enumerate(fields.pop("features"))
        ]
        found = Schema(
            features=tuple(Feature(categories=tuple(one.pop("categories")), **one) for one in features),
            classes=tuple(fields.pop("classes")),
            **{name: fields[name] for name in _SCHEMA if name in fields},
        )
        _check_whole(found)
        return found
    except ValueError as problem:
        raise FileError(f"{where} does not describe a table: {problem}") from problem


Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _above_zero(value: Any) -> bool:
    return _number(value) and value > 0


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value)) and len(set(value)) == len(value)


def _one_of(*names: str) -> Check:
    return lambda value: isinstance(value, str) and value in names


_SCHEMA: dict[str, Check] = {
    "task_column": _text,
    "target": _text,
    "time_column": lambda value: value is None or _text(value),
    "kind": _one_of(*get_args(TargetKind)),
    "features": lambda value: isinstance(value, list) and bool(value),
    "mean": _number,
    "scale": _above_zero,
    "classes": _texts,
}
_FEATURE: dict[str, Check] = {
    "column": _text,
    "kind": _one_of(*get_args(FeatureKind)),
    "mean": _number,
    "scale": _above_zero,
    "categories": _texts,
    "date_format": _text,
    "missing": lambda value: isinstance(value, bool),
}


def _checked(value: Any, checks: dict[str, Check], within: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != checks.keys():
        there: set[str] = set(value) if isinstance(value, dict) else set()
        odd = sorted(str(key) for key in there ^ checks.keys())
        raise ValueError(f"{within}{odd[0]} is {'unknown' if odd[0] in there else 'missing'}" if odd else "no object")
    for key, check in checks.items():
        if not check(value[key]):
            raise ValueError(f"{within}{key} is {value[key]!r}")
    return cast(dict[str, Any], dict(value))


def _check_whole(schema: Schema) -> None:
    columns = [feature.column for feature in schema.features]
    if len(set(columns)) < len(columns) or schema.target in columns or schema.task_column in columns:
        raise ValueError("a column is there twice")
    if (schema.kind == "classification") != (len(schema.classes) >= 2):
        raise ValueError(f"{len(schema.classes)} classes in {schema.kind}")
    for feature in schema.features:
        if (feature.kind == "category") != bool(feature.categories):
            raise ValueError(f"column {feature.column!r} is a {feature.kind} of {len(feature.categories)} categories")
        if (feature.kind == "date") != bool(feature.date_format):
            raise ValueError(f"column {feature.column!r} is a {feature.kind} of date format {feature.date_format!r}")
