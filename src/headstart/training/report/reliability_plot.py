"""How often labels are right that were given such a probability, as PNG bytes."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from headstart.training.report import figures as kit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_reliability(found: Mapping[str, Any]) -> bytes:
    """Draw accuracy against confidence before and after calibration; the grey bars are shares of all examples.

    Args:
        found: the fields of `headstart.training.trust.Measured`.
    """
    size = f"{found['tasks']} test tasks, {found['ways']}-way {found['shots']}-shot"
    titles = {"before": "as the model says", "after": "calibrated on validation tasks"}
    draws = [
        partial(_reliability, found[name], title, colour) for (name, title), colour in zip(titles.items(), _COLOURS)
    ]
    return kit.beside(draws, 4.2, 3.7, f"How far probabilities can be believed: {size}")


_COLOURS = (kit.ORANGE, kit.BLUE)


def _reliability(found: Mapping[str, Any], title: str, colour: str, axis: "Axes") -> None:
    axis.plot([0, 100], [0, 100], color=kit.GREY, linestyle=":", linewidth=1)
    percent = {name: [100 * value for value in found[name]] for name in ("confidence", "accuracy", "share")}
    axis.bar(percent["confidence"], percent["share"], width=4, color=kit.GREY, alpha=0.3, label="share of examples")
    told = f"expected error {100 * found['ece']:.1f} points"
    axis.plot(percent["confidence"], percent["accuracy"], color=colour, marker="o", markersize=4, label=told)
    axis.set(xlim=(0, 102), ylim=(0, 102))
    kit.dress(axis, title, "probability of the predicted label (%)", "right (%)", legend=True)
