"""How a run's table became numbers: ``RUN/table.json``, from which new rows are read, and by which a table is known."""

import math
from pathlib import Path
from typing import Any

from headstart.data.tables import Schema, schema_from_json, schema_to_json
from headstart.errors import DataError, FileError
from headstart.training.files import read_json, to_json, write

SCHEMA = "table.json"

#: Two machines may differ in the last digits of a mean; by more than this share of the scale, the rows differ.
_ROUNDING = 1e-9


def write_schema(run: Path, schema: Any) -> None:
    """Write the schema of a run's table, the ``schema`` in its tasks' details, to ``RUN/table.json``.

    Raises:
        DataError: the run is there already, and was made of another table.
        FileError: it is no schema, or the folder cannot be written.
    """
    refuse_other_table(run, schema)
    write(run / SCHEMA, to_json(schema_to_json(schema_from_json(schema, "the tasks' schema"))))


def read_schema(run: Path) -> Schema:
    """Read what `write_schema` has written.

    Raises:
        FileError: no such file, or it does not hold a schema.
    """
    if not (run / SCHEMA).exists():
        raise FileError(f"{run} holds no run on a table: there is no {SCHEMA} in it")
    return schema_from_json(read_json(run / SCHEMA), str(run / SCHEMA))


def is_table_run(run: Path) -> bool:
    """Return whether a run folder's tasks are of a table."""
    return (run / SCHEMA).exists()


def refuse_other_table(run: Path, schema: Any) -> None:
    """Refuse a table whose training rows are others than those that a run was made of.

    With other rows the tasks may be split otherwise, so that tasks that were trained on would be judged on.

    Args:
        run: the run's folder; what has no ``table.json`` yet refuses nothing.
        schema: the ``schema`` in the details of the tasks at hand.

    Raises:
        DataError: what the schema says of the training rows is not what the run has kept.
    """
    if not is_table_run(run):
        return
    changed = _difference(read_schema(run), schema_from_json(schema, "the tasks' schema"))
    if changed:
        raise DataError(
            f"the table is not what it was when the run in {run} was made ({changed} differs in the training tasks), so"
            " tasks that were trained on could be judged on; bring the file back as it was, or train in another --out"
        )


def _difference(kept: Schema, now: Schema) -> str:
    """Say which column's part in two schemas differs first; empty where none does."""
    if [feature.column for feature in kept.features] != [feature.column for feature in now.features]:
        return "which columns are features"
    for before, after in zip(kept.features, now.features):
        plain = before._replace(mean=after.mean, scale=after.scale)
        if plain != after or _moved((before.mean, before.scale), (after.mean, after.scale)):
            return f"column {before.column!r}"
    plain = kept._replace(mean=now.mean, scale=now.scale, features=now.features)
    return f"column {kept.target!r}" if plain != now or _moved((kept.mean, kept.scale), (now.mean, now.scale)) else ""


def _moved(before: tuple[float, float], after: tuple[float, float]) -> bool:
    """Return whether a mean and a standard deviation are others, but for rounding."""
    slack = _ROUNDING * max(abs(before[0]), before[1])
    return not all(math.isclose(one, other, rel_tol=_ROUNDING, abs_tol=slack) for one, other in zip(before, after))
