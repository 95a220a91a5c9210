"""A run's numbers: ``metrics.jsonl``, one line an outer step, and ``results.csv``, one row a look at validation.

No line holds a time, so the file of a run that was cut off and resumed is, byte for byte, that of one that was not.
"""

import csv
import io
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from headstart.errors import FileError
from headstart.training.files import explained, read, write

NAME = "metrics.jsonl"
Line: TypeAlias = dict[str, Any]


class MetricsFile:
    """``metrics.jsonl``, open for appending."""

    def __init__(self, run: Path, step: int) -> None:
        """Open the file after dropping every line of a later step than ``step``, and a line cut short."""
        self.path = run / NAME
        if self.path.exists() or self.path.is_symlink():
            kept = [line for line in read_lines(run) if line["step"] <= step]
            write(self.path, "".join(map(_text, kept)).encode())
        with explained("write", self.path):
            self.file: TextIO = self.path.open("a", encoding="utf-8", newline="\n")

    def add(self, line: Line) -> None:
        """Append a line; `sync` brings it to the disk."""
        with explained("write", self.path):
            self.file.write(_text(line))

    def sync(self) -> None:
        """Bring all lines to the disk."""
        with explained("write", self.path):
            self.file.flush()
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file; what it holds was synced, or belongs to steps that will be taken again."""
        with suppress(OSError):
            self.file.close()


def read_lines(run: Path) -> list[Line]:
    """Return the lines of a run's metrics, up to the first that is not whole.

    Raises:
        FileError: no such file.
    """
    lines: list[Line] = []
    with suppress(ValueError, TypeError, KeyError):
        for text in read(run / NAME).split(b"\n"):
            line = json.loads(text)
            int(line["step"])
            lines.append(line)
    return lines


def validations(lines: list[Line]) -> list[Line]:
    """Return one row for each look at the validation tasks, with the mean training loss since the one before."""
    rows: list[Line] = []
    losses: list[float] = []
    for line in lines:
        if "loss" in line:
            losses.append(line["loss"])
        if "validation" in line:
            mean = sum(losses) / len(losses) if losses else None
            rows.append({"step": line["step"], "train_loss": mean, **line["validation"]})
            losses = []
    return rows


def write_csv(path: Path, rows: list[Line]) -> None:
    """Write rows as a CSV file."""
    if not rows:
        raise FileError(f"there is nothing to write to {path}")
    write(path, csv_text(rows).encode())


def csv_text(rows: Iterable[Line]) -> str:
    """Return rows as CSV, with every column that one of them has."""
    text, rows = io.StringIO(), list(rows)
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def csv_line(values: Iterable[Any]) -> str:
    """Return values as a line of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _text(line: Line) -> str:
    return json.dumps(line, allow_nan=False) + "\n"
