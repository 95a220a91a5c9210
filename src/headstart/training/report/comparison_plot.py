"""The picture of a comparison, as PNG bytes: every method's score, and how it grows with inner steps."""

from collections.abc import Mapping
from math import isfinite

from headstart.training.config import TrainConfig
from headstart.training.evaluate import Score
from headstart.training.report.figures import BLUE, COLOURS, GREY, dress, named, new_figure, png


def draw_comparison(scores: Mapping[str, Score], config: TrainConfig) -> bytes:
    """Draw the methods' test scores with 95 % intervals, and the scores against the number of inner steps."""
    metric = next(iter(scores.values())).metric
    scale = 100 if metric == "accuracy" else 1
    stepping = {method: score for method, score in scores.items() if len(score.by_inner_step) > 1}
    figure = new_figure(width=5.2 * (1 + bool(stepping)), height=3.6)
    axes = figure.subplots(1, 1 + bool(stepping), squeeze=False)[0]
    places = list(range(len(scores)))[::-1]
    means = [scale * score.mean for score in scores.values()]
    widths = [scale * (score.ci95 if isfinite(score.ci95) else 0.0) for score in scores.values()]
    axes[0].barh(places, means, xerr=widths, color=BLUE, alpha=0.85, ecolor=GREY, capsize=3, height=0.6)
    for place, mean, width in zip(places, means, widths):
        axes[0].text(mean + width, place, f"  {mean:.1f}" if scale == 100 else f"  {mean:.3g}", va="center", fontsize=8)
    axes[0].set_yticks(places, list(scores))
    axes[0].margins(x=0.12)
    if metric == "accuracy" and config.ways:
        axes[0].axvline(100 / config.ways, color=GREY, linestyle=":", linewidth=1)
    episodes = next(iter(scores.values())).episodes
    dress(axes[0], f"{episodes} unseen test tasks, 95 % interval", named(metric), "")
    for colour, (method, score) in zip(COLOURS, stepping.items()):
        steps = sorted(score.by_inner_step)
        values = [scale * score.by_inner_step[step].mean for step in steps]
        axes[1].plot(steps, values, color=colour, marker="o", markersize=3, label=method)
    if stepping:
        dress(axes[1], "before and after adapting", "inner steps", named(metric))
        axes[1].set_xscale("symlog", linthresh=1)
        ticks = sorted({step for score in stepping.values() for step in score.by_inner_step})
        axes[1].set_xticks(ticks, [str(tick) for tick in ticks])
        axes[1].minorticks_off()
        axes[1].legend(frameon=False, fontsize=8)
    shots = f", {config.ways}-way {config.shots}-shot" if config.ways else ""
    figure.suptitle(f"{config.tasks}{shots}", x=0.01, ha="left", fontsize=12, fontweight="bold")
    return png(figure)
