"""A model for each task, fitted to its own rows alone: no rows of other tasks are used."""

import warnings
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from headstart.algorithms.estimators import Array, Task, learner_of, required, rows_of
from headstart.errors import check_known
from headstart.types import Learner, Meta, Params, Tasks

PENALTIES = (1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
"""What the penalty of ridge regression is chosen from."""
ESTIMATORS = ("ridge", "gaussian_process", "mean", "last")


def one_model_per_task(
    *, inputs: int, outputs: int = 1, estimator: Literal["ridge", "gaussian_process", "mean", "last"] = "ridge"
) -> Learner:
    """Fit a model of its own to each task's support rows.

    ``"ridge"`` is ȳ + (x − x̄)ᵀ w with w = argmin Σ (y − ȳ − (x − x̄)ᵀ w)² + λ |w|². `Learner.prepare` chooses λ, of
    `PENALTIES`, with which the training tasks' support rows predict their query rows best; nothing else is learned
    across tasks. ``"gaussian_process"`` fits a constant · RBF + white noise to each task by maximum likelihood within a
    range, and has intervals. ``"mean"`` and ``"last"`` answer with the mean, or the last, of the support rows' targets.

    Args:
        inputs: numbers in one input; inputs are flattened.
        outputs: number of target values.
        estimator: the model of a task: ridge regression, a Gaussian process, its mean or its last value.

    Raises:
        UnknownNameError: an estimator that there is none of.
        UsageError: scikit-learn is not installed, which ``"gaussian_process"`` needs.

    References: Hoerl, Kennard 1970, doi:10.1080/00401706.1970.10488634 (ridge regression); Rasmussen, Williams 2006,
    "Gaussian Processes for Machine Learning".
    """
    check_known("estimator", estimator, ESTIMATORS)
    by_process, by_ridge = estimator == "gaussian_process", estimator == "ridge"
    if by_process:
        required("sklearn.gaussian_process")

    def answer(known: Params, task: Task) -> tuple[Array, Array | None]:
        if not len(task.x):
            nothing = np.zeros((len(task.query), outputs))
            return nothing, nothing + 1 if by_process else None
        if by_process:
            return _process(task)
        if by_ridge:
            return _ridge(task, float(known["penalty"])), None
        value = task.y[-1] if estimator == "last" else task.y.mean(0)
        return np.broadcast_to(value, (len(task.query), outputs)), None

    def prepare(meta: Meta, tasks: Tasks, seed: int, folder: object = None, /) -> Meta:
        every = list(rows_of(tasks))
        errors = [
            np.concatenate([np.square(_ridge(task, penalty) - later).ravel() for task, later in every]).mean()
            for penalty in PENALTIES
        ]
        chosen: Tensor = meta.structure["penalty"].new_tensor(PENALTIES[int(np.argmin(errors))])
        return meta._replace(structure={"penalty": chosen})

    def structure() -> Params:
        return {"penalty": torch.ones(())} if by_ridge else {}

    found = prepare if by_ridge else None
    learner = learner_of(answer, structure, found, inputs=inputs, outputs=outputs, intervals=by_process)
    return learner._replace(shown=lambda meta: dict(meta.structure))


def _ridge(task: Task, penalty: float) -> Array:
    centre, level = task.x.mean(0), task.y.mean(0)
    rows = task.x - centre
    # of as many equations as rows, since features may be more
    weights = rows.T @ np.linalg.solve(rows @ rows.T + penalty * np.eye(len(rows)), task.y - level)
    found: Array = level + (task.query - centre) @ weights
    return found


def _process(task: Task) -> tuple[Array, Array]:
    kernels = required("sklearn.gaussian_process.kernels")
    smooth = kernels.ConstantKernel(1.0, (1e-2, 1e2)) * kernels.RBF(1.0, (0.1, 10.0))
    kernel = smooth + kernels.WhiteKernel(0.1, (1e-3, 10.0))
    make = required("sklearn.gaussian_process").GaussianProcessRegressor
    means, variances = [], []
    with warnings.catch_warnings(action="ignore"):  # optima of a handful of rows are at bounds
        for y in task.y.T:
            # shifted, not scaled: the scale of the training tasks says more than that of three rows
            model = make(kernel, n_restarts_optimizer=3, random_state=0).fit(task.x, y - y.mean())
            found, deviation = model.predict(task.query, return_std=True)
            means.append(found + y.mean())
            variances.append(np.square(deviation))
    return np.stack(means, 1), np.stack(variances, 1)
