"""The baselines on tables: each is what its docstring says, and none sees what it is asked for."""

import json
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from headstart import registry
from headstart.algorithms import estimators
from headstart.algorithms.estimators import rows_of
from headstart.algorithms.table_baselines import mixed_effects as mixed_module, pooled as pooled_module
from headstart.algorithms.table_baselines.mixed_effects import mixed_effects
from headstart.algorithms.table_baselines.per_task import PENALTIES, one_model_per_task
from headstart.algorithms.table_baselines.pooled import boosted_trees, pooled, task_category
from headstart.data.rows import Rows, row_tasks
from headstart.data.tables.table import table
from headstart.errors import DivergenceError, ShapeError, UnknownNameError, UsageError
from headstart.testing import check_learner, random_episodes
from headstart.training.evaluate import evaluate
from headstart.training.loop import copied, start
from headstart.types import Batch, Meta

ROWS, SHOTS = 9, 3
DETAILS = {"features": ["t"], "schema": {"time_column": "t"}}
MADE = {
    "mixed": partial(mixed_effects, inputs=1),
    "mixed, quadratic": partial(mixed_effects, inputs=1, trend="quadratic"),
    "mixed, spline": partial(mixed_effects, inputs=1, trend="spline"),
    "boosted": partial(boosted_trees, inputs=1, trees=30),
    "category": partial(task_category, inputs=1),
    "category, forest": partial(task_category, inputs=1, estimator="forest"),
    "effects": partial(task_category, inputs=1, estimator="linear"),
    "pooled": partial(pooled, inputs=1),
    "pooled, boosted": partial(pooled, inputs=1, estimator="boosted_trees"),
    "alone": partial(one_model_per_task, inputs=1),
    "process": partial(one_model_per_task, inputs=1, estimator="gaussian_process"),
    "mean": partial(one_model_per_task, inputs=1, estimator="mean"),
    "last": partial(one_model_per_task, inputs=1, estimator="last"),
}


def lines(intercept=1.0, slope=0.5, noise=0.2, tasks=24, seed=0, spoilt=False):
    """Return tasks with lines of their own: y = 1 + 2 t + a_task + b_task t + noise; a quarter are for the test."""
    draw = np.random.default_rng(seed)
    time = np.tile(np.linspace(0.0, 2.0, ROWS), tasks)
    task = np.repeat(np.arange(tasks), ROWS)
    a, b = intercept * draw.normal(size=tasks), slope * draw.normal(size=tasks)
    y = 1 + 2 * time + a[task] + b[task] * time + noise * draw.normal(size=len(time))
    y = np.where(spoilt & (task >= tasks - tasks // 4) & (np.tile(np.arange(ROWS), tasks) >= SHOTS), 1e6, y)
    rows = Rows(
        torch.tensor(time[:, None]), torch.tensor(y[:, None]), torch.tensor(task), tuple(map(str, range(tasks)))
    )
    cut = tasks - tasks // 4
    splits = {"train": range(cut), "test": range(cut, tasks)}
    return row_tasks(rows, splits, support=SHOTS, order="first", details=DETAILS)


def learned(name, tasks):
    learner = MADE[name]()
    meta = learner.init(None)
    meta = Meta({}, {key: v.double() if v.is_floating_point() else v for key, v in meta.structure.items()})
    return learner, meta if learner.prepare is None else learner.prepare(meta, tasks, 0)


def rmse(name, tasks):
    return evaluate(*learned(name, tasks), tasks).mean ** 0.5


def predicted(name, tasks, numbers=(0, 1)):
    learner, meta = learned(name, tasks)
    episodes = tasks.sample("test", numbers)
    adapted, _ = learner.adapt(meta, episodes.support)
    return learner, adapted, episodes


def test_the_mixed_model_is_better_than_pooled_and_alone_where_tasks_differ():
    tasks = lines(slope=0.7)
    assert rmse("mixed", tasks) < 0.7 * rmse("pooled", tasks)
    assert rmse("mixed", tasks) < 0.9 * rmse("alone", tasks)


def test_the_pooled_model_is_better_than_one_of_a_task_alone_where_tasks_are_alike():
    tasks = lines(intercept=0.0, slope=0.0)
    assert rmse("pooled", tasks) < 0.7 * rmse("alone", tasks)
    assert rmse("pooled", tasks) == pytest.approx(0.2, rel=0.2)


def test_an_intercept_for_each_task_is_enough_where_only_levels_differ():
    tasks = lines(intercept=2.0, slope=0.0)
    assert rmse("effects", tasks) < 0.3 * rmse("pooled", tasks)
    assert rmse("boosted", tasks) < 0.7 * rmse("category", tasks)


@pytest.mark.parametrize("name", MADE)
def test_answers_are_the_same_each_time_and_for_each_task_alone(name, monkeypatch):
    tasks = lines(tasks=12)
    with warnings.catch_warnings(action="error"):
        learner, adapted, episodes = predicted(name, tasks, (0, 1, 2))
        found = learner.predict(adapted, episodes.query.x)
    assert found.shape == episodes.query.y.shape and found.isfinite().all()
    pooled_module._FITS.clear()  # nothing is remembered
    learner, adapted, episodes = predicted(name, tasks, (1,))
    assert torch.equal(learner.predict(adapted, episodes.query.x)[0], found[1])
    if learner.distribution is not None:
        mean, variance = learner.distribution(adapted, episodes.query.x)
        assert torch.equal(mean[0], found[1]) and (variance > 0).all()


@pytest.mark.parametrize("name", MADE)
def test_no_answer_depends_on_a_query_target_or_on_what_is_masked(name):
    tasks = lines(tasks=8)
    learner, adapted, episodes = predicted(name, tasks)
    x, y, *_ = episodes.support
    padded = Batch(*(torch.cat([part, torch.full_like(part[:, :2], torch.nan)], 1) for part in (x, y)))
    mask = (torch.arange(SHOTS + 2) < SHOTS).expand(len(y), -1)
    again, _ = learner.adapt(adapted.meta, padded._replace(mask=mask))
    expected = learner.predict(adapted, episodes.query.x)
    torch.testing.assert_close(learner.predict(again, episodes.query.x), expected, rtol=1e-9, atol=1e-9)
    learner, adapted, episodes = predicted(name, lines(tasks=8, spoilt=True))
    assert (episodes.query.y == 1e6).all()
    assert torch.equal(learner.predict(adapted, episodes.query.x), expected)


@pytest.mark.parametrize("name", ["mixed, quadratic", "boosted", "category", "effects", "pooled", "alone", "process"])
def test_baselines_keep_the_contract(name):
    learner, meta = learned(name, lines(tasks=8))
    check_learner(
        learner._replace(init=lambda generator: copied(meta), prepare=None),
        random_episodes((1,), outputs=1, regression=True),
    )


@pytest.mark.parametrize("name", ["mixed", "effects", "pooled"])
def test_nine_of_ten_intervals_cover_where_the_model_is_right(name):
    inside = []
    for seed in range(4):
        tasks = lines(0.0 if name == "pooled" else 1.0, 0.0, tasks=40, seed=seed)
        inside.append(evaluate(*learned(name, tasks), tasks).calibration.coverage)
    assert np.mean(inside) == pytest.approx(0.9, abs=0.05)


def test_the_mixed_model_agrees_with_the_effects_of_statsmodels(shared_data):
    """On all rows of training tasks of a real panel, whose effects statsmodels tells itself."""
    path = Path(shared_data, "panel", "sleepstudy.csv")
    if not path.is_file():
        pytest.skip("the shared data have no panel of sleep")
    from statsmodels.regression.mixed_linear_model import MixedLM

    tasks = table(
        data=path, task_column="Subject", target="Reaction", columns="Days", time_column="Days", order="first"
    )
    learner = mixed_effects(inputs=1)
    meta = start(learner, tasks=tasks).meta
    every = list(rows_of(tasks))
    x, y = (np.concatenate([np.concatenate(pair) for pair in pairs]) for pairs in (
        [(task.x, task.query) for task, _ in every], [(task.y, later) for task, later in every]))  # fmt: skip
    group = np.repeat(np.arange(len(every)), 10)
    design = np.column_stack([np.ones(len(x)), x])
    found = MixedLM(y[:, 0], design, group, exog_re=design).fit(method=["lbfgs"])
    assert meta.structure["fixed"][0].tolist() == pytest.approx(found.fe_params.tolist(), rel=1e-3, abs=1e-3)
    rows = [torch.tensor(values.reshape(len(every), 10, 1), dtype=torch.float32) for values in (x, y)]
    adapted, _ = learner.adapt(meta, Batch(*rows))
    predicted = learner.predict(adapted, rows[0]).flatten().numpy()
    np.testing.assert_allclose(predicted, found.fittedvalues, atol=2e-3)


def test_the_best_linear_unbiased_prediction_is_the_posterior_of_the_normal_model():
    """Against the joint normal distribution of all of a task's rows, conditioned by the textbook."""
    draw = np.random.default_rng(0)
    t, asked = draw.normal(size=4), draw.normal(size=3)
    g, noise, beta, y = np.array([[1.0, 0.3], [0.3, 0.5]]), 0.2, np.array([0.5, -1.0]), draw.normal(size=4)
    learner = mixed_effects(inputs=1)
    known = {"fixed": beta[None], "fixed_covariance": np.zeros((1, 2, 2)), "random_covariance": g[None],
             "noise": np.array([noise]), "time": np.ones(1)}  # fmt: skip
    meta = Meta({}, {name: torch.tensor(value) for name, value in known.items()})
    adapted, _ = learner.adapt(meta, Batch(torch.tensor(t).view(1, 4, 1), torch.tensor(y).view(1, 4, 1)))
    mean, variance = learner.distribution(adapted, torch.tensor(asked).view(1, 3, 1))
    x, q = (np.column_stack([np.ones_like(v), v]) for v in (t, asked))
    both = np.vstack([x, q])
    joint = both @ g @ both.T + noise * np.eye(7)
    gain = joint[4:, :4] @ np.linalg.inv(joint[:4, :4])
    np.testing.assert_allclose(mean.flatten(), q @ beta + gain @ (y - x @ beta))
    np.testing.assert_allclose(variance.flatten(), np.diag(joint[4:, 4:] - gain @ joint[:4, 4:]))


def test_a_mixed_model_that_does_not_converge_loses_its_slopes_and_then_says_so(monkeypatch):
    converged = mixed_module._converged
    monkeypatch.setattr(
        mixed_module, "_converged", lambda y, x, z, g: None if z.shape[1] > 1 else converged(y, x, z, g)
    )
    found = learned("mixed", lines(tasks=8))[1].structure["random_covariance"][0]
    assert found[0, 0] > 0 and not found[1].any() and not found[:, 1].any()
    monkeypatch.setattr(mixed_module, "_converged", lambda *given: None)
    with pytest.raises(DivergenceError, match="not even with an intercept"):
        learned("mixed", lines(tasks=8))


def test_a_spline_is_linear_beyond_its_knots_and_bends_between_them():
    time, knots = torch.linspace(-3, 3, 601, dtype=torch.float64).unsqueeze(-1), torch.linspace(-1, 1, 5).double()
    bends = mixed_module._spline(time, knots)
    second = bends.diff(dim=0).diff(dim=0)
    outside = time[1:-1, 0].abs() > 1.02
    assert second[outside].abs().max() < 1e-10 < second[~outside].abs().max()
    assert np.linalg.matrix_rank(np.column_stack([np.ones(601), time, bends])) == 5
    tasks = lines(tasks=8)
    short = tasks._replace(sample=lambda split, n: type(tasks.sample(split, n))(*(
        batch._replace(x=batch.x.round()) for batch in tasks.sample(split, n))))  # fmt: skip
    with pytest.raises(UsageError, match="6 knots needs as many different times, got 3"):
        learned("mixed, spline", short)


def test_columns_that_say_the_same_have_no_weight():
    same = np.array([[1.0, 1, 0, 2], [1, 0, 1, 2], [1, 1, 0, 2], [1, 0, 1, 3]])
    assert mixed_module._independent(same) == [0, 1, 3]


def test_a_trend_needs_a_time():
    tasks = lines(tasks=8)._replace(details={})
    learner = mixed_effects(inputs=1, trend="quadratic")
    assert learner.prepare(learner.init(None), tasks, 0).structure["time"].tolist() == [1], "the only input is time"
    learner = mixed_effects(inputs=2, trend="quadratic")
    with pytest.raises(UsageError, match="name the column with --time-column"):
        learner.prepare(learner.init(None), tasks, 0)


def test_the_penalty_of_the_models_of_a_task_is_the_training_tasks_choice():
    """Where slopes matter and noise does not, each task's own line is found; where there is only noise, its mean."""
    assert rmse("alone", lines(slope=1.0, noise=1e-4)) < 0.1
    assert learned("alone", lines(slope=1.0, noise=1e-4))[1].structure["penalty"] == PENALTIES[0]
    draw = torch.Generator().manual_seed(0)
    noise = lines(slope=0.0)
    flat = noise._replace(sample=lambda split, n: type(noise.sample(split, n))(*(
        batch._replace(y=torch.randn(batch.y.shape, generator=draw, dtype=batch.y.dtype))
        for batch in noise.sample(split, n))))  # fmt: skip
    assert learned("alone", flat)[1].structure["penalty"] >= 10


def test_least_squares_are_those_of_numpy():
    tasks = lines(tasks=8)
    every = list(rows_of(tasks))
    x = np.concatenate([part for task, _ in every for part in (task.x, task.query)])[:, 0]
    y = np.concatenate([part for task, later in every for part in (task.y, later)])[:, 0]
    learner, adapted, episodes = predicted("pooled", tasks)
    expected = np.polyval(np.polyfit(x, y, 2), episodes.query.x)
    np.testing.assert_allclose(learner.predict(adapted, episodes.query.x), expected, rtol=1e-7)
    # a column of 0 and 1 for each task
    own, later = (np.asarray(part[0, :, 0]) for part in episodes.support[:2])
    number = np.append(np.repeat(np.arange(6), ROWS), np.full(SHOTS, 6))
    design = np.column_stack([np.append(x, own), np.append(x, own) ** 2, np.equal.outer(number, np.arange(7))])
    weights = np.linalg.lstsq(design, np.append(y, later), rcond=None)[0]
    learner, adapted, _ = predicted("effects", tasks)
    asked = np.asarray(episodes.query.x[0, :, 0])
    expected = asked * weights[0] + asked**2 * weights[1] + weights[-1]
    np.testing.assert_allclose(learner.predict(adapted, episodes.query.x)[0, :, 0], expected, rtol=1e-7)


def test_boosted_trees_are_those_of_scikit_learn():
    from sklearn.ensemble import HistGradientBoostingRegressor

    tasks = lines(tasks=12)
    x, y = [], []
    for task, later in rows_of(tasks):
        past = task.x[:, 0] - task.x[:, 0].mean()
        own = [task.y.mean(), task.y[-1, 0], past @ task.y[:, 0] / (past @ past)]
        x += [[*row, *own] for row in task.query]
        y += (later[:, 0] - own[0]).tolist()
    model = HistGradientBoostingRegressor(
        early_stopping=False, random_state=0, max_iter=30, learning_rate=0.05, max_depth=3, min_samples_leaf=10,
        l2_regularization=1.0,
    ).fit(x, y)  # fmt: skip
    learner, adapted, episodes = predicted("boosted", tasks, (0,))
    own, targets = (np.asarray(part[0, :, 0]) for part in episodes.support[:2])
    past = own - own.mean()
    told = [targets.mean(), targets[-1], past @ targets / (past @ past)]
    expected = told[0] + model.predict([[row, *told] for row in episodes.query.x[0, :, 0].tolist()])
    np.testing.assert_allclose(learner.predict(adapted, episodes.query.x)[0, :, 0], expected)


@pytest.mark.parametrize(("make", "estimator"), [
    (boosted_trees, None), (pooled, "linear"), (pooled, "boosted_trees"), (task_category, "forest"),
    (task_category, "linear"), (task_category, "boosted_trees"),
])  # fmt: skip
def test_classes_are_told_apart_by_what_is_in_the_rows(make, estimator):
    """Class 0 or 1 by the sign of x; class 2 is in no row."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(12 * 20, 1, generator=draw)
    rows = Rows(x, (x[:, 0] > 0).long(), torch.arange(240) // 20, tuple(map(str, range(12))))
    tasks = row_tasks(rows, {"train": range(8), "test": range(8, 12)}, support=2, classes=3)
    learner = make(inputs=1, outputs=3, loss="cross_entropy", **({"estimator": estimator} if estimator else {}))
    meta = start(learner, tasks=tasks).meta
    assert evaluate(learner, meta, tasks).mean > 0.9
    episodes = tasks.sample("test", [0])
    outputs = learner.predict(learner.adapt(meta, episodes.support)[0], episodes.query.x)
    torch.testing.assert_close(outputs.exp().sum(-1), torch.ones(outputs.shape[:2]))


def test_a_category_has_an_end():
    learner = task_category(inputs=1)
    rows = {"rows.x": torch.zeros(300, 1), "rows.y": torch.zeros(300, 1), "rows.task": torch.arange(300),
            "rows.support": torch.zeros(300, dtype=torch.bool), "time": torch.ones(1)}  # fmt: skip
    adapted, _ = learner.adapt(Meta({}, rows), Batch(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1)))
    with pytest.raises(UsageError, match="at most 255 tasks apart, got 300 training tasks"):
        learner.predict(adapted, torch.zeros(1, 1, 1))


@pytest.mark.parametrize("name", ["mixed_effects", "boosted_trees", "task_category", "pooled", "one_model_per_task"])
def test_mistakes_are_told(name, monkeypatch):
    make = registry.load("method", name)
    with pytest.raises(UsageError, match="at least 1"):
        make(inputs=0)
    wrong = {"mixed_effects": "trend", "boosted_trees": "loss"}.get(name, "estimator")
    with pytest.raises(UnknownNameError, match=f"{wrong} 'linar'"):
        make(inputs=1, **{wrong: "linar"})
    with pytest.raises(ShapeError, match="takes targets"):
        make(inputs=1).adapt(
            make(inputs=1).init(None), Batch(torch.zeros(1, 2, 1), torch.zeros(1, 2, dtype=torch.int64))
        )
    with pytest.raises(ShapeError, match=r"of 1 numbers; got \(1, 2, 3\)"):
        make(inputs=1).adapt(make(inputs=1).init(None), Batch(torch.zeros(1, 2, 3), torch.zeros(1, 2, 1)))


def test_what_is_not_installed_is_named_with_how_to(monkeypatch):
    monkeypatch.setattr(estimators, "import_module", lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name)))
    with pytest.raises(UsageError, match=r"scikit-learn is not installed.*pip install headstart\[baselines\]"):
        boosted_trees(inputs=1)
    with pytest.raises(UsageError, match=r"statsmodels is not installed.*pip install headstart\[baselines\]"):
        learned("mixed", lines(tasks=8))


def test_a_table_is_ranked_and_a_run_goes_on_and_learns_a_new_task(tmp_path, capsys):
    from headstart.cli.app import run

    draw = np.random.default_rng(0)
    rows = [[task, t, round(3 * draw.normal() + task + 2 * t, 3)] for task in range(12) for t in range(8)]
    text = ["unit,t,dose", *(",".join(map(str, row)) for row in rows)]
    (tmp_path / "doses.csv").write_text("\n".join(text))
    (tmp_path / "new.csv").write_text("\n".join(["t,dose", "0,5", "1,7.5", "2,9"]))
    words = ["compare", str(tmp_path / "doses.csv"), "--task-column", "unit", "--target", "dose", "--time-column", "t"]
    words += ["--methods", "mixed_effects,boosted_trees,pooled", "--out", str(tmp_path / "runs"), "--json"]
    assert run(words) == 0
    first = capsys.readouterr()
    assert run(words) == 0
    again = capsys.readouterr()
    assert "trained already" in again.err
    mse = [[row["mse"] for row in json.loads(said.out)["table"]] for said in (first, again)]
    assert mse[0] == mse[1] and len(mse[0]) == 3
    for name in ("mixed_effects", "boosted_trees"):
        assert (
            run(["adapt", str(tmp_path / "runs" / name), str(tmp_path / "new.csv"), "--out", str(tmp_path / name)]) == 0
        )
        assert run(["predict", str(tmp_path / name), str(tmp_path / "new.csv")]) == 0
        assert "prediction" in capsys.readouterr().out
