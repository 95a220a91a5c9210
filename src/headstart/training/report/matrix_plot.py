"""The picture of a matrix of transfer, as PNG bytes: what was trained on by row, what was judged on by column."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from headstart.training.report import figures as kit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ABREAST = 4  # maps


class _Colours(NamedTuple):
    """What the colour of a cell stands for."""

    name: str
    """The column of the table."""
    palette: str
    low: float
    high: float
    told: str


def draw_matrix(table: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw a heat map for each method of the rows of `headstart.training.matrix.rows`, one scale for all.

    Colours tell by how much a run is better than the best that learns nothing, where there is such, and else its score.
    """
    metric = "accuracy" if "accuracy" in table[0] else "mse"
    targets = list(dict.fromkeys(row["on"] for row in table))
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in table:
        groups.setdefault("learns nothing" if row["trained_on"] is None else row["method"], []).append(row)
    draws = [partial(_map, title, rows, targets, metric, _colours(table, metric)) for title, rows in groups.items()]
    longest = max(len(kit.short(str(row["trained_on"] or row["method"]))) for row in table)
    heights = max(len(rows) for rows in groups.values()) / len(targets)
    width, height = max(2.6, 0.66 * len(targets) + 0.7 + 0.06 * longest), 1.1 + 0.5 * heights
    return kit.beside(
        draws, width, height, f"{kit.unit(metric)[1]} on unseen tasks{_colours(table, metric).told}", _ABREAST
    )


def _colours(table: Sequence[Mapping[str, Any]], metric: str) -> _Colours:
    # less error is better, as more accuracy is
    end = "" if metric == "accuracy" else "_r"
    if ahead := [row["than_untrained"] for row in table if row["than_untrained"] is not None]:
        most = max(map(abs, ahead)) or 1.0
        return _Colours("than_untrained", f"RdBu{end}", -most, most, "; red: worse than what learns nothing")
    values = [row[metric] for row in table if row[metric] is not None] or [0.0]
    return _Colours(metric, f"viridis{end}", min(values), max(values), "")


def _map(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    targets: Sequence[str],
    metric: str,
    colours: _Colours,
    axis: "Axes",
) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    scale, named = kit.unit(metric)[0], [row["trained_on"] or row["method"] for row in rows]
    sources = list(dict.fromkeys(named))
    palette, place = colormaps[colours.palette], Normalize(colours.low, colours.high)
    grid = [[(1.0, 1.0, 1.0, 1.0)] * len(targets) for _ in sources]
    for row, name in zip(rows, named):
        if row[metric] is None:
            continue
        down, across = sources.index(name), targets.index(row["on"])
        if row[colours.name] is not None:
            grid[down][across] = palette(place(row[colours.name]))
        told = f"{scale * row[metric]:.1f}" if metric == "accuracy" else f"{row[metric]:.3g}"
        half = f"\n± {kit.half(scale * row['ci95'])}" if row["ci95"] is not None else ""
        red, green, blue, _ = grid[down][across]
        colour = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"
        weight = "bold" if row["trained_on"] == row["on"] else "normal"
        axis.text(across, down, told + half, ha="center", va="center", fontsize=8, color=colour, fontweight=weight)
    axis.imshow(grid, aspect="auto")
    axis.set_xticks(range(len(targets)), [kit.short(name, 14) for name in targets], fontsize=8)
    axis.set_yticks(range(len(sources)), [kit.short(name) for name in sources], fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("judged on", fontsize=9)
    axis.set_ylabel("trained on" if rows[0]["trained_on"] is not None else "", fontsize=9)
