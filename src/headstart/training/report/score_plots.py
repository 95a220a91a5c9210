"""Pictures of scores, as PNG bytes: how a run went, and methods beside each other."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch

from headstart.training.build import Job
from headstart.training.config import Config, called
from headstart.training.evaluate import Metric, Score
from headstart.training.metrics import Line
from headstart.training.over_seeds import OverSeeds
from headstart.training.report import figures as kit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_results(lines: list[Line], rows: list[Line], results: dict[str, Any], job: Job) -> bytes:
    """Draw the training loss, the validation metric, and the test metric against the number of inner steps."""
    trained = [line for line in lines if "loss" in line]
    stepwise = sorted((int(k), v) for k, v in results["by_inner_step"].items() if v["mean"] is not None)
    draws: list[Callable[[Axes], None]] = []
    if trained:
        draws += [partial(_loss, trained), partial(_validation, rows, results)]
    if stepwise:
        draws += [partial(_inner_steps, stepwise, results, job.learner.steps)]
    elif not trained:
        draws += [partial(_single, results)]
    return kit.beside(draws, 4.4, 3.5, f"{job.config.method.name} on {called(job.config)}")


def _loss(trained: list[Line], axis: "Axes") -> None:
    steps = [line["step"] for line in trained]
    losses = torch.tensor([line["loss"] for line in trained], dtype=torch.float64)
    window = max(1, len(steps) // 50)
    axis.plot(steps, losses, color=kit.BLUE, alpha=0.25 if window > 1 else 1, linewidth=0.8, label="each step")
    if window > 1:
        smooth = losses.unfold(0, window, 1).mean(1)
        axis.plot(steps[window - 1 :], smooth, color=kit.BLUE, linewidth=1.8, label=f"mean of {window}")
    if len(steps) > 1 and float(losses.min()) > 0 and float(losses.max() / losses.min()) > 30:
        axis.set_yscale("log")
    kit.dress(axis, "Training: query loss after adapting", "outer step", "loss", legend=True)


def _validation(rows: list[Line], results: dict[str, Any], axis: "Axes") -> None:
    metric, best = results["metric"], results["best_step"]
    scale, label = kit.unit(metric)
    rows = [*{row["step"]: row for row in rows}.values()]  # of a damaged history, one line a step
    means = {row["step"]: scale * row[metric] for row in rows}
    axis.plot(*zip(*means.items()), color=kit.ORANGE, linewidth=1.8, marker="o", markersize=3)
    if all(row["ci95"] is not None for row in rows):  # of a single task there is none
        low, high = ([scale * (row[metric] + sign * row["ci95"]) for row in rows] for sign in (-1, 1))
        kit.band(axis, [*means], low, high, kit.ORANGE, "95 % interval")
    if best in means:  # not where the history was lost in part
        axis.plot([best], [means[best]], "*", color=kit.RED, markersize=11, label=f"best: step {best}")
    kit.within(axis, metric)
    kit.dress(axis, "Validation tasks", "outer step", label, legend=best in means)


def _inner_steps(found: Sequence[tuple[int, Any]], results: dict[str, Any], own: int | None, axis: "Axes") -> None:
    scale, label = kit.unit(results["metric"])
    counts, means = [count for count, _ in found], [scale * value["mean"] for _, value in found]
    intervals = [scale * (value["ci95"] or 0.0) for _, value in found]
    axis.errorbar(counts, means, intervals, color=kit.GREEN, linewidth=1.8, marker="o", markersize=4, capsize=3)
    if own in counts:
        mean = means[counts.index(own)]
        axis.plot([own], [mean], "o", color=kit.RED, markersize=7, zorder=5, label=f"as trained, {own}: {mean:.4g}")
    axis.set_xticks(counts)
    kit.within(axis, results["metric"])
    title = f"{results['episodes']} test tasks: before and after adapting"
    kit.dress(axis, title, "inner steps", label, legend=own in counts)


def _single(results: dict[str, Any], axis: "Axes") -> None:
    scale, label = kit.unit(results["metric"])
    half = scale * (results["ci95"] or 0.0)
    axis.bar([0], [scale * results["mean"]], yerr=[half], width=0.5, color=kit.GREEN, capsize=5)
    axis.set(xlim=(-1, 1), xticks=[])
    kit.within(axis, results["metric"])
    kit.dress(axis, f"{results['episodes']} test task{'s' * (results['episodes'] != 1)}", "", label)


def draw_comparison(scores: Mapping[str, Score], config: Config) -> bytes:
    """Draw the methods' test scores with 95 % intervals, and the scores against the number of inner steps."""
    stepping = {method: score for method, score in scores.items() if len(score.by_inner_step) > 1}
    ways, shots = config.option("tasks.ways"), config.option("tasks.shots")
    draws = [partial(_compared, scores, ways)] + [partial(_stepping, stepping)] * bool(stepping)
    told = "-".join(map(str, shots)) if isinstance(shots, list) else shots
    return kit.beside(draws, 5.2, 3.6, called(config) + (f", {ways}-way {told}-shot" if ways else ""))


def _compared(scores: Mapping[str, Score], ways: int | None, axis: "Axes") -> None:
    metric, episodes = next((score.metric, score.episodes) for score in scores.values())
    scale, label = kit.unit(metric)
    means = [scale * score.mean for score in scores.values()]
    widths = [scale * (score.ci95 if isfinite(score.ci95) else 0.0) for score in scores.values()]
    kit.bars(axis, means, widths, alpha=0.85, ecolor=kit.GREY, height=0.6)
    for place, (mean, width) in enumerate(zip(means, widths)):
        axis.text(mean + width, place, f"  {mean:.1f}" if scale == 100 else f"  {mean:.3g}", va="center", fontsize=8)
    axis.margins(x=0.12)
    if metric == "accuracy" and ways:
        axis.axvline(100 / ways, color=kit.GREY, linestyle=":", linewidth=1)
    kit.dress(axis, f"{episodes} unseen test tasks, 95 % interval", label, "")
    kit.name_rows(axis, list(scores))


def draw_means(scores: Mapping[str, tuple[Metric, OverSeeds]]) -> bytes:
    """Draw test scores of settings, means over seeds, with 95 % intervals over seeds and tasks; a panel each metric."""
    metrics = dict.fromkeys(metric for metric, _ in scores.values())
    draws = [
        partial(_means, metric, {n: one for n, (own, one) in scores.items() if own == metric}) for metric in metrics
    ]
    return kit.beside(draws, 6.4, 1.2 + 0.35 * len(scores))


def _means(metric: str, scores: Mapping[str, OverSeeds], axis: "Axes") -> None:
    scale, label = kit.unit(metric)
    widths = [next((half for half in (one.both, one.tasks) if isfinite(half)), 0.0) for one in scores.values()]
    kit.bars(axis, [scale * one.mean for one in scores.values()], [scale * half for half in widths], ecolor=kit.GREY)
    kit.dress(axis, "test tasks, mean over seeds, 95 % interval over both", label)
    kit.name_rows(axis, list(scores), least=3)


def _stepping(scores: Mapping[str, Score], axis: "Axes") -> None:
    scale, label = kit.unit(next(iter(scores.values())).metric)
    for place, (method, score) in enumerate(scores.items()):
        steps = sorted(score.by_inner_step)
        means = [scale * score.by_inner_step[step].mean for step in steps]
        axis.plot(steps, means, color=kit.colour(place), marker="o", markersize=3, label=method)
    axis.set_xscale("symlog", linthresh=1)
    ticks = sorted({step for score in scores.values() for step in score.by_inner_step})
    axis.set_xticks(ticks, map(str, ticks))
    axis.minorticks_off()
    kit.dress(axis, "before and after adapting", "inner steps", label, legend=True)
