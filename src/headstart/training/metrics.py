"""A run's numbers: ``metrics.jsonl``, one line an outer step, and ``results.csv``, one row a look at validation.

No line holds a time, so the file of a run that was cut off and resumed is, byte for byte, that of one that was not.
Each checkpoint has the size and SHA-256 of what the file held then.
"""

import csv
import hashlib
import io
import json
import os
import sys
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from headstart.errors import FileError
from headstart.training.files import explained, fingerprint, read, write

NAME = "metrics.jsonl"
Line: TypeAlias = dict[str, Any]


class MetricsFile:
    """``metrics.jsonl``, open for appending."""

    def __init__(self, run: Path, step: int = -1, known: Mapping[str, Any] | None = None) -> None:
        """Open the file as it was after ``step``; what is behind that belongs to steps that will be taken again.

        Args:
            run: the run's folder.
            step: the last step that is to be in it.
            known: size and SHA-256 of what it was then, as the checkpoint has them; by default it begins anew. Where
                it is another now, it is kept beside, a warning says so, and the lines that can be read are taken.
        """
        self.path = run / NAME
        data = b"" if known is None else _as_known(run, step, known)
        write(self.path, data)
        self.size, self.hash = len(data), hashlib.sha256(data)
        with explained("write", self.path):
            self.file = self.path.open("a+b")
        self.told: Callable[[Line], None] | None = None
        """Called with each line that is added."""

    def add(self, line: Line) -> None:
        """Append a line; `sync` brings it to the disk."""
        data = _text(line)
        with explained("write", self.path):
            self.file.write(data)
        self.size += len(data)
        self.hash.update(data)
        if self.told is not None:
            self.told(line)

    def lines(self) -> list[Line]:
        """Return all lines that were added."""
        return _parsed(self.content())[0]

    def known(self) -> dict[str, Any]:
        """Hand all lines to the system, and return the file's size and SHA-256; `sync` brings them to the disk."""
        with explained("write", self.path):
            self.file.flush()
        return {"bytes": self.size, "sha256": self.hash.hexdigest()}

    def sync(self) -> dict[str, Any]:
        """Bring all lines to the disk, and return the file's size and SHA-256; a thread may, while others add lines."""
        known = self.known()
        with explained("write", self.path):
            os.fsync(self.file.fileno())
        return known

    def content(self) -> bytes:
        """Return all that was written, even where the file has been deleted."""
        with explained("read", self.path):
            self.file.seek(0)
            return self.file.read()

    def close(self) -> None:
        """Close the file; what it holds was synced, or belongs to steps that will be taken again."""
        with suppress(OSError):
            self.file.close()


def _as_known(run: Path, step: int, known: Mapping[str, Any]) -> bytes:
    """Return what the file held after ``step``, or what of it can be read."""
    path = run / NAME
    there = path.exists() or path.is_symlink()
    data = read(path) if there else b""
    begun = data[: known["bytes"]]
    if fingerprint(begun) == known:
        return begun
    lines, bad = _parsed(data)
    kept = [line for line in lines if line["step"] <= step]
    told = f"{path} is not what it was after step {step}"
    if there:
        aside = path.with_name(f"damaged-{uuid.uuid4().hex[:6]}-{NAME}")
        with explained("rename", path):
            os.replace(path, aside)
        told += f" ({len(bad)} of its lines cannot be read); it is kept as {aside.name}"
    warnings.warn(f"{told}; going on with the {len(kept)} lines of it that are whole", stacklevel=4)
    return b"".join(map(_text, kept))


def read_lines(run: Path) -> list[Line]:
    """Return the lines of a run's metrics; a warning tells of those that cannot be read.

    Raises:
        FileError: no such file.
    """
    lines, bad = _parsed(read(run / NAME))
    if bad:
        listed = ", ".join(map(str, bad[:5])) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        warnings.warn(f"{run / NAME} is damaged: line {listed} cannot be read, and is left out", stacklevel=2)
    return lines


def _parsed(data: bytes) -> tuple[list[Line], list[int]]:
    """Return the lines that are as they were written, and the numbers of the others; one cut short at the end goes."""
    lines: list[Line] = []
    bad: list[int] = []
    for number, text in enumerate(data.split(b"\n")[:-1], start=1):
        line: Any = None
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
        if _is_line(line):
            lines.append(line)
        else:
            bad.append(number)
    return lines, bad


def _is_line(line: Any) -> bool:
    if not isinstance(line, dict) or type(line.get("step")) is not int or line["step"] < 0:
        return False
    look = line.get("validation", {"ci95": None})
    numbers = [line[name] for name in ("step", "loss", "gradient_norm", "rate") if name in line]
    if not isinstance(look, dict) or "ci95" not in look:
        return False
    numbers += [value for value in look.values() if value is not None]
    left_out = line.get("left_out", [])
    if not isinstance(left_out, list) or not all(isinstance(one, dict) and "task" in one for one in left_out):
        return False
    numbers += [one["task"] for one in left_out]
    return all(type(one) in (int, float) and abs(one) <= sys.float_info.max for one in numbers)


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


def _text(line: Line) -> bytes:
    return (json.dumps(line, allow_nan=False) + "\n").encode()
