"""Predictions as lines of a file: CSV, or a JSON object a line."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from headstart.data.kind import Row, Written
from headstart.errors import DataError, UsageError
from headstart.training.metrics import csv_line

NONE = "none"
"""What stands in a table for a prediction of none of the labels; in JSON it is null."""


def flattened(row: Row) -> Row:
    """Return a prediction with a column for each label's probability in place of all in one, and lists as one text.

    A prediction of none of the labels is called `NONE`.
    """
    plain = {name: value for name, value in row.items() if name != "probabilities"}
    if plain.get("prediction", "") is None:
        plain["prediction"] = NONE
    for name in plain.keys() & {"set", "unseen"}:
        if isinstance(plain[name], list):
            plain[name] = "; ".join(plain[name])
    return plain | {f"probability of {label}": value for label, value in row.get("probabilities", {}).items()}


def csv_lines(rows: Iterable[Row], labels: Iterable[str] = ()) -> Iterator[str]:
    """Yield predictions as lines of CSV, with the first row's columns, and one for the probability of each label.

    Raises:
        DataError: a row with another column.
    """

    def short(value: Any) -> Any:
        return f"{value:.9g}" if isinstance(value, float) and not isinstance(value, Written) else value

    columns: list[str] = []
    for row in rows:
        plain = flattened(row)
        if not columns:
            told = [f"probability of {label}" for label in labels if "probabilities" in row]
            columns = list(dict.fromkeys([*plain, *told]))
            yield csv_line(columns)
        if more := plain.keys() - set(columns):
            raise DataError(
                f"column {min(more)!r} is not in all of the files, so they make no one table; predict each by itself,"
                " or take --out with a .jsonl file"
            )
        yield csv_line([short(plain.get(name, "")) for name in columns])


def json_lines(rows: Iterable[Row], labels: Iterable[str] = ()) -> Iterator[str]:
    """Yield predictions as JSON objects, one a line."""
    return (json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows)


def writer_of(out: Path) -> Callable[[Iterable[Row], Iterable[str]], Iterator[str]]:
    """Return what makes of predictions the lines of a file of that name: CSV, or a JSON object a line.

    Raises:
        UsageError: a file that is neither ``.csv`` nor ``.jsonl``.
    """
    if out.suffix in (".csv", ".jsonl"):
        return csv_lines if out.suffix == ".csv" else json_lines
    raise UsageError(f"--out {out}: predictions are written to a .csv or a .jsonl file")
