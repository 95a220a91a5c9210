"""Your own tables: a CSV or Parquet file with a column that says which task a row belongs to."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.data.rows import Order, Rows, row_tasks
from headstart.data.tables.encode import UnseenValueWarning, encode_features, encode_target
from headstart.data.tables.file import Table, distinct, error, find_columns, first, listed
from headstart.data.tables.learn import Learned, Target, learn_features, learn_target, refuse_missing
from headstart.data.tables.read import read_table
from headstart.data.tables.schema import Schema, schema_from_json, schema_to_json
from headstart.data.tables.split import Grouped, group, one_task, repeated, split_tasks
from headstart.errors import DataError, UsageError, unknown_name
from headstart.types import Tasks

__all__ = [
    "LeftOutWarning", "Schema", "Table", "UnseenValueWarning", "encode_features", "encode_target", "find_columns",
    "one_task", "read_table", "schema_from_json", "schema_to_json", "table",
]  # fmt: skip

AskedKind: TypeAlias = Literal["auto", "regression", "classification"]

#: What the first column is called where it only names the rows.
_ROW_NAMES = frozenset({"", "Unnamed: 0", "rownames"})
#: What pandas calls a data frame's row names in Parquet, wherever the column stands.
_INDEX = "__index_level_0__"
_CHOICES = {
    "target_kind": ("auto", "regression", "classification"),
    "on_short": ("error", "skip"),
    "on_duplicates": ("error", "keep", "drop"),
}


class LeftOutWarning(UserWarning):
    """A column that could not be made use of."""


def table(
    *,
    data: str | Path,
    task_column: str,
    target: str,
    columns: str | Sequence[str] | None = None,
    time_column: str | None = None,
    support: int = 5,
    order: Order = "random",
    queries: int | None = None,
    target_kind: AskedKind = "auto",
    on_short: Literal["error", "skip"] = "error",
    on_duplicates: Literal["error", "keep", "drop"] = "error",
    validation: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    split_seed: int | None = None,
    device: str | torch.device = "cpu",
) -> Tasks:
    """Make tasks out of a table with one row an example.

    Whole tasks are for training, validation or test. How columns become numbers is learned from the training tasks
    alone (`headstart.data.tables.learn.learn_features`): inputs and a regression target are standardised by their
    means and standard deviations, a missing number is their mean (beside it stands an input that tells so, where they
    miss some too), a category is one input for each value that they have.

    Args:
        data: a CSV or Parquet file (`headstart.data.tables.read.read_table`).
        task_column: the column that says which task a row belongs to.
        target: the column to predict.
        columns: the feature columns, as a sequence or separated by commas; by default all others, but for an unnamed
            first one of row names, and text with too many different values, which are left out.
        time_column: a column of numbers or ISO 8601 dates by which the rows of each task are sorted; by default they
            stand as in the file. It is a feature like any other, where ``columns`` does not leave it out.
        support, order, queries, on_short: as for `headstart.data.rows.row_tasks`.
        target_kind: by default, text, booleans and whole numbers of two different values are classes.
        on_duplicates: what to do with a row that equals another one of its task in features, target and time, so that
            one could be learned from and the other judged on: refuse it, ``"keep"`` it, or ``"drop"`` it.
        validation, test: shares of the tasks, at least one task each.
        seed: draws support rows.
        split_seed: draws which tasks are in which split; by default the seed. What was trained on some tasks is to be
            judged with the same split, whatever the seed.
        device: where to put the tensors.

    Returns:
        Tasks called 'table' whose ``unit`` is the standard deviation of the target in training tasks. Their details
        hold the ``schema`` (JSON), the ``task_names`` of each split, the ``features``, which columns were ``left_out``
        and why, the numbers of ``rows``, ``duplicates`` and, in ``new_classes``, of rows whose class no training task
        has.

    Raises:
        FileError: no such file.
        DataError: a table that cannot be used as it is; the message names file, row and column.
        UsageError: options out of their range.
    """
    _check_choices(target_kind=target_kind, on_short=on_short, on_duplicates=on_duplicates)
    roles = _Roles(task_column, target, time_column, _names(columns))
    grouped = group(read_table(data, roles.needed), task_column, time_column)
    where = f"{data}, column {task_column!r}"
    refuse_missing(grouped.table, target, "target")
    splits = split_tasks(len(grouped.names), validation, test, seed if split_seed is None else split_seed, where)
    grouped, read, repetitions = _read(grouped, splits, roles, target_kind, on_duplicates)
    details = {
        "source": Path(data).name,
        "rows": len(read.x),
        "features": list(read.schema.inputs),
        "left_out": {**roles.left_out(grouped.table), **read.left_out},
        "duplicates": repetitions,
        "new_classes": read.new_classes,
        "schema": schema_to_json(read.schema),
    }
    try:
        return row_tasks(
            Rows(read.x, read.y, grouped.task, grouped.names), splits, support=support, order=order, queries=queries,
            on_short=on_short, classes=len(read.schema.classes) or None, seed=seed, device=device, name="table",
            unit=read.schema.scale, details=details,
        )  # fmt: skip
    except DataError as problem:
        raise DataError(f"{where}: {problem}") from problem


class _Roles(NamedTuple):
    """Which column is what."""

    task: str
    target: str
    time: str | None
    columns: tuple[str, ...] | None

    def needed(self, path: str, header: tuple[str, ...]) -> list[str]:
        """Return the columns to read, or refuse a header without them."""
        asked = [("--task-column", self.task), ("--target", self.target)]
        asked += [("--time-column", self.time)] if self.time is not None else []
        asked += [("--columns", name) for name in self.columns or ()]
        find_columns(path, header, asked)
        for one, other in ((self.task, self.target), (self.time, self.target), (self.time, self.task)):
            if one == other:
                raise DataError(f"{path}: column {one!r} is asked for twice, as task, target or time; name another")
        for name in self.columns or ():
            if name in (self.task, self.target):
                role = "task column" if name == self.task else "target"
                raise DataError(f"{path}: column {name!r} is the {role}, so it is no feature; leave it out (--columns)")
        return list(header) if self.columns is None else list(dict.fromkeys(name for _, name in asked))

    def features(self, table: Table) -> list[str]:
        """Return the columns that may be features."""
        if self.columns is not None:
            return list(self.columns)
        return [name for name in table.header if name not in (self.task, self.target, *self.left_out(table))]

    def left_out(self, table: Table) -> dict[str, str]:
        """Return columns that only name the rows and were not asked for, and why they are left out."""
        if self.columns is not None:
            return {}
        taken = (self.task, self.target, self.time)
        named = [name for name in table.header if name == _INDEX or name in _ROW_NAMES and name == table.header[0]]
        return {
            name: "names the rows"
            for name in named
            if name not in taken and len(distinct(table.columns[name])[0]) == table.size
        }


class _Encoded(NamedTuple):
    schema: Schema
    x: Tensor
    y: Tensor
    left_out: dict[str, str]
    new_classes: int


def _read(
    grouped: Grouped, splits: Mapping[str, Sequence[int]], roles: _Roles, target_kind: AskedKind, on_duplicates: str
) -> tuple[Grouped, _Encoded, int]:
    """Return the rows to use, their numbers, and how many rows repeat another."""
    dropped = 0
    if on_duplicates == "drop":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is left is read again, and warned of then
            again, _ = _repeated(grouped, _encoded(grouped, splits, roles, target_kind), roles.time)
        grouped, dropped = grouped.rows(~again), int(again.sum())
    read = _encoded(grouped, splits, roles, target_kind)
    again, where = _repeated(grouped, read, roles.time)
    if again.any() and on_duplicates == "error":
        raise DataError(
            f"{grouped.table.path}, {where}: rows of one task with the same features and target ({int(again.sum())}"
            " repeated rows in all), so that one could be learned from and the other judged on; take --on-duplicates"
            " drop, or keep"
        )
    return grouped, read, dropped + int(again.sum())


def _encoded(
    grouped: Grouped,
    splits: Mapping[str, Sequence[int]],
    roles: _Roles,
    target_kind: AskedKind,
) -> _Encoded:
    """Learn the schema from the rows of training tasks, and encode all rows by it."""
    table = grouped.table
    training = table.rows(np.isin(grouped.task.numpy(), splits["train"]))
    learned = learn_features(training, roles.features(table), strict=roles.columns is not None)
    for message in learned.warnings:
        warnings.warn(message, LeftOutWarning, stacklevel=4)
    aim = learn_target(training, roles.target, target_kind)
    schema, new = _schema(table, roles, learned, aim)
    return _Encoded(schema, encode_features(schema, table), encode_target(schema, table), learned.left_out, new)


def _schema(table: Table, roles: _Roles, learned: Learned, aim: Target) -> tuple[Schema, int]:
    """Return the schema, and how many rows have a class that no training task has; such classes come last."""
    texts = table.columns[roles.target]
    new: list[str] = []
    if aim.kind == "classification":
        new = sorted(set(distinct(texts)[0]) - set(aim.classes))
    for name in new:
        where = listed(table, np.asarray(texts == name))
        message = f"class {name!r} in {where} is in no training task"
        warnings.warn(str(error(table, roles.target, None, message)), UnseenValueWarning, stacklevel=5)
    schema = Schema(
        roles.task, roles.target, roles.time, aim.kind, learned.features, aim.mean, aim.scale, (*aim.classes, *new)
    )
    return schema, int(np.isin(texts, np.array(new, dtype=texts.dtype)).sum()) if new else 0


def _repeated(grouped: Grouped, read: _Encoded, time_column: str | None) -> tuple[NDArray[np.bool_], str]:
    """Return which rows repeat an earlier one of their task, and where the first of them and its likes stand."""
    table = grouped.table
    time = None if time_column is None else table.columns[time_column]
    firsts = repeated(grouped.task, read.x, read.y, time)
    again: NDArray[np.bool_] = firsts != np.arange(len(firsts))
    row = first(again)
    return again, "" if row is None else listed(table, firsts == firsts[row], 2)


def _names(columns: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return column names, each once; a text is split at its commas."""
    if columns is None:
        return None
    listed_names = [name.strip() for name in columns.split(",")] if isinstance(columns, str) else columns
    if not listed_names:
        raise UsageError("columns is empty; name at least one feature, or leave it out to take all")
    return tuple(dict.fromkeys(listed_names))


def _check_choices(**chosen: str) -> None:
    for name, value in chosen.items():
        if value not in _CHOICES[name]:
            raise unknown_name(name, value, _CHOICES[name])
