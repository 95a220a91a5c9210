"""What an adapted model says of a table's rows, as columns beside the table's own."""

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from headstart.data.tables import Table
from headstart.errors import DataError


class Predictions(NamedTuple):
    """What the target of some rows was taken for."""

    rows: Table
    prediction: list[float] | list[str]
    """Numbers in the target's own units, or classes."""
    low: list[float] | None = None
    """Where the learner knows what it does not know: the ends of the interval that holds 90 % of observations."""
    high: list[float] | None = None
    probability: list[float] | None = None
    """In classification, the predicted class's own."""
    probabilities: dict[str, list[float]] | None = None
    """In classification, those of all classes."""

    def columns(self) -> dict[str, Sequence[Any]]:
        """Return the rows' columns, as text, and beside them the predictions'.

        Raises:
            DataError: the rows have a column of the same name as one of the predictions'.
        """
        found: dict[str, Sequence[Any]] = {"prediction": self.prediction}
        for name in ("low", "high", "probability"):
            values = getattr(self, name)
            found |= {} if values is None else {name: values}
        found |= {f"probability of {name}": values for name, values in (self.probabilities or {}).items()}
        taken = [name for name in found if name in self.rows.header]
        if taken:
            raise DataError(f"{self.rows.path} has a column {taken[0]!r}, as the predictions are called; rename it")
        return {**{name: self.rows.columns[name].tolist() for name in self.rows.header}, **found}

    def to_csv(self) -> str:
        """Return `columns` as CSV."""
        columns, text = self.columns(), io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for row in zip(*columns.values()):
            writer.writerow([f"{value:.9g}" if isinstance(value, float) else value for value in row])
        return text.getvalue()
