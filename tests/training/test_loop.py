"""The outer loop."""

import importlib
import math
from functools import partial

import pytest
import torch

import headstart
from headstart.data.curves.sinusoid import sinusoid
from headstart.engine import record as engine_record
from headstart.engine.accelerate import accelerate
from headstart.errors import ConfigError, DataError, DivergenceError, UnknownNameError, UsageError
from headstart.training.loop import fit, seeded, start, tensors_of
from headstart.types import Meta

accelerate_module = importlib.import_module("headstart.engine.accelerate")

SGD = partial(torch.optim.SGD, lr=0.1)


def test_a_step_is_the_optimisers_on_the_meta_gradient(mean_learner, line_tasks):
    # one inner step from w predicts (w + t) / 2, so the loss is mean (w - t)² / 4 and its gradient mean (w - t) / 2
    records = list(fit(mean_learner(), line_tasks(), steps=2, tasks_per_step=2, optimizer=SGD))
    w1 = 0.0 - 0.1 * (0 - 0.5) / 2
    w2 = w1 - 0.1 * (w1 - 2.5) / 2
    assert [r.step for r in records] == [1, 2]
    assert records[0].loss == pytest.approx((0 + 1) / 4 / 2)
    assert records[0].gradient_norm == pytest.approx(0.25)
    assert records[1].state.meta.params["w"].item() == pytest.approx(w2)


def test_a_run_in_two_parts_is_bit_equal_to_one_in_one():
    learner = headstart.maml(headstart.mlp(1, 1), loss="mse", steps=1, taskmap="vmap")
    tasks = sinusoid(shots=5, seed=3)
    options = {"tasks_per_step": 4, "schedule": "cosine", "seed": 3}
    *_, whole = fit(learner, tasks, steps=6, **options)
    part = start(learner, seed=3)
    for record in fit(learner, tasks, steps=6, state=part, **options):
        if record.step == 3:
            break
    *_, rest = fit(learner, tasks, steps=6, state=part, **options)
    assert all(map(torch.equal, tensors_of(whole.state.meta), tensors_of(rest.state.meta)))


def test_what_repays_is_compiled_and_a_run_in_two_parts_is_bit_equal_to_one_in_one(monkeypatch, caplog):
    monkeypatch.setattr(accelerate_module, "FEW_STEPS", 1)
    monkeypatch.setattr(accelerate_module, "SAVED", 1.0)
    learner = headstart.maml(headstart.mlp(1, 1, hidden=(4,)), loss="mse", steps=2)
    options = {"tasks_per_step": 4, "seed": 3}
    with caplog.at_level("INFO", "headstart"):
        *_, whole = fit(learner, sinusoid(shots=5), steps=4, **options)
    assert caplog.text.count("meta-gradient compiled") == 1
    part = start(learner, seed=3)
    for record in fit(learner, sinusoid(shots=5), steps=4, state=part, **options):
        if record.step == 1:
            break
    *_, rest = fit(learner, sinusoid(shots=5), steps=4, state=part, **options)
    assert all(map(torch.equal, tensors_of(whole.state.meta), tensors_of(rest.state.meta)))
    caplog.clear()
    compared = []  # a program with the uncompiled step: at the start, whenever a run goes on
    with monkeypatch.context() as patch:
        patch.setattr(engine_record, "differing", lambda got, *_: compared.append(got) or "")
        next(fit(learner, sinusoid(shots=5), steps=4, **options))
        next(fit(learner, sinusoid(shots=5), steps=5, state=part, **options))
    first, again = compared
    assert all(map(torch.equal, tensors_of(first[0]), tensors_of(again[0])))
    caplog.clear()
    with caplog.at_level("INFO", "headstart"):
        *_, plain = fit(accelerate(learner), sinusoid(shots=5), steps=4, **options)
        *_, skipping = fit(learner, sinusoid(shots=5), steps=4, on_nonfinite="skip", **options)
    assert "compiled" not in caplog.text
    for one, *others in zip(*(tensors_of(record.state.meta) for record in (plain, skipping, whole))):
        assert torch.equal(one, others[0]) and torch.allclose(one, others[1], atol=1e-5)


def test_a_learner_reads_the_training_tasks_before_its_first_step(mean_learner, line_tasks):
    asked = []

    def prepare(meta, tasks, seed, folder=None):
        asked.append((tasks.name, seed, folder))
        return Meta({"w": torch.full_like(meta.params["w"], 2.5)}, meta.structure)

    learner, tasks = mean_learner()._replace(prepare=prepare), line_tasks()
    assert start(learner, seed=4).meta.params["w"] == 0 and not asked
    state = start(learner, seed=4, tasks=tasks)
    assert state.meta.params["w"] == 2.5 and asked == [(tasks.name, 4, None)]
    # the optimiser has the tensors that were read off, and a state that is given is not read off again
    next(fit(learner, tasks, steps=1, state=state, optimizer=SGD))
    assert state.meta.params["w"] != 2.5 and len(asked) == 1
    next(fit(learner, tasks, steps=1))
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("schedule", "rates"), [("constant", [0.1] * 4), ("linear", [0.1, 0.075, 0.05, 0.025]), ("cosine", None)]
)
def test_the_schedule_goes_from_the_rate_towards_zero(mean_learner, line_tasks, schedule, rates):
    records = fit(mean_learner(), line_tasks(), steps=4, optimizer=SGD, schedule=schedule)
    expected = rates or [0.05 * (1 + math.cos(math.pi * done / 4)) for done in range(4)]
    assert [r.rate for r in records] == pytest.approx(expected)


def _run_until(error, learner, tasks):
    state, records = start(learner, optimizer=SGD), []
    with pytest.raises(error) as caught:
        for record in fit(learner, tasks, steps=9, tasks_per_step=4, state=state):
            records.append(record)
            before = state.meta.params["w"].clone()
    assert torch.equal(before, state.meta.params["w"]) and bool(torch.isfinite(before).all())
    return caught.value, records, before


def test_divergence_names_step_and_tasks_and_leaves_the_weights(mean_learner, line_tasks):
    def spoil(numbers, y):
        if 9 in numbers:
            y[numbers.index(9)] = 1e30  # its square is infinite in float32

    error, records, _ = _run_until(DivergenceError, mean_learner(), line_tasks(spoil))
    assert len(records) == 2
    assert "the loss of task 9 " in str(error) and "in step 3" in str(error)


def test_a_meta_gradient_that_is_not_finite_is_divergence(mean_learner, line_tasks):
    whole = mean_learner()
    inner = whole.gradient

    def broken(learner, meta, episodes):
        gradient, info = inner(learner, meta, episodes)
        return (gradient if float(meta.params["w"]) < 0.1 else Meta({"w": torch.tensor([math.inf])}, {})), info

    error, _, _ = _run_until(DivergenceError, whole._replace(gradient=broken), line_tasks())
    assert "the meta-gradient is no longer a finite number" in str(error)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_data_that_are_not_finite_name_split_and_task(mean_learner, line_tasks, value):
    def spoil(numbers, y):
        for row, number in enumerate(numbers):
            if number in (5, 7):
                y[row, 1] = value

    error, records, _ = _run_until(DataError, mean_learner(), line_tasks(spoil))
    assert len(records) == 1
    assert "split 'train', tasks 5, 7," in str(error)


def test_tasks_have_seeds_of_their_own():
    episodes = sinusoid(shots=2).sample("train", [0, 1, 2])
    first, again, other = seeded(episodes, 0, [0, 1, 2]), seeded(episodes, 0, [0, 1, 2]), seeded(episodes, 1, [0, 1, 2])
    assert first.support.seed is not None and other.support.seed is not None
    assert torch.equal(first.support.seed, again.query.seed)
    assert len(set(first.support.seed.tolist() + other.support.seed.tolist())) == 6


def test_dropout_is_on_in_training_and_off_in_evaluation():
    from headstart.training.evaluate import evaluate

    body = torch.nn.Sequential(torch.nn.Linear(1, 20), torch.nn.Dropout(0.5), torch.nn.Linear(20, 1))
    wet = headstart.maml(body, loss="mse", steps=1, taskmap="vmap")
    dry = headstart.maml(
        torch.nn.Sequential(body[0], torch.nn.Identity(), body[2]), loss="mse", steps=1, taskmap="vmap"
    )
    tasks = sinusoid(shots=5)
    losses = [next(fit(learner, tasks, steps=1, seed=seed)).loss for learner, seed in ((wet, 0), (wet, 1), (dry, 0))]
    assert len(set(losses)) == 3
    scores = [evaluate(learner, learner.init(None), tasks, episodes=4).mean for learner in (wet, dry)]
    assert scores[0] == pytest.approx(scores[1])


def test_wrong_calls_are_refused(mean_learner, line_tasks):
    with pytest.raises(UsageError, match="nothing to fit"):
        next(fit(mean_learner()._replace(gradient=None), line_tasks(), steps=1))
    with pytest.raises(UnknownNameError, match="unknown schedule"):
        next(fit(mean_learner(), line_tasks(), steps=1, schedule="cosin"))
    with pytest.raises(ConfigError, match="tasks_per_step"):
        next(fit(mean_learner(), line_tasks(), steps=1, tasks_per_step=0))


def test_a_model_that_draws_from_the_global_generator_repeats_itself_and_leaves_it_alone():
    class Noisy(torch.nn.Linear):
        def forward(self, x):
            return torch.nn.functional.dropout(super().forward(x), 0.5, self.training)

    module = Noisy(1, 1)
    before = torch.get_rng_state()

    def losses():
        learner = headstart.maml(module, loss="mse", steps=1, taskmap="loop")
        return [record.loss for record in fit(learner, sinusoid(shots=5), steps=3, tasks_per_step=2)]

    assert losses() == losses()
    assert torch.equal(torch.get_rng_state(), before)
