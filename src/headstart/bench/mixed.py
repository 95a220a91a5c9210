"""Linear mixed-effects models: y = X β + Z b_task + noise, with b of every task drawn from one normal distribution.

They are fitted by restricted maximum likelihood (statsmodels) to the rows of the training tasks and the support rows of
the unseen ones, whose effects are then predicted by their best linear unbiased predictor (Robinson 1991,
doi:10.1214/ss/1177011926).
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from headstart.bench.problem import Array, Predicted, Problem, joined
from headstart.errors import DivergenceError, UsageError


def mixed(problem: Problem) -> Predicted:
    """Linear in the features; every task has an intercept and slopes of its own."""
    rows = joined(problem.train, problem.support)
    fixed = [_with_one(x) for x in (rows.x, problem.x)]
    return _fit(problem, fixed, [fixed, [f[:, :1] for f in fixed]])


def mixed_quadratic(problem: Problem) -> Predicted:
    """Linear in the features and quadratic in time; every task has an intercept, a slope and a bend of its own."""
    rows = joined(problem.train, problem.support)
    times = [x[:, problem.time] for x in (rows.x, problem.x)]
    fixed = [np.column_stack([_with_one(x), t**2]) for x, t in zip((rows.x, problem.x), times)]
    random = [np.column_stack([np.ones_like(t), t, t**2]) for t in times]
    return _fit(problem, fixed, [random, [r[:, :2] for r in random], [r[:, :1] for r in random]])


def mixed_spline(problem: Problem) -> Predicted:
    """A cubic spline of time (knots at quintiles) and the other features; tasks have an intercept and a slope."""
    rows = joined(problem.train, problem.support)
    times = [x[:, problem.time] for x in (rows.x, problem.x)]
    basis = _spline(times[0])
    fixed = [
        np.column_stack([np.ones_like(t), basis.transform(t[:, None]), np.delete(x, problem.time, 1)])
        for x, t in zip((rows.x, problem.x), times)
    ]
    random = [np.column_stack([np.ones_like(t), t]) for t in times]
    return _fit(problem, fixed, [random, [r[:, :1] for r in random]])


class Fitted(NamedTuple):
    """What was estimated."""

    fixed: Array
    """β ``(p,)``."""
    fixed_covariance: Array
    """Of β ``(p, p)``."""
    random_covariance: Array
    """Of the tasks' effects b ``(q, q)``."""
    noise: float
    """Variance of the noise."""


def _fit(problem: Problem, fixed: Sequence[Array], randoms: Sequence[Sequence[Array]]) -> Predicted:
    """Fit with the first random effects with which it converges, and predict the query rows."""
    rows = joined(problem.train, problem.support)
    for fallen, (random, asked) in enumerate(randoms):
        fitted = _estimate(rows.y, fixed[0], rows.task, random)
        if fitted is None:
            continue
        mean, variance = np.empty(len(problem.x)), np.empty(len(problem.x))
        for task in np.unique(problem.task):
            own, there = rows.task == task, problem.task == task
            given = rows.y[own], fixed[0][own], random[own]
            mean[there], variance[there] = blup(fitted, *given, fixed[1][there], asked[there])
        return Predicted(mean, variance, {"simpler random effects": int(fallen > 0)})
    raise DivergenceError("the mixed model converges not even with random intercepts")


def _estimate(y: Array, fixed: Array, task: Any, random: Array) -> Fitted | None:
    """Fit by restricted maximum likelihood; ``None`` where no optimiser converges."""
    model = _statsmodels().MixedLM(y, fixed, task, exog_re=random)
    for method in ("lbfgs", "bfgs", "powell"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = model.fit(reml=True, method=[method], maxiter=200)
            except (np.linalg.LinAlgError, ValueError, ZeroDivisionError):
                continue
            count = fixed.shape[1]
            covariance = np.asarray(found.cov_params())[:count, :count]
            fitted = Fitted(np.asarray(found.fe_params), covariance, np.asarray(found.cov_re), float(found.scale))
        if found.converged and all(np.isfinite(part).all() for part in fitted) and fitted.noise > 0:
            return fitted
    return None


def blup(
    fitted: Fitted, y: Array, fixed: Array, random: Array, asked_fixed: Array, asked_random: Array
) -> tuple[Array, Array]:
    """Predict rows of a task from other rows of it: mean and variance of an observation.

    b̂ = G Z' V⁻¹ (y − X β), V = Z G Z' + σ² I. The variance is that of b given the task's rows, plus the noise, plus
    what the uncertainty of β adds.
    """
    shared = fitted.random_covariance @ random.T
    v = random @ shared + fitted.noise * np.eye(len(y))
    gain = np.linalg.solve(v, shared.T).T
    mean = asked_fixed @ fitted.fixed + asked_random @ (gain @ (y - fixed @ fitted.fixed))
    left = fitted.random_covariance - gain @ shared.T
    lever = asked_fixed - asked_random @ gain @ fixed
    spread = ((asked_random @ left) * asked_random).sum(1) + ((lever @ fitted.fixed_covariance) * lever).sum(1)
    return mean, np.maximum(spread, 0) + fitted.noise


def _with_one(x: Array) -> Array:
    return np.column_stack([np.ones(len(x)), x])


def _spline(times: Array) -> Any:
    try:
        from sklearn.preprocessing import SplineTransformer
    except ModuleNotFoundError as error:
        raise UsageError("the baselines need scikit-learn: pip install headstart[bench]") from error
    knots = np.unique(np.quantile(times, np.linspace(0, 1, 6)))[:, None]
    return SplineTransformer(degree=3, knots=knots, include_bias=False, extrapolation="linear").fit(times[:, None])


def _statsmodels() -> Any:
    try:
        from statsmodels.regression import mixed_linear_model
    except ModuleNotFoundError as error:
        raise UsageError("the mixed models need statsmodels: pip install headstart[bench]") from error
    return mixed_linear_model
