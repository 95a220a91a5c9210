"""How often labels are right that were given such a probability, as PNG bytes."""

from functools import partial
from typing import TYPE_CHECKING

from headstart.training.reliability import Measured, Reliability
from headstart.training.report import figures as kit
from headstart.training.trust import UNKNOWN_SHARE

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_reliability(found: Measured) -> bytes:
    """Draw accuracy against confidence before and after calibration; the grey bars are shares of all examples."""
    size = f"{found.tasks} test tasks, {found.ways}-way {found.shots}-shot"
    shown = [
        (found.before, "as the model says", kit.ORANGE),
        (found.after, "calibrated on validation tasks", kit.BLUE),
    ]
    if found.others is not None:
        shown.append((found.others.told, f"with {100 * UNKNOWN_SHARE:.0f} % of other classes", kit.BLUE))
    draws = [partial(_reliability, *one) for one in shown]
    return kit.beside(draws, 4.2, 3.7, f"How far probabilities can be believed: {size}")


def _reliability(found: Reliability, title: str, colour: str, axis: "Axes") -> None:
    axis.plot([0, 100], [0, 100], color=kit.GREY, linestyle=":", linewidth=1)
    percent = {name: [100 * value for value in getattr(found, name)] for name in ("confidence", "accuracy", "share")}
    axis.bar(percent["confidence"], percent["share"], width=4, color=kit.GREY, alpha=0.3, label="share of examples")
    told = f"expected error {100 * found.ece:.1f} points"
    axis.plot(percent["confidence"], percent["accuracy"], color=colour, marker="o", markersize=4, label=told)
    axis.set(xlim=(0, 102), ylim=(0, 102))
    kit.dress(axis, title, "probability of the predicted label (%)", "right (%)", legend=True)
