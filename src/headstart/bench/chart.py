"""A suite's picture, as PNG bytes: contenders beside each other, and how they grow."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headstart.bench.figures import Figure, Report
from headstart.training.figures import BLUE, COLOURS, GREY, dress, new_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What a case's name may count: shown on the horizontal axis of a curve.
AXES = {"inner steps T": r"T=([\d,]+)", "tasks": r"([\d,]+) tasks?", "parameters": r"([\d,]+) parameters",
        "examples": r"([\d,]+) examples"}  # fmt: skip
#: A curve has at least so many points.
FEWEST = 3
_ACROSS = 3


def draw(report: Report) -> bytes:
    """Draw the report's figures: bars for every case, and a curve where cases differ in one number alone."""
    bars = bar_groups(report.figures)
    curves = curve_groups(report.figures)
    panels = len(bars) + len(curves)
    down = max(1, -(-panels // _ACROSS))
    figure = new_figure(width=5.0 * _ACROSS, height=2.9 * down)
    grid = figure.subplots(down, _ACROSS, squeeze=False).flatten()
    for axis, (case, same) in zip(grid, bars.items()):
        _bars(axis, case, same)
    for axis, ((name, what, unit), same) in zip(grid[len(bars) :], curves.items()):
        _curve(axis, name, what, unit, same)
    for axis in grid[panels:]:
        axis.set_axis_off()
    title = f"{report.suite}: headstart (blue) beside others; medians and quartiles"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return png(figure)


def bar_groups(figures: Sequence[Figure]) -> dict[str, list[Figure]]:
    """Return the figures of each case that has more than two contenders, or is not a point of a curve."""
    on_curve = {id(figure) for same in curve_groups(figures).values() for _, figure in same}
    found: dict[str, list[Figure]] = {}
    for figure in figures:
        found.setdefault(f"{figure.case} ({figure.unit})", []).append(figure)
    return {
        case: same for case, same in found.items() if len(same) > 2 or any(id(each) not in on_curve for each in same)
    }


def curve_groups(figures: Sequence[Figure]) -> dict[tuple[str, str, str], list[tuple[float, Figure]]]:
    """Return ``{(what stays, what grows, unit): [(number, figure)]}`` for cases that differ in one number alone."""
    found: dict[tuple[str, str, str], list[tuple[float, Figure]]] = {}
    for what, pattern in AXES.items():
        for figure in figures:
            match = re.search(pattern, figure.case)
            if match:
                stays = re.sub(r"\s*,\s*$", "", (figure.case[: match.start()] + figure.case[match.end() :]).strip())
                counted = float(match[1].replace(",", ""))
                found.setdefault((stays, what, figure.unit), []).append((counted, figure))
    return {key: same for key, same in found.items() if len({counted for counted, _ in same}) >= FEWEST}


def _bars(axis: "Axes", case: str, same: Sequence[Figure]) -> None:
    rows = sorted(same, key=lambda figure: figure.value)
    for place, figure in enumerate(rows):
        spread = [[max(0.0, figure.value - figure.low)], [max(0.0, figure.high - figure.value)]]
        axis.barh(place, figure.value, xerr=spread, color=_colour(figure.contender, ours_only=True), height=0.7)
    axis.set_yticks(range(len(rows)), [figure.contender for figure in rows])
    axis.invert_yaxis()
    if rows[-1].value > 20 * max(rows[0].value, 1e-9):
        axis.set_xscale("log")
    dress(axis, case, rows[0].unit, "")


def _curve(axis: "Axes", name: str, what: str, unit: str, same: Sequence[tuple[float, Figure]]) -> None:
    contenders = list(dict.fromkeys(figure.contender for _, figure in same))
    for contender in contenders:
        points = sorted((counted, figure.value) for counted, figure in same if figure.contender == contender)
        axis.plot(*zip(*points), marker="o", markersize=4, label=contender, color=_colour(contender, contenders))
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.legend(fontsize=7, frameon=False)
    dress(axis, f"{name}: growth with {what}", what, unit)


def _colour(contender: str, among: Sequence[str] = (), ours_only: bool = False) -> str:
    if contender.startswith("headstart"):
        return BLUE if contender == "headstart" or ours_only else "#7fb0dd"
    others = [each for each in among if not each.startswith("headstart")]
    return COLOURS[1:][others.index(contender) % (len(COLOURS) - 1)] if contender in others else GREY
