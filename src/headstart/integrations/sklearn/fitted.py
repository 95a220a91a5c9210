"""From rows to what a fitted estimator knows, and from that to a new task."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.errors import DataError
from headstart.integrations.sklearn.options import Kind, Options, Spec, spec_of
from headstart.integrations.sklearn.tasks import Grouped, dealt, families, grouped, judged, own_labels, spread
from headstart.integrations.sklearn.training import Trained, adapt, meta_train, predictions
from headstart.types import Adapted, Episodes, Meta

Rows = NDArray[Any]
_TASKS = 64


class Table(NamedTuple):
    """Rows as an estimator gets them."""

    x: Rows
    """``(n, features)`` float64."""
    y: Rows
    """Targets ``(n,)`` or ``(n, outputs)``, or places of labels in ``classes``."""
    classes: Rows | None
    """The labels, in order; ``None`` in regression."""

    @property
    def labels(self) -> Rows | None:
        """Return ``y`` where it holds classes."""
        return None if self.classes is None else self.y


class Scaling(NamedTuple):
    """Column means and standard deviations of the training rows, by which values are standardised."""

    x_mean: Tensor
    x_scale: Tensor
    y_mean: Tensor
    y_scale: Tensor

    def features(self, x: Rows) -> Tensor:
        """Return standardised features."""
        return (torch.tensor(x, dtype=torch.float64) - self.x_mean) / self.x_scale

    def targets(self, y: Rows) -> Tensor:
        """Return standardised targets ``(n, outputs)``."""
        return (torch.tensor(y, dtype=torch.float64).reshape(len(y), -1) - self.y_mean) / self.y_scale


class Fitted(NamedTuple):
    """All that predictions depend on."""

    spec: Spec
    seed: int
    meta: Meta
    """What was learned across tasks."""
    scaling: Scaling
    adapted: Adapted
    """What was learned of one task, or of all training rows pooled."""
    rows: int
    """The number of rows that `adapted` was learned from."""
    flat: bool
    """Whether targets are one number a row, not a vector."""

    def in_units(self, targets: Tensor) -> Rows:
        """Return standardised targets ``(n, outputs)`` in the units of the data."""
        return self._shaped(targets * self.scaling.y_scale + self.scaling.y_mean)

    def deviations(self, variances: Tensor) -> Rows:
        """Return the standard deviations of standardised variances in the units of the data."""
        return self._shaped(variances.sqrt() * self.scaling.y_scale)

    def _shaped(self, values: Tensor) -> Rows:
        return values.squeeze(-1).numpy() if self.flat else values.numpy()


def learned(table: Table, groups: object, options: Options, kind: Kind, seed: int) -> tuple[Trained, Fitted]:
    """Meta-train on the tasks that ``groups`` names (``None``: rows are dealt out), then learn from all rows pooled."""
    flat, named = table.y.ndim == 1, groups is not None
    targets = 1 if flat else table.y.shape[1]
    size = targets if table.classes is None else len(table.classes)
    spec = spec_of(options, kind, table.x.shape[1], size)
    scaling = _scaling(table)
    count = len(table.x)
    tasks = grouped(groups, count) if named else dealt(table.labels, count, options.support[1], seed)
    x, y = scaling.features(table.x), _by_task(spec, scaling, table, tasks)
    trained = meta_train(spec, families(x, y, tasks, options, named, seed), options, seed)

    chosen = torch.from_numpy(np.sort(spread(table.labels, count, seed)[: max(options.pooled_rows, size)]))
    everything = scaling.targets(table.y) if table.classes is None else torch.from_numpy(table.y)
    adapted = adapt(spec, trained.meta, x[chosen], everything[chosen])
    return trained, Fitted(spec, seed, trained.meta, scaling, adapted, len(chosen), flat)


def one_task(known: Fitted, table: Table, classes: Rows | None) -> tuple[Fitted, Rows | None]:
    """Learn one task from its rows; return what is known then, and the classes that it tells apart."""
    _check_targets(known, table)
    table = table if classes is None or known.spec.any_classes else _among(table, classes)
    y = known.scaling.targets(table.y) if table.classes is None else torch.from_numpy(table.y)
    adapted = adapt(known.spec, known.meta, known.scaling.features(table.x), y)
    return known._replace(adapted=adapted, rows=len(table.x)), table.classes


def few_shot(
    known: Fitted, table: Table, groups: object, options: Options, classes: Rows | None
) -> tuple[Rows, Rows, Rows]:
    """Adapt to the support rows of each task and predict its query rows.

    Returns:
        The numbers of the query rows, their targets (in regression in the units of the data, else numbers of classes),
        and the predictions.
    """
    _check_targets(known, table)
    table = table if classes is None or known.spec.any_classes else _among(table, classes)
    tasks = grouped(groups, len(table.x))
    numbers = torch.arange(len(table.x), dtype=torch.float64).unsqueeze(1)
    x = torch.cat([known.scaling.features(table.x), numbers], 1)
    test = judged(x, _by_task(known.spec, known.scaling, table, tasks), tasks, options, known.seed)
    count = (test.counts or {})["test"]
    parts = [
        _judged(known, test.sample("test", range(first, min(first + _TASKS, count))))
        for first in range(0, count, _TASKS)
    ]
    rows, truth, predicted = (torch.cat(values) for values in zip(*parts))
    if table.classes is not None:
        return rows.numpy(), truth.numpy(), predicted.argmax(-1).numpy()
    return rows.numpy(), table.y[rows.numpy()], known.in_units(predicted)


def _judged(known: Fitted, episodes: Episodes) -> tuple[Tensor, Tensor, Tensor]:
    """Return row numbers, targets and outputs of the query rows; the last feature is the row's number."""
    support, query = (batch._replace(x=batch.x[..., :-1]) for batch in episodes)
    found = predictions(known.spec, known.meta, Episodes(support, query))
    there = torch.ones(query.y.shape[:2], dtype=torch.bool) if query.mask is None else query.mask
    return episodes.query.x[..., -1][there].long(), query.y[there], found[there]


def _scaling(table: Table) -> Scaling:
    targets = table.y.reshape(len(table.y), -1) if table.classes is None else np.array([[-1.0], [1.0]])
    return Scaling(*_moments(table.x, "X"), *_moments(targets, "y"))


def _moments(values: Rows, what: str) -> tuple[Tensor, Tensor]:
    columns = torch.tensor(values, dtype=torch.float64)
    mean, deviation = columns.mean(0), columns.std(0, correction=0)
    wild = ~(mean.isfinite() & deviation.isfinite())
    if wild.any():
        raise DataError(
            f"column {int(wild.int().argmax())} of {what} has values too large to have a standard deviation; write them"
            " in a larger unit"
        )
    # a column that does not vary differs from its mean by rounding alone
    constant = deviation <= 1e-12 * mean.abs()
    return mean, torch.where(constant, 1.0, deviation)


def _by_task(spec: Spec, scaling: Scaling, table: Table, tasks: Grouped) -> Tensor:
    """Return the targets as the learner is to see them: where classes may be new, each task has its own numbers."""
    if table.classes is None:
        return scaling.targets(table.y)
    return torch.from_numpy(own_labels(table.y, tasks) if spec.any_classes else table.y)


def _check_targets(known: Fitted, table: Table) -> None:
    shape = 1 if table.y.ndim == 1 else table.y.shape[1]
    if table.classes is None and (known.flat != (table.y.ndim == 1) or shape != known.spec.outputs):
        expected = "(n,)" if known.flat else f"(n, {known.spec.outputs})"
        raise DataError(f"y has shape {table.y.shape}, but the estimator was fitted with targets of shape {expected}")


def _among(table: Table, classes: Rows) -> Table:
    """Return the table with its labels as places in ``classes``, the network's outputs."""
    assert table.classes is not None
    places = {label: place for place, label in enumerate(classes.tolist())}
    new = [label for label in table.classes.tolist() if label not in places]
    if new:
        raise DataError(
            f"label {new[0]!r} is not among the {len(classes)} classes of fit, and this method has one output each; "
            "take a method that learns new classes, such as method='prototypes'"
        )
    own = np.array([places[label] for label in table.classes.tolist()], dtype=np.int64)
    return Table(table.x, own[table.y], classes)
