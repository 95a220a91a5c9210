"""Frames of pandas and polars, and arrays, as the tables that the command line reads from files."""

import datetime
from collections import Counter
from collections.abc import Collection, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.tables import read
from headstart.data.tables.read import Table
from headstart.data.tables.schema import Feature
from headstart.errors import DataError

#: What is no value, besides None and NaN: pandas' own.
_NO_VALUE = ("NAType", "NaTType")


def is_frame(X: object) -> bool:
    """Return whether ``X`` is a frame of pandas or polars."""
    return hasattr(X, "iter_columns") or (hasattr(X, "iloc") and hasattr(X, "items") and getattr(X, "ndim", 0) == 2)


def names_of(frame: Any) -> list[str] | None:
    """Return a frame's column names; ``None`` where they are no texts, so that columns are told by their place.

    Raises:
        DataError: two columns of one name.
    """
    names = list(frame.columns)
    if not all(isinstance(name, str) for name in names):
        return None
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"X has more than one column {twice[0]!r}; rename all but one")
    return names


def is_missing(value: object) -> bool:
    """Return whether a value stands for one that is not there: None, NaN, or pandas' NA and NaT."""
    return value is None or type(value).__name__ in _NO_VALUE or (isinstance(value, Real) and value != value)


def number_table(x: NDArray[np.float64], names: Sequence[str]) -> Table:
    """Return an array of numbers as a table."""
    return _table(names, dict(zip(names, x.T)), len(x), ())


def value_table(X: Any, names: Sequence[str], known: Sequence[Feature] | None = None) -> Table:
    """Return a frame, or an array of objects or texts, as a table: numbers as they are, all else as text.

    Args:
        X: as many columns as there are ``names``.
        names: what they are called.
        known: the features that were learned, of which alone columns are read, all but numbers as text; by default
            every column is.

    Raises:
        DataError: a value that is no text, number, boolean or date.
    """
    if is_frame(X):
        columns = list(X.iter_columns()) if hasattr(X, "iter_columns") else [column for _, column in X.items()]
    else:
        columns = list(np.asarray(X).T)
    named = dict(zip(names, columns))
    if known is not None:
        named = {feature.column: named[feature.column] for feature in known}
    kinds = {feature.column: feature.kind for feature in known or ()}
    labels = {name for name, column in named.items() if _is_categorical(column) or kinds.get(name) == "category"}
    texts = labels | {name for name, kind in kinds.items() if kind != "number"}
    return _table(names, {name: _values(column, name, name in texts) for name, column in named.items()}, len(X), labels)


def _table(names: Sequence[str], columns: dict[str, Any], rows: int, labels: Collection[str]) -> Table:
    return Table("X", tuple(names), columns, np.arange(rows), "row", labels=frozenset(labels))


def _is_categorical(column: Any) -> bool:
    return str(column.dtype).lower().startswith(("categor", "enum"))


def _values(column: Any, name: str, as_text: bool) -> NDArray[Any]:
    kind = column.dtype.kind if isinstance(column.dtype, np.dtype) else None
    if kind and kind in "iuf" and not as_text:
        return np.asarray(column, dtype=np.float64)
    if isinstance(column, np.ndarray):
        # as dates; numpy makes numbers of what counts nanoseconds
        values = (column.astype(f"{kind}8[us]") if kind in ("M", "m") else column).tolist()
    else:
        values = column.to_list()
    missing = [is_missing(value) for value in values]
    kinds = {type(value) for value, none in zip(values, missing) if not none}
    wild = () if _is_categorical(column) else [kind for kind in kinds if not _is_plain(kind)]
    if wild:
        row = next(place for place, value in enumerate(values) if type(value) is wild[0])
        what = "a text, number, boolean or date was expected; convert it, or leave the column out"
        raise DataError(f"X, column {name!r}, row {row}: {values[row]!r} is a {wild[0].__name__}, but {what}")
    try:
        if not as_text and kinds and all(issubclass(kind, (Real, Decimal)) and kind is not bool for kind in kinds):
            return np.array([np.nan if none else float(value) for value, none in zip(values, missing)])
        return read.cleaned(read.strings(["" if none else _text(value) for value, none in zip(values, missing)]))
    except (OverflowError, UnicodeEncodeError) as problem:
        raise DataError(f"X, column {name!r} holds what cannot be read: {problem}") from problem


def _is_plain(kind: type) -> bool:
    return issubclass(kind, (str, Real, Decimal, np.bool_, datetime.date))


def _text(value: Any) -> str:
    """Write a value such that it reads back the same, and numbers alike whatever their type."""
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        return repr(int(number)) if number.is_integer() else repr(number)
    return str(value)
