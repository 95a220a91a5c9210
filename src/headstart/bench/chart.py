"""A suite's picture, as PNG bytes: contenders beside each other, and how they grow.

Every panel's place is counted out, in inches, from the texts that stand around it, so that none covers another.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from headstart.bench.chart_panels import GAP, WIDTH, Panel, bars, curve
from headstart.bench.chart_style import HEADING, INK, LINE, OURS, QUIET, SMALL, TEXT, TITLE, lines, styles, wrapped
from headstart.bench.figures import Figure, Report
from headstart.bench.text import figure_rows
from headstart.training.report.figures import new_figure, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

#: What a case's name may count: shown on the horizontal axis of a curve.
AXES = {"inner steps T": r"T=([\d,]+)", "tasks": r"([\d,]+) tasks?", "parameters": r"([\d,]+) parameters",
        "examples": r"([\d,]+) examples"}  # fmt: skip
#: A curve has at least so many points.
FEWEST = 3
#: So many panels are beside each other.
ACROSS = 2

_NUMBER = re.compile(r"\d+(?:,\d{3})*")
_EDGE = 0.25
_ROW_GAP = 0.2
_READING = (
    "Medians, with quartiles where there were rounds. “to ours”: {how} (above 1, headstart is ahead); "
    "the dashed line is where that is 1."
)


def draw(report: Report) -> bytes:
    """Draw the report's figures: bars for every case, and a curve where cases differ in one number alone."""
    return png(picture(report))


def picture(report: Report) -> "Picture":
    """Return the picture that `draw` makes a file of."""
    rows = _panels(report)
    width = WIDTH * max([1, *map(len, rows)]) + GAP * (max([1, *map(len, rows)]) - 1)
    head, foot = _head(report, width), _foot(report, width)
    above = [max(panel.above for panel in row) for row in rows]
    tall = [up + max(panel.height + panel.below for panel in row) + _ROW_GAP for up, row in zip(above, rows)]
    start = _EDGE + _height(head) + _ROW_GAP
    height = start + sum(tall) + _height(foot) + _EDGE
    figure = new_figure(width=width + 2 * _EDGE, height=height)
    figure.set_layout_engine("none")
    _write(figure, head, _EDGE)
    _write(figure, foot, start + sum(tall))
    for number, row in enumerate(rows):
        for column, panel in enumerate(row):
            _place(figure, panel, _EDGE + column * (WIDTH + GAP), start + sum(tall[:number]) + above[number])
    return figure


def _panels(report: Report) -> list[list[Panel]]:
    """Return the panels of each row: bars first, in the order of the tables, and then curves."""
    style = styles(dict.fromkeys(figure.contender for figure in report.figures))
    groups, curves = bar_groups(report.figures), curve_groups(report.figures)
    barred = {id(figure) for same in groups.values() for figure in same}
    drawn: dict[str, Panel] = {}
    table = figure_rows(report)
    beside = {row[:2]: row[-1] for row in table}
    place = {row[:2]: number for number, row in enumerate(table)}
    for case, same in groups.items():
        ranked = sorted(same, key=lambda figure: place[figure.case, figure.contender])
        drawn[case] = bars(same[0].case, [(each, beside[each.case, each.contender]) for each in ranked], style)
    rows = _rows([drawn[case] for case in family] for family in _families(drawn))
    growths = []
    for (name, what, unit), same in curves.items():
        often = [figure.contender for _, figure in same]
        # one point is no growth; but it is drawn where it would be nowhere else
        kept = [point for point in same if often.count(point[1].contender) > 1 or id(point[1]) not in barred]
        growths.append([curve(name, what, unit, kept, style)])
    return rows + _rows(growths)


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
                around = figure.case[: match.start()], figure.case[match.end() :]
                stays = ", ".join(part.strip(" ,") for part in around if part.strip(" ,"))
                counted = float(match[1].replace(",", ""))
                found.setdefault((stays, what, figure.unit), []).append((counted, figure))
    return {key: same for key, same in found.items() if len({counted for counted, _ in same}) >= FEWEST}


def _families(cases: Iterable[str]) -> list[list[str]]:
    """Return the cases that are called the same but for numbers, sorted by these."""
    found: dict[str, list[str]] = {}
    for case in cases:
        found.setdefault(_NUMBER.sub("#", case), []).append(case)
    return [sorted(same, key=_numbers) for same in found.values()]


def _numbers(case: str) -> list[float]:
    return [float(each.replace(",", "")) for each in _NUMBER.findall(case)]


def _rows(families: Iterable[Sequence[Panel]]) -> list[list[Panel]]:
    """Return the panels of each row; a family that fits into one row is not parted."""
    rows: list[list[Panel]] = []
    for family in families:
        if not rows or len(rows[-1]) + len(family) > ACROSS >= len(family):
            rows.append([])
        for panel in family:
            if len(rows[-1]) == ACROSS:
                rows.append([])
            rows[-1].append(panel)
    return rows


def _head(report: Report, width: float) -> list[tuple[str, float]]:
    """Return the texts above the panels, each with its size in points."""
    texts = [(f"{report.suite.capitalize()}: {OURS} beside others", HEADING)]
    if any(figure.contender == OURS for figure in report.figures):
        rates = [figure.unit == "episodes/s" for figure in report.figures]
        how = ["a contender's time or memory over headstart's"] * (not all(rates))
        how += ["headstart's rate over a contender's"] * any(rates)
        texts.append((_READING.format(how=", ".join(how)), TEXT))
    texts += [(f"Not the whole suite: {report.partial}.", TEXT)] if report.partial else []
    texts += [] if report.figures else [("Nothing was measured.", TEXT)]
    return [(wrapped(text, width, size, bold=size == HEADING), size) for text, size in texts]


def _foot(report: Report, width: float) -> list[tuple[str, float]]:
    """Return the texts below the panels, each with its size in points."""
    if not report.failed:
        return []
    return [(wrapped(f"Left out: {'; '.join(report.failed)}.", width, SMALL), SMALL)]


def _height(texts: Sequence[tuple[str, float]]) -> float:
    return sum(LINE * size * lines(text) + 0.06 for text, size in texts)


def _write(figure: "Picture", texts: Sequence[tuple[str, float]], top: float) -> None:
    width, height = figure.get_size_inches()
    for text, size in texts:
        bold = size == HEADING
        figure.text(
            _EDGE / width, 1 - top / height, text, va="top", fontsize=size, linespacing=1.2,
            fontweight="bold" if bold else "normal", color=INK if bold else QUIET,
        )  # fmt: skip
        top += _height([(text, size)])


def _place(figure: "Picture", panel: Panel, left: float, top: float) -> None:
    """Draw a panel whose axes begin so many inches below the figure's top."""
    width, height = figure.get_size_inches()
    axis = figure.add_axes((
        (left + panel.left) / width, 1 - (top + panel.height) / height, panel.width / width, panel.height / height,
    ))  # fmt: skip
    panel.draw(axis)
    axis.text(
        -panel.left / panel.width, 1 + (panel.above - 0.02) / panel.height, panel.title, transform=axis.transAxes,
        va="top", fontsize=TITLE, fontweight="bold", color=INK, linespacing=1.2,
    )  # fmt: skip
