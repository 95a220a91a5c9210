"""Pictures of a run, as PNG bytes: how it went, and what adapting to a task looks like."""

from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from headstart.training.build import Job, make_tasks
from headstart.training.calibration import reach
from headstart.training.metrics import Line
from headstart.training.report.figures import BLUE, GREEN, GREY, ORANGE, RED, dress, named, new_figure, png
from headstart.training.report.table_plot import draw_table
from headstart.types import Episodes, Meta, Tasks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CLASSES, _MOST_SHOTS, _MOST_QUERIES = 10, 5, 8


def draw_results(lines: list[Line], rows: list[Line], results: dict[str, Any], job: Job) -> bytes:
    """Draw the training loss, the validation metric, and the test metric against the number of inner steps."""
    trained = [line for line in lines if "loss" in line]
    stepwise = [(int(k), v) for k, v in results["by_inner_step"].items() if v["mean"] is not None]
    panels = [bool(trained), bool(trained), bool(stepwise)]
    figure = new_figure(width=4.4 * max(1, sum(panels)), height=3.5)
    axes = iter(figure.subplots(1, max(1, sum(panels)), squeeze=False)[0])
    if trained:
        _draw_loss(next(axes), trained)
        _draw_validation(next(axes), rows, results)
    if stepwise:
        _draw_inner_steps(next(axes), sorted(stepwise), results, job.learner.steps)
    elif not trained:
        _draw_single(next(axes), results)
    figure.suptitle(f"{job.config.method} on {job.config.tasks}", x=0.01, ha="left", fontsize=12, fontweight="bold")
    return png(figure)


def _draw_loss(axis: "Axes", trained: list[Line]) -> None:
    steps = [line["step"] for line in trained]
    losses = torch.tensor([line["loss"] for line in trained], dtype=torch.float64)
    axis.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.8, label="each step")
    window = max(1, len(steps) // 50)
    if window > 1:
        smooth = losses.unfold(0, window, 1).mean(1)
        axis.plot(steps[window - 1 :], smooth, color=BLUE, linewidth=1.8, label=f"mean of {window}")
    if len(steps) > 1 and float(losses.min()) > 0 and float(losses.max() / losses.min()) > 30:
        axis.set_yscale("log")
    dress(axis, "Training: query loss after adapting", "outer step", "loss")
    axis.legend(frameon=False, fontsize=8)


def _draw_validation(axis: "Axes", rows: list[Line], results: dict[str, Any]) -> None:
    metric, scale = results["metric"], 100 if results["metric"] == "accuracy" else 1
    steps = [row["step"] for row in rows]
    means = [scale * row[metric] for row in rows]
    axis.plot(steps, means, color=ORANGE, linewidth=1.8, marker="o", markersize=3)
    if all(row["ci95"] is not None for row in rows):  # of a single task there is none
        low, high = zip(*((m - scale * r["ci95"], m + scale * r["ci95"]) for m, r in zip(means, rows)))
        axis.fill_between(steps, low, high, color=ORANGE, alpha=0.2, linewidth=0, label="95 % interval")
    best = results["best_step"]
    axis.plot([best], [means[steps.index(best)]], "*", color=RED, markersize=11, label=f"best: step {best}")
    dress(axis, "Validation tasks", "outer step", named(metric))
    axis.legend(frameon=False, fontsize=8)


def _draw_inner_steps(axis: "Axes", found: list[Any], results: dict[str, Any], own: int | None) -> None:
    scale = 100 if results["metric"] == "accuracy" else 1
    counts = [count for count, _ in found]
    means = [scale * value["mean"] for _, value in found]
    intervals = [scale * (value["ci95"] or 0.0) for _, value in found]
    axis.errorbar(counts, means, intervals, color=GREEN, linewidth=1.8, marker="o", markersize=4, capsize=3)
    if own is not None and own in counts:
        mean = means[counts.index(own)]
        axis.plot([own], [mean], "o", color=RED, markersize=7, zorder=5, label=f"as trained, {own}: {mean:.4g}")
        axis.legend(frameon=False, fontsize=8)
    axis.set_xticks(counts)
    dress(axis, f"{results['episodes']} test tasks: before and after adapting", "inner steps", named(results["metric"]))


def _draw_single(axis: "Axes", results: dict[str, Any]) -> None:
    scale = 100 if results["metric"] == "accuracy" else 1
    axis.bar([0], [scale * results["mean"]], yerr=[scale * (results["ci95"] or 0.0)], width=0.5, color=GREEN, capsize=5)
    axis.set_xlim(-1, 1)
    axis.set_xticks([])
    dress(axis, f"{results['episodes']} test task{'s' * (results['episodes'] != 1)}", "", named(results["metric"]))


def pictured(tasks: Tasks) -> Literal["images", "curves", "table"] | None:
    """Return as what a task of these can be drawn; ``None`` where there is no picture of it."""
    if "schema" in tasks.details:
        return "table"
    if tasks.kind == "classification" and len(tasks.input_shape) == 3:
        return "images"
    if tasks.kind == "regression" and tasks.input_shape == (1,) and tasks.output_size == 1:
        return "curves"
    return None


def draw_episode(job: Job, meta: Meta) -> bytes | None:
    """Draw a real test episode of images, or some test curves or rows; ``None`` where inputs are none of these."""
    shown = pictured(job.tasks)
    if shown is None:
        return None
    if shown == "table":
        return draw_table(job, meta)
    return _draw_images(job, meta) if shown == "images" else _draw_curves(job, meta)


def _draw_images(job: Job, meta: Meta) -> bytes:
    """One row a class: what was learned from, and what was predicted, framed green where right and red where not."""
    episode = job.tasks.sample("test", [0])
    predicted = _predict(job, meta, episode, None)[0].argmax(-1)
    support, query = (_by_class(batch.x[0], batch.y[0], batch.mask) for batch in episode)
    guesses = _by_class(predicted, episode.query.y[0], episode.query.mask)
    classes = sorted(query)[:_MOST_CLASSES]
    shots = min(_MOST_SHOTS, max(len(support[c]) for c in classes))
    queries = min(_MOST_QUERIES, max(len(query[c]) for c in classes))
    figure = new_figure(width=0.8 * (shots + queries) + 1.7, height=0.85 * len(classes) + 0.9)
    grid = figure.subplots(
        len(classes), shots + 1 + queries, squeeze=False, width_ratios=[1] * shots + [0.3] + [1] * queries
    )
    for row, label in zip(grid, classes):
        row[shots].set_axis_off()
        row[0].text(-0.15, 0.5, f"class {label}", transform=row[0].transAxes, ha="right", va="center", fontsize=9)
        for axis, image in zip_longest(row[:shots], support[label][:shots]):
            _draw_image(axis, image, label, None)
        for axis, image, guess in zip_longest(row[shots + 1 :], query[label][:queries], guesses[label][:queries]):
            _draw_image(axis, image, label, guess)
    right = int((predicted == episode.query.y[0]).sum())
    grid[0][0].set_title("learned from", fontsize=8)
    grid[0][shots + 1].set_title("predicted", fontsize=8)
    told = f"Test task 0: {right} of {len(predicted)} right (red: the class it was taken for)"
    figure.suptitle(told, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return png(figure)


def _draw_image(axis: "Axes", image: Tensor | None, label: int, guess: Tensor | None) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    if image is None:
        axis.set_visible(False)
        return
    pixels = image.clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    axis.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    wrong = guess is not None and int(guess) != label
    colour = GREY if guess is None else RED if wrong else GREEN
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=1 if guess is None else 2.5)
    if wrong:
        axis.set_xlabel(str(int(guess)), color=RED, fontsize=8, labelpad=1)


def _draw_curves(job: Job, meta: Meta) -> bytes:
    """Some test tasks: the points learned from, and the curve before adapting, after the own steps and after 10."""
    # many points of the curve itself; what is learned from stays as it was drawn, noise and all
    quiet = {"queries": 200, "noise": None if job.config.noise is None else 0.0}
    curve = make_tasks(job.config.model_copy(update=quiet), job.device).sample("test", range(4)).query
    episode = job.tasks.sample("test", range(4))._replace(query=curve)
    low, high = float(episode.query.x.min()), float(episode.query.x.max())
    line = torch.linspace(low, high, 200, device=job.device, dtype=episode.query.x.dtype).view(1, -1, 1)
    grid = episode._replace(query=episode.query._replace(x=line.expand(4, -1, -1)))
    styles: dict[int | None, tuple[str, str, str]] = {}
    if job.learner.steps is not None:
        styles[0] = ("--", ORANGE, "before adapting")
    styles[job.learner.steps] = ("-", BLUE, _after(job.learner.steps))
    if job.learner.steps is not None:
        styles.setdefault(10, ("-", GREEN, _after(10)))
    band = _band(job, meta, grid)
    drawn = {steps: _predict(job, meta, grid, steps).cpu() for steps in styles}
    figure = new_figure(width=9.5, height=6)
    for task, axis in enumerate(figure.subplots(2, 2, sharex=True).flat):
        x, y = (value[task, :, 0].cpu() for value in episode.query[:2])
        order = x.argsort()
        axis.plot(x[order], y[order], color=GREY, linewidth=4, alpha=0.45, label="the task's curve")
        for steps, (style, colour, label) in styles.items():
            axis.plot(line[0, :, 0].cpu(), drawn[steps][task, :, 0], style, color=colour, linewidth=1.6, label=label)
        if band is not None:
            ends = (value[task, :, 0] for value in band)
            axis.fill_between(line[0, :, 0].cpu(), *ends, color=BLUE, alpha=0.15, linewidth=0, label="90 % interval")
        there = slice(None) if episode.support.mask is None else episode.support.mask[task]
        support = [value[task, there, 0].cpu() for value in episode.support[:2]]
        axis.plot(*support, "o", color=RED, markersize=5, label="learned from")
        dress(axis, f"Test task {task}", "x" if task > 1 else "", "y" if task % 2 == 0 else "")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return png(figure)


@torch.no_grad()
def _band(job: Job, meta: Meta, episode: Episodes) -> tuple[Tensor, Tensor] | None:
    """Return the ends of the predicted 90 % intervals, where the learner predicts distributions."""
    if job.learner.distribution is None:
        return None
    adapted, _ = job.learner.adapt(meta, episode.support)
    mean, variance = job.learner.distribution(adapted, episode.query.x)
    half = reach(0.9) * variance.sqrt()
    return (mean - half).cpu(), (mean + half).cpu()


def _after(steps: int | None) -> str:
    return "after adapting" if steps is None else f"after {steps} step{'s' * (steps != 1)}"


@torch.no_grad()
def _predict(job: Job, meta: Meta, episode: Episodes, steps: int | None) -> Tensor:
    adapted, _ = job.learner.adapt(meta, episode.support, steps=steps)
    return job.learner.predict(adapted, episode.query.x)


def _by_class(values: Tensor, labels: Tensor, mask: Tensor | None) -> dict[int, Tensor]:
    there = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask[0]
    return {int(label): values[there & (labels == label)] for label in labels.unique()}
