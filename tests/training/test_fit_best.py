"""Training that keeps the weights that do best on the validation tasks."""

import math

import pytest
import torch

from headstart.training.fit_best import first, fit_best
from headstart.training.loop import start
from headstart.types import Meta


@pytest.mark.parametrize("larger", [False, True])
def test_the_best_of_all_looks_is_kept_and_a_tie_or_no_number_is_not_better(larger, mean_learner, line_tasks):
    values = iter([3.0, 5.0, 1.0, 1.0, math.nan, 2.0] if not larger else [3.0, 1.0, 5.0, 5.0, math.nan, 4.0])
    seen = []

    def judge(meta):
        seen.append(Meta(*({name: value.clone() for name, value in part.items()} for part in meta)))
        return next(values)

    state = start(mean_learner())
    best = first(state.meta, judge)
    looks = list(
        fit_best(
            mean_learner(),
            line_tasks(),
            state=state,
            best=best,
            judge=judge,
            steps=9,
            every=2,
            larger=larger,
            tasks_per_step=2,
        )
    )
    assert [look.record.step for look in looks if look.value is not None] == [2, 4, 6, 8, 9]
    assert [look.best.step for look in looks] == [0, 0, 0, 4, 4, 4, 4, 4, 4]
    assert torch.equal(looks[-1].best.meta.params["w"], seen[2].params["w"])


def test_without_a_judge_the_last_weights_are_the_best(mean_learner, line_tasks):
    state = start(mean_learner())
    begun = first(state.meta, None)
    looks = list(
        fit_best(mean_learner(), line_tasks(), state=state, best=begun, judge=None, steps=3, every=1, tasks_per_step=2)
    )
    assert [look.best.step for look in looks] == [0, 0, 3] and {look.value for look in looks} == {None}
    assert torch.equal(looks[-1].best.meta.params["w"], state.meta.params["w"])
