"""What a table file holds: columns of text, and where each row stands in the file."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headstart.errors import DataError

Texts: TypeAlias = NDArray[Any]
"""``(N,)`` texts of numpy's StringDType, stripped; a missing one is empty."""

#: Besides the empty text.
MISSING = ("NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None")


class Table(NamedTuple):
    """Rows of a file, as text."""

    path: str
    header: tuple[str, ...]
    """All column names of the file, in its order."""
    columns: dict[str, Texts]
    """The columns that were asked for."""
    lines: NDArray[np.int64]
    """``(N,)`` where each row starts: its line in a text file, counted from 1 (the header), else its number."""
    unit: str = "line"
    """What ``lines`` counts: 'line' or 'row'."""

    @property
    def size(self) -> int:
        """The number of rows."""
        return len(self.lines)

    def rows(self, places: Any) -> "Table":
        """Return the rows at some places."""
        return self._replace(
            columns={name: texts[places] for name, texts in self.columns.items()}, lines=self.lines[places]
        )


def strings(texts: Sequence[str] | NDArray[Any]) -> Texts:
    """Return texts as a numpy array that keeps them compactly."""
    return np.array(texts, dtype=np.dtypes.StringDType())


def is_missing(texts: Texts) -> NDArray[np.bool_]:
    """Return which texts are empty, that is missing."""
    return np.asarray(texts == "", dtype=np.bool_)


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
    place = "" if row is None else f", {table.unit} {int(table.lines[row])}"
    return DataError(f"{table.path}{place}, column {column!r}: {message}")


def find_columns(path: str, header: Sequence[str], names: Iterable[tuple[str, str]]) -> None:
    """Refuse ``(option, column)`` pairs whose column is not in the header, suggesting the nearest.

    Raises:
        DataError: the first such column.
    """
    for option, name in names:
        if name not in header:
            folded = {known.casefold(): known for known in header}
            near = [folded[key] for key in get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)]
            hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else "."
            raise DataError(
                f"{path} has no column {name!r} ({option}){hint} It has: {', '.join(repr(n) for n in header)}"
            )


def listed(table: Table, rows: NDArray[np.bool_], most: int = 5) -> str:
    """Return where some rows stand, such as ``lines 3, 8 and 12 more``."""
    places = table.lines[rows].tolist()
    text = ", ".join(str(place) for place in places[:most])
    more = f" and {len(places) - most} more" if len(places) > most else ""
    return f"{table.unit}{'s' * (len(places) > 1)} {text}{more}"
