"""The picture of what was learned about a model: rates, movement, masks, gates and matrices, as PNG bytes."""

from collections.abc import Callable, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

import torch

from headstart.training.report.figures import BLUE, COLOURS, GREEN, GREY, ORANGE, RED, dress, new_figure, png
from headstart.training.report.structure import Findings, Row, last_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.image import AxesImage

#: Rows of a panel, characters of a name, and steps of a heat map with room for numbers.
_MOST_ROWS, _MOST_LETTERS, _MOST_NUMBERED = 100, 36, 8
#: Letters of a heading with room above a column.
_LETTERS = 46
_WIDTH, _ROW_HEIGHT, _FRAME_HEIGHT, _MOST_COLUMNS = 5.4, 0.24, 1.05, 3


class Panel(NamedTuple):
    """One picture of several rows."""

    title: str
    rows: int
    draw: Callable[["Axes"], None]

    @property
    def height(self) -> float:
        """Height in inches."""
        return _FRAME_HEIGHT + _ROW_HEIGHT * max(3, self.rows)


def draw_structure(found: Findings, title: str) -> bytes | None:
    """Draw what was learned about a model; ``None`` where there is nothing to show."""
    panels = _panels(found)
    if not panels:
        return None
    columns: list[list[Panel]] = [[] for _ in range(min(_MOST_COLUMNS, len(panels)))]
    for panel in panels:
        min(columns, key=_height).append(panel)
    height = max(map(_height, columns))
    figure = new_figure(width=_WIDTH * len(columns), height=height + 0.4)
    for part, column in zip(figure.subfigures(1, len(columns), squeeze=False)[0], columns):
        heights = [panel.height for panel in column]
        room = height - sum(heights)
        ratios = [*heights, room] if room > 0.1 else heights
        axes = part.subplots(len(ratios), 1, squeeze=False, height_ratios=ratios)[:, 0]
        for axis in axes[len(column) :]:
            axis.set_axis_off()
        for axis, panel in zip(axes, column):
            panel.draw(axis)
            axis.set_title(panel.title, fontsize=10)
    figure.suptitle(fill(title, _LETTERS * len(columns)), x=0.01, ha="left", fontsize=12, fontweight="bold")
    return png(figure)


def _height(column: Sequence[Panel]) -> float:
    return sum(panel.height for panel in column)


def _panels(found: Findings) -> list[Panel]:
    moved = [row for row in last_step(found.movement) if row["mean"] is not None]
    panels = [_movement([row for row in moved if row["relative"] == relative], found, relative) for relative in (1, 0)]
    numbers: dict[str, list[Row]] = {}
    for row in found.learned:
        if row["mean"] is not None and row["kind"] in ("rate", "other"):
            own = row["kind"] == "rate" or row["step"] is not None
            numbers.setdefault(row["part"] if own else "", []).append(row)
    others = numbers.pop("", [])
    for name, rows in numbers.items():
        table = all(row["size"] == 1 for row in rows)
        panels.append(_heat_map(rows, name) if table else _spread(rows, name))
    panels.append(
        _bars_of(found, "matrix", "from_identity", "Matrices: distance from the identity", "‖A − I‖ / ‖I‖", 1)
    )
    panels.append(_bars_of(found, "mask", "open", "Masks: open fraction", "% above 0.5", 100))
    panels.append(_gates([row for row in found.learned if row["kind"] == "gate"]))
    panels.append(_spread(others, "") if others else None)
    return [panel for panel in panels if panel is not None]


def _cut(rows: list[Row], title: str) -> tuple[list[Row], str]:
    """Return no more rows than can be read, and a title that says so."""
    if len(rows) <= _MOST_ROWS:
        return rows, title
    return rows[:_MOST_ROWS], f"{title} (first {_MOST_ROWS} of {len(rows)})"


def _short(name: str) -> str:
    """Return a name cut from the left: its end tells more.

    >>> _short("encoder.layers.11.attention.self.query.weight")
    '…ayers.11.attention.self.query.weight'
    """
    return name if len(name) <= _MOST_LETTERS + 1 else f"…{name[-_MOST_LETTERS:]}"


def _name_rows(axis: "Axes", names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), [_short(name) for name in names])
    # few rows stay as thick as many
    axis.set_ylim(max(len(names), 3) - 0.5, -0.5)
    axis.tick_params(axis="y", labelsize=7, length=0)


def _movement(rows: list[Row], found: Findings, relative: int) -> Panel | None:
    """Bars at the last step, and marks where the tensors were after each step before."""
    if not any(row["mean"] > 0 for row in rows):
        return None
    steps = rows[0]["step"]
    title = f"Movement of a task's tensors in {steps} step{'s' * (steps != 1)}"
    rows, title = _cut(rows, title if relative else f"{title}, absolute")
    unit = 100 if relative else 1

    def draw(axis: "Axes") -> None:
        means = [unit * row["mean"] for row in rows]
        places = {row["tensor"]: place for place, row in enumerate(rows)}
        axis.barh(range(len(rows)), means, color=BLUE, height=0.65, alpha=0.85)
        axis.errorbar(
            means, range(len(rows)), xerr=[unit * (row["ci95"] or 0.0) for row in rows], fmt="none", color="black",
            capsize=2, linewidth=1,
        )  # fmt: skip
        before = [row for row in found.movement if row["tensor"] in places and row["mean"] and row["step"] < steps]
        marks = [unit * row["mean"] for row in before], [places[row["tensor"]] for row in before]
        axis.plot(*marks, "|", color=ORANGE, markersize=7)
        least = max(min((mean for mean in means if mean > 0), default=1), max(means) / 3e3)
        if max(means) > 50 * least:
            axis.set_xscale("log")
            axis.set_xlim(left=least / 3)  # what moved less still, by rounding alone, has no bar
        norm = "‖θᵢ − θ‖ / ‖θ‖ (%)" if relative else "‖θᵢ − start‖"
        fewer = "; orange: after fewer steps" if before else ""
        dress(axis, "", f"{norm}, mean over {rows[0]['tasks']} test tasks\nand 95 % interval{fewer}", "")
        _name_rows(axis, [row["tensor"] for row in rows])

    return Panel(title, len(rows), draw)


def _heat_map(rows: list[Row], part: str) -> Panel:
    """Numbers by tensor and inner step: logarithmic colours over decades, red and blue where there are two signs."""
    names = list(dict.fromkeys(row["tensor"] for row in rows))
    steps = sorted({row["step"] or 0 for row in rows})
    by_step = any(row["step"] is not None for row in rows)
    chosen, title = _cut([{"tensor": name} for name in names], f"{part}, by tensor{' and step' if by_step else ''}")
    names = [row["tensor"] for row in chosen]
    values = {(row["tensor"], row["step"] or 0): row["mean"] for row in rows}

    def draw(axis: "Axes") -> None:
        table = [[values.get((name, step), float("nan")) for step in steps] for name in names]
        colours, norm = _colours([value for line in table for value in line if value == value])
        image = axis.imshow(table, aspect="auto", cmap=colours, norm=norm)
        bar = axis.figure.colorbar(image, ax=axis, pad=0.02, aspect=30)
        bar.ax.tick_params(labelsize=7)
        dress(axis, "", "inner step (from 0)" if by_step else "", "")
        axis.grid(False)
        if by_step:
            every = -(-len(steps) // 12)
            axis.set_xticks(range(0, len(steps), every), [str(step) for step in steps[::every]])
        else:
            axis.set_xticks([])
        _name_rows(axis, [name or part for name in names])
        if len(steps) <= _MOST_NUMBERED:
            _number(axis, table, image)

    return Panel(title, len(names), draw)


def _number(axis: "Axes", table: list[list[float]], image: "AxesImage") -> None:
    """Write the numbers into the cells of a heat map, so that they can be read on their colours."""
    drawn = image.to_rgba(torch.tensor(table, dtype=torch.float64).numpy())
    for y, line in enumerate(table):
        for x, value in enumerate(line):
            if value == value:
                red, green, blue, _ = drawn[y][x]
                colour = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"
                text = axis.text(x, y, f"{value:.3g}", ha="center", va="center", fontsize=6.5, color=colour)
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
    if wide and low > 0:
        return "viridis", colors.LogNorm(low, high)
    return "viridis", colors.Normalize(low, high)


def _spread(rows: list[Row], part: str) -> Panel:
    """The mean of each tensor, a standard deviation to both sides, and the range; red where some are negative."""
    rows, title = _cut(rows, f"{part}, by tensor" if part else "Other parts of M")

    def draw(axis: "Axes") -> None:
        for place, row in enumerate(rows):
            colour = RED if row["negative"] > 0 and row["kind"] == "rate" else BLUE
            axis.plot([row["min"], row["max"]], [place, place], color=colour, linewidth=1, alpha=0.6)
            ends = [row["mean"] - row["std"], row["mean"] + row["std"]]
            axis.plot(ends, [place, place], color=colour, linewidth=5, alpha=0.45, solid_capstyle="butt")
            axis.plot([row["mean"]], [place], "o", color=colour, markersize=4)
            if row["negative"] > 0 and row["kind"] == "rate":
                share = f"  {100 * row['negative']:.0f} % < 0"
                axis.annotate(share, (row["max"], place), fontsize=6.5, va="center", color=RED)
        axis.axvline(0, color=GREY, linewidth=0.8)
        dress(axis, "", "mean, standard deviation (thick), range (thin)", "")
        axis.margins(x=0.16)
        _name_rows(axis, [row["tensor"] if part else ".".join(filter(None, _words(row))) for row in rows])

    return Panel(title, len(rows), draw)


def _words(row: Row) -> tuple[str, str]:
    return row["part"], row["tensor"]


def _bars_of(found: Findings, kind: str, key: str, title: str, label: str, unit: float) -> Panel | None:
    """Bars of one number of each row of a kind, coloured by part."""
    rows = [row for row in found.learned if row["kind"] == kind and row[key] is not None]
    if not rows:
        return None
    rows, title = _cut(rows, title)
    parts = list(dict.fromkeys(row["part"] for row in rows))
    several = len(parts) > 1

    def draw(axis: "Axes") -> None:
        colours = [COLOURS[parts.index(row["part"]) % len(COLOURS)] for row in rows]
        axis.barh(range(len(rows)), [unit * row[key] for row in rows], color=colours, height=0.65)
        dress(axis, "", label, "")
        axis.set_xlim(0, 100 if unit == 100 else None)
        names = [_place_name(row, several) for row in rows]
        _name_rows(axis, names)

    return Panel(title, len(rows), draw)


def _place_name(row: Row, several: bool) -> str:
    step = "" if row["step"] is None else f" step {row['step']}"
    if several and row["tensor"] and "." not in row["tensor"]:  # a module's own part, whose path is its name
        return f"{row['part']}.{row['tensor']}{step}"
    part = row["part"].rpartition(".")[2]
    return f"{row['tensor'] or row['part']}{step}" + (f" ({part})" if several and row["tensor"] else "")


def _gates(rows: list[Row]) -> Panel | None:
    """A bar a mixture, stacked of its candidates' proportions."""
    if not rows:
        return None
    mixtures = list(dict.fromkeys(row["part"] for row in rows))[:_MOST_ROWS]
    candidates = list(dict.fromkeys(row["tensor"] for row in rows))

    def draw(axis: "Axes") -> None:
        colours = (BLUE, ORANGE, GREEN, RED, GREY, "#8e5ea2", "#4bc0c0", "#b07d48", "#e377c2", "#bcbd22")
        shares = {(row["part"], row["tensor"]): 100 * row["mean"] for row in rows}
        ends = [0.0] * len(mixtures)
        for index, candidate in enumerate(candidates):
            widths = [shares.get((mixture, candidate), 0.0) for mixture in mixtures]
            colour = colours[index % len(colours)]
            axis.barh(range(len(mixtures)), widths, left=ends, color=colour, height=0.7, label=_short(candidate))
            ends = [end + width for end, width in zip(ends, widths)]
        dress(axis, "", "proportion (%)", "")
        axis.set_xlim(0, 100)
        _name_rows(axis, [mixture.removesuffix(".gates") for mixture in mixtures])
        axis.legend(
            title="Mixtures: proportions of their candidates",
            title_fontsize=10,
            fontsize=7,
            frameon=False,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=min(4, len(candidates)),
        )

    return Panel("", len(mixtures) + 1 + len(candidates) // 4, draw)
