"""On panels with a known truth, each baseline does what it is for, and none sees what it is asked for."""

import warnings

import numpy as np
import pytest

from headstart.bench.baselines import BASELINES, mixed, parts, per_task, pooled_linear
from headstart.bench.mixed import Fitted, blup
from headstart.bench.panels import Columns, Panel, Split, leave_out, split
from headstart.bench.problem import Problem, Sample, by_place, joined, of_task

ROWS = 9


def panel(intercept: float, slope: float, noise: float = 0.2, tasks: int = 24, seed: int = 0) -> Panel:
    """Return tasks with lines of their own: y = 1 + 2 t + a_task + b_task t + noise."""
    draw = np.random.default_rng(seed)
    time = np.tile(np.linspace(0.0, 2.0, ROWS), tasks)
    task = np.repeat(np.arange(tasks), ROWS)
    a, b = intercept * draw.normal(size=tasks), slope * draw.normal(size=tasks)
    y = 1 + 2 * time + a[task] + b[task] * time + noise * draw.normal(size=len(time))
    return Panel("lines", time[:, None], y, task, tuple(map(str, range(tasks))), Columns("id", "y", "t"))


def rmse(name: str, parted: Split) -> float:
    return float(parted.unit * np.sqrt(np.square(BASELINES[name](parted.problem).mean - parted.y).mean()))


def test_the_mixed_model_is_better_than_pooled_and_per_task_where_tasks_differ() -> None:
    parted = split(panel(intercept=1.0, slope=0.7), 3, seed=0)
    assert rmse("mixed", parted) < 0.7 * rmse("pooled_linear", parted)
    assert rmse("mixed", parted) < 0.9 * rmse("per_task", parted)


def test_the_pooled_model_is_better_than_per_task_where_tasks_are_alike() -> None:
    parted = split(panel(intercept=0.0, slope=0.0), 3, seed=0)
    assert rmse("pooled_linear", parted) < 0.7 * rmse("per_task", parted)
    assert rmse("pooled_linear", parted) == pytest.approx(0.2, rel=0.2)


def test_an_intercept_for_each_task_is_enough_where_only_levels_differ() -> None:
    parted = split(panel(intercept=2.0, slope=0.0), 3, seed=0)
    assert rmse("task_linear", parted) < 0.3 * rmse("pooled_linear", parted)
    assert rmse("boosted_support", parted) < 0.5 * rmse("boosted", parted)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_predicts_every_query_row_the_same_each_time(name: str) -> None:
    problem = split(panel(1.0, 0.5, tasks=8), 3, seed=1).problem
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = BASELINES[name](problem), BASELINES[name](problem)
    assert first.mean.shape == problem.task.shape and np.isfinite(first.mean).all()
    np.testing.assert_array_equal(first.mean, second.mean)
    if first.variance is not None:
        assert first.variance.shape == problem.task.shape and (first.variance > 0).all()


@pytest.mark.parametrize("name", ["mixed", "task_linear", "pooled_linear"])
def test_nine_of_ten_intervals_cover_where_the_model_is_right(name: str) -> None:
    spread = 0.0 if name == "pooled_linear" else 1.0
    inside = []
    for seed in range(4):
        parted = split(panel(spread, 0.0, tasks=40, seed=seed), 5, seed)
        found = BASELINES[name](parted.problem)
        assert found.variance is not None
        inside.append(np.abs(found.mean - parted.y) < 1.645 * np.sqrt(found.variance))
    assert np.mean(inside) == pytest.approx(0.9, abs=0.05)


def test_no_prediction_depends_on_a_query_target() -> None:
    data = panel(1.0, 0.5, tasks=8)
    asked = np.isin(data.task, leave_out(8, seed=0)[1]) & (np.tile(np.arange(ROWS), 8) >= 3)
    parted = split(data, 3, seed=0)
    other = split(data._replace(y=np.where(asked, 1e6, data.y)), 3, seed=0)
    assert len(parted.y) == asked.sum() and not np.isclose(parted.y, other.y).any()
    for name, predict in BASELINES.items():
        np.testing.assert_array_equal(predict(parted.problem).mean, predict(other.problem).mean, err_msg=name)


def test_the_best_linear_unbiased_prediction_is_the_posterior_of_the_normal_model() -> None:
    """Against the joint normal distribution of all of a task's rows, conditioned by the textbook."""
    draw = np.random.default_rng(0)
    x, asked = draw.normal(size=(4, 2)), draw.normal(size=(3, 2))
    g, noise, beta = np.array([[1.0, 0.3], [0.3, 0.5]]), 0.2, np.array([0.5, -1.0])
    y = draw.normal(size=4)
    mean, variance = blup(Fitted(beta, np.zeros((2, 2)), g, noise), y, x, x, asked, asked)
    both = np.vstack([x, asked])
    joint = both @ g @ both.T + noise * np.eye(7)
    gain = joint[4:, :4] @ np.linalg.inv(joint[:4, :4])
    np.testing.assert_allclose(mean, asked @ beta + gain @ (y - x @ beta))
    np.testing.assert_allclose(variance, np.diag(joint[4:, 4:] - gain @ joint[:4, 4:]))


def test_the_mixed_model_agrees_with_the_effects_of_statsmodels() -> None:
    from statsmodels.regression.mixed_linear_model import MixedLM

    problem = split(panel(1.0, 0.7, tasks=12), 3, seed=0).problem
    rows = joined(problem.train, problem.support)
    design = np.column_stack([np.ones(len(rows.x)), rows.x])
    found = MixedLM(rows.y, design, rows.task, exog_re=design).fit(method=["lbfgs"])
    effects = np.array([found.random_effects[task] for task in problem.task])
    asked = np.column_stack([np.ones(len(problem.x)), problem.x])
    np.testing.assert_allclose(mixed(problem).mean, (asked * (found.fe_params + effects)).sum(1), rtol=1e-5)


def test_a_mixed_model_that_does_not_converge_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import headstart.bench.mixed as module

    estimate = module._estimate
    monkeypatch.setattr(
        module, "_estimate", lambda y, fixed, task, z: None if z.shape[1] > 1 else estimate(y, fixed, task, z)
    )
    found = mixed(split(panel(1.0, 0.7, tasks=8), 3, seed=0).problem)
    assert found.counts == {"simpler random effects": 1} and np.isfinite(found.mean).all()


def test_the_penalty_of_the_models_per_task_is_the_training_tasks_choice() -> None:
    """Where slopes matter and noise does not, each task's own line is found; where there is only noise, its mean."""
    lines = split(panel(1.0, 1.0, noise=1e-4), 3, seed=0)
    assert rmse("per_task", lines) < 0.1
    flat = panel(1.0, 0.0, noise=1.0)
    noise = split(flat._replace(y=flat.y - 2 * flat.x[:, 0]), 3, seed=0).problem
    first, _ = parts(noise.support, 2)
    own = per_task(noise).mean - BASELINES["support_mean"](noise).mean
    steep = np.polyfit(first.x[:2, 0], first.y[:2], 1)[0] * (noise.x[:6, 0] - first.x[:2, 0].mean())
    assert np.abs(own).mean() < 0.1 * np.abs(steep).mean()


def test_parts_cut_every_task_after_its_first_rows() -> None:
    rows = Sample(np.arange(7.0)[:, None], np.arange(7.0), np.array([0, 0, 0, 1, 1, 1, 1]))
    first, later = parts(rows, 2)
    assert first.y.tolist() == [0, 1, 3, 4] and later.y.tolist() == [2, 5, 6]
    assert of_task(later, 1).y.tolist() == [5, 6]


def test_pooled_least_squares_has_the_weights_of_the_truth() -> None:
    time = np.linspace(-1, 1, 20)[:, None]
    y = 1 + 2 * time[:, 0] - time[:, 0] ** 2
    train = Sample(time, y, np.repeat(np.arange(4), 5))
    support = Sample(time[:2], y[:2], np.array([4, 4]))
    problem = Problem(train, support, np.array([[3.0]]), np.array([4]), 0, 2)
    assert pooled_linear(problem).mean == pytest.approx([1 + 6 - 9])
    assert by_place(problem).tolist() == [0]
