"""From texts to values: numbers, booleans and dates, with an error that names the place of what is none."""

import re
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from headstart.data.tables.file import Table, Texts, distinct, error, first, is_missing

TRUE, FALSE = frozenset({"true", "yes", "t", "y"}), frozenset({"false", "no", "f", "n"})

#: Formats of dates; only the ISO 8601 ones are read.
_FORMATS = {
    "date": r"\d{4}-\d{2}-\d{2}",
    "date and time": r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?",
    "date and time with zone": r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)? ?(Z|[+-]\d{2}:?\d{2})",
}
_OTHER_DATE = r"\d{1,4}([./-])\d{1,2}\1\d{1,4}([T ].*)?"
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


def as_numbers(texts: Texts) -> NDArray[np.float64] | None:
    """Return texts as numbers, NaN where one is missing; ``None`` where one of them is no number."""
    there = ~is_missing(texts)
    found = np.full(len(texts), np.nan)
    try:
        found[there] = texts[there].astype(np.float64)
    except ValueError:  # what Python and numpy take for a number could differ: Python decides
        if not all(is_number(text) for text in texts.tolist() if text):
            return None
        found[there] = [float(text) for text in texts[there].tolist()]
    return None if (np.strings.find(texts, "_") >= 0).any() else found


def numbers(table: Table, column: str, fix: str) -> NDArray[np.float64]:
    """Return a column's numbers, NaN where one is missing.

    Args:
        table: the rows.
        column: the column's name.
        fix: what to do about a value that is no number.

    Raises:
        DataError: the first value that is no finite number, with its place.
    """
    texts = table.columns[column]
    found = as_numbers(texts)
    if found is None:
        row, text = next((row, text) for row, text in enumerate(texts.tolist()) if text and not is_number(text))
        comma = "a decimal comma is not read, write a point; " if is_decimal_comma(text) else ""
        raise error(table, column, row, f"{text!r} is not a number; {comma}{fix}")
    row = first(~is_missing(texts) & ~np.isfinite(found))
    if row is not None:
        raise error(table, column, row, f"{str(texts[row])!r} is not a finite number; {fix}")
    return found


def booleans(table: Table, column: str) -> NDArray[np.float64]:
    """Return 1 for true, yes, t or y (in upper or lower case), 0 for false, no, f or n, NaN where missing.

    Raises:
        DataError: the first other value.
    """
    names, places = distinct(table.columns[column])
    values = np.full(len(names), np.nan)
    for place, name in enumerate(names):
        if name.casefold() in TRUE | FALSE:
            values[place] = name.casefold() in TRUE
        elif name:
            row = int((places == place).argmax())
            raise error(table, column, row, f"{name!r} is not true or false, as the column's other values are")
    return values[places]


def are_booleans(names: Iterable[str]) -> bool:
    """Return whether all of some texts say true or false."""
    return {name.casefold() for name in names} <= TRUE | FALSE


def date_format(text: str) -> str | None:
    """Return the name of a date's format, ``"other"`` for what looks like a date but is not ISO 8601, else ``None``.

    >>> date_format("2020-01-31"), date_format("31/01/2020"), date_format("red")
    ('date', 'other', None)
    """
    for name, pattern in _FORMATS.items():
        if re.fullmatch(pattern, text):
            return name
    return "other" if re.fullmatch(_OTHER_DATE, text) else None


def common_date_format(table: Table, column: str) -> str | None:
    """Return the format of a column whose values are mostly dates; ``None`` for another column.

    Raises:
        DataError: dates that are not ISO 8601, or the first value that is in another format than most.
    """
    formats = [date_format(text) for text in distinct(table.columns[column])[0] if text]
    found = Counter(name for name in formats if name is not None)
    if 2 * found.total() <= len(formats):
        return None
    chosen = found.most_common(1)[0][0]
    _same_format(table, column, chosen)
    return chosen


def _same_format(table: Table, column: str, chosen: str) -> None:
    names, places = distinct(table.columns[column])
    there = np.array([bool(name) for name in names])[places]
    same = np.array([date_format(name) == chosen for name in names])[places]
    row = first(there & (same if chosen == "other" else ~same))
    if row is not None:
        kind = "a date that is not ISO 8601" if chosen == "other" else f"not a {chosen}, as the column's other values"
        text = str(table.columns[column][row])
        raise error(table, column, row, f"{text!r} is {kind}; write all dates alike, such as 2020-01-31")


def dates(table: Table, column: str, chosen: str) -> NDArray[np.float64]:
    """Return days since 1970-01-01 (UTC where a zone is given), NaN where missing.

    Raises:
        DataError: the first value that is not a date of the ``chosen`` format.
    """
    _same_format(table, column, chosen)
    names, places = distinct(table.columns[column])
    found: NDArray[np.float64] = np.array([_days(name) if name else np.nan for name in names])[places]
    row = first(np.isinf(found))
    if row is not None:
        raise error(table, column, row, f"{str(table.columns[column][row])!r} is no day of the calendar")
    return found


def _days(text: str) -> float:
    """Return an ISO 8601 date in days; infinity for a day that does not exist."""
    # more than microseconds are cut off
    text = re.sub(r"(\.\d{6})\d+", r"\1", text).replace(" +", "+").replace(" -", "-").replace(" Z", "Z")
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return float("inf")
    found = found if found.tzinfo else found.replace(tzinfo=UTC)
    return (found - _EPOCH) / timedelta(days=1)
