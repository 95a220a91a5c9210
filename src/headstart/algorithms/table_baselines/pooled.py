"""Models of all training tasks' rows pooled: without the task, with the task as a category, or with its support rows.

A fitted estimator is no tensor, so M holds the rows of the training tasks (and so do the run's folder, and what is
adapted from it). It is fitted anew from them wherever they are loaded, always alike.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch

from headstart.algorithms.estimators import Array, Task, array, learner_of, required, rows_of, time_of
from headstart.errors import UsageError, check_known
from headstart.schema import Count
from headstart.types import Learner, Meta, Params, Tasks

Estimator = Literal["linear", "forest", "boosted_trees"]
Loss = Literal["mse", "cross_entropy"]
ESTIMATORS = ("linear", "forest", "boosted_trees")
#: Categories that scikit-learn's boosted trees tell apart.
_MOST_CATEGORIES = 255
#: Fits that are kept in memory, by what they were fitted to.
_KEPT = 8
_FITS: "OrderedDict[bytes, Any]" = OrderedDict()
#: The part of the probability that is spread evenly over all classes, since trees are often sure and wrong.
SMOOTHING = 0.01


class Pooled(NamedTuple):
    """All rows of the training tasks, those of one task together, its support rows first."""

    x: Array
    """``(N, inputs)``."""
    y: Array
    """``(N, outputs)``, or class ids ``(N,)``."""
    task: Array
    """``(N,)`` int64, from 0."""
    support: Array
    """``(N,)`` bool, whether it was a support row."""


Answers: TypeAlias = Callable[[Pooled, Array, Task], tuple[Array, Array | None]]


def training_rows(tasks: Tasks) -> Pooled:
    """Return all rows of the training tasks."""
    parts: list[Pooled] = []
    for number, (task, later) in enumerate(rows_of(tasks)):
        size = len(task.x) + len(task.query)
        x, y = np.concatenate([task.x, task.query]), np.concatenate([task.y, later])
        parts.append(Pooled(x, y, np.full(size, number), np.arange(size) < len(task.x)))
    return Pooled(*(np.concatenate(values) for values in zip(*parts)))


def pooled(*, inputs: int, outputs: int = 1, loss: Loss = "mse", estimator: Estimator = "linear") -> Learner:
    """Fit one model to all rows of all training tasks, and use it for every new task as it is.

    What a new task's support rows say is not used. ``"linear"`` is y = β₀ + xᵀ β + γ t² by least squares, with
    intervals, where t is the table's time column (without one, γ = 0); in classification it is logistic regression.
    ``"forest"`` is a random forest of 300 trees, ``"boosted_trees"`` 100 gradient-boosted trees by histograms.

    Args:
        inputs: numbers in one input; inputs are flattened.
        outputs: number of target values, or of classes.
        loss: ``"mse"`` regresses, ``"cross_entropy"`` classifies.
        estimator: the model of all rows: linear (for classes logistic) regression, a random forest or boosted trees.

    Raises:
        UnknownNameError: an estimator or a loss that there is none of.
        UsageError: scikit-learn is not installed.

    References: Breiman 2001, doi:10.1023/A:1010933404324 (forests); Friedman 2001, doi:10.1214/aos/1013203451, and
    Ke et al. 2017, "LightGBM" (boosted trees); Pedregosa et al. 2011, arXiv:1201.0490 (scikit-learn).
    """

    def answer(rows: Pooled, time: Array, task: Task) -> tuple[Array, Array | None]:
        if not len(rows.x):
            return _nothing(task, outputs)
        if estimator != "linear" or loss == "cross_entropy":
            return _said(estimator, rows.x, rows.y, task.query, outputs), None
        line: _Line = _once("pooled", lambda: _line(_with_square(rows.x, time), rows.y), rows.x, rows.y, time)
        return line(_with_square(task.query, time))

    return _learner(answer, inputs, outputs, loss, estimator)


def task_category(
    *, inputs: int, outputs: int = 1, loss: Loss = "mse", estimator: Estimator = "boosted_trees"
) -> Learner:
    """Fit one model to all rows of all training tasks and the new task's support rows, with the task as a category.

    It is fitted anew for every new task. ``"linear"`` is y = α_task + xᵀ β + γ t² by least squares (fixed effects),
    with intervals, where t is the table's time column; in classification it is logistic regression. Trees are those of
    `pooled`, with one column of 0 and 1 a task for ``"forest"``, and a categorical column for ``"boosted_trees"``.

    Args:
        inputs, outputs, loss: as for `pooled`.
        estimator: the model of all rows: linear (for classes logistic) regression, a random forest or boosted trees.

    Raises:
        UnknownNameError, UsageError: as `pooled`; and in predicting, more than 254 training tasks for boosted trees.

    References: as for `pooled`; Mundlak 1978, doi:10.2307/1913646 (fixed effects).
    """

    def answer(rows: Pooled, time: Array, task: Task) -> tuple[Array, Array | None]:
        own = int(rows.task.max(initial=-1)) + 1
        if not len(rows.x) + len(task.x):
            return _nothing(task, outputs)
        x, y = np.concatenate([rows.x, task.x]), np.concatenate([rows.y, task.y])
        number, asked_number = np.append(rows.task, np.full(len(task.x), own)), np.full(len(task.query), own)
        if estimator == "linear" and loss == "mse":
            return _effects(x, y, number, time, task)
        if estimator == "boosted_trees":
            if own >= _MOST_CATEGORIES:
                raise UsageError(
                    f"boosted trees tell at most {_MOST_CATEGORIES} tasks apart, got {own} training tasks and a new "
                    "one; take the estimator forest or linear, or the method boosted_trees"
                )
            x, asked = np.column_stack([x, number]), np.column_stack([task.query, asked_number])
            return _said(estimator, x, y, asked, outputs, categorical_features=[x.shape[1] - 1]), None
        x, asked = (
            np.hstack([part, np.equal.outer(of, np.arange(own + 1))])
            for part, of in ((x, number), (task.query, asked_number))
        )
        return _said(estimator, x, y, asked, outputs), None

    return _learner(answer, inputs, outputs, loss, estimator)


def boosted_trees(*, inputs: int, outputs: int = 1, loss: Loss = "mse", trees: Count = 100) -> Learner:
    """Boost trees on the features, and on what a task's support rows come to.

    f(x, S) = ȳ_S + Σ_k 0.05 · tree_k(x, mean_S, last_S, slope_S), fitted to the training tasks' query rows given their
    support rows S: each task is cut as the new ones are. The features made by hand are the mean, the last and, over the
    table's time column, the slope of the support rows' targets. In classification they are the classes' frequencies
    in S, and trees are boosted by the log-loss.

    Args:
        inputs: numbers in one input; inputs are flattened.
        outputs: number of target values, or of classes.
        loss: ``"mse"`` regresses, ``"cross_entropy"`` classifies.
        trees: how many trees; of depth 3, with 10 rows or more in a leaf.

    Raises:
        UnknownNameError: a loss that there is none of.
        UsageError: no trees, or scikit-learn is not installed.

    References: Friedman 2001, doi:10.1214/aos/1013203451; Ke et al. 2017, "LightGBM"; Pedregosa et al. 2011,
    arXiv:1201.0490 (scikit-learn's histogram-based trees).
    """
    if trees < 1:
        raise UsageError(f"trees must be at least 1, got {trees}")
    classifies = loss == "cross_entropy"
    gentle = {"learning_rate": 0.05, "max_depth": 3, "min_samples_leaf": 10, "l2_regularization": 1.0}

    def answer(rows: Pooled, time: Array, task: Task) -> tuple[Array, Array | None]:
        told = _described(task.x, task.y, time, outputs)
        level = np.zeros(outputs) if classifies else told[:outputs]
        if not len(rows.x):
            return _nothing(task, outputs)[0] + level, None
        # the query rows of the training tasks, each beside its task's support rows
        numbers, place = np.unique(rows.task, return_inverse=True)
        own = [rows.support & (rows.task == number) for number in numbers]
        beside = np.stack([_described(rows.x[some], rows.y[some], time, outputs) for some in own])[place]
        x, y = np.hstack([rows.x, beside])[~rows.support], rows.y[~rows.support]
        y = y if classifies else y - beside[~rows.support, :outputs]
        asked = np.hstack([task.query, np.broadcast_to(told, (len(task.query), len(told)))])
        return level + _said("boosted_trees", x, y, asked, outputs, max_iter=trees, **gentle), None

    return _learner(answer, inputs, outputs, loss, "boosted_trees")


def _learner(answer: Answers, inputs: int, outputs: int, loss: str, estimator: str) -> Learner:
    """Return the learner that answers from the rows of training tasks, where time is among the inputs, and a task."""
    check_known("estimator", estimator, ESTIMATORS)
    check_known("loss", loss, ("mse", "cross_entropy"))
    required("sklearn.ensemble")
    classifies = loss == "cross_entropy"

    def structure() -> Params:
        """Return tensors without rows."""
        none = torch.zeros(0, dtype=torch.int64)
        return {
            "rows.x": torch.zeros(0, inputs),
            "rows.y": none if classifies else torch.zeros(0, outputs),
            "rows.task": none.clone(),
            "rows.support": none.bool(),
            "time": torch.full((inputs,), float(inputs == 1)),
        }

    def prepare(meta: Meta, tasks: Tasks, seed: int, folder: object = None, /) -> Meta:
        found = {f"rows.{name}": torch.from_numpy(values) for name, values in training_rows(tasks)._asdict().items()}
        found["time"] = time_of(tasks, meta.structure["time"])
        return meta._replace(structure={name: found[name].to(value) for name, value in meta.structure.items()})

    def answer_of(known: Params, task: Task) -> tuple[Array, Array | None]:
        # a saved M may have changed its types
        y, number, support = known["rows.y"], known["rows.task"].long(), known["rows.support"].bool()
        parts = known["rows.x"], y.long() if classifies else y, number, support
        return answer(Pooled(*map(array, parts)), array(known["time"]), task)

    def shown(meta: Meta) -> Params:
        """Return how many rows of training tasks M holds."""
        return {"rows": torch.tensor(float(len(meta.structure["rows.y"])))}

    return learner_of(
        answer_of, structure, prepare, inputs=inputs, outputs=outputs, loss=loss,
        intervals=estimator == "linear" and not classifies,
    )._replace(shown=shown)  # fmt: skip


def _nothing(task: Task, outputs: int) -> tuple[Array, Array | None]:
    found = np.zeros((len(task.query), outputs))
    return (found - np.log(outputs), None) if task.y.ndim == 1 else (found, found + 1)


def _described(x: Array, y: Array, time: Array, outputs: int) -> Array:
    """Return what support rows come to: class frequencies, or mean, last and slope of each target value."""
    if y.ndim == 1:
        counts: Array = np.bincount(y, minlength=outputs) / max(1, len(y))
        return counts
    if not len(y):
        return np.zeros(3 * outputs)
    past = x @ time - (x @ time).mean()
    return np.concatenate([y.mean(0), y[-1], past @ y / max(past @ past, 1e-12)])


def _said(estimator: str, x: Array, y: Array, query: Array, outputs: int, **settings: Any) -> Array:
    """Return what an estimator fitted to x and y says: values, or log((1 − δ) p + δ / outputs) for class ids y."""
    classifies = y.ndim == 1
    kind = "Classifier" if classifies else "Regressor"
    name, options = {
        "forest": (f"RandomForest{kind}", {"n_estimators": 300, "min_samples_leaf": 3, "random_state": 0}),
        "boosted_trees": (f"HistGradientBoosting{kind}", {"early_stopping": False, "random_state": 0, **settings}),
        "linear": ("LogisticRegression", {"max_iter": 1000}),
    }[estimator]
    make = getattr(required("sklearn.linear_model" if estimator == "linear" else "sklearn.ensemble"), name)
    if not len(query):
        return np.zeros((0, outputs))
    seen = np.unique(y)
    if classifies and len(seen) == 1:
        return np.broadcast_to(np.log(np.where(np.arange(outputs) == seen, 1.0, 1e-9)), (len(query), outputs))
    columns = [y] if classifies else y.T
    fit = f"{name} {sorted(options.items())}"
    models = _once(fit, lambda: [make(**options).fit(x, column) for column in columns], x, y)
    if not classifies:
        return np.stack([model.predict(query) for model in models], 1)
    found = np.zeros((len(query), outputs))
    found[:, np.asarray(models[0].classes_, dtype=int)] = models[0].predict_proba(query)
    logs: Array = np.log((1 - SMOOTHING) * found + SMOOTHING / outputs)
    return logs


def _once(what: str, make: Callable[[], Any], *arrays: Array) -> Any:
    """Return what ``make`` does, or what it returned when it was last asked for the same ``what`` and arrays."""
    digest = hashlib.sha256(what.encode())
    for values in arrays:
        digest.update(repr((values.shape, values.dtype)).encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    key = digest.digest()
    if key not in _FITS:
        _FITS[key] = make()
        while len(_FITS) > _KEPT:
            _FITS.popitem(last=False)
    return _FITS[key]


_Line = Callable[..., tuple[Array, Array]]
"""``(columns of rows, more=0.0) -> (their target values, the variances of these as new observations)``."""


def _with_square(x: Array, time: Array) -> Array:
    squares = [np.square(x @ time)] if time.any() else []
    return np.column_stack([np.ones(len(x)), x, *squares])


def _line(design: Array, y: Array, effects: int = 0) -> _Line:
    inverse = np.linalg.pinv(design.T @ design)
    weights = inverse @ design.T @ y
    free = max(1, len(y) - effects - int(np.linalg.matrix_rank(design)))
    noise = np.square(y - design @ weights).sum(0) / free

    def said(asked: Array, more: float = 0.0) -> tuple[Array, Array]:
        return asked @ weights, (1 + more + ((asked @ inverse) * asked).sum(1))[:, None] * noise

    return said


def _effects(x: Array, y: Array, number: Array, time: Array, task: Task) -> tuple[Array, Array]:
    """Return the last task's target values and their variances, by least squares with an intercept for each task.

    It is fitted around the means of each task, which is the same as with a column for each (Frisch, Waugh 1933).
    """
    numbers, place, sizes = np.unique(number, return_inverse=True, return_counts=True)

    def fit() -> tuple[_Line, Array, Array]:
        both = np.hstack([_with_square(x, time)[:, 1:], y])
        means = np.zeros((len(numbers), both.shape[1]))
        np.add.at(means, place, both)
        means /= sizes[:, None]
        inside, width = both - means[place], both.shape[1] - y.shape[1]
        line = _line(inside[:, :width], inside[:, width:], len(numbers))
        return line, means[-1, :width], means[-1, width:]

    line, centre, level = _once("effects", fit, x, y, number, time)
    mean, variance = line(_with_square(task.query, time)[:, 1:] - centre, 1 / max(1, len(task.x)))
    return level + mean, variance
