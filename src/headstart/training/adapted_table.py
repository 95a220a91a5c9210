"""A learner that has learned a new task from a table's rows: a small folder of its own, which predicts other rows.

The run keeps how its table became numbers (``table.json``), so its data are not needed again.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headstart.data.tables import (
    Schema,
    Table,
    encode_features,
    encode_target,
    find_columns,
    one_task,
    read_table,
    schema_from_json,
    schema_to_json,
)
from headstart.errors import ConfigError, DivergenceError, FileError
from headstart.training import checkpoint as checkpoints
from headstart.training.adapted_files import (
    CONFIG,
    fitted,
    inductive_learner,
    read_description,
    refuse_filled,
    tasks_like,
    write_adapted,
)
from headstart.training.build import find_device
from headstart.training.config import TrainConfig, make_config
from headstart.training.defaults import resolve
from headstart.training.files import write
from headstart.training.loop import start
from headstart.training.run import read_config
from headstart.training.table_predictions import Predictions
from headstart.training.table_schema import read_schema
from headstart.types import Adapted, Batch, Learner, Meta

FORMAT = "headstart-adapted-table-1"

#: How many standard deviations about the mean hold 90 % of a normal distribution.
_NINETY = 1.6448536269514722
#: Rows that are predicted at a time.
_CHUNK = 8192


class AdaptedTable(NamedTuple):
    """What an adapted folder holds."""

    schema: Schema
    learner: Learner
    adapted: Adapted
    config: TrainConfig
    counts: tuple[int, ...]
    """How many rows it was learned from; in classification, of each class."""
    device: torch.device
    task: str | None = None
    """What the task is called; ``None`` where its rows did not say."""


def is_table_model(folder: Path) -> bool:
    """Return whether an adapted folder is of a table."""
    return (folder / CONFIG).exists() and read_description(folder).get("format") == FORMAT


def adapt(run: str | Path, support: str | Path, out: str | Path, device: str = "auto") -> AdaptedTable:
    """Learn a new task from the rows of a table, and write the result.

    Args:
        run: a run folder, of tasks of a table.
        support: a CSV or Parquet file with the new task's rows: the features and the target that the run was trained
            with. The task column may be absent, and other columns are ignored.
        out: the folder to write; it must be new or empty.
        device: where to compute.

    Raises:
        ConfigError: the run is not of a table.
        DataError: rows of more than one task, without a feature or the target, or that do not fit the run's table.
        DivergenceError: adapting gives numbers that are not finite.
        FileError: no run, or a file or folder that cannot be read or written.
    """
    run, out, where = Path(run), Path(out), find_device(device)
    config = read_config(run)
    if config.tasks != "table":
        raise ConfigError(f"the run in {run} is of {config.tasks}; a table's rows are for runs on tables")
    schema = read_schema(run)
    refuse_filled(out)
    learner = _learner(config, schema, where)
    meta = _best(run, learner)
    table = read_table(support, _features_and_target(schema))
    task = one_task(table, schema.task_column)
    x, y = encode_features(schema, table), encode_target(schema, table)
    with torch.no_grad():
        adapted, _ = learner.adapt(meta, Batch(x.unsqueeze(0).to(where), y.unsqueeze(0).to(where)))
    model = AdaptedTable(schema, learner, adapted, config, _counts(schema, y), where, task)
    described = {
        "format": FORMAT,
        "task": task,
        "rows": list(model.counts),
        "table": schema_to_json(schema),
        "base": config.model_dump(),
    }
    write_adapted(out, adapted, described, _card(model))
    return model


def _features_and_target(schema: Schema) -> Any:
    def choose(path: str, header: tuple[str, ...]) -> list[str]:
        _check_header(schema, path, header)
        find_columns(path, header, [("the target of the run", schema.target)])
        return [*_columns(schema), schema.target, *({schema.task_column} & set(header))]

    return choose


def _columns(schema: Schema) -> list[str]:
    return [feature.column for feature in schema.features]


def _check_header(schema: Schema, path: str, header: tuple[str, ...]) -> None:
    find_columns(path, header, [("a feature of the run", name) for name in _columns(schema)])


def _counts(schema: Schema, y: Tensor) -> tuple[int, ...]:
    return tuple(y.bincount(minlength=len(schema.classes)).tolist()) if schema.classes else (len(y),)


def _learner(config: TrainConfig, schema: Schema, device: torch.device) -> Learner:
    like = tasks_like("table", schema.kind, (len(schema.inputs),), len(schema.classes) or 1)
    return inductive_learner(config, like._replace(unit=schema.scale), device)


def _best(run: Path, learner: Learner) -> Meta:
    """Return the best weights of a run, without making its tasks, whose data may be elsewhere."""
    found = checkpoints.find(run, start(learner).meta)
    if found.checkpoint is None:
        raise FileError(f"the run in {run} has no checkpoint yet")
    return found.checkpoint.best.meta


def open_adapted(folder: str | Path, device: str = "auto") -> AdaptedTable:
    """Read what `adapt` has written.

    Raises:
        FileError: no such folder, or its files are not what they should be.
    """
    folder, where = Path(folder), find_device(device)
    described, named = read_description(folder, FORMAT), str(folder / CONFIG)
    try:
        counts = tuple(int(count) for count in described["rows"])
        schema, base = schema_from_json(described["table"], named), dict(described["base"])
        task = None if described["task"] is None else str(described["task"])
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{named} does not describe an adapted model: {error}") from error
    if len(counts) != (len(schema.classes) or 1) or min(counts) < 0 or not 0 < sum(counts) <= 10_000_000:
        raise FileError(f"{named} has {counts} rows for {len(schema.classes)} classes")
    config = resolve(make_config(base, named))
    learner = _learner(config, schema, where)
    x = torch.zeros(1, sum(counts), len(schema.inputs))
    classes = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).unsqueeze(0)
    blank = Batch(x, classes if schema.classes else torch.zeros(1, sum(counts), 1))
    return AdaptedTable(schema, learner, fitted(folder, learner, blank, where), config, counts, where, task)


def predict(model: AdaptedTable, rows: str | Path, out: str | Path | None = None) -> Predictions:
    """Predict the target of a table's rows.

    Args:
        model: what was learned.
        rows: a CSV or Parquet file with the features; other columns are carried along.
        out: a CSV file to write `Predictions.columns` to; by default nothing is written.

    Raises:
        DataError: rows without a feature, that do not fit the run's table, or that say they are of another task.
        DivergenceError: predictions that are not finite.
        FileError: a file that cannot be read or written.
    """
    schema = model.schema

    def choose(path: str, header: tuple[str, ...]) -> tuple[str, ...]:
        _check_header(schema, path, header)
        return header

    table = read_table(rows, choose)
    one_task(table, schema.task_column, model.task)
    parts = encode_features(schema, table).unsqueeze(0).to(model.device).split(_CHUNK, dim=1)
    with torch.no_grad():
        outputs = torch.cat([model.learner.predict(model.adapted, x)[0].cpu().double() for x in parts])
        found = _classes(schema, table, outputs) if schema.classes else _numbers(model, table, outputs, parts)
    if out is not None:
        write(Path(out), found.to_csv().encode())
    return found


def _classes(schema: Schema, table: Table, logits: Tensor) -> Predictions:
    _check_finite(table, logits.isfinite() | (logits == -math.inf))
    probabilities = logits.softmax(-1)
    best = probabilities.max(-1)
    return Predictions(
        table,
        [schema.classes[place] for place in best.indices.tolist()],
        probability=best.values.tolist(),
        probabilities=dict(zip(schema.classes, probabilities.T.tolist())),
    )


def _numbers(model: AdaptedTable, table: Table, outputs: Tensor, parts: Sequence[Tensor]) -> Predictions:
    schema, distribution = model.schema, model.learner.distribution

    def in_units(values: Tensor) -> list[float]:
        return (schema.mean + schema.scale * values).tolist()

    means = outputs[:, 0]
    _check_finite(table, means.isfinite())
    if distribution is None:
        return Predictions(table, in_units(means))
    spreads = [distribution(model.adapted, x).variance[0, :, 0].cpu().double().sqrt() for x in parts]
    half = _NINETY * torch.cat(spreads)
    _check_finite(table, half.isfinite())
    return Predictions(table, in_units(means), in_units(means - half), in_units(means + half))


def _check_finite(table: Table, finite: Tensor) -> None:
    bad = (~finite).reshape(len(finite), -1).any(1)
    if bad.any():
        line = int(table.lines[int(bad.int().argmax())])
        raise DivergenceError(
            f"{table.path}, {table.unit} {line}: the prediction is not finite; train with a lower --inner-rate, or"
            " fewer --inner-steps"
        )


def _card(model: AdaptedTable) -> str:
    schema, config = model.schema, model.config
    counted = dict(zip(schema.classes, model.counts)) if schema.classes else {"rows": model.counts[0]}
    rows = "\n".join(f"| {name} | {count} |" for name, count in counted.items())
    steps = "" if config.inner_steps is None else f" ({config.inner_steps} inner steps)"
    columns = ", ".join(f"`{name}`" for name in _columns(schema))
    beside = ", `low` and `high`, between which 90 % of observations are to lie" if model.learner.distribution else ""
    beside = ", a `probability`, and one for each class" if schema.classes else beside
    whose = "" if model.task is None else f" of {schema.task_column} {model.task}"
    return f"""# {schema.target} learned from {sum(model.counts)} rows{whose}

Predicts `{schema.target}` ({schema.kind}) from {columns}. Learned by {config.method}{steps}, from a run on other tasks
of the column `{schema.task_column}`; made with headstart.

| {"class" if schema.classes else ""} | rows |
|---|---|
{rows}

    headstart predict FOLDER ROWS

It gives the rows with a column `prediction`{beside}. Probabilities and intervals are the model's own.
"""
