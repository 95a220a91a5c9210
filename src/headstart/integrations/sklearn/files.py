"""The two files of a saved estimator.

::

    FOLDER/
      weights.safetensors    θ, M, what adaptation computed, and the scales of the columns
      estimator.json         parameters, classes, feature names, and what the weights belong to

Nothing in them is code, and nothing is unpickled.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator

from headstart.errors import FileError, HeadstartError, UsageError
from headstart.integrations.sklearn.fitted import Fitted, Scaling
from headstart.integrations.sklearn.options import Kind, Spec, learner_of, options_of
from headstart.integrations.sklearn.training import double
from headstart.training.files import from_safetensors, make_folder, read, read_json, to_json, to_safetensors, write
from headstart.types import Adapted, Batch, Meta, Params

WEIGHTS, DESCRIPTION = "weights.safetensors", "estimator.json"
FORMAT = "headstart-estimator-1"
_KEYS = {"format", "estimator", "params", "classes", "features", "losses", "validation"}
_KEYS |= {"spec", "seed", "rows", "flat", "step"}
_LABELS: dict[str, type] = {"str": str, "object": str, "bool": bool, "int64": int, "float64": float}

_Sizes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class Found(NamedTuple):
    """What a folder holds."""

    fitted: Fitted
    params: dict[str, Any]
    classes: NDArray[Any] | None
    features: list[str] | None
    losses: list[float]
    validation: list[float]


def write_estimator(
    folder: Path,
    estimator: str,
    fitted: Fitted,
    params: Mapping[str, Any],
    classes: NDArray[Any] | None,
    features: NDArray[Any] | None,
    curves: Mapping[str, Sequence[float]],
) -> None:
    """Write an estimator to a new or empty folder.

    Raises:
        UsageError: the folder is not empty, or a parameter or label is of a kind that cannot be written.
        FileError: the folder cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there and not empty; choose a new folder")
    about = {
        "format": FORMAT,
        "estimator": estimator,
        "params": {name: _plain(value) for name, value in params.items()},
        "classes": None if classes is None else _described(classes),
        "features": None if features is None else features.tolist(),
        **curves,
        "spec": fitted.spec._asdict(),
        "seed": fitted.seed,
        "rows": fitted.rows,
        "flat": fitted.flat,
        "step": fitted.adapted.step,
    }
    try:
        text = to_json(about)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the estimator cannot be written as JSON: {error}") from error
    make_folder(folder)
    write(folder / WEIGHTS, to_safetensors(_tensors(fitted.meta, fitted.adapted, fitted.scaling)))
    write(folder / DESCRIPTION, text)  # last: without it the folder is not an estimator


def _plain(value: Any) -> Any:
    """Return a parameter as JSON has it; a generator of random numbers is left out."""
    if isinstance(value, (np.random.RandomState, np.random.Generator)):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _described(classes: NDArray[Any]) -> dict[str, Any]:
    values = classes.tolist()
    kind = {"U": "str", "O": "object", "b": "bool", "i": "int64", "u": "int64", "f": "float64"}.get(classes.dtype.kind)
    if kind is None or not all(type(value) is _LABELS[kind] for value in values):
        raise UsageError(
            f"labels of type {classes.dtype} cannot be saved; take strings, whole numbers, numbers or booleans"
        )
    return {"type": kind, "values": values}


def read_estimator(folder: Path, estimator: str, kind: Kind, defaults: Mapping[str, Any]) -> Found:
    """Read what `write_estimator` wrote for an ``estimator`` of that name and those parameters.

    Raises:
        FileError: a file that is missing, damaged, or not what such an estimator would have written.
    """
    path = folder / DESCRIPTION
    about = read_json(path)
    if not isinstance(about, dict) or about.get("format") != FORMAT or about.keys() != _KEYS:
        raise FileError(f"{path} does not describe an estimator of this version; save it again")
    if about["estimator"] != estimator:
        raise FileError(f"{path} describes a {about['estimator']!r}, not a {estimator!r}; load it as what it is")
    try:
        spec, numbers = _spec(about["spec"], kind), [about[name] for name in ("seed", "rows", "step")]
        classes = _classes(about["classes"], kind)
        if not all(type(number) is int and 0 <= number < 2**31 for number in numbers) or not numbers[1]:
            raise ValueError(f"seed, rows and step are {numbers}")
        if type(about["flat"]) is not bool or (about["flat"] and kind == "regression" and spec.outputs != 1):
            raise ValueError(f"flat is {about['flat']!r} with {spec.outputs} outputs")
        params, features = _params(about["params"], kind, defaults), _features(about["features"], spec.inputs)
        curves = [_numbers(about[name]) for name in ("losses", "validation")]
        wanted = _expected(spec, numbers[1], 1 if classes is None else len(classes))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError, HeadstartError) as error:
        raise FileError(f"{path} does not describe an estimator: {error}") from error
    parts = _read_tensors(folder / WEIGHTS, wanted)
    meta = Meta(parts["params"], parts["structure"])
    adapted = Adapted(meta, parts["adapted"], parts["buffers"], None, numbers[2])
    fitted = Fitted(spec, numbers[0], meta, Scaling(**parts["scaling"]), adapted, numbers[1], about["flat"])
    return Found(fitted, params, classes, features, *curves)


def _spec(found: Any, kind: Kind) -> Spec:
    """Return the learner's description, each part of the type that it was written with."""
    named: dict[str, Any] = {**found, "hidden": None if found["hidden"] is None else tuple(found["hidden"])}
    spec = Spec(**named)
    sizes = (spec.inputs, spec.outputs, *(spec.hidden or ()))
    if not all(type(size) is int and 1 <= size <= 100_000 for size in sizes) or len(sizes) > 100:
        raise ValueError(f"its sizes are {sizes}")
    if max(one * other for one, other in combinations(sizes, 2)) > 10**8:
        raise ValueError(f"its sizes are {sizes}, too large to be true")
    if type(spec.inner_steps) is not int or not 0 <= spec.inner_steps <= 10_000 or type(spec.inner_rate) is not float:
        raise ValueError(f"it takes {spec.inner_steps!r} inner steps of {spec.inner_rate!r}")
    if spec.kind != kind or type(spec.method) is not str:
        raise ValueError(f"it is {spec.kind!r} by {spec.method!r}")
    return spec


def _classes(found: Any, kind: Kind) -> NDArray[Any] | None:
    if (found is None) != (kind == "regression"):
        raise ValueError("classes belong to a classifier")
    if found is None:
        return None
    label, values = _LABELS[found["type"]], found["values"]
    if not isinstance(values, list) or not values or not all(type(value) is label for value in values):
        raise ValueError(f"its classes are not of type {found['type']}")
    classes = np.array(values, dtype=found["type"])
    if (classes[1:] <= classes[:-1]).any():
        raise ValueError("its classes are not in order")
    return classes


def _params(found: Any, kind: Kind, defaults: Mapping[str, Any]) -> dict[str, Any]:
    if found.keys() != defaults.keys():
        raise ValueError(f"its parameters are {sorted(found)}")
    params = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    options_of(params, kind)
    if params["random_state"] is not None and type(params["random_state"]) is not int:
        raise ValueError(f"random_state is {params['random_state']!r}")
    return params


def _features(found: Any, inputs: int) -> list[str] | None:
    if found is not None and not (
        isinstance(found, list) and len(found) == inputs and all(type(name) is str for name in found)
    ):
        raise ValueError(f"there are {inputs} features, but their names are {found!r}")
    return found


def _numbers(found: Any) -> list[float]:
    if not isinstance(found, list) or not all(type(value) is float for value in found):
        raise ValueError("a curve is not a list of numbers")
    return found


def _expected(spec: Spec, rows: int, classes: int) -> _Sizes:
    """Return the shape and type of each tensor that learning from so many rows gives.

    Sizes that depend on the number of rows grow by as much with each, so they are read off two small tasks.
    """
    few, more = (_sizes(_blank(spec, count, classes)) for count in (2 * classes, 3 * classes))

    def size(small: int, large: int) -> int:
        return small + (large - small) * (rows - 2 * classes) // classes

    return {name: (tuple(map(size, shape, more[name][0])), dtype) for name, (shape, dtype) in few.items()}


def _sizes(tensors: Params) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}


def _blank(spec: Spec, rows: int, classes: int) -> Params:
    """Return the tensors that learning from so many arbitrary rows gives."""
    learner, generator = learner_of(spec), Generator().manual_seed(0)
    meta = double(learner.init(generator))
    x = torch.randn(1, rows, spec.inputs, dtype=torch.float64, generator=generator)
    y = torch.randn(1, rows, spec.outputs, dtype=torch.float64, generator=generator)
    if spec.kind == "classification":
        y = (torch.arange(rows) % classes).unsqueeze(0)
    with torch.no_grad():
        adapted, _ = learner.adapt(meta, Batch(x, y))
    sizes = (spec.inputs, spec.inputs) + 2 * (spec.outputs if spec.kind == "regression" else 1,)
    return _tensors(meta, adapted, Scaling(*(torch.ones(size, dtype=torch.float64) for size in sizes)))


def _tensors(meta: Meta, adapted: Adapted, scaling: Scaling) -> Params:
    parts = {
        "params": meta.params,
        "structure": meta.structure,
        "adapted": adapted.params,
        "buffers": adapted.buffers,
        "scaling": scaling._asdict(),
    }
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


def _read_tensors(path: Path, wanted: _Sizes) -> dict[str, Params]:
    """Return the file's tensors by their part, each as it should be, or raise."""
    found = from_safetensors(read(path), str(path))
    wrong = sorted(found.keys() ^ wanted.keys())
    wrong += [name for name, what in _sizes(found).items() if wanted.get(name) != what]
    if wrong:
        raise FileError(f"{path} does not hold the tensors of its estimator: {wrong[0]!r} is wrong; save it again")
    parts: dict[str, Params] = {part: {} for part in ("params", "structure", "adapted", "buffers", "scaling")}
    for key, value in found.items():
        part, _, name = key.partition(".")
        parts[part][name] = value
    if not all(bool((parts["scaling"][name] > 0).all()) for name in ("x_scale", "y_scale")):
        raise FileError(f"{path} holds a scale that is not above 0; save it again")
    return parts
