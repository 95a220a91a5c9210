"""Models of all training tasks' rows pooled: without the task, with the task as a category, or with its support rows.

M holds the rows of the training tasks, so that the run's folder does, too, and what is adapted from it.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from headstart.algorithms.table_baselines.rows import (
    Array,
    Pooled,
    Task,
    array,
    fitted,
    learner_of,
    log_probabilities,
    no_rows,
    pooled_rows,
    read_rows,
    required,
)
from headstart.errors import UsageError, unknown_name
from headstart.schema import Count
from headstart.types import Learner, Params

Estimator = Literal["linear", "forest", "boosted_trees"]
Loss = Literal["mse", "cross_entropy"]
ESTIMATORS = ("linear", "forest", "boosted_trees")
#: Categories that scikit-learn's boosted trees tell apart.
_MOST_CATEGORIES = 255


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
    classifies = _check(estimator, loss)

    def answer(known: Params, task: Task) -> tuple[Array, Array | None]:
        rows, time = pooled_rows(known), array(known["time"])
        if not len(rows.x):
            return _nothing(task, outputs, classifies)
        if estimator != "linear" or classifies:
            model = _fitted(estimator, classifies, rows.x, rows.y)
            return _said(model, task.query, outputs, classifies), None
        fit: _Line = fitted("pooled", lambda: _line(_with_square(rows.x, time), rows.y), rows.x, rows.y, time)
        asked = _with_square(task.query, time)
        return asked @ fit.weights, _variance(fit, asked, 0.0)

    return learner_of(
        answer, lambda: {**no_rows(inputs, outputs, classifies), "time": _time(inputs)}, read_rows, inputs=inputs,
        outputs=outputs, loss=loss, intervals=estimator == "linear" and not classifies,
    )  # fmt: skip


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
    classifies = _check(estimator, loss)

    def answer(known: Params, task: Task) -> tuple[Array, Array | None]:
        rows, time = pooled_rows(known), array(known["time"])
        own = int(rows.task.max(initial=-1)) + 1
        if not len(rows.x) + len(task.x):
            return _nothing(task, outputs, classifies)
        x, y = np.concatenate([rows.x, task.x]), np.concatenate([rows.y, task.y])
        number = np.concatenate([rows.task, np.full(len(task.x), own)])
        if estimator == "linear" and not classifies:
            fit: _Effects = fitted("effects", lambda: _effects(x, y, number, time), x, y, number, time)
            asked = _with_square(task.query, time)[:, 1:] - fit.centre
            return fit.level + asked @ fit.line.weights, _variance(fit.line, asked, 1 / max(1, len(task.x)))
        if estimator == "boosted_trees":
            if own >= _MOST_CATEGORIES:
                raise UsageError(
                    f"boosted trees tell at most {_MOST_CATEGORIES} tasks apart, got {own} training tasks and a new "
                    "one; take the estimator forest or linear, or the method boosted_trees"
                )
            x, asked = np.column_stack([x, number]), np.column_stack([task.query, np.full(len(task.query), own)])
            return _said(_fitted(estimator, classifies, x, y, x.shape[1] - 1), asked, outputs, classifies), None
        columns = np.arange(own + 1)
        x = np.hstack([x, np.equal.outer(number, columns)])
        asked = np.hstack([task.query, np.equal.outer(np.full(len(task.query), own), columns)])
        return _said(_fitted(estimator, classifies, x, y), asked, outputs, classifies), None

    return learner_of(
        answer, lambda: {**no_rows(inputs, outputs, classifies), "time": _time(inputs)}, read_rows, inputs=inputs,
        outputs=outputs, loss=loss, intervals=estimator == "linear" and not classifies,
    )  # fmt: skip


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
    classifies = _check("boosted_trees", loss)
    if trees < 1:
        raise UsageError(f"trees must be at least 1, got {trees}")
    gentle = {
        "max_iter": trees,
        "learning_rate": 0.05,
        "max_depth": 3,
        "min_samples_leaf": 10,
        "l2_regularization": 1.0,
    }

    def answer(known: Params, task: Task) -> tuple[Array, Array | None]:
        rows, time = pooled_rows(known), array(known["time"])
        described = _described(task.x, task.y, time, outputs, classifies)
        level = described[:outputs] if not classifies else np.zeros(outputs)
        if not len(rows.x):
            nothing, _ = _nothing(task, outputs, classifies)
            return nothing + level, None
        x, y = _cut(rows, time, outputs, classifies)
        model = _fitted("boosted_trees", classifies, x, y, None, **gentle)
        asked = np.hstack([task.query, np.broadcast_to(described, (len(task.query), len(described)))])
        return level + _said(model, asked, outputs, classifies), None

    return learner_of(
        answer, lambda: {**no_rows(inputs, outputs, classifies), "time": _time(inputs)}, read_rows, inputs=inputs,
        outputs=outputs, loss=loss,
    )  # fmt: skip


def _check(estimator: str, loss: str) -> bool:
    """Return whether it classifies; refuse what there is none of."""
    if estimator not in ESTIMATORS:
        raise unknown_name("estimator", estimator, ESTIMATORS)
    if loss not in ("mse", "cross_entropy"):
        raise unknown_name("loss", loss, ("mse", "cross_entropy"))
    required("sklearn.ensemble")
    return loss == "cross_entropy"


def _time(inputs: int) -> torch.Tensor:
    return torch.full((inputs,), float(inputs == 1))


def _nothing(task: Task, outputs: int, classifies: bool) -> tuple[Array, Array | None]:
    """Return what is said without a row to learn from."""
    found = np.zeros((len(task.query), outputs))
    return (found - np.log(outputs), None) if classifies else (found, found + 1)


def _cut(rows: Pooled, time: Array, outputs: int, classifies: bool) -> tuple[Array, Array]:
    """Return the query rows of the training tasks, each beside its task's support rows, and what is to be told."""
    numbers, place = np.unique(rows.task, return_inverse=True)
    own = [rows.support & (rows.task == number) for number in numbers]
    described = np.stack([_described(rows.x[some], rows.y[some], time, outputs, classifies) for some in own])[place]
    x, y = np.hstack([rows.x, described])[~rows.support], rows.y[~rows.support]
    return x, y if classifies else y - described[~rows.support][:, :outputs]


def _described(x: Array, y: Array, time: Array, outputs: int, classifies: bool) -> Array:
    """Return what support rows come to: class frequencies, or mean, last and slope of each target value."""
    if classifies:
        counts: Array = np.bincount(y, minlength=outputs) / max(1, len(y))
        return counts
    if not len(y):
        return np.zeros(3 * outputs)
    past = x @ time - (x @ time).mean()
    return np.concatenate([y.mean(0), y[-1], past @ y / max(past @ past, 1e-12)])


def _fitted(estimator: str, classifies: bool, x: Array, y: Array, category: int | None = None, **settings: Any) -> Any:
    """Return the estimator fitted to rows; in regression a list, one for each target value."""
    ensemble = required("sklearn.ensemble")
    kind = "Classifier" if classifies else "Regressor"
    if estimator == "forest":
        options: dict[str, Any] = {"n_estimators": 300, "min_samples_leaf": 3, "random_state": 0}
        make = getattr(ensemble, f"RandomForest{kind}")
    elif estimator == "boosted_trees":
        options = {"early_stopping": False, "random_state": 0, **settings}
        options |= {} if category is None else {"categorical_features": [category]}
        make = getattr(ensemble, f"HistGradientBoosting{kind}")
    else:
        options, make = {"max_iter": 1000}, required("sklearn.linear_model").LogisticRegression

    def fit() -> Any:
        if not classifies:
            return [make(**options).fit(x, values) for values in y.T]
        seen = np.unique(y)
        return int(seen[0]) if len(seen) == 1 else make(**options).fit(x, y)

    return fitted(f"{estimator} {kind} {sorted(options.items())}", fit, x, y)


def _said(model: Any, query: Array, outputs: int, classifies: bool) -> Array:
    """Return what a fitted estimator says: target values, or log-probabilities."""
    if not len(query):
        return np.zeros((0, outputs))
    if not classifies:
        return np.stack([each.predict(query) for each in model], 1)
    if isinstance(model, int):  # one class alone
        return np.broadcast_to(np.log(np.where(np.arange(outputs) == model, 1.0, 1e-9)), (len(query), outputs))
    return log_probabilities(model, query, outputs)


class _Line(NamedTuple):
    """Least squares."""

    weights: Array
    """``(columns, outputs)``."""
    inverse: Array
    """Of the design's products ``(columns, columns)``."""
    noise: Array
    """The variance of the residuals ``(outputs,)``."""


class _Effects(NamedTuple):
    """Least squares with an intercept for each task, as the last one sees it."""

    line: _Line
    centre: Array
    """The mean of the last task's columns."""
    level: Array
    """The mean of its targets."""


def _with_square(x: Array, time: Array) -> Array:
    """Return the columns 1, x, t²; without t² where there is no time."""
    squares = [np.square(x @ time)] if time.any() else []
    return np.column_stack([np.ones(len(x)), x, *squares])


def _line(design: Array, y: Array, effects: int = 0) -> _Line:
    inverse = np.linalg.pinv(design.T @ design)
    weights = inverse @ design.T @ y
    free = max(1, len(y) - effects - int(np.linalg.matrix_rank(design)))
    return _Line(weights, inverse, np.square(y - design @ weights).sum(0) / free)


def _effects(x: Array, y: Array, task: Array, time: Array) -> _Effects:
    """Fit around the means of each task, which is the same as with a column for each (Frisch, Waugh 1933)."""
    numbers, place, sizes = np.unique(task, return_inverse=True, return_counts=True)
    both = np.hstack([_with_square(x, time)[:, 1:], y])
    means = np.zeros((len(numbers), both.shape[1]))
    np.add.at(means, place, both)
    means /= sizes[:, None]
    inside, width = both - means[place], both.shape[1] - y.shape[1]
    return _Effects(_line(inside[:, :width], inside[:, width:], len(numbers)), means[-1, :width], means[-1, width:])


def _variance(line: _Line, asked: Array, more: float) -> Array:
    """Return the usual variance of a new observation."""
    return (1 + more + ((asked @ line.inverse) * asked).sum(1))[:, None] * line.noise
