"""From cells to tables: means over splits, their intervals, and differences to the best baseline."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from headstart.bench.baselines import BASELINES
from headstart.bench.cells import Cell


class Mean(NamedTuple):
    """A mean over splits and half the width of its 95 % interval."""

    mean: float
    ci95: float | None
    """By Student's t; ``None`` for one split."""


class Row(NamedTuple):
    """One method in a table."""

    method: str
    baseline: bool
    rmse: Mean | None
    """``None`` where it diverged on a split."""
    difference: Mean | None
    """To the best baseline, split by split; negative is better."""
    nll: Mean | None
    coverage: Mean | None
    seconds: float
    """Processor time of a split: fitting and predicting."""
    splits: int
    diverged: int
    """On how many splits."""
    counts: dict[str, int]
    """What was counted on the way, such as fits that fell back to something simpler, summed over the splits."""
    best: bool = False
    """Whether it is the best baseline, or the best method of headstart."""


class Table(NamedTuple):
    """All methods on one data set with one number of support rows, the best first."""

    dataset: str
    support: int
    unit: str
    rows: tuple[Row, ...]


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean and half the 95 % interval.

    >>> mean_of([1.0, 3.0]).mean
    2.0
    """
    from scipy.stats import t

    found, count = np.asarray(values, dtype=float), len(values)
    if count < 2:
        return Mean(float(found.mean()), None)
    return Mean(float(found.mean()), float(t.ppf(0.975, count - 1) * found.std(ddof=1) / math.sqrt(count)))


def table(dataset: str, support: int, unit: str, cells: Mapping[str, Sequence[Cell]]) -> Table:
    """Return the table of every method's cells, those of one method in the order of the splits' seeds."""
    rows = sorted((_row(method, found) for method, found in cells.items()), key=_order)
    first = {kind: next((r.method for r in rows if r.baseline is kind and r.rmse), None) for kind in (True, False)}
    against = cells.get(first[True] or "")
    rows = [
        row._replace(best=row.method == first[row.baseline], difference=_difference(cells[row.method], against))
        for row in rows
    ]
    return Table(dataset, support, unit, tuple(rows))


def _order(row: Row) -> tuple[float, str]:
    return math.inf if row.rmse is None else row.rmse.mean, row.method


def _row(method: str, cells: Sequence[Cell]) -> Row:
    counts: dict[str, int] = {}
    for cell in cells:
        for name, count in cell.counts.items():
            counts[name] = counts.get(name, 0) + count
    return Row(
        method,
        method in BASELINES,
        _whole([cell.rmse for cell in cells]),
        None,
        _whole([cell.nll for cell in cells]),
        _whole([cell.coverage for cell in cells]),
        float(np.mean([cell.seconds for cell in cells])),
        len(cells),
        sum(cell.rmse is None for cell in cells),
        counts,
    )


def _whole(values: Sequence[float | None]) -> Mean | None:
    """Return the mean, if there is every value."""
    there = [value for value in values if value is not None]
    return mean_of(there) if len(there) == len(values) else None


def _difference(cells: Sequence[Cell], against: Sequence[Cell] | None) -> Mean | None:
    pairs = [(a.rmse, b.rmse) for a, b in zip(cells, against or ())]
    return _whole([None if a is None or b is None else a - b for a, b in pairs]) if pairs else None


class Overall(NamedTuple):
    """One method over all tables."""

    method: str
    baseline: bool
    ratio: float
    """The geometric mean over the tables of its RMSE by that of the table's best baseline."""
    better: int
    """In how many tables its RMSE is below that of every baseline by more than the interval of the difference."""
    worse: int
    """In how many it is above that of the best baseline by more than the interval."""
    tables: int


def overall(tables: Sequence[Table]) -> list[Overall]:
    """Return the methods that are in every table and diverged in none, the best first."""
    by_method: dict[str, list[tuple[Row, float]]] = {}
    for one in tables:
        best = next((row.rmse.mean for row in one.rows if row.baseline and row.rmse), None)
        for row in one.rows:
            if row.rmse is not None and best is not None:
                by_method.setdefault(row.method, []).append((row, row.rmse.mean / best))
    found = [
        Overall(
            method,
            method in BASELINES,
            math.exp(sum(math.log(ratio) for _, ratio in pairs) / len(pairs)),
            sum(_beyond(row, -1) for row, _ in pairs),
            sum(_beyond(row, 1) for row, _ in pairs),
            len(pairs),
        )
        for method, pairs in by_method.items()
        if len(pairs) == len(tables)
    ]
    return sorted(found, key=lambda row: (row.ratio, row.method))


def _beyond(row: Row, side: int) -> bool:
    """Return whether the difference to the best baseline is on one side of zero, its interval included."""
    return (
        row.difference is not None
        and row.difference.ci95 is not None
        and (side * row.difference.mean > row.difference.ci95)
    )
