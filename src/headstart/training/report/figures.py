"""What all pictures share: size, colours, labels, and the way to PNG bytes."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = COLOURS = "#2f6fb0", "#e08a1e", "#2e9e5b", "#d1403f", "#8a8f98"


def named(metric: str) -> str:
    """Return the label of an axis of a metric."""
    return "accuracy (%)" if metric == "accuracy" else "mean squared error"


def half(ci95: float) -> str:
    """Return half the width of an interval as people read it.

    >>> half(1367.3), half(0.01234)
    ('1367', '0.012')
    """
    return f"{ci95:.0f}" if 10 <= ci95 < 1e6 else f"{ci95:.2g}"


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of a size in inches."""
    # the Figure itself, not pyplot: no display is needed and no global state is kept
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def dress(axis: "Axes", title: str, x: str, y: str) -> None:
    """Give an axis its title, labels and quiet grid."""
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def png(figure: "Figure") -> bytes:
    """Return the figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": "headstart"})
    return buffer.getvalue()
