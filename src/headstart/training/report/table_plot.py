"""Pictures of what adapting to the tasks of a table looks like, as PNG bytes."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstart.data.tables.schema import Schema, schema_from_json
from headstart.training.build import Job
from headstart.training.calibration import reach
from headstart.training.report.figures import BLUE, COLOURS, GREEN, GREY, ORANGE, dress, new_figure, png
from headstart.types import Adapted, Batch, Gaussian, Meta

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST = {"curves": 4, "scatter": 5, "bars": 20}


@torch.no_grad()
def draw_table(job: Job, meta: Meta) -> bytes:
    """Draw some test tasks: a curve of the only feature, predictions against targets, or accuracy by task."""
    schema = schema_from_json(job.tasks.details["schema"], "the run's table")
    if schema.kind == "classification":
        return _draw_accuracy(job, meta, schema)
    single = len(schema.features) == 1 and schema.features[0].kind == "number" and len(schema.inputs) == 1
    return (_draw_curves if single else _draw_scatter)(job, meta, schema)


def _draw_curves(job: Job, meta: Meta, schema: Schema) -> bytes:
    count = _some(job, "curves")
    episodes = job.tasks.sample("test", range(count))
    feature = schema.features[0]
    every = torch.cat([_there(batch, task)[0] for batch in episodes for task in range(count)])
    line = torch.linspace(float(every.min()), float(every.max()), 200, device=every.device, dtype=every.dtype)
    adapted, _ = job.learner.adapt(meta, episodes.support)
    found = _predicted(job, adapted, line.view(1, -1, 1).expand(count, -1, -1))
    figure = new_figure(width=9.5, height=6 if count > 2 else 3.4)
    panels = figure.subplots(2 if count > 2 else 1, 2, sharex=True, sharey=True, squeeze=False).flat
    for task, (axis, name) in enumerate(zip(panels, _names(job, count))):
        x = (line * feature.scale + feature.mean).cpu()
        mean, half = _own(found.mean[task, :, 0], schema), _half(found, task, schema)
        if half is not None:
            axis.fill_between(x, mean - half, mean + half, color=BLUE, alpha=0.15, linewidth=0, label="90 % interval")
        axis.plot(x, mean, color=BLUE, linewidth=1.8, label="predicted")
        for batch, style, label in zip(episodes, ("o", "."), ("learned from", "to be predicted")):
            inputs, targets = _there(batch, task)
            colour = ORANGE if label == "learned from" else GREY
            points = (inputs[:, 0] * feature.scale + feature.mean).cpu(), _own(targets[:, 0], schema)
            axis.plot(*points, style, color=colour, markersize=7, label=label)
        dress(axis, f"{schema.task_column} {name}", feature.column, schema.target)
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle("Test tasks, none of them seen in training", x=0.01, ha="left", fontsize=10, fontweight="bold")
    return png(figure)


def _draw_scatter(job: Job, meta: Meta, schema: Schema) -> bytes:
    count = _some(job, "scatter")
    episodes = job.tasks.sample("test", range(count))
    adapted, _ = job.learner.adapt(meta, episodes.support)
    found = _predicted(job, adapted, episodes.query.x)
    figure = new_figure(width=5.2, height=4.6)
    axis = figure.subplots()
    for task, (colour, name) in enumerate(zip(COLOURS, _names(job, count))):
        kept = _kept(episodes.query, task)
        mean = _own(found.mean[task, kept, 0], schema)
        target = _own(episodes.query.y[task, kept, 0], schema)
        half = _half(found, task, schema)
        error = None if half is None else half[kept.cpu()]
        label = f"{schema.task_column} {name}"
        axis.errorbar(target, mean, error, fmt="o", color=colour, markersize=4, elinewidth=0.6, label=label)
    _diagonal(axis)
    bars = "" if job.learner.distribution is None else ", 90 % intervals"
    dress(axis, f"Query rows of test tasks{bars}", f"{schema.target} as it is", f"{schema.target} as predicted")
    axis.legend(frameon=False, fontsize=8)
    return png(figure)


def _draw_accuracy(job: Job, meta: Meta, schema: Schema) -> bytes:
    count = _some(job, "bars")
    episodes = job.tasks.sample("test", range(count))
    adapted, _ = job.learner.adapt(meta, episodes.support)
    guesses = job.learner.predict(adapted, episodes.query.x).argmax(-1)
    right = (guesses == episodes.query.y).double()
    shares = [100 * float(right[task][_kept(episodes.query, task)].mean()) for task in range(count)]
    figure = new_figure(width=6.5, height=0.8 + 0.25 * count)
    axis = figure.subplots()
    axis.barh(_names(job, count), shares, color=GREEN)
    axis.set_xlim(0, 100)
    axis.invert_yaxis()
    dress(axis, "Query rows of test tasks", "accuracy (%)", schema.task_column)
    return png(figure)


def _predicted(job: Job, adapted: Adapted, x: Tensor) -> Gaussian:
    if job.learner.distribution is not None:
        return job.learner.distribution(adapted, x)
    mean = job.learner.predict(adapted, x)
    return Gaussian(mean, torch.full_like(mean, torch.nan))


def _half(found: Gaussian, task: int, schema: Schema) -> Tensor | None:
    """Return half the width of the intervals, in the target's own units; ``None`` where there are none."""
    variance = found.variance[task, :, 0]
    return None if bool(variance.isnan().any()) else (reach(0.9) * schema.scale * variance.sqrt()).cpu()


def _some(job: Job, picture: str) -> int:
    return min(_MOST[picture], (job.tasks.counts or {}).get("test", _MOST[picture]))


def _names(job: Job, count: int) -> list[str]:
    return [str(name) for name in job.tasks.details["task_names"]["test"][:count]]


def _kept(batch: Batch, task: int) -> Tensor:
    if batch.mask is not None:
        return batch.mask[task]
    return torch.ones(batch.y.shape[1], dtype=torch.bool, device=batch.y.device)


def _there(batch: Batch, task: int) -> tuple[Tensor, Tensor]:
    kept = _kept(batch, task)
    return batch.x[task][kept], batch.y[task][kept]


def _own(values: Tensor, schema: Schema) -> Tensor:
    """Return targets in their own units."""
    return (values * schema.scale + schema.mean).cpu()


def _diagonal(axis: "Axes") -> None:
    low = min(axis.get_xlim()[0], axis.get_ylim()[0])
    high = max(axis.get_xlim()[1], axis.get_ylim()[1])
    axis.plot([low, high], [low, high], color=GREY, linewidth=1, zorder=0)
