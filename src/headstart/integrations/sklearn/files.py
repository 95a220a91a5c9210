"""The files of a saved estimator.

::

    FOLDER/
      weights.safetensors    θ, M, what adaptation computed, and the scales of the targets
      estimator.json         parameters, classes, how columns become inputs, and what the weights belong to
      manifest.json          size and SHA-256 of both

Nothing in them is code, and nothing is unpickled.
"""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, TypeAdapter
from torch import Generator

from headstart.data.kind import nothing
from headstart.data.tables.schema import Feature, check_features, check_limits
from headstart.errors import FileError, HeadstartError, UsageError
from headstart.integrations.sklearn.data import Array, Encoding
from headstart.integrations.sklearn.learning import Fitted, double, own_ways
from headstart.integrations.sklearn.options import Spec, learner_of, like_of, options_of
from headstart.registry import Target
from headstart.training.files import from_json, from_safetensors, read_together, to_json, to_safetensors, write_together
from headstart.training.trust import Trust
from headstart.types import Adapted, Batch, Learner, Meta, Params

WEIGHTS, DESCRIPTION = "weights.safetensors", "estimator.json"
FORMAT = "headstart-estimator-1"
_LABELS: dict[str, type] = {"str": str, "object": str, "bool": bool, "int64": int, "float64": float}

_Count = Annotated[int, Field(ge=0, lt=2**31)]
_Sizes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class _Labels(NamedTuple):
    type: Literal["str", "object", "bool", "int64", "float64"]
    values: list[Any]


class _Description(NamedTuple):
    format: Literal["headstart-estimator-1"]
    estimator: str
    params: dict[str, Any]
    classes: _Labels | None
    trained: _Labels | None
    names: list[str] | None
    columns: tuple[str, ...]
    plain: bool
    features: tuple[Feature, ...]
    limits: tuple[float, float] | None
    losses: list[float]
    validation: list[float]
    spec: Spec
    seed: _Count
    rows: _Count
    flat: bool
    step: _Count
    trust: dict[str, Any] | None
    complete: bool


def write_estimator(
    folder: Path, estimator: str, params: Mapping[str, Any], fitted: Fitted, features: Array | None
) -> None:
    """Write an estimator to a new or empty folder.

    Raises:
        UsageError: the folder is not empty, or a parameter or label is of a kind that cannot be written.
        FileError: the folder cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there and not empty; choose a new folder")
    named, encoding = None if features is None else features.tolist(), fitted.encoding
    classes, trained = _described(fitted.classes), _described(fitted.trained)
    about = _Description(
        FORMAT, estimator, {name: _plain(value) for name, value in params.items()}, classes, trained, named,
        encoding.columns, encoding.plain, encoding.features, encoding.limits, fitted.losses, fitted.validation,
        fitted.spec, fitted.seed, fitted.rows, fitted.flat, fitted.adapted.step,
        None if fitted.trust is None else fitted.trust.to_json(), fitted.complete,
    )._asdict()  # fmt: skip
    about |= {name: about[name]._asdict() for name in ("spec", "classes", "trained") if about[name] is not None}
    about["features"] = [feature._asdict() for feature in encoding.features]
    try:
        text = to_json(about)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the estimator cannot be written as JSON: {error}") from error
    weights = to_safetensors(_tensors(fitted.meta, fitted.adapted, encoding))
    write_together(folder, {WEIGHTS: weights, DESCRIPTION: text})


def _plain(value: Any) -> Any:
    value = None if isinstance(value, (np.random.RandomState, np.random.Generator)) else value
    return value.item() if isinstance(value, np.generic) else value


def _described(classes: Array | None) -> _Labels | None:
    if classes is None:
        return None
    values = classes.tolist()
    kind = {"U": "str", "O": "object", "b": "bool", "i": "int64", "u": "int64", "f": "float64"}.get(classes.dtype.kind)
    if kind is None or not all(type(value) is _LABELS[kind] for value in values):
        raise UsageError(f"labels of type {classes.dtype} cannot be saved; take strings, numbers or booleans")
    return _Labels(kind, values)  # pyrefly: ignore [bad-argument-type]


def read_estimator(
    folder: Path, estimator: str, kind: Target, defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], Fitted, list[str] | None]:
    """Return the parameters, what was learned and the feature names that `write_estimator` wrote for an ``estimator``.

    Raises:
        FileError: a file that is missing, damaged, or not what such an estimator would have written.
    """
    path, contents = folder / DESCRIPTION, read_together(folder, (WEIGHTS, DESCRIPTION))
    told: Any = from_json(contents[DESCRIPTION], str(path))
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise FileError(f"{path} does not describe an estimator of this version; save it again")
    if told.get("estimator") != estimator:
        raise FileError(f"{path} describes a {told.get('estimator')!r}, not a {estimator!r}; load it as what it is")
    try:
        about = TypeAdapter(_Description).validate_json(contents[DESCRIPTION], strict=True)
        _check(about, kind, defaults)
        params = {name: tuple(value) if isinstance(value, list) else value for name, value in about.params.items()}
        options_of(params, kind)
        classes, trained = _classes(about.classes), _classes(about.trained)
        if len(trained if trained is not None else [0] * about.spec.outputs) != about.spec.outputs:
            raise ValueError(f"it has {about.spec.outputs} outputs for other classes")
        with torch.device("meta"):  # what is not true is known before memory is taken for it
            blank = learner_of(about.spec, device="meta").init(None)
        if sum(value.numel() for part in blank for value in part.values()) * 8 > len(contents[WEIGHTS]):
            raise ValueError("its sizes are too large for its weights")
        learner = learner_of(about.spec, own_ways(classes, trained))
        wanted = _expected(learner, about.spec, about.rows, 1 if classes is None else len(classes))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError, HeadstartError) as error:
        raise FileError(f"{path} does not describe an estimator: {error}") from error
    parts = _read_tensors(contents[WEIGHTS], str(folder / WEIGHTS), wanted)
    meta, scales = Meta(parts["params"], parts["structure"]), parts["scaling"]
    encoding = Encoding(about.columns, about.plain, about.features, about.limits, scales["y_mean"], scales["y_scale"])
    adapted = Adapted(meta, parts["adapted"], parts["buffers"], None, about.step)
    curves = about.losses, about.validation
    fitted = Fitted(
        about.spec, about.seed, meta, encoding, adapted, about.rows, about.flat, classes, trained, *curves,
        Trust.from_json(about.trust, str(path)), about.complete,
    )  # fmt: skip
    return params, fitted, about.names


def _check(about: _Description, kind: Target, defaults: Mapping[str, Any]) -> None:
    """Refuse parts that are well-formed, but cannot be of one estimator."""
    spec, state = about.spec, about.params.get("random_state")
    sizes = (spec.inputs, spec.outputs, *(spec.hidden or ()))
    if max(one * other for one, other in combinations(sizes, 2)) > 10**8:
        raise ValueError(f"its sizes are {sizes}, too large to be true")
    if spec.kind != kind or {about.classes is None, about.trained is None} != {kind == "regression"}:
        raise ValueError(f"it is of kind {spec.kind!r}, {'without' if about.classes is None else 'with'} classes")
    if about.flat and kind == "regression" and spec.outputs != 1:
        raise ValueError(f"its targets are single numbers, but there are {spec.outputs} of them")
    if about.params.keys() != defaults.keys() or (state is not None and type(state) is not int):
        raise ValueError(f"its parameters are {about.params}")
    check_features(about.features)
    check_limits(about.limits)
    used, columns = [feature.column for feature in about.features], about.columns
    if not set(used) <= set(columns) or len(set(columns)) < len(columns) or about.names not in (None, list(columns)):
        raise ValueError(f"its columns are {columns}, of which it uses {used}, called {about.names}")
    if sum(len(feature.inputs) for feature in about.features) != spec.inputs:
        raise ValueError(f"it has {spec.inputs} inputs, but its features have others")
    if about.plain and (list(columns) != used or {feature.kind for feature in about.features} != {"number"}):
        raise ValueError(f"it was fitted with an array of numbers, but it uses {used} of {columns}")


def _classes(found: _Labels | None) -> Array | None:
    if found is None:
        return None
    if not found.values or not all(type(value) is _LABELS[found.type] for value in found.values):
        raise ValueError(f"its classes are not of type {found.type}")
    classes = np.array(found.values, dtype=found.type)
    if (classes[1:] <= classes[:-1]).any():
        raise ValueError("its classes are not in order")
    return classes


def _expected(learner: Learner, spec: Spec, rows: int, classes: int) -> _Sizes:
    """Return the shape and type of each tensor that learning from so many rows gives, read off two small tasks."""
    if not rows:
        return _sizes(_blank(learner, spec, 0, classes))
    few, more = (_sizes(_blank(learner, spec, count, classes)) for count in (2 * classes, 3 * classes))

    def size(small: int, large: int) -> int:
        return small + (large - small) * (rows - 2 * classes) // classes

    return {name: (tuple(map(size, shape, more[name][0])), dtype) for name, (shape, dtype) in few.items()}


def _sizes(tensors: Params) -> _Sizes:
    return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}


def _blank(learner: Learner, spec: Spec, rows: int, classes: int) -> Params:
    generator = Generator().manual_seed(0)
    meta = double(learner_of(spec).init(generator))
    x = torch.randn(1, rows, spec.inputs, dtype=torch.float64, generator=generator)
    y = torch.randn(1, rows, spec.outputs, dtype=torch.float64, generator=generator)
    if spec.kind == "classification":
        y = (torch.arange(rows) % classes).unsqueeze(0)
    with torch.no_grad():
        adapted, _ = learner.adapt(meta, Batch(x, y) if rows else nothing(like_of(spec), torch.float64))
    ones = torch.ones(spec.outputs if spec.kind == "regression" else 1, dtype=torch.float64)
    return _tensors(meta, adapted, Encoding((), True, (), None, ones, ones.clone()))


def _tensors(meta: Meta, adapted: Adapted, encoding: Encoding) -> Params:
    scaling = {"y_mean": encoding.y_mean, "y_scale": encoding.y_scale}
    parts = meta._asdict() | {"adapted": adapted.params, "buffers": adapted.buffers, "scaling": scaling}
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


def _read_tensors(data: bytes, path: str, wanted: _Sizes) -> dict[str, Params]:
    """Return the file's tensors by their part, each as it should be, or raise."""
    found = from_safetensors(data, path)
    wrong = sorted(found.keys() ^ wanted.keys())
    wrong += [name for name, what in _sizes(found).items() if wanted.get(name) != what]
    if wrong:
        raise FileError(f"{path} does not hold the tensors of its estimator: {wrong[0]!r} is wrong; save it again")
    parts: dict[str, Params] = {part: {} for part in ("params", "structure", "adapted", "buffers", "scaling")}
    for key, value in found.items():
        part, _, name = key.partition(".")
        parts[part][name] = value
    if not bool((parts["scaling"]["y_scale"] > 0).all()):
        raise FileError(f"{path} holds a scale that is not above 0; save it again")
    return parts
