"""From cells to tables, and tables as text, JSON and a picture."""

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.report import finite, table as markdown
from benchmarks.settings import FRACTION, SETS, SETTINGS, Plan
from headstart.registry import load
from headstart.training.evaluate import Interval, interval
from headstart.training.files import to_json, write
from headstart.training.report.figures import BLUE, GREY, ORANGE, dress, new_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Key(NamedTuple):
    """What a cell is of."""

    dataset: str
    support: int
    method: str
    seed: int
    """Of the split."""
    made: str
    """A fingerprint of the data and of the method's setting: a cell of others is not this one."""


class Cell(NamedTuple):
    """What came of one method on one split."""

    key: Key
    rmse: float | None
    """The root of the mean over unseen tasks of the squared error of their query rows, in the target's own unit;
    ``None`` where the method diverged."""
    nll: float | None
    """Negative log-likelihood of a target in nats, in its own unit; ``None`` without a distribution."""
    coverage: float | None
    """Which fraction of the targets is in its 90 % interval."""
    seconds: float
    """Of processor time, for fitting and predicting."""


class Row(NamedTuple):
    """One method in a table."""

    method: str
    baseline: bool
    rmse: Interval | None
    """Over the splits; ``None`` where it diverged on one."""
    difference: Interval | None
    """To the best baseline, split by split; negative is better."""
    nll: Interval | None
    coverage: Interval | None
    seconds: float
    """Processor time of a split: fitting and predicting."""
    diverged: int
    """On how many splits."""
    best: bool = False
    """Whether it is the best baseline, or the best of the others."""


class Table(NamedTuple):
    """All methods on one data set with one number of support rows, the best first."""

    dataset: str
    support: int
    unit: str
    rows: tuple[Row, ...]


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
    rmse, nll, coverage = (_whole([getattr(cell, name) for cell in cells]) for name in ("rmse", "nll", "coverage"))
    seconds = sum(cell.seconds for cell in cells) / len(cells)
    diverged = sum(cell.rmse is None for cell in cells)
    return Row(method, SETTINGS[method].baseline, rmse, None, nll, coverage, seconds, diverged)


def _whole(values: Sequence[float | None]) -> Interval | None:
    """Return the mean, if there is every value."""
    there = [value for value in values if value is not None]
    return interval(there) if len(there) == len(values) else None


def _difference(cells: Sequence[Cell], against: Sequence[Cell] | None) -> Interval | None:
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
            pairs[0][0].baseline,
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
    return row.difference is not None and side * row.difference.mean > row.difference.ci95


HEADINGS = ("method", "RMSE", "to the best baseline", "NLL", "90 % coverage", "CPU s")
OVERALL = ("method", "RMSE / best baseline", "better in", "worse in", "of")

_ABOUT = """
Given all rows of the other tasks and the first rows of a held-out one, its later rows are predicted. RMSE over all of
them, in the target's own unit: mean ± 95 % interval over the splits (Student's t). The next column is the difference
to the best baseline, split by split; negative is better. NLL: negative log-likelihood of a target in nats, in its own
unit; coverage of the 90 % intervals; processor time of a split, fitting and predicting. A star marks the best baseline
and the best method of headstart, chosen on these very splits. Splits share tasks, so the intervals tell of these data
sets, not of others like them.
"""
_ABOUT_OVERALL = """
The geometric mean over the tables of a method's RMSE by that of the table's best baseline (which baseline that is
differs from table to table); in how many tables it is better, or worse, than the best baseline by more than the
interval of the difference.
"""


def cells_of(row: Row) -> tuple[str, ...]:
    """Return a row as texts, one a heading."""
    rmse = "diverged on " + str(row.diverged) if row.rmse is None else _shown(row.rmse)
    difference = "" if row.difference is None or (row.baseline and row.best) else _shown(row.difference, signed=True)
    coverage = "" if row.coverage is None else f"{100 * row.coverage.mean:.0f} %"
    name = row.method + (" (baseline)" if row.baseline else "") + (" *" if row.best else "")
    nll = "" if row.nll is None else _shown(row.nll)
    return name, rmse, difference, nll, coverage, f"{row.seconds:.2f}"


def overall_cells(row: Overall) -> tuple[str, ...]:
    """Return a row of the table over all tables as texts."""
    name = row.method + (" (baseline)" if row.baseline else "")
    return name, f"{row.ratio:.3f}", str(row.better), str(row.worse), str(row.tables)


def title(table: Table) -> str:
    """Return what a table is of."""
    columns = SETS[table.dataset]
    features = ", ".join((columns.time, *columns.others))
    return (
        f"{table.dataset}, first {table.support} rows of an unseen {columns.task} given: "
        f"{columns.target} ({columns.unit}) from {features}"
    )


def _shown(value: Interval, signed: bool = False) -> str:
    number = f"{value.mean:+.3g}" if signed else f"{value.mean:.4g}"
    return number if math.isnan(value.ci95) else f"{number} ± {value.ci95:.2g}"


def tables_of(tables: Sequence[Table]) -> list[tuple[str, tuple[str, ...], Iterable[tuple[str, ...]]]]:
    """Return titles, headings and rows of all tables, and of the one over them all."""
    found = [(title(each), HEADINGS, map(cells_of, each.rows)) for each in tables]
    return found + [("over all tables", OVERALL, map(overall_cells, overall(tables)))] * (len(tables) > 1)


def to_markdown(tables: Sequence[Table], plan: Plan, versions: dict[str, str]) -> str:
    """Return the report."""
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        "# Tables: every method against what people use today",
        "",
        f"`python -m benchmarks tables`, {plan.splits} splits, each with {FRACTION:.0%} of the tasks held out. "
        + " ".join(_ABOUT.split()),
        "",
        f"Settings were compared on other splits than these; `tables.json` has them. {used}; {plan.jobs} "
        f"process{'es' * (plan.jobs > 1)} of one thread.",
        "",
    ]
    found = overall(tables)
    if len(tables) > 1 and found:
        lines += [
            "## Over all tables",
            "",
            " ".join(_ABOUT_OVERALL.split()),
            "",
            *markdown(OVERALL, map(overall_cells, found)),
            "",
        ]
    for dataset in dict.fromkeys(table.dataset for table in tables):
        lines += [f"## {dataset}: {SETS[dataset].about}", ""]
        for table in (table for table in tables if table.dataset == dataset):
            lines += [f"### {title(table)}", "", *markdown(HEADINGS, map(cells_of, table.rows)), ""]
    return "\n".join([*lines, "## The baselines", "", *_baselines(), ""])


def _baselines() -> list[str]:
    """Return what each method that is a baseline says of itself."""
    names = dict.fromkeys(setting.method for setting in SETTINGS.values() if setting.baseline)
    return [f"- `{name}`: {' '.join(load('method', name).__doc__.split('Args:')[0].split())}" for name in names]


def to_values(tables: Sequence[Table], plan: Plan, versions: dict[str, str]) -> dict[str, Any]:
    """Return the report as JSON values."""
    return {
        "plan": {**{name: value for name, value in plan._asdict().items() if name != "data"}, "held_out": FRACTION},
        "versions": versions,
        "overall": [row._asdict() for row in overall(tables)],
        "tables": [{**table._asdict(), "rows": [_values(row) for row in table.rows]} for table in tables],
        "settings": {name: SETTINGS[name]._asdict() for name in plan.methods},
    }


def _values(row: Row) -> dict[str, Any]:
    return {
        name: {"mean": value.mean, "ci95": finite(value.ci95)} if isinstance(value, Interval) else value
        for name, value in row._asdict().items()
    }


#: So many of either kind are drawn, lest the picture be too tall to read.
MOST = 8
#: What errs by more than so many times the best is left out, lest the others lie on one another.
WORST = 2.5


def draw_tables(tables: Sequence[Table]) -> bytes:
    """Draw every table: RMSE with 95 % intervals, the best first; a line marks the best baseline."""
    across = len({table.support for table in tables})
    down = -(-len(tables) // across)
    shown = [_best_of(table) for table in tables]
    tallest = max(len(rows) for rows in shown)
    figure = new_figure(width=5.4 * across, height=down * (1.0 + 0.19 * tallest))
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for axis, table, rows in zip(grid, tables, shown):
        _draw(axis, table, rows)
    for axis in grid[len(tables) :]:
        axis.set_axis_off()
    figure.suptitle(
        "Predicting unseen tasks from their first rows: methods of headstart (blue), baselines (orange)",
        x=0.01,
        ha="left",
        fontsize=12,
        fontweight="bold",
    )
    return png(figure)


def _best_of(table: Table) -> list[Row]:
    """Return the best rows of either kind, the best first, without those far behind."""
    whole = [(row, row.rmse.mean) for row in table.rows if row.rmse is not None]
    kept = {row.method for kind in (True, False) for row in [row for row, _ in whole if row.baseline is kind][:MOST]}
    return [row for row, mean in whole if row.method in kept and mean <= WORST * whole[0][1]]


def _draw(axis: "Axes", table: Table, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        assert row.rmse is not None
        colour = ORANGE if row.baseline else BLUE
        axis.errorbar(
            row.rmse.mean, place, xerr=finite(row.rmse.ci95), fmt="o", color=colour, ecolor=colour, markersize=4,
            capsize=2, elinewidth=1,
        )  # fmt: skip
        if row.baseline and row.best:
            axis.axvline(row.rmse.mean, color=GREY, linestyle=":", linewidth=1)
    axis.set_yticks(range(len(rows)), [row.method for row in rows])
    axis.invert_yaxis()
    dress(axis, f"{table.dataset}, {table.support} support rows", f"RMSE ({table.unit})", "")
    axis.margins(x=0.05)


def write_report(out: Path, tables: Sequence[Table], plan: Plan) -> list[Path]:
    """Write ``tables.json``, ``tables.md`` and ``tables.png`` in the folder ``out``, and return their paths.

    Raises:
        FileError: a file cannot be written.
    """
    found = versions()
    files = {
        "tables.json": to_json(to_values(tables, plan, found)),
        "tables.md": to_markdown(tables, plan, found).encode(),
        "tables.png": draw_tables(tables),
    }
    for name, data in files.items():
        write(out / name, data)
    return [out / name for name in files]


def versions() -> dict[str, str]:
    """Return the versions of what was compared."""
    return {name: version(name) for name in ("headstart", "torch", "scikit-learn", "statsmodels")}
