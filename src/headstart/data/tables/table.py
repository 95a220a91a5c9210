"""Your own tables: a CSV or Parquet file with a column that says which task a row belongs to."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from headstart.data.random import SPLITS, bits, check_seed
from headstart.data.rows import OnShort, Order, Rows, row_tasks
from headstart.data.tables import read
from headstart.data.tables.prose import Network, find_network
from headstart.data.tables.read import Table, Texts
from headstart.data.tables.schema import (
    MOST_NUMBERS,
    FarTargetWarning,
    Schema,
    Shown,
    UnseenValueWarning,
    copies,
    encode_features,
    encode_target,
    far_targets,
    learn_features,
    learn_target,
    schema_to_json,
)
from headstart.errors import DataError, UsageError, check_known
from headstart.schema import Share, Size
from headstart.types import Tasks

AskedKind = Literal["auto", "regression", "classification"]
OnDuplicates = Literal["error", "keep", "drop"]

#: What the first column is called where it only names the rows.
_ROW_NAMES = frozenset({"", "Unnamed: 0", "rownames"})
#: What pandas calls a data frame's row names in Parquet, wherever the column stands.
_INDEX = "__index_level_0__"


class LeftOutWarning(UserWarning):
    """A column that could not be made use of."""


class TargetAmongFeaturesWarning(UserWarning):
    """A feature that seems to be the target in another form."""


def table(
    *,
    data: str | Path,
    task_column: str,
    target: str,
    columns: str | Sequence[str] | None = None,
    time_column: str | None = None,
    shots: Annotated[int, Ge(1), Le(100_000)] = 5,
    order: Order = "random",
    queries: Size | None = None,
    target_kind: AskedKind = "auto",
    on_short: OnShort = "error",
    on_duplicates: OnDuplicates = "error",
    na_values: str | Sequence[str] = (),
    text_numbers: Annotated[int, Ge(0), Le(MOST_NUMBERS)] = 8,
    text_encoder: str | None = None,
    validation_share: Share = 0.2,
    test_share: Share = 0.2,
    seed: int = 0,
    split_seed: int | None = None,
    device: str | torch.device = "cpu",
) -> Tasks:
    """Make tasks out of a table with one row an example.

    Whole tasks are for training, validation or test. How columns become numbers is learned from the training tasks
    alone (`headstart.data.tables.schema.learn_features`): inputs and a regression target are standardised, skewed
    numbers by their logarithm where that tells more, a missing number is the mean (an input beside it tells so, where
    training tasks miss some too), a category is one input for each value. A number far outside the training tasks'
    range is drawn near it, with a warning.

    Args:
        data: a CSV or Parquet file.
        task_column: the column that says which task a row belongs to (sentences of classes are no table: --text says
            which column is the sentences).
        target: the column to predict.
        columns: the feature columns, as a sequence or separated by commas; by default all others, but for an unnamed
            first one of row names, and text with too many different values, which are left out.
        time_column: a column of numbers or ISO 8601 dates by which the rows of each task are sorted; by default they
            stand as in the file. It is a feature too, unless ``columns`` leaves it out.
        shots: support rows of a task; in classification with random order, of each class.
        order: draw the support rows at random, or take a task's first ones, so that the past predicts what comes later.
        queries: at most so many query rows of a task, the first that are left; by default all.
        on_short: what to do with a task that has too few rows: an error, or leave it out.
        target_kind: what the target is; auto takes text, booleans and whole numbers of two different values as classes.
        on_duplicates: what to do with a row that equals another one of its task in features, target and time, which
            could be learned from and judged on: refuse it, ``"keep"`` it, or ``"drop"`` it.
        na_values: texts that mean that a value is missing, as a sequence or separated by commas, besides an empty one,
            NA, N/A, #N/A, NaN, null and None, and -, --, ? and . among numbers and dates.
        text_numbers: how many numbers a column of sentences becomes; 0: it is left out, as any text with too many
            different values.
        text_encoder: a pretrained network for columns of sentences, such as ``hf:FOLDER``, frozen: they become numbers
            by its features, which are computed once and kept on disk; by default by their n-grams.
        validation_share: share of the tasks for validation, at least one task.
        test_share: share of the tasks for testing, at least one task.
        seed: draws support rows.
        split_seed: draws which tasks are in which split; by default the seed.
        device: where to put the tensors.

    Returns:
        Tasks called 'table' whose ``unit`` is the standard deviation of the target in training tasks. Their details
        hold the ``schema`` (JSON), the ``task_names`` of each split, the ``features``, the columns ``left_out`` and
        why, and how many ``rows``, ``duplicates``, and rows whose class no training task has (``new_classes``).

    Raises:
        FileError: no such file.
        DataError: a table that cannot be used as it is; the message names file, row and column.
        UsageError: options out of their range.
    """
    check_known("target_kind", target_kind, get_args(AskedKind))
    check_known("on_duplicates", on_duplicates, get_args(OnDuplicates))
    if isinstance(columns, str):
        columns = [name.strip() for name in columns.split(",")]
    if columns is not None and not columns:
        raise UsageError("columns is empty; name at least one feature, or leave it out to take all")
    roles = _Roles(task_column, target, time_column, None if columns is None else tuple(dict.fromkeys(columns)))
    absent = tuple(na_values.split(",") if isinstance(na_values, str) else na_values)
    grouped = group(read.read_table(data, roles.needed, missing=absent), task_column, time_column)
    where, split_seed = f"{data}, column {task_column!r}", seed if split_seed is None else split_seed
    read.refuse_missing(grouped.table, target, "target")
    splits = split_tasks(len(grouped.names), validation_share, test_share, split_seed, where)
    read_texts = _ReadTexts(text_numbers, None if text_encoder is None else find_network(text_encoder))
    grouped, encoded, repetitions = _read(grouped, splits, roles, target_kind, on_duplicates, read_texts)
    encoded = encoded._replace(
        schema=encoded.schema._replace(missing=absent, commas=tuple(sorted(grouped.table.commas)))
    )
    details = {
        "source": Path(data).name,
        "rows": len(encoded.x),
        "features": list(encoded.schema.inputs),
        "left_out": {**roles.left_out(grouped.table), **encoded.left_out},
        "duplicates": repetitions,
        "new_classes": encoded.new_classes,
        "notes": encoded.notes,
        "on_duplicates": on_duplicates,
        "support": shots,
        "order": order,
        "queries": queries,
        "schema": schema_to_json(encoded.schema),
    }
    rows, classes = Rows(encoded.x, encoded.y, grouped.task, grouped.names), encoded.schema.classes
    try:
        tasks = row_tasks(
            rows, splits, support=shots, order=order, queries=queries, on_short=on_short, classes=len(classes) or None,
            seed=seed, device=device, name="table", unit=encoded.schema.scale, details=details,
        )  # fmt: skip
    except DataError as problem:
        raise DataError(f"{where}: {problem}") from problem
    named = (lambda split, number: classes) if classes else None
    return tasks._replace(names=named, limits=encoded.schema.limits)


class _Roles(NamedTuple):
    task: str
    target: str
    time: str | None
    columns: tuple[str, ...] | None
    """Features that were asked for; ``None``: all."""

    def needed(self, path: str, header: tuple[str, ...]) -> list[str]:
        """Return the columns to read, or refuse a header without them."""
        asked = [("--task-column", self.task), ("--target", self.target)]
        asked += [("--time-column", self.time)] if self.time is not None else []
        asked += [("--columns", name) for name in self.columns or ()]
        read.find_columns(path, header, asked)
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
        others = {self.task, self.target, *self.left_out(table)}
        return [name for name in table.header if name not in others]

    def left_out(self, table: Table) -> dict[str, str]:
        """Return columns that only name the rows and were not asked for, and why they are left out."""
        if self.columns is not None:
            return {}
        taken = (self.task, self.target, self.time)
        named = [name for name in table.header if name == _INDEX or name in _ROW_NAMES and name == table.header[0]]
        unique = [n for n in named if n not in taken and len(read.distinct(table.columns[n])[0]) == table.size]
        return dict.fromkeys(unique, "names the rows")


class Grouped(NamedTuple):
    """Rows, in order, and their tasks."""

    table: Table
    task: Tensor
    """``(N,)`` int64, the number of each row's task, a place in ``names``."""
    names: tuple[str, ...]
    """What the tasks are called, in order."""

    def rows(self, kept: NDArray[np.bool_]) -> "Grouped":
        """Return the rows that are to be kept."""
        return self._replace(table=self.table.rows(kept), task=self.task[torch.from_numpy(kept)])


class _ReadTexts(NamedTuple):
    text_numbers: int
    network: Network | None


class _Encoded(NamedTuple):
    schema: Schema
    x: Tensor
    y: Tensor
    left_out: dict[str, str]
    new_classes: int
    notes: tuple[str, ...]


def _read(
    grouped: Grouped,
    splits: Mapping[str, Sequence[int]],
    roles: _Roles,
    target_kind: AskedKind,
    on_duplicates: str,
    read_texts: _ReadTexts,
) -> tuple[Grouped, _Encoded, int]:
    """Return the rows to use, their numbers, and how many rows repeat another."""
    dropped = 0
    if on_duplicates == "drop":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is left is read again, and warned of then
            again, _ = _repeated(grouped, _encoded(grouped, splits, roles, target_kind, read_texts), roles.time)
        grouped, dropped = grouped.rows(~again), int(again.sum())
    encoded = _encoded(grouped, splits, roles, target_kind, read_texts)
    again, where = _repeated(grouped, encoded, roles.time)
    if again.any() and on_duplicates == "error":
        raise DataError(
            f"{grouped.table.path}, {where}: rows of one task with the same features and target ({int(again.sum())}"
            " repeated rows in all), so that one could be learned from and the other judged on; take --on-duplicates"
            " drop, or keep"
        )
    return grouped, encoded, dropped + int(again.sum())


def _encoded(
    grouped: Grouped, splits: Mapping[str, Sequence[int]], roles: _Roles, target_kind: AskedKind, read_texts: _ReadTexts
) -> _Encoded:
    """Learn the schema from the rows of training tasks, and encode all rows by it; classes that are new come last."""
    table, texts = grouped.table, grouped.table.columns[roles.target]
    own = np.isin(grouped.task.numpy(), splits["train"])
    training = table.rows(own)
    aim = learn_target(training, roles.target, target_kind)
    y = encode_target(Schema(roles.task, roles.target, roles.time, aim.kind, (), *aim[1:]), training)
    shown = Shown((one_hot(y) if aim.classes else y).double().numpy(), grouped.task.numpy()[own])
    learned = learn_features(
        training, roles.features(table), strict=roles.columns is not None, shown=shown, **read_texts._asdict()
    )
    for message in () if aim.classes else far_targets(training, roles.target, y.double().numpy()[:, 0]):
        warnings.warn(message, FarTargetWarning, stacklevel=4)
    for message in learned.warnings:
        warnings.warn(message, LeftOutWarning, stacklevel=4)
    for message in copies(training, learned.features, shown):
        warnings.warn(message, TargetAmongFeaturesWarning, stacklevel=4)
    new = {name: texts == name for name in read.distinct(texts)[0] if aim.classes and name not in aim.classes}
    for name, rows in new.items():
        message = f"class {name!r} in {read.listed(table, rows)} is in no training task"
        warnings.warn(str(read.error(table, roles.target, None, message)), UnseenValueWarning, stacklevel=4)
    classes, count = (*aim.classes, *new), sum(int(rows.sum()) for rows in new.values())
    given = roles.task, roles.target, roles.time, aim.kind, learned.features
    schema = Schema(*given, *aim._replace(classes=classes)[1:])
    return _Encoded(
        schema,
        encode_features(schema.features, table, kept=True),
        encode_target(schema, table),
        learned.left_out,
        count,
        learned.notes,
    )


def _repeated(grouped: Grouped, encoded: _Encoded, time_column: str | None) -> tuple[NDArray[np.bool_], str]:
    """Return which rows repeat an earlier one of their task, and where the first of them and its likes stand."""
    table = grouped.table
    time = None if time_column is None else table.columns[time_column]
    firsts = repeated(grouped.task, encoded.x, encoded.y, time)
    again: NDArray[np.bool_] = firsts != np.arange(len(firsts))
    row = read.first(again)
    return again, "" if row is None else read.listed(table, firsts == firsts[row], 2)


def group(table: Table, task_column: str, time_column: str | None) -> Grouped:
    """Return the tasks of a table, their rows in the file's order or by time, which must be there in all of them."""
    read.refuse_missing(table, task_column, "task")
    if time_column is not None:
        read.refuse_missing(table, time_column, "time")
        table = table.rows(np.argsort(_times(table, time_column), kind="stable"))
    found, codes = read.distinct(table.columns[task_column])
    names = read.in_order(found)
    places = {name: place for place, name in enumerate(names)}
    return Grouped(table, torch.tensor([places[name] for name in found])[torch.from_numpy(codes)], names)


def _times(table: Table, column: str) -> NDArray[np.float64]:
    comma = column in table.commas
    if any(read.to_number(text, comma) is not None for text in read.distinct(table.columns[column])[0]):
        return read.numbers(table, column, "the time is a number or an ISO 8601 date in every row")
    chosen = read.common_date_format(table, column)
    if chosen is None:
        text = str(table.columns[column][0])
        raise read.error(
            table, column, 0, f"{text!r} is no time; expected numbers or ISO 8601 dates, such as 2020-01-31"
        )
    return read.dates(table, column, chosen)


def split_tasks(count: int, validation: float, test: float, seed: int, where: str) -> dict[str, tuple[int, ...]]:
    """Draw which of ``count`` tasks are for training, validation and test, at least one each.

    Raises:
        UsageError: shares that leave nothing for a split.
        DataError: fewer than three tasks.

    >>> {name: len(tasks) for name, tasks in split_tasks(10, 0.2, 0.2, 0, "a table").items()}
    {'train': 6, 'validation': 2, 'test': 2}
    """
    check_seed(seed)
    if not (0 < validation and 0 < test and validation + test < 1):
        raise UsageError(
            f"validation and test are shares of the tasks, above 0 and together below 1; got {validation} and {test}"
        )
    if count < len(SPLITS):
        only = "one task only" if count == 1 else f"{count} tasks only"
        raise DataError(f"{where}: {only}; expected at least 3, one each for training, validation and test")
    sizes = [max(1, round(share * count)) for share in (validation, test)]
    while sum(sizes) >= count:
        sizes[sizes.index(max(sizes))] -= 1
    order = bits(seed, "train", [0], stream=2, count=count)[0].argsort(stable=True).tolist()
    found = order[sum(sizes) :], order[: sizes[0]], order[sizes[0] : sum(sizes)]
    return {name: tuple(sorted(tasks)) for name, tasks in zip(SPLITS, found)}


def repeated(task: Tensor, x: Tensor, y: Tensor, time: Texts | None) -> NDArray[np.int64]:
    """Return for each row the first row that equals it in task, inputs, target and time; itself where none does."""
    parts = [task.unsqueeze(1), x, y.reshape(len(y), -1)]
    parts += [] if time is None else [torch.from_numpy(read.distinct(time)[1]).unsqueeze(1)]
    seen: dict[bytes, int] = {}
    # adding zero makes -0 and 0 equal bytes
    values = torch.cat([part.double() for part in parts], 1).numpy() + 0.0
    return np.array([seen.setdefault(row.tobytes(), place) for place, row in enumerate(values)], dtype=np.int64)
