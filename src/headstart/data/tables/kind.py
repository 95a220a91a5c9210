"""Tables as a kind of data: a new task is rows of a file, and what is predicted is their target."""

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.core.values import bounded
from headstart.data.kind import (
    DataKind,
    Failed,
    Inputs,
    NewTask,
    Raw,
    Row,
    Written,
    class_answers,
    files_of,
    nothing,
    number_answers,
    unsampled,
)
from headstart.data.tables import prose
from headstart.data.tables.read import (
    Table,
    cleaned,
    distinct,
    find_columns,
    in_order,
    is_missing,
    read_table,
    refuse_missing,
    strings,
)
from headstart.data.tables.schema import (
    Feature,
    Schema,
    encode_features,
    encode_rows,
    encode_target,
    schema_from_json,
)
from headstart.errors import ConfigError, DataError, FileError, check_text
from headstart.types import Batch, Tasks

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".pq")

#: They are refused with the command that converts them.
_WORKBOOKS = (".xlsx", ".xlsm", ".xls")

#: Numbers as JSON writes them, which a double holds.
_WHOLE = r"-?(0|[1-9]\d{0,17})"
_NUMBER = r"-?(0|[1-9]\d{0,99})(\.\d+)?([eE][-+]?\d{1,2})?"
#: Two machines may differ in the last digits of a mean; by more than this share of the scale, the rows differ.
_ROUNDING = 1e-9


def _difference(kept: Schema, now: Schema) -> str:
    """Say which column's part in two schemas differs first; empty where none does."""
    if [feature.column for feature in kept.features] != [feature.column for feature in now.features]:
        return "which columns are features"
    for before, after in zip(kept.features, now.features):
        plain = before._replace(mean=after.mean, scale=after.scale, unit=after.unit, limits=after.limits)
        plain = plain._replace(components=after.components)
        if (
            plain != after
            or _turned(before, after)
            or _moved(before, after)
            or not math.isclose(before.unit, after.unit, rel_tol=_ROUNDING)
        ):
            return f"column {before.column!r}"
    plain = kept._replace(mean=now.mean, scale=now.scale, features=now.features, limits=now.limits)
    return f"column {kept.target!r}" if plain != now or _moved(kept, now) else ""


def _turned(before: Feature, after: Feature) -> bool:
    """Return whether texts become other numbers."""
    if before.components == after.components:
        return False
    pairs = zip(*(prose.from_text(feature.components, feature.numbers) for feature in (before, after)))
    return not all(torch.allclose(*pair, atol=1e-4) for pair in pairs)


def _moved(before: Feature | Schema, after: Feature | Schema) -> bool:
    slack = _ROUNDING * max(abs(before.mean), before.scale)
    ends = (*(before.limits or ()), before.mean, before.scale), (*(after.limits or ()), after.mean, after.scale)
    same = (math.isclose(one, other, rel_tol=_ROUNDING, abs_tol=slack) for one, other in zip(*ends))
    return len(ends[0]) != len(ends[1]) or not all(same)


def _support(schema: Schema, source: Path | None, strict: bool) -> list[tuple[NewTask, Batch]]:
    """Return a task for each value of the task column, or one where there is no such column, or it is empty."""
    if source is None:
        return [(NewTask(None, schema.classes, (0,) * (len(schema.classes) or 1)), nothing(_like(schema, 0)))]

    def needed(path: str, header: tuple[str, ...]) -> list[str]:
        return [
            *_features(schema, path, header, ("the target of the run", schema.target)),
            *({schema.task_column} & set(header)),
        ]

    return _tasks_in(schema, read_table(source, needed, missing=schema.missing, commas=schema.commas))


def _tasks_in(schema: Schema, table: Table) -> list[tuple[NewTask, Batch]]:
    task = schema.task_column
    x, y = encode_features(schema.features, table), encode_target(schema, table)
    if task not in table.columns or is_missing(table.columns[task]).all():
        places = {None: slice(None)}
    else:
        refuse_missing(table, task, "task")
        texts = table.columns[task]
        places = {name: texts == name for name in in_order(distinct(texts)[0])}
    found = []
    for name, place in places.items():
        own = y[place]
        counts = own.bincount(minlength=len(schema.classes)).tolist() if schema.classes else [len(own)]
        found.append((NewTask(name, schema.classes, tuple(counts)), Batch(x[place].unsqueeze(0), own.unsqueeze(0))))
    return found


def _recognises(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz")
    return path.is_file() and ("." not in name or name.endswith((*SUFFIXES, *_WORKBOOKS)))


def _features(schema: Schema, path: str, header: Sequence[str], *others: tuple[str, str]) -> list[str]:
    """Return the columns that are needed, or refuse a header without one of them."""
    wanted = [*(("a feature of the run", feature.column) for feature in schema.features), *others]
    find_columns(path, header, wanted)
    return [column for _, column in wanted]


def _inputs(
    schema: Schema, sources: Sequence[str], tasks: Mapping[str, Sequence[str]], failed: Failed
) -> Iterator[Inputs]:
    for file in files_of(sources, SUFFIXES, failed):

        def every(path: str, header: tuple[str, ...]) -> tuple[str, ...]:
            _features(schema, path, header)
            return header

        try:
            table = read_table(file, every, missing=schema.missing, commas=schema.commas)
            x, unseen = encode_rows(schema.features, table)
        except (DataError, FileError) as error:
            failed(error)
            continue
        texts = {name: table.columns[name].tolist() for name in table.header}
        own = [text or None for text in texts.get(schema.task_column, [""] * table.size)]
        columns = {name: values if name == schema.task_column else _plain(values) for name, values in texts.items()}
        rows: list[Row] = [dict(zip(columns, row)) for row in zip(*columns.values())]
        yield Inputs(x, own, rows, table.where, unseen if _bounded(schema) else None)


def _table(schema: Schema, values: Sequence[Any], columns: Sequence[str]) -> Table:
    """Return a table of rows in memory, each a mapping from columns to texts, numbers, booleans or ``None``."""
    for place, row in enumerate(values):
        if not isinstance(row, Mapping):
            raise DataError(f"row {place} is a {type(row).__name__}; expected a mapping from columns to values")
        if (lacking := next((name for name in columns if name not in row), None)) is not None:
            raise DataError(
                f"row {place} has no column {lacking!r}; expected {', '.join(map(repr, columns))}"
                " (None where a value is missing)"
            )
    texts = {
        name: [_as_text(row[name], name in schema.commas, place, name) for place, row in enumerate(values)]
        for name in columns
    }
    found = {name: cleaned(strings(column), schema.missing) for name, column in texts.items()}
    numbers = np.arange(len(values), dtype=np.int64)
    return Table("the rows", tuple(columns), found, numbers, "row", frozenset(schema.commas) & set(columns))


def _as_text(value: Any, comma: bool, place: int, column: str) -> str:
    """Return a value as a file has it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not isinstance(value, str | bool) and not (number and abs(value) <= sys.float_info.max):
        raise DataError(
            f"row {place}, column {column!r}: got a {type(value).__name__}; expected a text, a finite number, true,"
            " false, or nothing"
        )
    if value is None:
        return ""
    if isinstance(value, str):
        check_text(f"row {place}, column {column!r}:", value)
        return value
    text = str(value) if not number else f"{value:.17g}" if isinstance(value, float) else str(int(value))
    return text.replace(".", ",") if comma and number else text


def _values(schema: Schema, values: Sequence[Any]) -> Iterator[Inputs]:
    """Rows as values stand beside the answer as they are."""
    table = _table(schema, values, [feature.column for feature in schema.features])
    own = [None if (name := row.get(schema.task_column)) in (None, "") else str(name) for row in values]
    x, unseen = encode_rows(schema.features, table)
    yield Inputs(x, own, [Row(row) for row in values], table.where, unseen if _bounded(schema) else None)


def _bounded(schema: Schema) -> bool:
    """Return whether it is known what training tasks had, as it is not of points of curves, which are as they are."""
    return any(feature.kind == "category" or feature.limits is not None for feature in schema.features)


def _taught(schema: Schema, values: Sequence[Any], labels: Sequence[str]) -> tuple[NewTask, Batch]:
    if labels:
        raise DataError(f"a row has its target in itself, as column {schema.target!r}; leave the labels out")
    columns = [feature.column for feature in schema.features if feature.column != schema.task_column]
    several = {str(row[schema.task_column]) for row in values if isinstance(row, Mapping) and schema.task_column in row}
    if len(several) > 1:
        raise DataError(f"the rows are of {len(several)} different {schema.task_column}; expected those of one task")
    table = _table(schema, values, list(dict.fromkeys([*columns, schema.target])))
    ((task, batch),) = _tasks_in(schema, table)
    return task, batch


def _plain(texts: list[str]) -> list[Any]:
    """Return a column's values as JSON has them: numbers where all are, but not such as 007, which only names."""
    whole = all(re.fullmatch(_WHOLE, text) for text in texts if text)
    if not any(texts) or not (whole or all(re.fullmatch(_NUMBER, text) for text in texts if text)):
        return list(texts)
    return [(int(text) if whole else Written(text)) if text else None for text in texts]


def _answers(schema: Schema, labels: Sequence[str], outputs: Tensor, deviations: Tensor | None) -> list[Row]:
    if schema.classes:
        return class_answers(labels, outputs)
    return number_answers(outputs, deviations, schema.mean, schema.scale)


def _raw(schema: Schema) -> Raw:
    """Rows as one number a column: what is left to do is to standardise them, and to take categories apart."""
    text = next((feature.column for feature in schema.features if feature.kind == "text"), None)
    if text is not None:
        raise ConfigError(
            f"the column {text!r} holds texts, which are no numbers before a program has read them, so that a model of"
            " them cannot be exported; train without it (--columns), or predict by headstart"
        )
    generator = torch.Generator().manual_seed(0)
    columns = []
    for feature in schema.features:
        values = torch.randn(17, generator=generator, dtype=torch.float64)
        if feature.kind == "category":
            values = torch.randint(-1, len(feature.categories), (17,), generator=generator).double()
        else:
            values = torch.from_numpy(feature.decode(values.numpy()))
        columns.append(torch.where(torch.arange(17) % 5 == 3, math.nan, values) if feature.missing else values)

    def inputs(values: Tensor) -> Tensor:
        return torch.cat([_of_values(feature, values[:, place]) for place, feature in enumerate(schema.features)], 1)

    told = {
        "columns": [_told(feature) for feature in schema.features],
        "missing": "NaN",
        "predicted": schema.target,
    }
    return Raw("values", torch.stack(columns, 1), inputs, told, mean=schema.mean, scale=schema.scale)


def _of_values(feature: Feature, values: Tensor) -> Tensor:
    """Return the inputs ``(n, …)`` of a column's values ``(n,)``, as `Feature.encode` does."""
    missing = values.isnan()
    if feature.kind == "category":
        found = (values.unsqueeze(1) == torch.arange(len(feature.categories))).double()
    else:
        unit = feature.unit
        logged = values.sign() * (values.abs() / unit).log1p() if unit else values
        found = (logged - feature.mean) / feature.scale
        found = found if feature.limits is None else bounded(found, feature.limits)
        found = torch.where(missing, 0.0, found).unsqueeze(1)
    return (torch.cat([found, missing.double().unsqueeze(1)], 1) if feature.missing else found).float()


def _told(feature: Feature) -> dict[str, Any]:
    how = {
        "number": "as it is",
        "boolean": "0 or 1",
        "date": "days since 1970-01-01, and parts of a day",
        "category": "its place among the categories, from 0; -1 for any other",
    }
    categories = {"categories": list(feature.categories)} if feature.kind == "category" else {}
    return {"column": feature.column, "kind": feature.kind, "value": how[feature.kind], **categories}


def _like(schema: Schema, classes: int) -> Tasks:
    return Tasks(
        "table",
        unsampled,
        schema.kind,
        (len(schema.inputs),),
        len(schema.classes) or 1,
        {},
        unit=schema.scale,
        limits=schema.limits,
        shared_classes=bool(schema.classes),
    )


def _predicts(schema: Schema) -> str:
    columns = ", ".join(f"`{feature.column}`" for feature in schema.features)
    return f"`{schema.target}` ({schema.kind}) from {columns}"


def _task(tasks: Tasks) -> str:
    details, schema = tasks.details, tasks.details["schema"]
    each = " of each class" if schema["classes"] else ""
    rows = f"{details['support']}{each} of its" if details["order"] == "random" else f"its first {details['support']}"
    judged = "the other rows" if details["queries"] is None else f"at most {details['queries']} of the others"
    time = f", in the order of {schema['time_column']}" if schema["time_column"] else ""
    return f"one {schema['task_column']}: {schema['target']} of {judged} is predicted from {rows} rows{time}"


TABLES = DataKind(
    name="tables",
    recognises=_recognises,
    preparation=lambda tasks: tasks.details.get("schema"),
    read=schema_from_json,
    difference=_difference,
    like=_like,
    support=_support,
    inputs=_inputs,
    values=_values,
    taught=_taught,
    raw=_raw,
    answers=_answers,
    predicts=_predicts,
    task=_task,
    examples="rows",
    usage=("ROWS.csv", "MORE_ROWS.csv"),
    picture="headstart.training.report.episodes.tables:picture",
    caption="The picture episode.png shows the first test tasks, over time where it is known, and what was predicted.",
)
