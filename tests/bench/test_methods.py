"""Methods of the registry on panels: they learn, know what fits their settings, and never see a query target."""

import numpy as np
import pytest
import torch

from headstart.bench.methods import Setting, make, meta_learned, tasks_of
from headstart.bench.panels import Columns, Panel, leave_out, split
from headstart.bench.problem import Problem
from headstart.bench.settings import CLASSIFIERS, SETTINGS
from headstart.errors import DataError
from headstart.registry import METHODS

ROWS = 6
QUICK = Setting("maml", {"steps": 1, "rate": 0.2, "taskmap": "vmap"}, sizes={"hidden": (16, 16)}, steps=60)


def panel(tasks: int = 12, even: bool = True) -> Panel:
    """Return tasks y = a_task + sin 2t + noise, with two features, one of which matters not."""
    draw = np.random.default_rng(0)
    task = np.repeat(np.arange(tasks), ROWS)
    x = np.column_stack([np.tile(np.linspace(0.0, 2.0, ROWS), tasks), draw.normal(size=len(task))])
    y = 2 * draw.normal(size=tasks)[task] + np.sin(2 * x[:, 0]) + 0.05 * draw.normal(size=len(task))
    kept = np.ones(len(task), dtype=bool) if even else (task % 2 == 0) | (np.arange(len(task)) % ROWS < ROWS - 1)
    columns = Columns("id", "y", "t", ("other",))
    return Panel("waves", x[kept], y[kept], task[kept], tuple(map(str, range(tasks))), columns)


def test_meta_learning_beats_the_mean_of_the_support_rows_and_is_the_same_each_time() -> None:
    parted = split(panel(tasks=20), 2, seed=0)
    found, again = (meta_learned(QUICK)(parted.problem) for _ in range(2))
    np.testing.assert_array_equal(found.mean, again.mean)
    offsets = np.repeat([parted.problem.support.y[i : i + 2].mean() for i in range(0, 10, 2)], ROWS - 2)
    assert np.square(found.mean - parted.y).mean() < 0.5 * np.square(offsets - parted.y).mean()
    assert 0 < found.counts["best step"] <= 60


def test_tasks_of_different_sizes_are_answered_row_by_row() -> None:
    parted = split(panel(even=False), 2, seed=0)
    sizes = np.bincount(parted.problem.task)
    assert set(sizes[sizes > 0]) == {3, 4}
    found = meta_learned(QUICK._replace(steps=4))(parted.problem)
    assert found.mean.shape == parted.y.shape
    # the answers of one task do not depend on the others that are asked
    tasks = np.unique(parted.problem.task)
    there, given = parted.problem.task == tasks[0], parted.problem.support.task == tasks[0]
    support = type(parted.problem.support)(*(part[given] for part in parted.problem.support))
    alone = parted.problem._replace(x=parted.problem.x[there], task=parted.problem.task[there], support=support)
    np.testing.assert_allclose(
        meta_learned(QUICK._replace(steps=4))(alone).mean, found.mean[there], rtol=1e-4, atol=1e-5
    )


def test_no_prediction_depends_on_a_query_target() -> None:
    data = panel(tasks=8)
    asked = np.isin(data.task, leave_out(8, seed=0)[1]) & (np.arange(len(data.y)) % ROWS >= 2)
    one, other = (split(data._replace(y=np.where(asked, y, data.y)), 2, seed=0) for y in (data.y, 1e6))
    quick = QUICK._replace(steps=3)
    np.testing.assert_array_equal(meta_learned(quick)(one.problem).mean, meta_learned(quick)(other.problem).mean)
    query = tasks_of(other.problem, 0.2).sample("test", [0, 1]).query
    assert not query.y.any() and query.x.any()


def test_validation_tasks_are_held_out_of_the_training_tasks() -> None:
    problem = split(panel(tasks=12), 2, seed=0).problem
    assert tasks_of(problem, 0.2).counts == {"train": 7, "validation": 2, "test": 3}
    assert tasks_of(problem, 0.0).counts == {"train": 9, "test": 3}
    alone = problem._replace(train=type(problem.train)(*(part[problem.train.task == 0] for part in problem.train)))
    with pytest.raises(DataError, match="at least 2 training tasks, got 1"):
        tasks_of(alone, 0.2)


def test_without_validation_the_last_weights_are_kept() -> None:
    problem = split(panel(tasks=8), 2, seed=0).problem
    found = meta_learned(QUICK._replace(steps=3, validation=0.0))(problem)
    assert found.counts["best step"] == 3


def test_every_method_of_the_registry_is_in_the_settings_or_classifies() -> None:
    set_here = {setting.method for setting in SETTINGS.values()}
    assert set_here | CLASSIFIERS == {row.name for row in METHODS} and not set_here & CLASSIFIERS


@pytest.fixture(scope="module")
def problem() -> Problem:
    return split(panel(tasks=8, even=False), 3, seed=1).problem


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_makes_a_learner_that_trains_and_predicts(name: str, problem: Problem) -> None:
    setting = SETTINGS[name]._replace(steps=min(2, SETTINGS[name].steps))
    before = torch.get_rng_state()
    found = meta_learned(setting)(problem)
    assert found.mean.shape == problem.task.shape and np.isfinite(found.mean).all()
    assert found.variance is None or (found.variance > 0).all()
    assert torch.equal(before, torch.get_rng_state())


def test_a_network_starts_from_the_same_weights_each_time(problem: Problem) -> None:
    first, second = (make(QUICK, tasks_of(problem, 0.2)).init(None).params for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
