"""Scores on fixed tasks."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import headstart
from headstart.errors import ConfigError, DataError, DivergenceError
from headstart.tasks.sinusoid import sinusoid
from headstart.training.evaluate import better, evaluate
from headstart.types import Adapted, Batch, Episodes, Info, Learner, Meta, Tasks


def test_mean_interval_and_steps_against_numbers_by_hand(
    mean_learner: Callable[..., Learner], line_tasks: Callable[..., Tasks]
) -> None:
    learner = mean_learner(steps=1)
    score = evaluate(learner, learner.init(None), line_tasks(), episodes=7, steps=[0, 2], batch=3)
    targets = np.arange(7.0)
    for steps, found in score.by_inner_step.items():
        errors = (targets * 0.5**steps) ** 2
        assert found.mean == pytest.approx(errors.mean())
        assert found.ci95 == pytest.approx(1.96 * errors.std(ddof=1) / math.sqrt(7))
    assert sorted(score.by_inner_step) == [0, 1, 2]
    assert score.values == pytest.approx((targets / 2) ** 2)
    assert (score.mean, score.ci95) == score.by_inner_step[1]
    assert (score.metric, score.episodes, score.split) == ("mse", 7, "test")
    assert evaluate(learner, learner.init(None), line_tasks(), episodes=7, steps=2).mean == pytest.approx(
        score.by_inner_step[2].mean
    )


def test_evaluation_changes_nothing_and_gives_the_same_twice() -> None:
    learner = headstart.maml(headstart.mlp(1, 1), loss="mse", steps=1, taskmap="vmap")
    meta = learner.init(None)
    before = {name: value.clone() for name, value in meta.params.items()}
    scores = [evaluate(learner, meta, sinusoid(shots=5), episodes=30, steps=[0]) for _ in range(2)]
    assert scores[0] == scores[1]
    assert all(torch.equal(value, meta.params[name]) for name, value in before.items())
    assert all(value.grad is None for value in meta.params.values())


def test_the_batch_size_matters_by_rounding_only() -> None:
    learner = headstart.maml(headstart.mlp(1, 1), loss="mse", steps=1, taskmap="vmap")
    scores = [evaluate(learner, learner.init(None), sinusoid(shots=5), episodes=10, batch=b) for b in (1, 10)]
    assert scores[0].values == pytest.approx(scores[1].values, rel=1e-5)


def _constant_classifier() -> Learner:
    """Always say class 0."""

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        return Adapted(meta, {}, {}, None), Info(torch.zeros(0, 1))

    def predict(adapted: Adapted, x: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0]).expand(*x.shape[:2], 2)

    return Learner(lambda generator: Meta({}, {}), adapt, predict, lambda outputs, batch: outputs.sum((1, 2)), None)


def test_accuracy_counts_only_examples_that_are_there() -> None:
    def sample(split: str, numbers: Sequence[int]) -> Episodes:
        y = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]])[[n % 2 for n in numbers]]
        mask = torch.tensor([[True, True, False, False], [True, True, True, False]])[[n % 2 for n in numbers]]
        batch = Batch(torch.zeros(len(numbers), 4, 1), y, mask)
        return Episodes(batch, batch)

    tasks = Tasks("two", sample, "classification", (1,), 2, {})
    score = evaluate(_constant_classifier(), Meta({}, {}), tasks, episodes=4)
    assert score.values == (0.5, 1.0, 0.5, 1.0) and score.metric == "accuracy" and score.by_inner_step == {}


def test_data_that_are_not_finite_are_named(
    mean_learner: Callable[..., Learner], line_tasks: Callable[..., Tasks]
) -> None:
    def spoil(numbers: Sequence[int], y: Tensor) -> None:
        if 4 in numbers:
            y[list(numbers).index(4)] = math.nan

    with pytest.raises(DataError, match="split 'test', task 4,"):
        evaluate(mean_learner(), mean_learner().init(None), line_tasks(spoil), episodes=6)


def test_divergence_is_an_error_for_the_score_and_a_gap_for_more_steps() -> None:
    tasks = sinusoid(shots=5)
    wild = headstart.maml(headstart.mlp(1, 1), loss="mse", steps=20, rate=50.0, taskmap="vmap")
    with pytest.raises(DivergenceError, match="split 'test'.*not finite.*--inner-rate"):
        evaluate(wild, wild.init(None), tasks, episodes=4)
    calm = headstart.maml(headstart.mlp(1, 1), loss="mse", steps=0, rate=50.0, taskmap="vmap")
    score = evaluate(calm, calm.init(None), tasks, episodes=4, steps=[20])
    assert math.isfinite(score.mean) and not math.isfinite(score.by_inner_step[20].mean)


def test_too_few_episodes_are_refused(mean_learner: Callable[..., Learner], line_tasks: Callable[..., Tasks]) -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        evaluate(mean_learner(), mean_learner().init(None), line_tasks(), episodes=1)


def test_better_goes_by_the_metric() -> None:
    assert better("accuracy", 0.6, 0.5) and not better("accuracy", 0.5, 0.5)
    assert better("mse", 0.4, 0.5) and not better("mse", 0.5, 0.5)
    assert better("mse", 9.0, None)
