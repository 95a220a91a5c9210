"""Test tasks of a table: curves over time or the only feature, predictions against targets, or accuracy by task."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from headstart.data.tables.schema import Feature, Schema, schema_from_json
from headstart.training.calibration import reach
from headstart.training.evaluate import answer
from headstart.training.report import figures as kit
from headstart.types import Batch, Episodes, Learner, Meta, Tasks

if TYPE_CHECKING:
    from matplotlib.axes import Axes


#: Predictions ``(B, n)`` of inputs, in the target's own unit, and half their intervals' widths where known.
_Predict: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@torch.no_grad()
def picture(tasks: Tasks, learner: Learner, meta: Meta, truth: Callable[[int], Tasks] | None = None) -> bytes:
    """Draw what was predicted of the first test tasks, in the way that suits the table."""
    schema = schema_from_json(tasks.details["schema"], "the run's table")
    draw, most = (_scatter, 5) if _along(schema) is None else (_curves, 4)
    if schema.kind == "classification":
        draw, most = _accuracies, 20
    names = [str(name) for name in tasks.details["task_names"]["test"][:most]]
    episodes = tasks.sample("test", range(len(names)))
    adapted, _ = learner.adapt(meta, episodes.support)

    def predict(x: Tensor) -> tuple[Tensor, Tensor | None]:
        outputs, found = answer(learner, adapted, x)
        if schema.kind == "classification":
            return outputs.argmax(-1).cpu(), None
        halves = None if found is None else reach(0.9) * schema.scale * found.variance[..., 0].sqrt().cpu()
        return _own(schema, outputs), halves

    return draw(schema, names, episodes, predict)


def _along(schema: Schema) -> int | None:
    """Return which feature targets are drawn over: the time, or the only one; ``None`` where that makes no curve."""
    columns = [feature.column for feature in schema.features]
    place = columns.index(schema.time_column) if schema.time_column in columns else 0
    known = len(columns) == 1 or schema.time_column in columns
    return place if known and schema.features[place].kind in ("number", "date") else None


def _curves(schema: Schema, names: list[str], episodes: Episodes, predict: _Predict) -> bytes:
    place, count = _along(schema), len(names)
    assert place is not None
    feature, own = schema.features[place], sum(len(before.inputs) for before in schema.features[:place])
    line, shown = (torch.cat(parts, 1) for parts in zip(*((batch.x, _there(batch)) for batch in episodes)))
    if len(schema.inputs) == 1:  # between the rows, too
        ends = line[shown]
        line = torch.linspace(float(ends.min()), float(ends.max()), 200, device=line.device, dtype=line.dtype)
        line, shown = line.view(1, -1, 1).expand(count, -1, -1), torch.ones(count, 200, dtype=torch.bool)
    means, halves = predict(line)
    figure = kit.new_figure(9.5, 6 if count > 2 else 3.4, "Test tasks, none of them seen in training", size=10)
    panels = figure.subplots(2 if count > 2 else 1, 2, sharex=True, sharey=True, squeeze=False).flat
    for axis in panels[count:]:
        axis.set_axis_off()
    for task, (axis, name) in enumerate(zip(panels, names)):
        at = _values(feature, line[task, :, own])
        order = [row for row in at.argsort(stable=True).tolist() if shown[task, row]]
        if halves is not None:
            low, high = means[task] - halves[task], means[task] + halves[task]
            kit.band(axis, at[order], low[order], high[order], kit.BLUE)
        axis.plot(at[order], means[task, order], color=kit.BLUE, linewidth=1.8, label="predicted")
        styles = (("o", kit.ORANGE, "learned from"), (".", kit.GREY, "to be predicted"))
        for batch, (style, colour, label) in zip(episodes, styles):
            there = _there(batch)[task]
            inputs = _values(feature, batch.x[task, there, own])
            axis.plot(inputs, _own(schema, batch.y)[task, there], style, color=colour, markersize=7, label=label)
        if feature.kind == "date":  # in days since 1970-01-01, as matplotlib counts them
            axis.xaxis_date()
            axis.tick_params(axis="x", rotation=30)
        title = f"{schema.task_column} {kit.short(name)}"
        kit.dress(axis, title, feature.column, schema.target, legend=not task)
    return kit.png(figure)


def _scatter(schema: Schema, names: list[str], episodes: Episodes, predict: _Predict) -> bytes:
    query = episodes.query
    means, halves = predict(query.x)
    figure = kit.new_figure(width=5.2, height=4.6)
    axis = figure.subplots()
    for task, (colour, name, kept) in enumerate(zip(kit.COLOURS, names, _there(query))):
        axis.errorbar(
            _own(schema, query.y)[task, kept], means[task, kept], None if halves is None else halves[task, kept],
            fmt="o", color=colour, markersize=4, elinewidth=0.6, label=f"{schema.task_column} {name}",
        )  # fmt: skip
    ends = [choose(axis.get_xlim() + axis.get_ylim()) for choose in (min, max)]
    axis.plot(ends, ends, color=kit.GREY, linewidth=1, zorder=0)
    title = f"Query rows of test tasks{'' if halves is None else ', 90 % intervals'}"
    kit.dress(axis, title, f"{schema.target} as it is", f"{schema.target} as predicted", legend=True)
    return kit.png(figure)


def _accuracies(schema: Schema, names: list[str], episodes: Episodes, predict: _Predict) -> bytes:
    query = episodes.query
    right = (predict(query.x)[0] == query.y.cpu()).double()
    shares = [100 * float(right[task, kept].mean()) for task, kept in enumerate(_there(query))]

    def draw(axis: "Axes") -> None:
        kit.bars(axis, shares, color=kit.GREEN)
        axis.set_xlim(0, 100)
        kit.dress(axis, "Query rows of test tasks", "accuracy (%)", schema.task_column)
        kit.name_rows(axis, names)

    return kit.beside([draw], 6.5, 0.8 + 0.25 * len(shares))


def _values(feature: Feature, inputs: Tensor) -> Tensor:
    return torch.from_numpy(feature.decode(inputs.double().cpu().numpy()))


def _there(batch: Batch) -> Tensor:
    return torch.ones(batch.y.shape[:2], dtype=torch.bool) if batch.mask is None else batch.mask.cpu()


def _own(schema: Schema, values: Tensor) -> Tensor:
    """Return targets ``(B, n, 1)`` in their own unit, ``(B, n)``; on the CPU."""
    return (values[..., 0] * schema.scale + schema.mean).cpu()
