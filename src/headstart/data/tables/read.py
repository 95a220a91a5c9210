"""Reading CSV and Parquet files as text, with the place of every row, so that errors can name it."""

import csv
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from headstart.data.tables.file import MISSING, Table, Texts, strings
from headstart.errors import DataError, FileError, UsageError

Choose = Callable[[str, tuple[str, ...]], Sequence[str]]
"""``(path, header) -> the columns to keep``; it refuses a header without what is needed."""

SEPARATORS = (",", ";", "\t", "|")
_CHUNK = 16_384
#: Bytes in memory for a byte of the file: 16 for a short text, twice while chunks are joined, then the numbers.
_CSV_FACTOR = 10
#: The same for a value of a Parquet file.
_PARQUET_VALUE = 60
#: How files that are often taken for tables begin.
_OTHERS = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\x1f\x8b": "compressed with gzip",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
}


def read_table(path: str | Path, choose: Choose | None = None, available: int | None = None) -> Table:
    """Read a CSV or Parquet file; what it is is told by its first bytes.

    CSV is UTF-8 (with or without a byte order mark) with one header row; its separator, a comma, semicolon, tab or
    bar, is found out. Spaces around a value are dropped; an empty value, NA, N/A, NaN, null or None is missing.

    Args:
        path: the file.
        choose: which columns to keep, told from the header before any row is read; by default all.
        available: bytes of memory that may be used; by default what the system has.

    Raises:
        FileError: no such file, or one that cannot be opened.
        DataError: a file that is no such table, or too large for the memory.
        UsageError: Parquet without pyarrow.
    """
    path = Path(path)
    start, size = _begin(path)
    available = available_memory() if available is None else available
    if start.startswith(b"PAR1"):
        return _read_parquet(path, choose, available)
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            raise DataError(f"{path} is {what}; expected CSV in UTF-8, or Parquet: export it as one of these")
    if b"\0" in start:
        raise DataError(f"{path} is not text (it has zero bytes); expected CSV in UTF-8, or Parquet")
    _check_memory(path, _CSV_FACTOR * size, available)
    return _read_csv(path, choose)


def available_memory() -> int | None:
    """Return how many bytes of memory are free to use, or ``None`` where the system does not say."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        with open("/proc/meminfo") as file:
            found.append(next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:")))
    with suppress(OSError, ValueError):
        limit, used = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current"))
        found.append(int(limit) - int(used))
    return min(found, default=None)


def _check_memory(path: Path, needed: int, available: int | None) -> None:
    if available is not None and needed > available:
        raise DataError(
            f"{path} needs about {needed / 2**30:.2f} GiB of memory, but {max(available, 0) / 2**30:.2f} GiB are free;"
            " keep fewer rows or columns in the file, or write it as Parquet and name the columns that are needed"
        )


def _begin(path: Path) -> tuple[bytes, int]:
    """Return a file's first bytes and its size."""
    try:
        with path.open("rb") as file:
            return file.read(4096), os.fstat(file.fileno()).st_size
    except OSError as problem:
        reason = "there is no such file" if isinstance(problem, FileNotFoundError) else problem.strerror
        raise FileError(f"cannot read the table {path}: {reason}") from problem


def _read_csv(path: Path, choose: Choose | None) -> Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            separator = _separator(file)
            file.seek(0)
            return _rows_of(csv.reader(file, delimiter=separator, strict=True), path, choose)
    except UnicodeDecodeError:
        raise _not_utf8(path) from None


def _not_utf8(path: Path) -> DataError:
    """Return the error that says where a file stops being UTF-8."""
    with path.open("rb") as file:
        for line, data in enumerate(file, start=1):
            try:
                data.decode()
            except UnicodeDecodeError as problem:
                return DataError(
                    f"{path}, line {line}: byte 0x{data[problem.start]:02x} is not UTF-8; save the file as UTF-8"
                )
    return DataError(f"{path} is not UTF-8; save the file as UTF-8")


def _separator(file: TextIO) -> str:
    """Return the separator that cuts the first rows into the same number of fields, the greatest."""
    best, most = ",", (False, 1)
    for separator in SEPARATORS:
        file.seek(0)
        try:
            widths = [len(row) for row in islice(csv.reader(file, delimiter=separator, strict=True), 20) if row]
        except csv.Error:
            continue
        if widths and (len(set(widths)) == 1 < widths[0], widths[0]) > most:
            best, most = separator, (len(set(widths)) == 1 < widths[0], widths[0])
    return best


def _rows_of(reader: Any, path: Path, choose: Choose | None) -> Table:
    """Read the rows of a CSV file, a chunk at a time."""
    chunks: list[list[Texts]] = []
    lines: list[np.ndarray] = []
    started = 0
    try:
        header = _check_header(path, next((row for row in reader if row), []))
        kept = list(header) if choose is None else list(choose(str(path), header))
        places = [header.index(name) for name in kept]
        while True:
            rows, starts = [], []
            started = reader.line_num
            for row in islice(reader, _CHUNK):
                if len(row) == len(header):
                    rows.append([row[place] for place in places])
                    starts.append(started + 1)
                elif row:
                    raise DataError(
                        f"{path}, line {started + 1}: {len(row)} values, but the header has {len(header)} columns; "
                        "put values that hold the separator in quotes"
                    )
                started = reader.line_num
            if not starts:
                break
            chunks.append([_cleaned(strings(texts)) for texts in zip(*rows)])
            lines.append(np.array(starts, dtype=np.int64))
    except csv.Error as problem:
        raise DataError(f"{path}, line {started + 1}: {problem}; is a quote not closed?") from problem
    if not chunks:
        raise DataError(f"{path} has a header but no rows")
    columns = {name: np.concatenate([chunk[place] for chunk in chunks]) for place, name in enumerate(kept)}
    return Table(str(path), header, columns, np.concatenate(lines))


def _check_header(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    header = tuple(name.strip() for name in names)
    if not header:
        raise DataError(f"{path} is empty; expected a header row with the columns' names")
    if len(header) == 1:
        raise DataError(
            f"{path} has one column only, {header[0][:60]!r}; expected a task column, a target and features, separated"
            " by commas, semicolons, tabs or bars"
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path} has more than one column {twice[0]!r}; rename all but one")
    return header


def _cleaned(texts: Texts) -> Texts:
    """Return texts without spaces around them, and empty where they mean that a value is missing."""
    texts = np.strings.strip(texts)
    texts[np.isin(texts, strings(MISSING))] = ""
    return texts


def _read_parquet(path: Path, choose: Choose | None, available: int | None) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as problem:
        raise UsageError(f"reading {path} needs pyarrow: pip install headstart[tabular]") from problem
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as problem:
        raise DataError(f"{path} is not a whole Parquet file: {problem}") from problem
    with file:
        header = _check_header(path, file.schema_arrow.names)
        kept = list(header) if choose is None else list(choose(str(path), header))
        count = file.metadata.num_rows
        if not count:
            raise DataError(f"{path} has no rows")
        _check_memory(path, _PARQUET_VALUE * count * len(kept), available)
        try:
            read = file.read(columns=[file.schema_arrow.names[header.index(name)] for name in kept])
        except (pyarrow.ArrowException, OSError) as problem:
            raise DataError(f"{path} cannot be read as Parquet: {problem}") from problem
    columns = {name: _as_texts(path, name, read.column(place)) for place, name in enumerate(kept)}
    return Table(str(path), header, columns, np.arange(1, count + 1), "row")


def _as_texts(path: Path, name: str, column: Any) -> Texts:
    """Return a Parquet column as text; numbers are written so that they read back the same."""
    import pyarrow

    kind = column.type.value_type if pyarrow.types.is_dictionary(column.type) else column.type
    try:
        texts = column.cast(kind).cast(pyarrow.string()).fill_null("")
    except pyarrow.ArrowException as problem:
        raise DataError(
            f"{path}, column {name!r}: values of type {column.type} are no features; leave it out (--columns)"
        ) from problem
    return np.concatenate([_cleaned(strings(chunk.to_pylist())) for chunk in texts.chunks])
