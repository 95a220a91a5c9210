"""The picture of a matrix of transfer, as PNG bytes: what was trained on by row, what was judged on by column."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from headstart.training.report import figures as kit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_matrix(table: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw a heat map for each method of the rows of `headstart.training.matrix.rows`, one scale for all."""
    metric = "accuracy" if "accuracy" in table[0] else "mse"
    scale, label = kit.unit(metric)
    targets = list(dict.fromkeys(row["on"] for row in table))
    raw = [row for row in table if row["trained_on"] is None]
    values = [scale * row[metric] for row in table if row[metric] is not None]
    ends = min(values), max(values)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in table:
        if row["trained_on"] is not None:
            groups.setdefault(row["method"], []).append(row)
    draws = [partial(_map, method, [*rows, *raw], targets, metric, ends) for method, rows in groups.items()]
    longest = max(len(kit.short(str(row["trained_on"] or ""))) for row in table)
    heights = max(len({row["trained_on"] for row in [*rows, *raw]}) for rows in groups.values())
    width, height = max(2.6, 1.0 * len(targets) + 1.1 + 0.07 * longest), 1.5 + 0.62 * heights
    return kit.beside(draws, width, height, f"{label} on unseen tasks")


def _map(
    method: str,
    rows: Sequence[Mapping[str, Any]],
    targets: Sequence[str],
    metric: str,
    ends: tuple[float, float],
    axis: "Axes",
) -> None:
    scale = kit.unit(metric)[0]
    sources = list(dict.fromkeys(row["trained_on"] for row in rows))
    grid = [[float("nan")] * len(targets) for _ in sources]
    for row in rows:
        if row[metric] is not None:
            grid[sources.index(row["trained_on"])][targets.index(row["on"])] = scale * row[metric]
    # less error is better, as more accuracy is
    colours = "viridis" if metric == "accuracy" else "viridis_r"
    axis.imshow(grid, cmap=colours, vmin=ends[0], vmax=ends[1], aspect="auto")
    middle = sum(ends) / 2
    for row in rows:
        down, across = sources.index(row["trained_on"]), targets.index(row["on"])
        value = grid[down][across]
        if value != value:
            continue
        told = f"{value:.1f}" if metric == "accuracy" else f"{value:.3g}"
        half = f"\n± {kit.half(scale * row['ci95'])}" if row["ci95"] is not None else ""
        dark = (value < middle) == (metric == "accuracy")
        weight = "bold" if row["trained_on"] == row["on"] else "normal"
        colour = "white" if dark else "black"
        axis.text(across, down, told + half, ha="center", va="center", fontsize=8, color=colour, fontweight=weight)
    axis.set_xticks(range(len(targets)), [kit.short(name, 14) for name in targets], fontsize=8)
    axis.set_yticks(range(len(sources)), [kit.short(name or "nothing (nearest)") for name in sources], fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(method, fontsize=10)
    axis.set_xlabel("judged on", fontsize=9)
    axis.set_ylabel("trained on", fontsize=9)
