import math

import numpy as np
import pytest

from headstart.training.evaluate import interval, student
from headstart.training.over_seeds import over_seeds


def test_one_run_has_the_interval_over_tasks_that_it_has_alone():
    values = [0.3, 0.5, 0.9, 0.2]
    found = over_seeds([dict(enumerate(values))])
    assert (found.mean, found.tasks) == pytest.approx(interval(values))
    assert math.isnan(found.seeds) and math.isnan(found.both)


def test_runs_of_a_task_each_have_an_interval_over_seeds_alone():
    found = over_seeds([{"a": 1.0}, {"a": 2.0}, {"a": 4.0}])
    assert (found.mean, found.seeds) == pytest.approx(interval([1.0, 2.0, 4.0]))
    assert math.isnan(found.tasks) and math.isnan(found.both)


def test_of_tasks_that_all_runs_share_more_runs_make_nothing_surer():
    values = {"a": 1.0, "b": 2.0, "c": 4.0}
    one, four = over_seeds([values]), over_seeds([values] * 4)
    spread = math.sqrt(7 / 3) / math.sqrt(3)  # of the mean of three tasks
    assert one.tasks == pytest.approx(student(2) * spread)
    assert four.tasks == four.both == pytest.approx(student(8) * spread)
    assert four.seeds == 0


def test_of_shared_tasks_the_variances_of_seeds_and_of_tasks_add_up():
    found = over_seeds([{"a": 0.0, "b": 2.0}, {"a": 3.0, "b": 5.0}])
    # of run means 4.5 / 2; of tasks 2 / 2; Satterthwaite's degrees of (4.5 / 2 + 1)² / ((4.5 / 2)² / 1 + 1² / 2)
    assert found.both == pytest.approx(max(student(1) * math.sqrt(3.25), found.seeds))


@pytest.mark.parametrize("tasks", ["own", "shared", "some"])
@pytest.mark.parametrize("by_seed", [0.0, 0.3])
def test_both_hold_the_mean_as_often_as_they_say(tasks, by_seed):
    random, hits, repeats, count = np.random.default_rng(0), 0, 60, 30
    for _ in range(repeats):
        seeds, every = random.normal(0, by_seed, 5), random.normal(0, 1, 5 * count)
        own = {
            "own": np.arange(5 * count).reshape(5, count),
            "shared": np.tile(np.arange(count), (5, 1)),
            "some": np.stack([random.permutation(3 * count)[:count] for _ in range(5)]),
        }[tasks]
        runs = [{int(task): seed + every[task] for task in row} for seed, row in zip(seeds, own)]
        found = over_seeds(runs)
        hits += abs(found.mean) <= found.both
    assert hits / repeats > 0.9
