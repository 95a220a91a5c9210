"""The kit of all pictures: size, colours, labels, bars, bands, images, and the way to PNG bytes."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = COLOURS = "#2f6fb0", "#e08a1e", "#2e9e5b", "#d1403f", "#8a8f98"


def unit(metric: str) -> tuple[int, str]:
    """Return by what a metric is multiplied for people, and the label of its axis."""
    return (100, "accuracy (%)") if metric == "accuracy" else (1, "mean squared error")


def within(axis: "Axes", metric: str) -> None:
    """Cut the axis of an accuracy where there is none: intervals of few tasks reach far beyond."""
    if metric == "accuracy":
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, -2), min(high, 102))


def half(ci95: float) -> str:
    """Return half the width of an interval as people read it.

    >>> half(1367.3), half(0.01234)
    ('1367', '0.012')
    """
    return f"{ci95:.0f}" if 10 <= ci95 < 1e6 else f"{ci95:.2g}"


def short(name: str, most: int = 37) -> str:
    """Return a name of so many letters at most, cut from the left: its end tells more.

    >>> short("encoder.layers.11.attention.self.query.weight")
    '…ayers.11.attention.self.query.weight'
    """
    return name if len(name) <= most else f"…{name[1 - most :]}"


def new_figure(width: float, height: float, heading: str = "", size: float = 12) -> "Figure":
    """Return an empty figure of a size in inches, with a heading of a size in points."""
    # the Figure itself, not pyplot: no display is needed and no global state is kept
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if heading:
        figure.suptitle(heading, x=0.01, ha="left", fontsize=size, fontweight="bold")
    return figure


def colour(index: int) -> str:
    """Return one of ten colours that can be told apart, the next ones being the same again."""
    colours = (*COLOURS, "#8e5ea2", "#4bc0c0", "#b07d48", "#e377c2", "#bcbd22")
    return colours[index % len(colours)]


def beside(
    draws: "Sequence[Callable[[Axes], None]]", width: float, height: float, heading: str = "", most: int = 100
) -> bytes:
    """Return a picture of axes beside each other, each so large, and no more of them in a row, as a PNG file."""
    across = min(most, len(draws))
    down = -(-len(draws) // across)
    figure = new_figure(width * across, height * down, heading)
    axes = figure.subplots(down, across, squeeze=False).flat
    for draw, axis in zip(draws, axes):
        draw(axis)
    for axis in axes:  # those that are left
        axis.remove()
    return png(figure)


def dress(axis: "Axes", title: str, x: str, y: str = "", legend: bool = False) -> None:
    """Give an axis its title, labels and quiet grid."""
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if legend:
        axis.legend(frameon=False, fontsize=8)


def name_rows(axis: "Axes", names: Sequence[str], least: int = 1) -> None:
    """Name the rows 0, 1, … of an axis, the first at the top; fewer than ``least`` stay as thick as so many."""
    axis.set_yticks(range(len(names)), [short(name) for name in names])
    axis.set_ylim(max(len(names), least) - 0.5, -0.5)


def bars(axis: "Axes", values: Sequence[float], halves: Sequence[float] | None = None, **style: Any) -> None:
    """Draw a bar in each row, with half the width of its interval to both sides."""
    style = {"color": BLUE, "height": 0.65, **style}
    axis.barh(range(len(values)), values, xerr=halves, error_kw={"capsize": 2, "elinewidth": 1}, **style)


def band(axis: "Axes", x: Any, low: Any, high: Any, colour: str, label: str = "90 % interval") -> None:
    """Fill what lies between two curves."""
    axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0, label=label)


def image(axis: "Axes", pixels: Any, frame: str, thick: bool) -> None:
    """Draw an image ``(channels, height, width)`` in [0, 1], in a frame of a colour."""
    pixels = pixels.clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    axis.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(color=frame, linewidth=2.5 if thick else 1)


def png(figure: "Figure") -> bytes:
    """Return the figure as a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(record=True) as told:
        warnings.filterwarnings("always", r"Glyph \d+ .* missing from font")
        figure.savefig(buffer, format="png", dpi=130, metadata={"Software": "headstart"})
    lacking = [re.match(r"Glyph (\d+)", str(one.message)) for one in told]
    for other in (one.message for one, found in zip(told, lacking) if found is None):
        warnings.warn(other, stacklevel=2)
    if letters := sorted({chr(int(found[1])) for found in lacking if found}):
        what = f"the fonts of pictures lack {' '.join(letters)[:40]}, drawn as boxes; name another in matplotlibrc"
        warnings.warn(what, stacklevel=2)
    return buffer.getvalue()
