"""CSV and Parquet files read as text, with the place of every row, so that errors can name it; and texts as values."""

import csv
import gzip
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headstart.errors import DataError, FileError, UsageError

Texts: TypeAlias = NDArray[Any]
"""``(N,)`` texts of numpy's StringDType, stripped; a missing one is empty."""

#: Besides the empty text.
MISSING = ("NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "null", "NULL", "None")
#: What is missing among numbers, dates and booleans, and may be a category else.
MARKS = ("-", "--", "?", ".")


class Table(NamedTuple):
    """Rows of a file, as text."""

    path: str
    header: tuple[str, ...]
    """All column names of the file, in its order."""
    columns: dict[str, Texts]
    """The columns that were asked for; those that come as numbers are float64, NaN where missing."""
    lines: NDArray[np.int64]
    """``(N,)`` where each row starts: its line in a text file, counted from 1 (the header), else its number."""
    unit: str = "line"
    """What ``lines`` counts: 'line' or 'row'."""
    commas: frozenset[str] = frozenset()
    """The columns whose numbers have a decimal comma."""
    labels: frozenset[str] = frozenset()
    """The columns that are categories whatever their texts look like."""

    @property
    def size(self) -> int:
        """The number of rows."""
        return len(self.lines)

    def where(self, row: int) -> str:
        """Return where a row stands, such as ``pigs.csv, line 3``."""
        return f"{self.path}, {self.unit} {int(self.lines[row])}"

    def rows(self, places: Any) -> "Table":
        """Return the rows at some places."""
        return self._replace(
            columns={name: texts[places] for name, texts in self.columns.items()}, lines=self.lines[places]
        )


def strings(texts: Sequence[str] | NDArray[Any]) -> Texts:
    """Return texts as a numpy array that keeps them compactly."""
    return np.array(texts, dtype=np.dtypes.StringDType())


def is_missing(texts: Texts) -> NDArray[np.bool_]:
    """Return which texts are empty, or numbers NaN, that is missing."""
    return np.isnan(texts) if texts.dtype.kind == "f" else np.asarray(texts == "", dtype=np.bool_)


def distinct(texts: Texts) -> tuple[list[str], NDArray[np.int64]]:
    """Return the different texts, sorted, and for each row the place of its text among them."""
    values = texts.tolist()
    names = sorted(set(values))
    places = {name: place for place, name in enumerate(names)}
    return names, np.fromiter(map(places.__getitem__, values), dtype=np.int64, count=len(values))


def first(which: NDArray[np.bool_]) -> int | None:
    """Return the first place that is true, or ``None``."""
    return int(which.argmax()) if which.any() else None


def error(table: Table, column: str, row: int | None, message: str) -> DataError:
    """Return the error about a column of a file, in one of its rows."""
    place = table.path if row is None else table.where(row)
    return DataError(f"{place}, column {column!r}: {message}")


def find_columns(path: str, header: Sequence[str], names: Iterable[tuple[str, str]]) -> None:
    """Raise `DataError` about the first ``(option, column)`` whose column is not in the header: what is near?"""
    known = set(header)
    for option, name in names:
        if name not in known:
            folded = {known.casefold(): known for known in header}
            near = [repr(folded[key]) for key in get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
            hint = f"; did you mean {' or '.join(near)}?" if near else "."
            alone = " only; columns are separated by commas, semicolons, tabs or bars" if len(header) == 1 else ""
            has = ", ".join(repr(one[:60]) for one in header[:50]) + (" …" if len(header) > 50 else "")
            raise DataError(f"{path} has no column {name!r} ({option}){hint} It has: {has}{alone}")


def listed(table: Table, rows: NDArray[np.bool_], most: int = 5) -> str:
    """Return where some rows stand, such as ``lines 3, 8 and 12 more``."""
    places = table.lines[rows].tolist()
    text = ", ".join(map(str, places[:most]))
    more = f" and {len(places) - most} more" if len(places) > most else ""
    return f"{table.unit}{'s' * (len(places) > 1)} {text}{more}"


Choose = Callable[[str, tuple[str, ...]], Sequence[str]]
"""``(path, header) -> the columns to keep``; it refuses a header without what is needed."""

SEPARATORS = (",", ";", "\t", "|")
csv.field_size_limit(2**24)  # letters of a value: texts may be long
_CHUNK = 16_384
#: Bytes in memory for a byte of a CSV file (16 for a short text, twice while joined, then numbers), a Parquet value.
_CSV_FACTOR, _PARQUET_VALUE = 10, 60
#: How files that are often taken for tables begin.
_OTHERS = {b"PK\x03\x04": "a zip archive or an Excel workbook", b"\xd0\xcf\x11\xe0": "an old Excel workbook"}
_GZIP, _UTF16 = b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")


def is_zipped(start: bytes) -> bool:
    """Return whether a file that starts so is packed by gzip."""
    return start.startswith(_GZIP)


def encoding_of(start: bytes) -> str:
    """Return how a text that starts so is encoded: UTF-8, or UTF-16 with its mark.

    >>> encoding_of("a".encode("utf-16")), encoding_of(b"a")
    ('utf-16', 'utf-8-sig')
    """
    return "utf-16" if start.startswith(_UTF16) else "utf-8-sig"


def read_table(
    path: str | Path,
    choose: Choose | None = None,
    available: int | None = None,
    missing: Sequence[str] = (),
    commas: Collection[str] | None = None,
) -> Table:
    """Read a CSV or Parquet file; what it is is told by its first bytes.

    CSV is UTF-8, or UTF-16 with its mark, with one header row, and may be compressed by gzip; its separator, a comma,
    semicolon, tab or bar, is found out. Spaces around a value are dropped; an empty value, or one of `MISSING`, is
    missing.

    Args:
        path: the file.
        choose: which columns to keep, told from the header before any row is read; by default all, but for those of
            Parquet that hold lists or objects.
        available: bytes of memory that may be used; by default what the system has.
        missing: other texts that mean that a value is missing.
        commas: the columns whose numbers have a decimal comma, where semicolons separate the file; by default it is
            found out.

    Raises:
        FileError: no such file, or one that cannot be opened.
        DataError: a file that is no such table, or too large for the memory.
        UsageError: Parquet without pyarrow.
    """
    path = Path(path)
    try:
        if not path.is_file():  # to open a pipe waits for who writes to it
            path.stat()
            raise FileError(f"cannot read the table {path}: it is not a file")
        with path.open("rb") as file:
            start, size = file.read(4096), os.fstat(file.fileno()).st_size
    except FileError:
        raise
    except OSError as problem:
        reason = "there is no such file" if isinstance(problem, FileNotFoundError) else problem.strerror
        raise FileError(f"cannot read the table {path}: {reason}") from problem
    available = available_memory() if available is None else available
    if start.startswith(b"PAR1"):
        return _read_parquet(path, choose, available, missing)
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            code = f"import pandas; pandas.read_excel({path.name!r}).to_csv({path.stem + '.csv'!r}, index=False)"
            fix = f'export it as such, or: python -c "{code}"'
            raise DataError(f"{path} is {what}; expected CSV in UTF-8, or Parquet: {fix}")
    if ".json" in path.name.lower():
        raise DataError(f"{path} is JSON, as it is called; JSON lines, one object a line, are read from a .jsonl file")
    zipped = is_zipped(start)
    if zipped:
        start, size = _unzipped(path, available)
    encoding = encoding_of(start)
    if b"\0" in start and encoding != "utf-16":
        raise DataError(f"{path} is not text (it has zero bytes); expected CSV in UTF-8, or Parquet")
    _check_memory(path, _CSV_FACTOR * size, available)
    try:
        with (gzip.open if zipped else open)(path, "rt", encoding=encoding, newline="") as file:
            separator = separator_of(file)
            file.seek(0)
            table = _rows_of(
                csv.reader(_text_alone(file, path), delimiter=separator, strict=True), path, choose, missing
            )
    except UnicodeDecodeError:
        raise not_utf8(path, zipped) from None
    except UnicodeError as problem:
        raise DataError(f"{path} is not whole UTF-16 text: {problem}; save it as UTF-8") from problem
    if separator == ";":
        return table._replace(commas=_commas(table) if commas is None else frozenset(commas))
    return table


def _commas(table: Table) -> frozenset[str]:
    """Return the columns whose numbers have a decimal comma; refuse one whose points could be either then."""
    commas = {name: bool((np.strings.find(texts, ",") >= 0).any()) for name, texts in table.columns.items()}
    found = frozenset(
        name for name, some in commas.items() if some and as_numbers(table.columns[name], True) is not None
    )
    for name in table.columns if found else ():
        texts = table.columns[name].tolist()
        grouped = next((row for row, text in enumerate(texts) if re.fullmatch(_GROUPED, text)), None)
        if grouped is None or commas[name] or as_numbers(table.columns[name]) is None or any(map(_has_point, texts)):
            continue
        shown, plain = texts[grouped], texts[grouped].replace(".", "")
        fix = "other columns have decimal commas; leave out points between thousands, and write decimals with a comma"
        raise error(table, name, grouped, f"{shown!r} could be {plain}, or have a decimal point; {fix}")
    return found


def _unzipped(path: Path, available: int | None) -> tuple[bytes, int]:
    """Return how a gzip file's content begins, and its size, without holding it; too large a one is refused."""
    try:
        with gzip.open(path) as file:
            start = file.read(4096)
            size = len(start)
            while part := file.read(1 << 20):
                size += len(part)
                _check_memory(path, _CSV_FACTOR * size, available)
    except (OSError, EOFError, zlib.error) as problem:
        raise DataError(f"{path} is not a whole gzip file: {problem}") from problem
    return start, size


def _text_alone(file: TextIO, path: Path) -> Iterator[str]:
    """Yield the lines of a file, none of which may hold a zero byte: what damaged disks leave, and no text has."""
    for number, line in enumerate(file, start=1):
        if "\0" in line:
            raise DataError(
                f"{path}, line {number}: it has a zero byte, so the file is damaged, or no text; write it anew"
            )
        yield line


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


def not_utf8(path: Path, zipped: bool = False) -> DataError:
    """Return the error for a file that is no UTF-8, with its first line that is none, and what mends it."""
    where = str(path)
    with (gzip.open if zipped else open)(path, "rb") as file:
        for line, data in enumerate(file, start=1):
            try:
                data.decode()
            except UnicodeDecodeError as problem:
                where += f", line {line}: byte 0x{data[problem.start]:02x}"
                break
    convert = "iconv -f WINDOWS-1252 -t UTF-8"
    command = f"{convert} {path.name} > utf8-{path.name}"
    if zipped:
        command = f"gzip -dc {path.name} | {convert} | gzip > utf8-{path.name}"
    return DataError(f"{where} is not UTF-8; save the file as UTF-8, or, where it comes from Windows, {command}")


def separator_of(file: TextIO) -> str:
    """Return the separator that cuts the first rows into the same number of fields, the greatest."""
    best, most = ",", (False, 1)
    for separator in SEPARATORS:
        file.seek(0)
        with suppress(csv.Error):
            widths = [len(row) for row in islice(csv.reader(file, delimiter=separator, strict=True), 20) if row]
            if widths and (found := (len(set(widths)) == 1 < widths[0], widths[0])) > most:
                best, most = separator, found
    return best


def _rows_of(reader: Any, path: Path, choose: Choose | None, missing: Sequence[str]) -> Table:
    chunks, lines, started = list[list[Texts]](), list[NDArray[np.int64]](), 0
    try:
        header, kept = _columns(path, next((row for row in reader if row), []), choose)
        numbered = {name: place for place, name in enumerate(header)}
        places = [numbered[name] for name in kept]
        while True:
            rows, starts, started = [], [], reader.line_num
            for row in islice(reader, _CHUNK):
                if len(row) == len(header):
                    rows.append([row[place] for place in places])
                    starts.append(started + 1)
                elif row:
                    many = f"{len(row)} values, but the header has {len(header)} columns"
                    fix = "put values that hold the separator in quotes"
                    raise DataError(f"{path}, line {started + 1}: {many}; {fix}")
                started = reader.line_num
            if not starts:
                break
            chunks.append([cleaned(strings(texts), missing) for texts in zip(*rows)])
            lines.append(np.array(starts, dtype=np.int64))
    except csv.Error as problem:
        raise DataError(f"{path}, line {started + 1}: {problem}; is a quote not closed?") from problem
    if not chunks:
        raise DataError(f"{path} has a header but no rows")
    columns = {name: np.concatenate([chunk[place] for chunk in chunks]) for place, name in enumerate(kept)}
    return Table(str(path), header, columns, np.concatenate(lines))


def _columns(path: Path, names: Sequence[str], choose: Choose | None) -> tuple[tuple[str, ...], list[str]]:
    header = tuple(name.strip() for name in names)
    if not header:
        raise DataError(f"{path} is empty; expected a header row with the columns' names")
    twice = sorted(name for name, count in Counter(header).items() if count > 1)
    if twice:
        raise DataError(f"{path} has more than one column {twice[0]!r}; rename all but one")
    return header, list(header if choose is None else choose(str(path), header))


def cleaned(texts: Texts, missing: Sequence[str] = ()) -> Texts:
    """Return texts without spaces around them, and empty where they mean that a value is missing."""
    texts = np.strings.strip(texts)
    texts[np.isin(texts, strings([*MISSING, *missing]))] = ""
    return texts


def _read_parquet(path: Path, choose: Choose | None, available: int | None, missing: Sequence[str]) -> Table:
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
        header, kept = _columns(path, file.schema_arrow.names, choose)
        count = file.metadata.num_rows
        if not count:
            raise DataError(f"{path} has no rows")
        if choose is None:
            kept = [name for name, one in zip(header, file.schema_arrow) if not pyarrow.types.is_nested(one.type)]
        _check_memory(path, _PARQUET_VALUE * count * len(kept), available)
        try:
            own = dict(zip(header, file.schema_arrow.names))
            read = file.read(columns=[own[name] for name in kept])
        except (pyarrow.ArrowException, OSError) as problem:
            raise DataError(f"{path} cannot be read as Parquet: {problem}") from problem
    columns = {name: _as_texts(path, name, read.column(place), missing) for place, name in enumerate(kept)}
    return Table(str(path), header, columns, np.arange(1, count + 1), "row")


def _as_texts(path: Path, name: str, column: Any, missing: Sequence[str]) -> Texts:
    """Return a Parquet column as text; numbers are written so that they read back the same."""
    import pyarrow

    kind = column.type.value_type if pyarrow.types.is_dictionary(column.type) else column.type
    try:
        texts = column.cast(kind).cast(pyarrow.string()).fill_null("")
    except pyarrow.ArrowException as problem:
        reason = f"values of type {column.type} are no features; leave it out (--columns)"
        raise DataError(f"{path}, column {name!r}: {reason}") from problem
    return np.concatenate([cleaned(strings(chunk.to_pylist()), missing) for chunk in texts.chunks])


TRUE, FALSE = frozenset({"true", "yes", "t", "y"}), frozenset({"false", "no", "f", "n"})

#: Formats of dates; "other" ones, which are not ISO 8601, are not read.
_FORMATS = {
    "date": r"\d{4}-\d{2}-\d{2}",
    "date and time": r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?",
    "date and time with zone": r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)? ?(Z|[+-]\d{2}:?\d{2})",
    "other": r"\d{1,4}([./-])\d{1,2}\1\d{1,4}([T ].*)?",
}
#: Such dates are read where others of their column tell what is the day.
_SLASHED = re.compile(r"(\d{1,2})([./-])(\d{1,2})\2(\d{4})(?:[T ](\d{1,2}:\d{2}(?::\d{2})?))?")
_ORDERS = {"day, month, year": (1, 3), "month, day, year": (3, 1)}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def is_number(text: str) -> bool:
    """Return whether a text is a number in a program's notation, such as -1.5 or 2e3."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def is_decimal_comma(text: str) -> bool:
    """Return whether a text is a number but for a comma in place of its point, such as 1,5."""
    return re.fullmatch(r"[+-]?\d+,\d+([eE][+-]?\d+)?", text) is not None


#: A whole number whose thousands are separated by points.
_GROUPED = r"[+-]?[1-9]\d{0,2}(\.\d{3})+"


def _has_point(text: str) -> bool:
    """Return whether a text is a number whose decimal sign must be a point."""
    return "." in text and is_number(text) and re.fullmatch(_GROUPED, text) is None


def to_number(text: str, comma: bool = False) -> float | None:
    """Return the number that a text is, as people write it; ``None`` where it is none.

    Besides a program's notation: thousands in groups, signs of currencies, and percent, which are hundredths.

    Args:
        text: without spaces around it.
        comma: whether the decimal sign is a comma, and groups of thousands are separated by points.

    >>> to_number("$1,273.90"), to_number("45.0 %"), to_number("1.273,9", comma=True), to_number("1,5")
    (1273.9, 0.45, 1273.9, None)
    """
    if is_number(text):
        if comma and _has_point(text):
            return None
        return float(text.replace(".", "") if comma and re.fullmatch(_GROUPED, text) else text)
    bare = re.fullmatch(r"([+-]?)[$€£¥]? ?([+-]?)([\d.,'\u00a0\u202f ]+([eE][+-]?\d+)?) ?([$€£¥%]?)", text)
    if bare is None:
        return None
    group, point = (".", ",") if comma else (",", ".")
    whole = rf"\d+|[1-9]\d{{0,2}}(?P<by>[{group}'\u00a0\u202f ])\d{{3}}((?P=by)\d{{3}})*"
    digits = re.fullmatch(rf"(?P<whole>{whole})?([{point}](?P<part>\d*))?(?P<power>[eE][+-]?\d+)?", bare[3].strip())
    if digits is None or not (digits["whole"] or digits["part"]) or (bare[1] and bare[2]):
        return None
    plain = re.sub(r"\D", "", digits["whole"] or "0") + "." + (digits["part"] or "0") + (digits["power"] or "")
    return float(bare[1] + bare[2] + plain) / (100 if bare[5] == "%" else 1)


def measured(text: str, comma: bool = False) -> str:
    """Return the unit that stands behind a number, such as ``kg``; empty where a text is no such thing.

    >>> measured("1,200.5 kg"), measured("20°C"), measured("12"), measured("oak 12 a")
    ('kg', '°C', '', '')
    """
    split = re.fullmatch(r"(.*[\d.,]) ?([^\d\s.,]\D{0,11})", text)
    return split[2] if split and to_number(split[1], comma) is not None and to_number(text, comma) is None else ""


def as_numbers(texts: Texts, comma: bool = False) -> NDArray[np.float64] | None:
    """Return texts as numbers, NaN where one is missing; ``None`` where one of them is no number (`to_number`)."""
    if texts.dtype.kind == "f":
        return texts
    there = ~(is_missing(texts) | np.isin(texts, strings(MARKS)))
    found = np.full(len(texts), np.nan)
    with suppress(ValueError):
        if comma or (np.strings.find(texts, "_") >= 0).any():
            raise ValueError
        found[there] = texts[there].astype(np.float64)
        return found
    values = {name: to_number(name, comma) for name in set(texts[there].tolist())}
    if None in values.values():
        return None
    found[there] = [values[text] for text in texts[there].tolist()]
    return found


def numbers(table: Table, column: str, fix: str) -> NDArray[np.float64]:
    """Return a column's numbers, NaN where one is missing.

    Raises:
        DataError: the first value that is no finite number, with its place and the ``fix``.
    """
    texts = table.columns[column]
    found = as_numbers(texts, column in table.commas)
    if found is None:
        row, others = odd(table, column)
        text = str(texts[row])
        hint = "a decimal comma is read in files that semicolons separate; " if is_decimal_comma(text) else ""
        hint = f"write it without {unit!r}; " if (unit := measured(text, column in table.commas)) else hint
        raise error(table, column, row, f"{text!r} is not a number{others}; {hint}{fix}")
    row = first(np.isinf(found) | (np.isnan(found) & ~is_missing(texts) & ~np.isin(texts, strings(MARKS))))
    if row is not None:
        raise error(table, column, row, f"{str(texts[row])!r} is not a finite number; {fix}")
    return found


def odd(table: Table, column: str) -> tuple[int, str]:
    """Return the first row of a column that is no number, and how many others are none, and which."""
    names, places = distinct(table.columns[column])
    comma = column in table.commas
    wrong = [name not in ("", *MARKS) and to_number(name, comma) is None for name in names]
    rows = np.flatnonzero(np.array(wrong)[places])
    which = [name for name, bad in zip(names, wrong) if bad]
    told = ": " + ", ".join(map(repr, which)) if 1 < len(which) <= 5 else ""
    return int(rows[0]), f" ({len(rows)} such values{told})" if len(rows) > 1 else ""


def booleans(table: Table, column: str) -> NDArray[np.float64]:
    """Return 1 for true, yes, t or y (in upper or lower case), 0 for false, no, f or n, NaN where missing.

    Raises:
        DataError: the first other value.
    """

    def truth(text: str) -> float:
        if not are_booleans([text]):
            raise ValueError("not true or false, as the column's other values are")
        return text.casefold() in TRUE

    return _each(table, column, truth)


def _each(table: Table, column: str, number: Callable[[str], float]) -> NDArray[np.float64]:
    """Return the number of each text, NaN where it is missing; the first that is refused is an error."""
    names, places = distinct(table.columns[column])
    found, refused = np.full(len(names), np.nan), dict[int, ValueError]()
    for place, name in enumerate(names):
        try:
            found[place] = np.nan if name in ("", *MARKS) else number(name)
        except ValueError as problem:
            refused[place] = problem
    row = first(np.isin(places, list(refused)))
    if row is not None:
        raise error(table, column, row, f"{names[places[row]]!r} is {refused[places[row]]}")
    return found[places]


def are_booleans(names: Iterable[str]) -> bool:
    """Return whether all of some texts say true or false."""
    return {name.casefold() for name in names} <= TRUE | FALSE


def date_format(text: str) -> str | None:
    """Return the name of a date's format, ``"other"`` for what looks like a date but is not ISO 8601, else ``None``.

    >>> date_format("2020-01-31"), date_format("31/01/2020"), date_format("red")
    ('date', 'other', None)
    """
    return next((name for name, pattern in _FORMATS.items() if re.fullmatch(pattern, text)), None)


def common_date_format(table: Table, column: str) -> str | None:
    """Return the format of most dates in a column of mostly dates; ``None`` for another column.

    Which of two numbers is the day is told by one above 12.
    """
    texts = [text for text in distinct(table.columns[column])[0] if text and text not in MARKS]
    formats = [date_format(text) for text in texts]
    found = Counter(name for name in formats if name is not None)
    chosen = found.most_common(1)[0][0] if 2 * found.total() > len(formats) else None
    if chosen != "other":
        return chosen
    pairs = [(int(date[1]), int(date[3])) for date in map(_SLASHED.fullmatch, texts) if date]
    above = [any(pair[place] > 12 for pair in pairs) for place in (0, 1)]
    return {(True, False): "day, month, year", (False, True): "month, day, year"}.get((above[0], above[1]), "other")


def dates(table: Table, column: str, chosen: str) -> NDArray[np.float64]:
    """Return days since 1970-01-01 (UTC where a zone is given), NaN where missing.

    Raises:
        DataError: the first value that is not a date of the ``chosen`` format; any where that is not ISO 8601.
    """

    def days(text: str) -> float:
        told, order = date_format(text), _ORDERS.get(chosen)
        if order is not None and (date := _SLASHED.fullmatch(text)):
            with suppress(ValueError):
                day, month = (int(date[place]) for place in order)
                clock = [int(part) for part in (date[5] or "").split(":") if part]
                return (datetime(int(date[4]), month, day, *clock, tzinfo=UTC) - _EPOCH) / timedelta(days=1)
            raise ValueError(f"no day of the calendar, where others are {chosen}")
        if told != chosen or told == "other":
            other = told == chosen == "other"
            unknown = "a date that is not ISO 8601 (and no day above 12 tells which number is the month)"
            kind = unknown if other else f"not a {chosen}, as the column's other values"
            raise ValueError(f"{kind}; write all dates alike, such as 2020-01-31")
        # more than microseconds are cut off
        text = re.sub(r"(\.\d{6})\d+", r"\1", text).replace(" +", "+").replace(" -", "-").replace(" Z", "Z")
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError("no day of the calendar") from None
        return ((found if found.tzinfo else found.replace(tzinfo=UTC)) - _EPOCH) / timedelta(days=1)

    return _each(table, column, days)


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """Return names sorted, as numbers where they all are."""
    return tuple(sorted(names, key=int if all(re.fullmatch(r"-?\d+", name) for name in names) else None))


def refuse_missing(table: Table, column: str, what: str) -> None:
    """Raise `DataError` where a column is empty: it names the first such row, and how many there are."""
    empty = is_missing(table.columns[column])
    row = first(empty)
    if row is not None:
        count = f"{int(empty.sum())} of {table.size} rows"
        raise error(table, column, row, f"the {what} is missing ({count}); fill it in, or leave the row out")
