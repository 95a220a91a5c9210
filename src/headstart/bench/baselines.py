"""What people use on panels today: each is a pure function from a `Problem` to what it predicts.

They may use the training tasks and the support rows of the unseen ones, as the methods here do.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from headstart.bench.mixed import mixed, mixed_quadratic, mixed_spline
from headstart.bench.problem import Array, Ids, Predict, Predicted, Problem, Sample, by_place, joined, of_task, taken
from headstart.errors import UsageError

_PENALTIES = (1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)


def support_mean(problem: Problem) -> Predicted:
    """Each task's mean of its support rows."""
    return Predicted(_by_task(problem, lambda rows: rows.y.mean()))


def last_value(problem: Problem) -> Predicted:
    """Each task's last support row."""
    return Predicted(_by_task(problem, lambda rows: rows.y[-1]))


def pooled_linear(problem: Problem) -> Predicted:
    """Least squares on the features with the square of time, all rows pooled and the tasks not told apart."""
    rows = joined(problem.train, problem.support)
    design = _with_square(rows.x, problem.time)
    return _least_squares(design, rows.y, _with_square(problem.x, problem.time))


def pooled_forest(problem: Problem) -> Predicted:
    """A random forest of 300 trees on the features, all rows pooled and the tasks not told apart."""
    rows = joined(problem.train, problem.support)
    return Predicted(_forest(rows.x, rows.y, problem.x))


def task_linear(problem: Problem) -> Predicted:
    """Least squares on the features with the square of time and an intercept for each task (fixed effects)."""
    rows = joined(problem.train, problem.support)
    tasks = np.unique(rows.task)
    dummies, asked = (np.equal.outer(task, tasks).astype(float) for task in (rows.task, problem.task))
    design = np.hstack([_with_square(rows.x, problem.time)[:, 1:], dummies])
    return _least_squares(design, rows.y, np.hstack([_with_square(problem.x, problem.time)[:, 1:], asked]))


def task_forest(problem: Problem) -> Predicted:
    """A random forest of 300 trees on the features and the task, one column of 0 and 1 a task."""
    rows = joined(problem.train, problem.support)
    tasks = np.unique(rows.task)
    dummies, asked = (np.equal.outer(task, tasks).astype(float) for task in (rows.task, problem.task))
    return Predicted(_forest(np.hstack([rows.x, dummies]), rows.y, np.hstack([problem.x, asked])))


def per_task(problem: Problem) -> Predicted:
    """Ridge regression on each task's support rows alone, around their mean.

    The penalty, from nearly none to nearly all, is the one with which the training tasks' first rows predict their
    later ones best.
    """
    first, later = parts(problem.train, problem.shots)
    errors = [np.square(_ridges(first, later.x, later.task, penalty) - later.y).mean() for penalty in _PENALTIES]
    penalty = _PENALTIES[int(np.argmin(errors))]
    mean = _ridges(problem.support, problem.x, problem.task, penalty)
    return Predicted(mean)


def boosted(problem: Problem) -> Predicted:
    """Gradient-boosted trees on the features and the task as a category."""
    rows = joined(problem.train, problem.support)
    x, asked = (np.hstack([x, _column(task)]) for x, task in ((rows.x, rows.task), (problem.x, problem.task)))
    return Predicted(_boosted(x, rows.y, asked, categorical_features=[x.shape[1] - 1]))


def boosted_support(problem: Problem) -> Predicted:
    """Gradient-boosted trees on the features and what the task's support rows come to.

    The features made by hand are the mean, the last value and the slope over time of the support rows. Trees learn from
    the training tasks, each cut in support and query rows as the unseen ones are, how far the later rows are from the
    support's mean.
    """
    first, later = parts(problem.train, problem.shots)
    x, base = _described(first, later.x, later.task, problem.time)
    asked, own = _described(problem.support, problem.x, problem.task, problem.time)
    gentle = {"learning_rate": 0.05, "max_depth": 3, "min_samples_leaf": 10, "l2_regularization": 1.0}
    return Predicted(own + _boosted(x, later.y - base, asked, **gentle))


def task_gaussian_process(problem: Problem) -> Predicted:
    """A Gaussian process for each task: constant · RBF + white noise, fitted to its support rows alone."""
    process, kernels = _sklearn("gaussian_process"), _sklearn("gaussian_process.kernels")
    # bounded, as three rows would else be taken to have no noise at all
    smooth = kernels.ConstantKernel(1.0, (1e-2, 1e2)) * kernels.RBF(1.0, (0.1, 10.0))
    kernel = smooth + kernels.WhiteKernel(0.1, (1e-3, 10.0))
    mean, variance = np.empty(len(problem.x)), np.empty(len(problem.x))
    with _quiet():
        for task in np.unique(problem.task):
            rows, asked = of_task(problem.support, task), problem.task == task
            # shifted, not scaled: the scale of the training tasks says more than that of three rows
            model = process.GaussianProcessRegressor(kernel, n_restarts_optimizer=3, random_state=0)
            found, deviation = model.fit(rows.x, rows.y - rows.y.mean()).predict(problem.x[asked], return_std=True)
            mean[asked], variance[asked] = found + rows.y.mean(), deviation**2
    return Predicted(mean, variance)


BASELINES: dict[str, Predict] = {
    function.__name__: function
    for function in (
        support_mean, last_value, pooled_linear, pooled_forest, task_linear, task_forest, per_task, mixed,
        mixed_quadratic, mixed_spline, boosted, boosted_support, task_gaussian_process,
    )
}  # fmt: skip


def parts(rows: Sample, shots: int) -> tuple[Sample, Sample]:
    """Cut every task in its first ``shots`` rows and its later ones."""
    starts = np.searchsorted(rows.task, rows.task)
    first = np.arange(len(rows.task)) - starts < shots
    return taken(rows, first), taken(rows, ~first)


def _column(task: Ids) -> Array:
    return task[:, None].astype(np.float64)


def _by_task(problem: Problem, value: Callable[[Sample], float]) -> Array:
    tasks = np.unique(problem.task)
    return np.array([value(of_task(problem.support, task)) for task in tasks], dtype=float)[by_place(problem)]


def _with_square(x: Array, time: int) -> Array:
    return np.column_stack([np.ones(len(x)), x, x[:, time] ** 2])


def _least_squares(design: Array, y: Array, asked: Array) -> Predicted:
    """Predict by least squares; the variance is the usual one of a new observation."""
    inverse = np.linalg.pinv(design.T @ design)
    weights = inverse @ design.T @ y
    noise = np.square(y - design @ weights).sum() / max(1, len(y) - np.linalg.matrix_rank(design))
    return Predicted(asked @ weights, noise * (1 + ((asked @ inverse) * asked).sum(1)))


def _ridges(given: Sample, x: Array, task: Ids, penalty: float) -> Array:
    mean = np.empty(len(x))
    for number in np.unique(task):
        rows, asked = of_task(given, number), task == number
        centre, level = rows.x.mean(0), rows.y.mean()
        a = rows.x - centre
        weights = np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T @ (rows.y - level))
        mean[asked] = level + (x[asked] - centre) @ weights
    return mean


def _described(given: Sample, x: Array, task: Ids, time: int) -> tuple[Array, Array]:
    """Return features with what each row's task's support rows come to, and the support's mean."""
    tasks, place = np.unique(task, return_inverse=True)
    found = np.empty((len(tasks), 3))
    for number, row in zip(tasks, found):
        rows = of_task(given, number)
        past = rows.x[:, time] - rows.x[:, time].mean()
        row[:] = rows.y.mean(), rows.y[-1], (past @ rows.y) / max(past @ past, 1e-12)
    return np.hstack([x, found[place]]), found[place, 0]


def _forest(x: Array, y: Array, asked: Array) -> Array:
    model = _sklearn("ensemble").RandomForestRegressor(300, min_samples_leaf=3, random_state=0)
    return model.fit(x, y).predict(asked)


def _boosted(x: Array, y: Array, asked: Array, **settings: Any) -> Array:
    """Fit 100 trees, scikit-learn's own number, and predict; settings were compared on other splits than reported."""
    maker = _sklearn("ensemble").HistGradientBoostingRegressor
    return maker(early_stopping=False, random_state=0, **settings).fit(x, y).predict(asked)


def _sklearn(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"sklearn.{module}")
    except ModuleNotFoundError as error:
        raise UsageError("the baselines need scikit-learn: pip install headstart[bench]") from error


def _quiet() -> Any:
    """Return a context without the warnings of fits to a handful of rows, whose optima are at bounds."""
    import warnings

    return warnings.catch_warnings(action="ignore")
