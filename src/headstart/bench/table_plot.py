"""The picture of the tables, as PNG bytes: the best baselines beside the best methods of headstart."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headstart.bench.summary import Row, Table
from headstart.training.report.figures import BLUE, GREY, ORANGE, dress, new_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: So many of either kind are drawn, lest the picture be too tall to read.
MOST = 8
#: What errs by more than so many times the best is left out, lest the others lie on one another.
WORST = 2.5


def draw_tables(tables: Sequence[Table]) -> bytes:
    """Draw every table: RMSE with 95 % intervals, the best first; a line marks the best baseline."""
    across = len({table.support for table in tables})
    down = -(-len(tables) // across)
    shown = [_shown(table) for table in tables]
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


def _shown(table: Table) -> list[Row]:
    """Return the best rows of either kind, the best first, without those far behind."""
    whole = [(row, row.rmse.mean) for row in table.rows if row.rmse is not None]
    kept = {row.method for kind in (True, False) for row in [row for row, _ in whole if row.baseline is kind][:MOST]}
    return [row for row, mean in whole if row.method in kept and mean <= WORST * whole[0][1]]


def _draw(axis: "Axes", table: Table, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        assert row.rmse is not None
        colour = ORANGE if row.baseline else BLUE
        axis.errorbar(
            row.rmse.mean, place, xerr=row.rmse.ci95, fmt="o", color=colour, ecolor=colour, markersize=4, capsize=2,
            elinewidth=1,
        )  # fmt: skip
        if row.baseline and row.best:
            axis.axvline(row.rmse.mean, color=GREY, linestyle=":", linewidth=1)
    axis.set_yticks(range(len(rows)), [row.method for row in rows])
    axis.invert_yaxis()
    dress(axis, f"{table.dataset}, {table.support} support rows", f"RMSE ({table.unit})", "")
    axis.margins(x=0.05)
