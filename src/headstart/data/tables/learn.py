"""Learning a table's schema from the rows of its training tasks, and from these alone."""

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.data.tables.file import Table, Texts, distinct, error, first, is_missing
from headstart.data.tables.schema import Feature, FeatureKind, TargetKind
from headstart.data.tables.values import (
    are_booleans,
    as_numbers,
    booleans,
    common_date_format,
    dates,
    is_decimal_comma,
    is_number,
    numbers,
)
from headstart.errors import DataError

MOST_CATEGORIES = 50
#: From so many rows on, a category column is refused that has a new value in every second row.
_ROWS_TO_TELL = 20
#: A spread of less than this share of the values is rounding.
_CONSTANT = 1e-12


class Learned(NamedTuple):
    """The features of a table, and why some columns are none."""

    features: tuple[Feature, ...]
    left_out: dict[str, str]
    """Why a column was left out, by its name."""
    warnings: tuple[str, ...]
    """What of all this may surprise."""


def learn_features(table: Table, columns: Sequence[str], strict: bool) -> Learned:
    """Return how columns become inputs, from the rows of training tasks.

    A column whose values are all numbers is a number; all true or false, a boolean; mostly dates, a date; anything
    else is a category. Columns with one value only are left out.

    Args:
        table: the training tasks' rows.
        columns: the columns to look at.
        strict: whether a text column with too many categories is an error; else it is left out with a warning.

    Raises:
        DataError: a column without any value, dates in several formats, numbers that are not finite, too many
            categories, decimal commas, or nothing left.
    """
    features, left_out, warnings = [], {}, []
    for column in columns:
        texts = table.columns[column]
        there = ~is_missing(texts)
        if not there.any():
            raise error(table, column, None, "it has no value in the training tasks; leave it out (--columns)")
        feature = _feature(table, column, there)
        if there.all() and (feature.scale == 0 or len(feature.categories) == 1):
            left_out[column] = f"constant: always {texts[0]!s} in the training tasks"
            continue
        crowd, spoilt = _crowd(feature, int(there.sum())), _spoilt(table, feature)
        if spoilt:
            crowd = crowd and f"{crowd}; {spoilt}"
            fix = "correct it, or leave it empty for missing, where the column is to be a number"
            warnings += [] if crowd else [str(error(table, column, None, f"taken for categories: {spoilt}; {fix}"))]
        if crowd and strict:
            raise error(table, column, None, f"{crowd}; leave it out (--columns), or join categories")
        if crowd:
            left_out[column] = crowd
            warnings.append(str(error(table, column, None, f"left out: {crowd}")))
        else:
            features.append(feature._replace(scale=feature.scale or 1.0))
    if not features:
        why = "; ".join(f"{column!r}: {reason}" for column, reason in left_out.items())
        raise DataError(f"{table.path} has no feature left ({why or 'no other columns'})")
    return Learned(tuple(features), left_out, tuple(warnings))


def _feature(table: Table, column: str, there: NDArray[np.bool_]) -> Feature:
    kind, categories, date_format = _kind_of(table, column)
    missing = not bool(there.all())
    if kind == "category":
        return Feature(column, kind, categories=categories, missing=missing)
    values = column_values(table, column, kind, date_format)[there]
    return Feature(column, kind, *_moments(table, column, values), date_format=date_format, missing=missing)


def _kind_of(table: Table, column: str) -> tuple[FeatureKind, tuple[str, ...], str]:
    """Return a column's kind, its categories, where it is a category, and its format, where it is a date."""
    if as_numbers(table.columns[column]) is not None:
        return "number", (), ""
    names = tuple(name for name in distinct(table.columns[column])[0] if name)
    if are_booleans(names):
        return "boolean", (), ""
    date_format = common_date_format(table, column)
    if not date_format:
        _refuse_decimal_commas(table, column, names)
    return ("date", (), date_format) if date_format else ("category", names, "")


def _refuse_decimal_commas(table: Table, column: str, names: Sequence[str]) -> None:
    """Refuse a column whose values are numbers but for a decimal comma, so that it is not taken for text."""
    commas = [name for name in names if is_decimal_comma(name)]
    if commas and all(name in commas or is_number(name) for name in names):
        numbers(table, column, "or leave the column out (--columns)")


def _spoilt(table: Table, feature: Feature) -> str:
    """Say which value keeps a column from being a number, where most are numbers; empty for other columns."""
    odd = [name for name in feature.categories if not is_number(name)]
    if not odd or len(odd) > len(feature.categories) // 2:
        return ""
    texts = table.columns[feature.column]
    row = min(int(np.asarray(texts == name).argmax()) for name in odd)
    return f"{str(texts[row])!r} in {table.unit} {int(table.lines[row])} is not a number, though most values are"


def column_values(table: Table, column: str, kind: FeatureKind, date_format: str) -> NDArray[np.float64]:
    """Return the numbers of a column that is no category, NaN where missing; the error names what does not fit."""
    if kind == "number":
        return numbers(table, column, "the column's other values are; correct it, or leave it empty for missing")
    return booleans(table, column) if kind == "boolean" else dates(table, column, date_format)


def _moments(table: Table, column: str, values: NDArray[np.float64]) -> tuple[float, float]:
    """Return mean and standard deviation, 0 where nothing varies but by rounding."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = float(values.mean()), float(values.std())
    if not (math.isfinite(mean) and math.isfinite(scale)):
        raise error(
            table, column, None, "its values are too large to have a standard deviation; write them in a larger unit"
        )
    return mean, scale if scale > _CONSTANT * abs(mean) else 0.0


def _crowd(feature: Feature, count: int) -> str:
    """Say why a category column has too many categories; empty where it has not."""
    found = len(feature.categories)
    if found > MOST_CATEGORIES:
        return f"text with {found} different values, more than {MOST_CATEGORIES}"
    if count >= _ROWS_TO_TELL and 2 * found > count:
        return f"text with {found} different values in {count} rows, nearly one a row"
    return ""


class Target(NamedTuple):
    """What is predicted."""

    kind: TargetKind
    mean: float = 0.0
    scale: float = 1.0
    classes: tuple[str, ...] = ()


def learn_target(table: Table, column: str, asked: Literal["auto", "regression", "classification"]) -> Target:
    """Return what kind of target a column is, from the rows of training tasks.

    ``"auto"`` takes text, booleans, and whole numbers of two different values as classes, other numbers as regression.

    Raises:
        DataError: a regression target with text in it, or that never changes; fewer than two classes.
    """
    if asked == "auto":
        asked = _kind_of_target(table.columns[column])
    if asked == "regression":
        values = regression_target(table, column)
        mean, scale = _moments(table, column, values)
        if not scale:
            raise error(table, column, None, f"the target is always {table.columns[column][0]!s} in the training tasks")
        return Target("regression", mean, scale)
    names = distinct(table.columns[column])[0]
    if len(names) < 2:
        raise error(table, column, None, f"the target has one class only in the training tasks, {names[0]!r}")
    return Target("classification", classes=in_order(names))


def _kind_of_target(texts: Texts) -> TargetKind:
    values = as_numbers(texts)
    if values is None:
        names = distinct(texts)[0]
        meant = sum(is_number(name) or is_decimal_comma(name) for name in names)
        return "regression" if 2 * meant >= len(names) else "classification"
    different = np.unique(values)
    return "classification" if len(different) == 2 and not np.mod(different, 1).any() else "regression"


def regression_target(table: Table, column: str) -> NDArray[np.float64]:
    """Return the target's numbers; the error names a value that is none, and says how to predict classes."""
    return numbers(
        table, column, "a regression target is a number in every row; for classes take --target-kind classification"
    )


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Return names sorted, as numbers where they all are."""
    everywhere = all(re.fullmatch(r"-?\d+", name) for name in names)
    return tuple(sorted(names, key=int if everywhere else None))


def refuse_missing(table: Table, column: str, what: str) -> None:
    """Refuse a column that is empty in some row.

    Raises:
        DataError: it names the first such row, and how many there are.
    """
    empty = is_missing(table.columns[column])
    row = first(empty)
    if row is not None:
        raise error(
            table,
            column,
            row,
            f"the {what} is missing ({int(empty.sum())} of {table.size} rows); fill it in, or leave the row out",
        )
