"""The panels of a suite's picture: a case's contenders as bars, and growth as curves."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import log10
from typing import TYPE_CHECKING, NamedTuple

from headstart.bench.chart_style import INK, LINE, OURS, QUIET, SMALL, TEXT, TITLE, Style, lines, soft, width, wrapped
from headstart.bench.figures import Figure
from headstart.bench.text import number
from headstart.training.report.figures import BLUE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The width of a panel in inches, with what stands beside its axes, and the room between it and the next.
WIDTH, GAP = 6.4, 0.3

_UNITS = {"ms": "time (ms)", "s": "time (s)", "MB": "memory (MB)", "episodes/s": "episodes per second"}
_BAR, _BETWEEN = 0.14, 0.07
_NAMES, _NUMBERS = 2.35, 1.3
_COLUMNS = 0.7, 1.26
_SCALE, _LEGEND, _CURVE = 0.75, 2.75, 2.2
_BELOW = 0.45
#: Numbers on the horizontal axis of a curve have at least so much between them.
_APART = 0.1


class Panel(NamedTuple):
    """What is drawn in one place; all sizes are in inches."""

    title: str
    left: float
    """The room for what stands left of the axes."""
    right: float
    """The room for what stands right of them."""
    height: float
    """The axes' own."""
    above: float
    """The room for the title, and for what else stands above the axes."""
    draw: "Callable[[Axes], None]"
    below: float = _BELOW

    @property
    def width(self) -> float:
        """The axes' own."""
        return WIDTH - self.left - self.right


def bars(title: str, same: Sequence[tuple[Figure, str]], style: Mapping[str, Style]) -> Panel:
    """Return a panel of one case's figures, each with the text of how it stands to ours; the first at the top."""
    names = [wrapped(figure.contender, _NAMES - 0.15, TEXT, figure.contender == OURS) for figure, _ in same]
    tall = [max(_BAR, LINE * TEXT * lines(name)) + _BETWEEN for name in names]
    title = wrapped(title, WIDTH, TITLE, bold=True)
    above = LINE * (TITLE * lines(title) + SMALL) + 0.12
    return Panel(title, _NAMES, _NUMBERS, sum(tall), above, partial(_bars, same, names, tall, style))


def _bars(
    same: Sequence[tuple[Figure, str]],
    names: Sequence[str],
    tall: Sequence[float],
    style: Mapping[str, Style],
    axis: "Axes",
) -> None:
    """Draw the bars; what is vertical is counted in inches from the top of the axes."""
    places = [sum(tall[:row]) + tall[row] / 2 for row in range(len(tall))]
    for place, (figure, beside) in zip(places, same):
        own = style[figure.contender]
        axis.barh(place, figure.value, height=_BAR, color=own.colour if own.ours else soft(own.colour))
        if figure.high > figure.low:
            axis.hlines(place, figure.low, figure.high, color=INK, linewidth=1.2)
        _beside(axis, place, number(figure.value), beside, bold=figure.contender == OURS)
    _beside(axis, -0.09, same[0][0].unit, "to ours" * any(beside for _, beside in same))
    for figure, _ in same:
        if figure.contender == OURS and len(same) > 1:
            axis.axvline(figure.value, color=BLUE, linestyle=(0, (4, 3)), linewidth=1, label=OURS)
    axis.set_xlim(0, 1.03 * max(max(figure.value, figure.high) for figure, _ in same) or 1)
    axis.set_ylim(sum(tall), 0)
    axis.set_yticks(places, names)
    axis.locator_params(axis="x", nbins=6)
    axis.xaxis.set_major_formatter("{x:,g}")
    _dress(axis, _UNITS[same[0][0].unit], "")
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0)
    for label, (figure, _) in zip(axis.get_yticklabels(), same):
        label.set(color=BLUE if style[figure.contender].ours else INK, fontsize=TEXT)
        label.set_fontweight("bold" if figure.contender == OURS else "normal")


def _beside(axis: "Axes", place: float, value: str, ratio: str, bold: bool = False) -> None:
    """Write what a figure is, and how it stands to ours, in two columns right of the axes."""
    heading = place < 0
    inches = axis.get_position().width * axis.figure.get_figure(root=True).get_figwidth()
    for text, column in zip((value, ratio) if heading else (_short(value), _short(ratio)), _COLUMNS):
        axis.text(
            1 + column / inches, place, text, transform=axis.get_yaxis_transform(), ha="right", va="center",
            fontsize=SMALL, color=QUIET if heading else INK, fontweight="bold" if bold else "normal",
        )  # fmt: skip


def _short(text: str) -> str:
    """Return a number that fits into its column.

    >>> _short("12.50"), _short("12345678.00")
    ('12.50', '1.2e+07')
    """
    return text if len(text) <= 7 else f"{float(text):.1e}"


def curve(name: str, what: str, unit: str, same: Sequence[tuple[float, Figure]], style: Mapping[str, Style]) -> Panel:
    """Return a panel of how figures grow with a number, both scales logarithmic, with the legend beside it."""
    title = wrapped(f"{name}: growth with {what}", WIDTH, TITLE, bold=True)
    found: dict[str, list[tuple[float, Figure]]] = {}
    for counted, figure in sorted(same, key=lambda point: point[0]):
        if counted > 0 and figure.value > 0:
            found.setdefault(figure.contender, []).append((counted, figure))
    # in the order in which the curves end, as they are seen
    ended = sorted(found, key=lambda contender: -found[contender][-1][1].value)
    names = {contender: wrapped(contender, _LEGEND - 0.65, SMALL) for contender in ended}
    height = max(_CURVE, sum(LINE * SMALL * lines(text) + 0.05 for text in names.values()))
    above = LINE * TITLE * lines(title) + 0.1
    drawn = partial(_curves, {each: found[each] for each in ended}, names, style, (what, _UNITS[unit]))
    return Panel(title, _SCALE, _LEGEND, height, above, drawn)


def _curves(
    found: Mapping[str, Sequence[tuple[float, Figure]]],
    names: Mapping[str, str],
    style: Mapping[str, Style],
    labels: tuple[str, str],
    axis: "Axes",
) -> None:
    for contender, points in found.items():
        own, front = style[contender], 4 if contender == OURS else 3
        across = [counted for counted, _ in points]
        axis.plot(
            across, [figure.value for _, figure in points], label=names[contender], color=own.colour, zorder=front,
            marker=own.marker, markersize=5 if own.ours else 4, linewidth=2.6 if contender == OURS else 1.4,
            linestyle="--" if own.dashed else "-",
        )  # fmt: skip
        low = [figure.low if figure.low > 0 else figure.value for _, figure in points]
        axis.vlines(across, low, [figure.high for _, figure in points], color=own.colour, linewidth=1)
    axis.set(xscale="log", yscale="log")
    _dress(axis, *labels)
    _ticks(axis, sorted({counted for points in found.values() for counted, _ in points}))
    if found:
        axis.legend(
            loc="upper left", bbox_to_anchor=(1.02, 1.02), borderaxespad=0, fontsize=SMALL, frameon=False,
            labelspacing=0.4, handlelength=2.4,
        )  # fmt: skip


def _ticks(axis: "Axes", counted: Sequence[float]) -> None:
    """Mark what was counted on the horizontal axis, and more than powers of ten on a short vertical one."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axis.xaxis.set_minor_locator(NullLocator())
    inches = axis.get_window_extent().width / axis.figure.dpi
    low, high = axis.get_xlim()
    kept: dict[float, str] = {}
    end = -inches
    for each in counted:
        middle, text = inches * log10(each / low) / log10(high / low), f"{each:,.0f}"
        half = width(text, SMALL) / 2
        if middle - half >= end + _APART:
            kept[each], end = text, middle + half
    axis.set_xticks(list(kept), list(kept.values()))
    if log10(axis.get_ylim()[1] / axis.get_ylim()[0]) < 2.5:
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def _dress(axis: "Axes", x: str, y: str) -> None:
    axis.set_xlabel(x, fontsize=TEXT, color=QUIET)
    axis.set_ylabel(y, fontsize=TEXT, color=QUIET)
    axis.tick_params(labelsize=SMALL, color=QUIET, labelcolor=INK)
    axis.set_axisbelow(True)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(QUIET)
