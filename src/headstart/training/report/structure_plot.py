"""The picture of what was learned about a model: rates, movement, masks, gates and matrices, as PNG bytes."""

from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch

from headstart.training.report import figures as kit
from headstart.training.report.structure import Findings, Row, last_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

#: What each row of a panel shows.
Lines: TypeAlias = list[list[Row]]

#: Rows of a panel, steps of a heat map with room for numbers, and letters of a heading above a column.
_MOST_ROWS, _MOST_NUMBERED, _LETTERS = 100, 8, 46
_WIDTH, _ROW_HEIGHT, _FRAME_HEIGHT, _MOST_COLUMNS = 5.4, 0.24, 1.05, 3


class Panel(NamedTuple):
    """One picture of several named rows."""

    title: str
    lines: Lines
    name: Callable[[Row], str]
    draw: Callable[["Axes", Lines], None]
    more: int = 0
    """Rows' room for what else there is, such as a legend."""

    @property
    def height(self) -> float:
        """Height in inches."""
        return _FRAME_HEIGHT + _ROW_HEIGHT * max(3, min(_MOST_ROWS, len(self.lines)) + self.more)


def draw_structure(found: Findings, title: str) -> bytes | None:
    """Draw what was learned about a model; ``None`` where there is nothing to show."""
    panels = _panels(found)
    if not panels:
        return None
    columns: list[list[Panel]] = [[] for _ in range(min(_MOST_COLUMNS, len(panels)))]
    for panel in panels:
        min(columns, key=_height).append(panel)
    height = max(map(_height, columns))
    figure = kit.new_figure(_WIDTH * len(columns), height + 0.4, fill(title, _LETTERS * len(columns)))
    for part, column in zip(figure.subfigures(1, len(columns), squeeze=False)[0], columns):
        room = height - _height(column)
        ratios = [panel.height for panel in column] + [room] * (room > 0.1)
        axes = part.subplots(len(ratios), 1, squeeze=False, height_ratios=ratios)[:, 0]
        if room > 0.1:
            axes[-1].set_axis_off()
        for axis, (heading, lines, name, draw, _) in zip(axes, column):
            shown = lines[:_MOST_ROWS]  # no more than can be read
            draw(axis, shown)
            cut = f" (first {_MOST_ROWS} of {len(lines)})" if len(shown) < len(lines) else ""
            axis.set_title(heading + cut, fontsize=10)
            kit.name_rows(axis, [name(line[0]) for line in shown], least=3)  # few rows stay as thick as many
            axis.tick_params(axis="y", labelsize=7, length=0)
    return kit.png(figure)


def _height(column: Sequence[Panel]) -> float:
    return sum(panel.height for panel in column)


def _panels(found: Findings) -> list[Panel]:
    panels = []
    tensor = itemgetter("tensor")
    moved = [row for row in last_step(found.movement) if row["mean"] is not None]
    by_tensor = _grouped(found.movement, "tensor")
    for relative in (True, False):
        rows = [row for row in moved if row["relative"] == relative]
        if any(row["mean"] > 0 for row in rows):
            steps = f"{rows[0]['step']} step{'s' * (rows[0]['step'] != 1)}{'' if relative else ', absolute'}"
            lines = [[row, *by_tensor[row["tensor"]][:-1]] for row in rows]
            panels.append(Panel(f"Movement of a task's tensors in {steps}", lines, tensor, _movement))
    kinds = _grouped(found.learned, "kind")
    others = [row for row in kinds.get("other", []) if row["mean"] is not None and row["step"] is None]
    numbers = kinds.get("rate", []) + [row for row in kinds.get("other", []) if row["step"] is not None]
    for part, rows in _grouped([row for row in numbers if row["mean"] is not None], "part").items():
        if any(row["size"] > 1 for row in rows):
            panels.append(Panel(f"{part}, by tensor", [[row] for row in rows], tensor, _spread))
        else:
            title = f"{part}, by tensor{' and step' if rows[0]['step'] is not None else ''}"
            lines = list(_grouped(rows, "tensor").values())
            panels.append(Panel(title, lines, lambda row: row["tensor"] or row["part"], _heat_map))
    for kind, key, title, label, unit in (
        ("matrix", "from_identity", "Matrices: distance from the identity", "‖A − I‖ / ‖I‖", 1),
        ("mask", "open", "Masks: open fraction", "% above 0.5", 100),
    ):
        rows = [row for row in kinds.get(kind, []) if row[key] is not None]
        if rows:
            parts = list(_grouped(rows, "part"))
            name = partial(_place_name, several=len(parts) > 1)
            panels.append(Panel(title, [[row] for row in rows], name, partial(_bars, key, label, unit, parts)))
    if "gate" in kinds:
        more = 1 + len(_grouped(kinds["gate"], "tensor")) // 4
        lines = list(_grouped(kinds["gate"], "part").values())
        panels.append(Panel("", lines, lambda row: row["part"].removesuffix(".gates"), _gates, more))
    if others:
        panels.append(Panel("Other parts of M", [[row] for row in others], _whole_name, _spread))
    return panels


def _grouped(rows: list[Row], key: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


def _whole_name(row: Row) -> str:
    return ".".join(filter(None, (row["part"], row["tensor"])))


def _place_name(row: Row, several: bool) -> str:
    step = "" if row["step"] is None else f" step {row['step']}"
    if several and row["tensor"] and "." not in row["tensor"]:  # a module's own part, whose path is its name
        return f"{_whole_name(row)}{step}"
    part = row["part"].rpartition(".")[2]
    return f"{row['tensor'] or row['part']}{step}" + (f" ({part})" if several and row["tensor"] else "")


def _movement(axis: "Axes", lines: Lines) -> None:
    """Bars at the last step, and marks where the tensors were after each step before."""
    last, relative = [line[0] for line in lines], lines[0][0]["relative"]
    unit = 100 if relative else 1
    means = [unit * row["mean"] for row in last]
    kit.bars(axis, means, [unit * (row["ci95"] or 0.0) for row in last], alpha=0.85)
    marks = [(unit * row["mean"], place) for place, line in enumerate(lines) for row in line[1:] if row["mean"]]
    if marks:
        axis.plot(*zip(*marks), "|", color=kit.ORANGE, markersize=7)
    least = max(min((mean for mean in means if mean > 0), default=1), max(means) / 3e3)
    if max(means) > 50 * least:
        axis.set_xscale("log")
        axis.set_xlim(left=least / 3)  # what moved less still, by rounding alone, has no bar
    norm = "‖θᵢ − θ‖ / ‖θ‖ (%)" if relative else "‖θᵢ − start‖"
    fewer = "; orange: after fewer steps" if marks else ""
    kit.dress(axis, "", f"{norm}, mean over {last[0]['tasks']} test tasks\nand 95 % interval{fewer}")


def _heat_map(axis: "Axes", lines: Lines) -> None:
    """Numbers by tensor and inner step: logarithmic colours over decades, red and blue where there are two signs."""
    steps = sorted({row["step"] or 0 for line in lines for row in line})
    by_step = lines[0][0]["step"] is not None
    values = [{row["step"] or 0: row["mean"] for row in line} for line in lines]
    table = torch.tensor([[line.get(step, float("nan")) for step in steps] for line in values], dtype=torch.float64)
    there = table.isfinite()
    colours, norm = _colours(table[there].tolist())
    image = axis.imshow(table.numpy(), aspect="auto", cmap=colours, norm=norm)
    axis.figure.colorbar(image, ax=axis, pad=0.02, aspect=30).ax.tick_params(labelsize=7)
    kit.dress(axis, "", "inner step (from 0)" if by_step else "")
    axis.grid(False)
    every = -(-len(steps) // 12)
    axis.set_xticks(range(0, len(steps), every) if by_step else [], map(str, steps[::every] if by_step else []))
    if len(steps) <= _MOST_NUMBERED:
        drawn = image.to_rgba(table.numpy())
        for y, x in there.nonzero().tolist():
            # a number can be read on its colour
            colour = "white" if float(drawn[y][x][:3] @ (0.3, 0.59, 0.11)) < 0.5 else "black"
            number = f"{float(table[y, x]):.3g}"
            text = axis.text(x, y, number, ha="center", va="center", fontsize=6.5, color=colour)
            text.set_in_layout(False)


def _colours(values: Sequence[float]) -> tuple[str, "Normalize"]:
    from matplotlib import colors

    low, high = min(values), max(values)
    largest = max(abs(low), abs(high))
    smallest = max(min((abs(value) for value in values if value), default=1.0), largest / 1e4)
    wide = largest > 10 * smallest
    if low < 0:
        symmetric = colors.SymLogNorm(smallest, vmin=-largest, vmax=largest)
        return "RdBu", symmetric if wide else colors.CenteredNorm(0, largest)
    return "viridis", colors.LogNorm(low, high) if wide and low > 0 else colors.Normalize(low, high)


def _spread(axis: "Axes", lines: Lines) -> None:
    """The mean of each tensor, a standard deviation to both sides, and the range; red where some rates are negative."""
    for place, (row,) in enumerate(lines):
        against = row["negative"] > 0 and row["kind"] == "rate"
        colour = kit.RED if against else kit.BLUE
        mean, ends = row["mean"], [row["mean"] - row["std"], row["mean"] + row["std"]]
        axis.plot([row["min"], row["max"]], [place, place], color=colour, linewidth=1, alpha=0.6)
        axis.plot(ends, [place, place], color=colour, linewidth=5, alpha=0.45, solid_capstyle="butt")
        axis.plot([mean], [place], "o", color=colour, markersize=4)
        if against:
            share = f"  {100 * row['negative']:.0f} % < 0"
            axis.annotate(share, (row["max"], place), fontsize=6.5, va="center", color=kit.RED)
    axis.axvline(0, color=kit.GREY, linewidth=0.8)
    axis.margins(x=0.16)
    kit.dress(axis, "", "mean, standard deviation (thick), range (thin)")


def _bars(key: str, label: str, unit: int, parts: list[str], axis: "Axes", lines: Lines) -> None:
    colours = [kit.colour(parts.index(row["part"])) for (row,) in lines]
    kit.bars(axis, [unit * row[key] for (row,) in lines], color=colours)
    axis.set_xlim(0, 100 if unit == 100 else None)
    kit.dress(axis, "", label)


def _gates(axis: "Axes", lines: Lines) -> None:
    shares = [{row["tensor"]: 100 * row["mean"] for row in line} for line in lines]
    ends = [0.0] * len(lines)
    candidates = list(dict.fromkeys(name for share in shares for name in share))
    for index, candidate in enumerate(candidates):
        widths = [share.get(candidate, 0.0) for share in shares]
        kit.bars(axis, widths, left=ends, color=kit.colour(index), height=0.7, label=kit.short(candidate))
        ends = [end + width for end, width in zip(ends, widths)]
    kit.dress(axis, "", "proportion (%)")
    axis.set_xlim(0, 100)
    axis.legend(
        title="Mixtures: proportions of their candidates", title_fontsize=10, fontsize=7, frameon=False,
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(4, len(candidates)),
    )  # fmt: skip
