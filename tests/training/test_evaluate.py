"""Scores on fixed tasks."""

import math

import numpy as np
import pytest
import torch

import headstart
from headstart.data.curves.sinusoid import sinusoid
from headstart.errors import ConfigError, DataError, DivergenceError
from headstart.training.calibration import calibrated
from headstart.training.evaluate import calibrate, evaluate, interval, student
from headstart.types import Adapted, Batch, Episodes, Gaussian, Info, Learner, Meta, Tasks


def test_mean_interval_and_steps_against_numbers_by_hand(mean_learner, line_tasks):
    learner = mean_learner(steps=1)
    score = evaluate(learner, learner.init(None), line_tasks(), episodes=7, steps=[0, 2], batch=3)
    targets = np.arange(7.0)
    for steps, found in score.by_inner_step.items():
        errors = (targets * 0.5**steps) ** 2
        assert found.mean == pytest.approx(errors.mean())
        assert found.ci95 == pytest.approx(2.4469119 * errors.std(ddof=1) / math.sqrt(7))
    assert sorted(score.by_inner_step) == [0, 1, 2]
    assert score.values == pytest.approx((targets / 2) ** 2)
    assert (score.mean, score.ci95) == score.by_inner_step[1]
    assert (score.metric, score.episodes, score.split) == ("mse", 7, "test")
    assert evaluate(learner, learner.init(None), line_tasks(), episodes=7, steps=2).mean == pytest.approx(
        score.by_inner_step[2].mean
    )


def test_evaluation_changes_nothing_and_gives_the_same_twice():
    learner = headstart.maml(headstart.mlp(1, 1), loss="mse", steps=1, taskmap="vmap")
    meta = learner.init(None)
    before = {name: value.clone() for name, value in meta.params.items()}
    scores = [evaluate(learner, meta, sinusoid(shots=5), episodes=30, steps=[0]) for _ in range(2)]
    assert scores[0] == scores[1]
    assert all(torch.equal(value, meta.params[name]) for name, value in before.items())
    assert all(value.grad is None for value in meta.params.values())


def test_the_batch_size_matters_by_rounding_only():
    learner = headstart.maml(headstart.mlp(1, 1), loss="mse", steps=1, taskmap="vmap")
    scores = [evaluate(learner, learner.init(None), sinusoid(shots=5), episodes=10, batch=b) for b in (1, 10)]
    assert scores[0].values == pytest.approx(scores[1].values, rel=1e-5)


def _constant_classifier():
    """Always say class 0."""

    def adapt(meta, support, /, steps=None):
        return Adapted(meta, {}, {}, None), Info(torch.zeros(0, 1))

    def predict(adapted, x):
        return torch.tensor([1.0, 0.0]).expand(*x.shape[:2], 2)

    return Learner(lambda generator: Meta({}, {}), adapt, predict, lambda outputs, batch: outputs.sum((1, 2)), None)


def test_accuracy_counts_only_examples_that_are_there():
    def sample(split, numbers):
        y = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]])[[n % 2 for n in numbers]]
        mask = torch.tensor([[True, True, False, False], [True, True, True, False]])[[n % 2 for n in numbers]]
        batch = Batch(torch.zeros(len(numbers), 4, 1), y, mask)
        return Episodes(batch, batch)

    tasks = Tasks("two", sample, "classification", (1,), 2, {})
    score = evaluate(_constant_classifier(), Meta({}, {}), tasks, episodes=4)
    assert score.values == (0.5, 1.0, 0.5, 1.0) and score.metric == "accuracy" and score.by_inner_step == {}


def test_data_that_are_not_finite_are_named(mean_learner, line_tasks):
    def spoil(numbers, y):
        if 4 in numbers:
            y[list(numbers).index(4)] = math.nan

    with pytest.raises(DataError, match="split 'test', task 4,"):
        evaluate(mean_learner(), mean_learner().init(None), line_tasks(spoil), episodes=6)


def test_divergence_is_an_error_for_the_score_and_a_gap_for_more_steps():
    tasks = sinusoid(shots=5)
    wild = headstart.maml(headstart.mlp(1, 1), loss="mse", steps=20, rate=50.0, taskmap="vmap")
    with pytest.raises(DivergenceError, match="split 'test'.*not finite.*--inner-rate"):
        evaluate(wild, wild.init(None), tasks, episodes=4)
    calm = headstart.maml(headstart.mlp(1, 1), loss="mse", steps=0, rate=50.0, taskmap="vmap")
    score = evaluate(calm, calm.init(None), tasks, episodes=4, steps=[20])
    assert math.isfinite(score.mean) and not math.isfinite(score.by_inner_step[20].mean)


def test_too_few_episodes_are_refused(mean_learner, line_tasks):
    with pytest.raises(ConfigError, match="at least 2"):
        evaluate(mean_learner(), mean_learner().init(None), line_tasks(), episodes=1)


def _said(variance):
    """Say N(0, variance) of everything."""

    def distribution(adapted, x):
        return Gaussian(torch.zeros_like(x), torch.full_like(x, variance))

    return _constant_classifier()._replace(
        predict=lambda adapted, x: distribution(adapted, x).mean, distribution=distribution
    )


def _ragged(unit=1.0, counts=None):
    """Task t has t + 1 query values, of which t are 0 and one is 2; what is masked is NaN."""

    def sample(split, numbers):
        place, sizes = torch.arange(4), torch.tensor(list(numbers))[:, None]
        y = torch.where(place == sizes, 2.0, torch.where(place < sizes, 0.0, math.nan))[..., None]
        query = Batch(torch.ones_like(y), y, place <= sizes)
        return Episodes(Batch(torch.ones_like(y), torch.ones_like(y)), query)

    return Tasks("ragged", sample, "regression", (1,), 1, {}, counts, unit)


def test_calibration_is_over_all_query_values_that_are_there():
    score = evaluate(_said(1.0), Meta({}, {}), _ragged(), episodes=4)
    found = score.calibration
    assert found is not None and found.level == 0.9
    # of 1 + 2 + 3 + 4 values one a task lies outside ± 1.64, not the mean over tasks of 0, 1/2, 2/3, 3/4
    assert found.coverage == pytest.approx(0.6)
    assert found.width == pytest.approx(2 * 1.6448536)
    errors = np.array([4 / size for size in (1, 2, 3, 4)])
    nll = 0.5 * math.log(2 * math.pi) + 0.5 * errors
    assert found.nll.mean == pytest.approx(nll.mean())
    assert found.nll.ci95 == pytest.approx(3.1824463 * nll.std(ddof=1) / 2)
    assert score.values == pytest.approx(errors)


def test_errors_are_in_the_datas_own_unit():
    plain, metres = (evaluate(_said(1.0), Meta({}, {}), _ragged(unit), episodes=4) for unit in (1.0, 100.0))
    assert metres.mean == pytest.approx(1e4 * plain.mean) and metres.ci95 == pytest.approx(1e4 * plain.ci95)
    assert metres.values == pytest.approx([1e4 * value for value in plain.values])
    assert plain.calibration is not None and metres.calibration is not None
    assert metres.calibration.width == pytest.approx(100 * plain.calibration.width)
    assert metres.calibration.coverage == plain.calibration.coverage
    # the density of a value in centimetres is a hundredth of that in metres
    assert metres.calibration.nll.mean == pytest.approx(plain.calibration.nll.mean + math.log(100))
    assert metres.calibration.nll.ci95 == pytest.approx(plain.calibration.nll.ci95)


def test_units_apply_to_every_number_of_steps(mean_learner, line_tasks):
    learner = mean_learner(steps=1)
    plain, scaled = (
        evaluate(learner, learner.init(None), line_tasks()._replace(unit=unit), episodes=7, steps=[0])
        for unit in (1.0, 3.0)
    )
    for count, found in plain.by_inner_step.items():
        assert scaled.by_inner_step[count] == pytest.approx((9 * found.mean, 9 * found.ci95))
    assert plain.calibration is None


def test_accuracy_has_no_unit():
    def sample(split, numbers):
        batch = Batch(torch.zeros(len(numbers), 4, 1), torch.zeros(len(numbers), 4, dtype=torch.int64))
        return Episodes(batch, batch)

    tasks = Tasks("zeros", sample, "classification", (1,), 2, {}, None, 100.0)
    assert evaluate(_constant_classifier(), Meta({}, {}), tasks, episodes=4).mean == 1


def test_no_more_tasks_are_looked_at_than_there_are():
    asked = []
    counts = {"train": 0, "validation": 1, "test": 3}
    score = evaluate(_said(1.0), Meta({}, {}), _ragged(counts=counts), batch=2, on_batch=asked.append)
    assert (score.episodes, len(score.values), asked) == (3, 3, [2, 3])
    assert evaluate(_said(1.0), Meta({}, {}), _ragged(counts=counts), episodes=2).episodes == 2
    # a single task has a score, and no interval
    one = evaluate(_said(1.0), Meta({}, {}), _ragged(counts=counts), split="validation")
    assert (one.episodes, one.mean) == (1, 4.0) and math.isnan(one.ci95)
    assert one.calibration is not None and math.isnan(one.calibration.nll.ci95)
    with pytest.raises(ConfigError, match="no task in split 'train' of 'ragged'.*0 train, 1 validation, 3 test"):
        evaluate(_said(1.0), Meta({}, {}), _ragged(counts=counts), split="train")


def test_an_interval_needs_two_values():
    assert interval([1.0, 3.0]) == pytest.approx((2.0, 12.7062047))
    mean, half = interval([5.0])
    assert mean == 5 and math.isnan(half)


def test_intervals_hold_as_much_as_they_say_where_tasks_are_few():
    values = torch.randn(4000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    held = [abs(mean) <= half for mean, half in (interval(row) for row in values.tolist())]
    assert sum(held) / len(held) == pytest.approx(0.95, abs=0.012)
    assert [student(count) for count in (2, 30, 599, 20_000)] == pytest.approx([4.302653, 2.042272, 1.963932, 1.96])


def test_a_distribution_that_is_none_is_an_error():
    for variance in (0.0, math.nan):
        with pytest.raises(DivergenceError, match="not finite"):
            evaluate(_said(variance), Meta({}, {}), _ragged(), episodes=4)


def test_rmse_mae_and_r2_are_those_of_numpy(mean_learner, line_tasks):
    learner = mean_learner(steps=1)
    score = evaluate(learner, learner.init(None), line_tasks()._replace(unit=2.0), episodes=7, batch=3)
    off, y = np.repeat(np.arange(7.0), 3), 2 * np.repeat(np.arange(7.0), 3)
    assert score.errors == pytest.approx((np.sqrt((off**2).mean()), off.mean(), 1 - (off**2).sum() / y.var() / 21))
    assert score.median == 9 and score.worst == (6, 36)


def test_predictions_are_kept_near_the_targets_of_training_tasks(mean_learner, line_tasks):
    learner = mean_learner(steps=0)
    meta = learner.init(None)
    meta.params["w"] += 2e7
    wild, kept = (evaluate(learner, meta, line_tasks()._replace(limits=ends), episodes=5) for ends in (None, (0, 4)))
    assert wild.mean > 1e14 and kept.mean < 64


def _many(spreads):
    """Task t has 20 normal targets about 0, of the standard deviation ``spreads[t]``."""

    def sample(split, numbers):
        draw = torch.Generator().manual_seed({"validation": 0, "test": 1}[split])
        y = torch.randn(len(spreads), 20, 1, generator=draw) * torch.tensor(spreads).view(-1, 1, 1)
        batch = Batch(torch.ones_like(y), y)
        return Episodes(*(Batch(*(part[list(numbers)] for part in batch[:2])) for _ in range(2)))

    return Tasks("many", sample, "regression", (1,), 1, {}, dict.fromkeys(("validation", "test"), len(spreads)))


@pytest.mark.parametrize("own", [True, False])
def test_intervals_hold_what_they_say_of_tasks_that_differ(mean_learner, own):
    learner = mean_learner(steps=0)

    def distribution(adapted, x):
        return Gaussian(learner.predict(adapted, x), torch.full_like(x, 0.09))

    learner = learner._replace(distribution=distribution if own else None)
    tasks, meta = _many([0.5, 1.0, 2.0, 4.0] * 10), learner.init(None)
    spread = calibrate(learner, meta, tasks)
    assert spread is not None and spread.tasks == 40
    before = evaluate(learner, meta, tasks).calibration
    after = evaluate(calibrated(learner, spread), meta, tasks).calibration
    assert before is None or before.coverage < 0.5
    assert after is not None and 0.87 < after.coverage < 0.95
    few = calibrate(learner, meta, _many([1.0, 2.0, 3.0]))
    assert few is not None and few.tasks == 3 and 0 < few.factor < 100
