"""Fitting one task's estimator on its support rows, and asking it of its query rows."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from headstart.errors import UsageError
from headstart.types import Params

Make = Callable[..., Any]

CALIBRATION = {"outputs.power": 1.0, "outputs.smoothing": 0.01}
"""τ and δ to begin with."""
_POWERS = [10 ** (step / 6) for step in range(-8, 10)]
_SMOOTHINGS = [10 ** (step / 4) for step in range(-12, 0)]


class Rows(NamedTuple):
    """A task, without padding, on the CPU."""

    x: Tensor
    """``(n, inputs)`` float64."""
    y: Tensor
    """``(n,)`` class ids, or ``(n, outputs)`` float64."""
    query: Tensor
    """``(m, inputs)`` float64."""


def answered(answer: Callable[[Rows], Tensor], task: Rows) -> Tensor:
    """Return what ``answer`` says of the query rows, and NaN for those without one finite number."""
    there = task.query.isfinite().any(1)
    found = answer(task._replace(query=task.query[there]))
    outputs = found.new_full((len(there), found.shape[1]), torch.nan)
    outputs[there] = found
    return outputs


def classified(make: Make, task: Rows, values: Mapping[str, Any], known: Params, ways: int) -> Tensor:
    """Return log p ``(m, ways)``, −∞ for classes that the support rows lack.

    Args:
        make: returns the estimator.
        task: its rows.
        values: what is done before, by the names of `headstart.algorithms.search.estimators.AROUND`.
        known: means and deviations of the rows of training tasks.
        ways: number of classes.
    """
    present = task.y.unique()
    found = torch.full((len(task.query), ways), -torch.inf, dtype=torch.float64)
    if len(present) == 0:
        return torch.zeros_like(found) - math.log(ways)
    if len(present) == 1 or len(task.query) == 0:
        found[:, present] = 0
        return found
    x, query = _around(task, values, known)
    columns, logs = _log_probabilities(_fitted(make, x, task.y.numpy()), query, present)
    found[:, columns] = logs
    return found


def calibrated(logs: Tensor, power: float, smoothing: float) -> Tensor:
    """Return log((1 − δ) p^τ / Σ p^τ + δ / ways) for log p ``(..., ways)``, with τ = ``power``, δ = ``smoothing``."""
    return ((1 - smoothing) * (power * logs).softmax(-1) + smoothing / logs.shape[-1]).log()


def calibration(logs: Sequence[Tensor], loss: Callable[[int, Tensor], Tensor]) -> tuple[float, dict[str, float]]:
    """Return the least mean loss over τ and δ on a grid, and these by name.

    Args:
        logs: log p of the query rows of batches of tasks, each ``(B, m, ways)``.
        loss: ``(number of the batch, calibrated log-probabilities) -> (B,)``.
    """
    best = (math.inf, dict(CALIBRATION))
    for power in _POWERS:
        for smoothing in _SMOOTHINGS:
            losses = [loss(number, calibrated(batch, power, smoothing)) for number, batch in enumerate(logs)]
            value = float(torch.cat(losses).double().mean())
            if value < best[0]:
                best = value, dict(zip(CALIBRATION, (power, smoothing)))
    return best


def regressed(make: Make, task: Rows, values: Mapping[str, Any], known: Params, per_output: bool) -> Tensor:
    """Return target values ``(m, outputs)``; ``per_output``: by an estimator for each."""
    if not len(task.y) or not len(task.query):
        return known["targets.mean"].expand(len(task.query), -1)
    x, query = _around(task, values, known)
    mean, deviation = _location(values.get("targets.scale", "none"), task.y, known, "targets")
    y = ((task.y - mean) / deviation).numpy()
    parts = y.T if per_output or y.shape[1] == 1 else [y]
    found = []
    for part in parts:
        said = _asked(_fitted(make, x, part), "predict", query)
        found.append(_tensor(said).reshape(len(query), -1))
    return torch.cat(found, 1) * deviation + mean


def deviation_of(values: Tensor) -> Tensor:
    """Return the standard deviation ``(d,)`` of rows ``(n, d)``, 1 where they are all alike."""
    deviation = values.std(0, correction=0)
    return torch.where(deviation > 1e-12 * values.abs().amax(0), deviation, 1)


def _around(task: Rows, values: Mapping[str, Any], known: Params) -> tuple[Any, Any]:
    """Return support and query inputs scaled and reduced, as arrays."""
    mean, deviation = _location(values.get("inputs.scale", "none"), task.x, known, "inputs")
    x, query = (task.x - mean) / deviation, (task.query - mean) / deviation
    count = min(values.get("inputs.components") or x.shape[1], len(x) - 1)
    if 0 < count < x.shape[1] and values.get("inputs.components"):
        centre = x.mean(0)
        directions = torch.linalg.svd(x - centre, full_matrices=False)[2][:count].T
        x, query = (x - centre) @ directions, (query - centre) @ directions
    return x.numpy(), query.numpy()


def _location(how: str, rows: Tensor, known: Params, name: str) -> tuple[Tensor, Tensor]:
    """Return the mean and deviation by which to scale."""
    if how == "task":
        return rows.mean(0), deviation_of(rows)
    if how == "tasks":
        return known[f"{name}.mean"], known[f"{name}.deviation"]
    return torch.zeros((), dtype=rows.dtype), torch.ones((), dtype=rows.dtype)


def _log_probabilities(estimator: Any, query: Any, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes that the estimator tells apart and log p of each, ``(m, classes)``."""
    columns = torch.as_tensor(np.asarray(getattr(estimator, "classes_", present))).long()
    if hasattr(estimator, "predict_proba"):
        return columns, _tensor(_asked(estimator, "predict_proba", query)).log()
    if hasattr(estimator, "decision_function"):
        decisions = _tensor(_asked(estimator, "decision_function", query))
        if decisions.ndim == 1:
            decisions = torch.stack((torch.zeros_like(decisions), decisions), 1)
        return columns, decisions.log_softmax(1)
    said = torch.as_tensor(np.asarray(_asked(estimator, "predict", query))).long()
    return columns, (said.unsqueeze(1) == columns).double().log()


def _fitted(make: Make, x: Any, y: Any) -> Any:
    estimator = make()
    _asked(estimator, "fit", x, y)
    return estimator


def _asked(estimator: Any, method: str, *arrays: Any) -> Any:
    """Return what the estimator's method does; of thousands of small fits none may fill the screen with warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return getattr(estimator, method)(*arrays)
        except (ValueError, TypeError, ArithmeticError, np.linalg.LinAlgError) as error:
            shapes = ", ".join(str(array.shape) for array in arrays)
            raise UsageError(
                f"{estimator!r}.{method} fails on arrays of shape {shapes}: {error}; search a space that suits it"
            ) from error


def _tensor(array: Any) -> Tensor:
    return torch.as_tensor(np.array(array, dtype=np.float64))
