"""Turning rows of a table into tensors, as a schema says."""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.data.tables.file import Table, distinct, error, first, is_missing, listed
from headstart.data.tables.learn import column_values, refuse_missing, regression_target
from headstart.data.tables.schema import Feature, Schema


class UnseenValueWarning(UserWarning):
    """A value of a column that no training task has."""


def encode_features(schema: Schema, table: Table) -> Tensor:
    """Return the inputs ``(N, inputs)`` of a table's rows, float32.

    Numbers, booleans and dates are standardised by the training tasks, and a missing one is 0, their mean. A category
    is 1 in its own input; one that no training task has is 0 in all, with an `UnseenValueWarning`.

    Raises:
        DataError: a value that is not of its column's kind.
    """
    x = np.empty((table.size, len(schema.inputs)), dtype=np.float32)
    place = 0
    for feature in schema.features:
        width = len(feature.inputs)
        _fill(x[:, place : place + width], feature, table)
        place += width
    return torch.from_numpy(x)


def _fill(x: NDArray[np.float32], feature: Feature, table: Table) -> None:
    texts = table.columns[feature.column]
    missing = is_missing(texts)
    if feature.kind == "category":
        known = {name: place for place, name in enumerate(feature.categories)}
        names, numbers = distinct(texts)
        places = np.array([known.get(name, -1) for name in names])[numbers]
        x[:, : len(known)] = places[:, None] == np.arange(len(known))
        for name in [name for name in names if name and name not in known]:
            _warn(
                table, feature.column, f"{name!r} in {listed(table, np.asarray(texts == name))} is in no training task"
            )
    else:
        values = column_values(table, feature.column, feature.kind, feature.date_format)
        with np.errstate(over="ignore"):  # infinity is refused below
            x[:, 0] = np.where(missing, 0.0, (values - feature.mean) / feature.scale)
        row = first(~np.isfinite(x[:, 0]))
        if row is not None:
            raise error(table, feature.column, row, f"{texts[row]!s} is too far from the training tasks' values")
    if feature.missing:
        x[:, -1] = missing
    elif missing.any():
        _warn(table, feature.column, f"missing in {listed(table, missing)}, but never in the training tasks")


def _warn(table: Table, column: str, message: str) -> None:
    warnings.warn(str(error(table, column, None, message)), UnseenValueWarning, stacklevel=5)


def encode_target(schema: Schema, table: Table) -> Tensor:
    """Return the targets of a table's rows: standardised numbers ``(N, 1)`` float32, or class ids ``(N,)`` int64.

    Raises:
        DataError: a missing target, one that is no number in regression, or a class that the schema does not have.
    """
    refuse_missing(table, schema.target, "target")
    if schema.kind == "regression":
        values = (regression_target(table, schema.target) - schema.mean) / schema.scale
        return torch.from_numpy(values.astype(np.float32)).unsqueeze(1)
    known = {name: place for place, name in enumerate(schema.classes)}
    names, numbers = distinct(table.columns[schema.target])
    ids: NDArray[np.int64] = np.array([known.get(name, -1) for name in names], dtype=np.int64)[numbers]
    row = first(ids < 0)
    if row is not None:
        text = str(table.columns[schema.target][row])
        classes = ", ".join(schema.classes[:20])
        raise error(table, schema.target, row, f"class {text!r} is not among those learned: {classes}")
    return torch.from_numpy(ids)
