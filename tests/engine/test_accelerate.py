"""The meta-gradient in parts and threads is the meta-gradient."""

import json
import logging
import re
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import headstart
from headstart.core.adjoints import Checkpointed
from headstart.core.counting import Counted
from headstart.core.objective import at, backprop, meta_gradient
from headstart.engine import accelerate as accelerate_module
from headstart.engine.accelerate import accelerate, repays
from headstart.engine.loops import in_steps
from headstart.errors import DifferentiationError, OutOfMemoryError, UsageError
from headstart.testing import random_episodes
from headstart.types import Batch, Episodes

TASKS = 5


@pytest.fixture
def two_threads():
    """PyTorch with two threads, and as it was afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


def perceptron(*extra):
    return nn.Sequential(nn.Linear(4, 6), *extra, nn.Tanh(), nn.Linear(6, 3)).double()


def seeded(episodes):
    seeds = torch.arange(len(episodes.query.y)) + 11
    return headstart.Episodes(*(batch._replace(seed=seeds) for batch in episodes))


def padded(episodes):
    """Leave the last examples of some tasks out."""

    def masked(batch):
        tasks, count = batch.y.shape[:2]
        there = torch.arange(count) < count - torch.arange(tasks)[:, None] % 3
        return batch._replace(mask=there)

    return headstart.Episodes(*map(masked, episodes))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, scale):
        return torch.tanh(self.layer(x)) * scale


def structured(kind):
    def made(batch):
        scale = batch.x[..., :3] ** 2
        return batch._replace(x=(batch.x, scale) if kind is tuple else {"x": batch.x, "scale": scale})

    return headstart.Episodes(*map(made, random_episodes((4,), tasks=TASKS)))


def with_penalty():
    learner = headstart.meta_sgd(perceptron(), steps=2, taskmap="vmap")
    return learner._replace(penalty=lambda meta: sum(value.square().sum() for part in meta for value in part.values()))


ROWS = random_episodes((4,), tasks=TASKS)
IMAGES = random_episodes((1, 5, 5), tasks=TASKS)


def convolutional():
    layers = [nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)]
    return nn.Sequential(*layers).double()


def maml_of(module, **options):
    return headstart.maml(module, **{"steps": 2, "rate": 0.1, "taskmap": "vmap", **options})


#: Learners by name, with their tasks.
CASES = {
    "maml": lambda: (maml_of(perceptron()), ROWS),
    "loop": lambda: (maml_of(perceptron(), taskmap="loop"), ROWS),
    "auto": lambda: (maml_of(perceptron(), taskmap="auto"), ROWS),
    "images": lambda: (maml_of(convolutional(), steps=1), IMAGES),
    "task statistics": lambda: (maml_of(convolutional(), buffers="task"), IMAGES),
    "penalty": lambda: (with_penalty(), ROWS),
    "padded": lambda: (maml_of(perceptron()), padded(ROWS)),
    "dropout": lambda: (maml_of(perceptron(nn.Dropout(0.4))), seeded(ROWS)),
    "tuple": lambda: (maml_of(TwoInputs().double()), structured(tuple)),
    "dict": lambda: (maml_of(TwoInputs().double()), structured(dict)),
    "prototypes": lambda: (headstart.prototypes(perceptron(), taskmap="vmap"), ROWS),
    "no steps": lambda: (maml_of(perceptron(), steps=0), ROWS),
    "checkpointed": lambda: (maml_of(perceptron(), steps=5, adjoint=Checkpointed(every=2)), ROWS),
    "anil": lambda: (headstart.anil(perceptron(), steps=3, taskmap="vmap"), ROWS),
    "several losses": lambda: (at(headstart.maml_plus_plus(convolutional(), steps=2, taskmap="vmap"), 0.0), IMAGES),
}

WAYS = [
    {"chunk": 1}, {"chunk": 2}, {"chunk": 3}, {"chunk": 9}, {"threads": 1}, {"threads": 2}, {"threads": 3},
    {"threads": 8}, {"threads": 2, "chunk": 1}, {"threads": 2, "chunk": 2}, {"memory": "1GiB", "threads": 2},
    {"threads": "auto"},
]  # fmt: skip
#: Those that every learner is taken in: parts of one after another, in threads, both, and as it is decided.
WAYS_OF_ALL = [{"chunk": 2}, {"memory": "1GiB", "threads": 2}, {"threads": 2, "chunk": 1}, {"threads": "auto"}]


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_and_what_is_told_of_every_task_stay_the_same(case, two_threads, caplog):
    learner, episodes = CASES[case]()
    meta = learner.init(torch.Generator().manual_seed(0))
    expected = meta_gradient(learner, meta, episodes)
    assert expected[1].query_loss.unique().numel() == TASKS  # or the order of the tasks would not be seen
    for way in WAYS if case == "maml" else WAYS_OF_ALL:
        fast = accelerate(learner, **way)
        found = meta_gradient(fast, meta, episodes)
        assert_same(found, expected)
        again = meta_gradient(fast, meta, episodes)
        assert all(torch.equal(a[n], b[n]) for a, b in zip(found[0], again[0]) for n in a), way
    assert torch.get_num_threads() == 2
    assert not caplog.records


@settings(max_examples=25, deadline=None)
@given(tasks=st.integers(1, 7), chunk=st.none() | st.integers(1, 8), threads=st.integers(1, 4), sum_=st.booleans())
def test_any_number_of_tasks_in_any_parts(tasks, chunk, threads, sum_):
    torch.manual_seed(0)
    learner, episodes = maml_of(perceptron()), random_episodes((4,), tasks=tasks)
    meta, reduction = learner.init(None), "sum" if sum_ else "mean"
    other = accelerate(learner, chunk=chunk, threads=threads)
    assert_same(
        meta_gradient(other, meta, episodes, reduction=reduction),
        meta_gradient(learner, meta, episodes, reduction=reduction),
    )


def parts_of(learner):
    """Return the learner, and a list of the numbers of tasks and the threads that worked on them."""
    seen, plain = [], learner.adapt

    def adapt(meta, support, steps=None):
        seen.append((len(support.y), threading.current_thread().name, torch.get_num_threads()))
        return plain(meta, support, steps)

    return learner._replace(adapt=adapt), seen


def test_parts_have_at_most_the_tasks_that_were_asked_for():
    learner, seen = parts_of(maml_of(perceptron()))
    meta = learner.init(None)
    meta_gradient(accelerate(learner, chunk=2, threads=1, replay=False), meta, ROWS)
    assert [size for size, *_ in seen] == [2, 2, 1]


def test_threads_share_the_tasks_and_each_runs_operations_alone(two_threads):
    learner, seen = parts_of(maml_of(perceptron()))
    meta = learner.init(None)
    fast, one_each = accelerate(learner, threads=2), accelerate(learner, threads=2, chunk=1)
    for way in (fast, one_each, fast):
        seen.clear()
        meta_gradient(way, meta, ROWS)
    assert sorted(size for size, *_ in seen) == [2, 3]
    assert {threads for *_, threads in seen} == {1}
    assert threading.current_thread().name not in {name for _, name, _ in seen}
    seen.clear()
    meta_gradient(one_each, meta, ROWS)
    assert [size for size, *_ in seen] == [1] * 5 and len({name for _, name, _ in seen}) <= 2


def test_large_operations_are_threaded_and_small_ones_run_in_one(two_threads):
    small, seen_small = parts_of(maml_of(perceptron()))
    large, seen_large = parts_of(maml_of(nn.Sequential(nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 3)).double()))
    wide = random_episodes((300,), tasks=4, support=60, query=60)
    for learner, seen, episodes in ((small, seen_small, ROWS), (large, seen_large, wide)):
        fast, meta = accelerate(learner), learner.init(None)
        assert_same(meta_gradient(fast, meta, episodes), meta_gradient(learner, meta, episodes))
        seen.clear()
        meta_gradient(fast, meta, episodes)
    assert [(size, threads) for size, _, threads in seen_small] == [(TASKS, 1)]
    assert [(size, threads) for size, _, threads in seen_large] == [(2, 1), (2, 1)]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("threads", [1, "auto"])
def test_tasks_that_are_large_alone_are_worked_on_one_by_one_from_the_first_step_on(threads, two_threads):
    plain = maml_of(nn.Sequential(nn.Linear(600, 500), nn.Tanh(), nn.Linear(500, 3)).double())
    learner, seen = parts_of(plain)
    meta, episodes = plain.init(None), random_episodes((600,), tasks=3, support=150, query=150)
    found = meta_gradient(accelerate(learner, threads=threads), meta, episodes)
    assert {size for size, *_ in seen} == {1}
    assert_same(found, meta_gradient(plain, meta, episodes))


class Noisy(nn.Module):
    """Draws from PyTorch's own generator."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, 3)

    def forward(self, x):
        return self.layer(x) * (1 + torch.rand(3, dtype=x.dtype))


@pytest.mark.parametrize("options", [{}, {"threads": 2}, {"memory": "1GiB"}, {"threads": 2, "chunk": 2}])
def test_a_model_that_draws_from_the_global_generator_is_not_threaded(options, two_threads):
    episodes = random_episodes((500,), tasks=4, support=100, query=100)
    plain = maml_of(Noisy(500).double(), taskmap="loop", steps=1)
    learner, seen = parts_of(plain)
    meta = learner.init(None)
    meta_gradient(plain, meta, episodes)  # checks of the first call, which draw, too
    fast = accelerate(learner, **options)
    states = []
    for _ in range(2):
        seen.clear()
        torch.manual_seed(3)
        found = meta_gradient(fast, meta, episodes)
        states.append(torch.get_rng_state())
        assert {name for _, name, _ in seen} == {threading.current_thread().name}
        torch.manual_seed(3)
        if "chunk" not in options:
            assert_same(found, meta_gradient(plain, meta, episodes))
            assert torch.equal(states[-1], torch.get_rng_state())
    assert torch.equal(*states)


def test_looking_at_the_work_takes_no_random_numbers():
    learner = maml_of(Noisy(4).double(), taskmap="loop", steps=1)
    meta = learner.init(None)
    meta_gradient(learner, meta, ROWS)
    results = []
    for options in ({}, {"memory": "1GiB"}, {"memory": "1GiB", "threads": 1}, {"threads": 1}):
        torch.manual_seed(3)
        results.append(meta_gradient(accelerate(learner, **options), meta, ROWS))
        assert_same(results[-1], results[0])


def needed(learner, meta, tasks):
    part = headstart.Episodes(*(batch._replace(x=batch.x[:tasks], y=batch.y[:tasks]) for batch in ROWS))
    with Counted() as live:
        in_steps(learner, meta, part)
    return live.peak


def size_of(meta):
    return sum(value.nbytes for part in meta for value in part.values())


def test_a_budget_of_memory_makes_the_parts_as_small_as_they_must_be():
    plain = maml_of(perceptron(), steps=5)
    learner, seen = parts_of(plain)
    meta = plain.init(None)
    one, result = needed(plain, meta, 1), size_of(meta)
    expected = meta_gradient(plain, meta, ROWS)
    budgets = ((one, [1] * 5), (2 * one, [2, 2, 1]), (3 * one + 1, [3, 2]))
    for room, sizes in (*((room + result, sizes) for room, sizes in budgets), (100 * one, [5])):
        fast = accelerate(learner, memory=room, threads=1)
        assert_same(meta_gradient(fast, meta, ROWS), expected)
        seen.clear()
        meta_gradient(fast, meta, ROWS)
        assert [size for size, *_ in seen] == sizes
    with Counted() as live:
        meta_gradient(accelerate(plain, memory=2 * one + result, threads=1), meta, ROWS)
    assert live.peak <= 2.2 * one + result < needed(plain, meta, TASKS)


@pytest.mark.parametrize("limit", ["memory", "chunk"])
def test_no_part_is_larger_than_the_budget_allows_not_even_in_the_first_step(limit, two_threads):
    plain = maml_of(perceptron(), steps=5)
    learner, seen = parts_of(plain)
    meta = plain.init(None)
    options = {"memory": 2 * needed(plain, meta, 1) + size_of(meta)} if limit == "memory" else {"chunk": 2}
    assert_same(meta_gradient(accelerate(learner, **options), meta, ROWS), meta_gradient(plain, meta, ROWS))
    assert max(size for size, *_ in seen) == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_the_sum_of_the_parts_takes_no_more_than_a_few_gradients(threads):
    learner = maml_of(nn.Sequential(nn.Linear(500, 400), nn.Linear(400, 3)).double(), steps=0)
    meta, episodes = learner.init(None), random_episodes((500,), tasks=24, support=1, query=1)
    fast = accelerate(learner, chunk=1, threads=threads, replay=False)
    expected = meta_gradient(fast, meta, episodes)
    tracked = Alive()
    gradients = fast.gradient._gradient

    def watched(here, plan, learner):
        compute = gradients(here, plan, learner)
        return lambda given: tracked.seen(compute(given))

    fast.gradient._gradient = watched
    assert_same(meta_gradient(fast, meta, episodes), expected)
    assert tracked.most <= 1 + 2 * threads


class Alive:
    """Counts how many gradients of parts are alive at once."""

    def __init__(self):
        self.now, self.most, self.lock = 0, 0, threading.Lock()

    def seen(self, found):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        weakref.finalize(next(iter(found[0].params.values())), self.gone)
        return found

    def gone(self):
        self.now -= 1


def test_threads_share_the_budget(two_threads):
    plain = maml_of(perceptron(), steps=5)
    learner, seen = parts_of(plain)
    meta = plain.init(None)
    one, result = needed(plain, meta, 1), size_of(meta)
    fast = accelerate(learner, memory=2 * one + 2 * result, threads=2)
    meta_gradient(fast, meta, ROWS)
    seen.clear()
    meta_gradient(fast, meta, ROWS)
    assert [size for size, *_ in seen] == [1] * 5
    with pytest.raises(UsageError, match="3 at a time"):
        meta_gradient(accelerate(learner, memory=2 * one + 2 * result, threads=3), meta, ROWS)


def test_as_many_threads_as_there_is_room_for(two_threads):
    plain = maml_of(nn.Sequential(nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 3)).double())
    learner, seen = parts_of(plain)
    meta, episodes = plain.init(None), random_episodes((300,), tasks=4, support=60, query=60)
    one = headstart.Episodes(*(batch._replace(x=batch.x[:1], y=batch.y[:1]) for batch in episodes))
    with Counted() as live:
        backprop(plain, meta, one)
    fast = accelerate(learner, memory=int(1.5 * live.peak) + size_of(meta))
    for _ in range(2):
        seen.clear()
        assert_same(meta_gradient(fast, meta, episodes), meta_gradient(plain, meta, episodes))
    assert [size for size, *_ in seen] == [1] * 4
    assert {name for _, name, _ in seen} == {threading.current_thread().name}


def test_one_task_that_is_too_large_is_refused_with_what_helps():
    learner = maml_of(perceptron(), steps=20)
    meta = learner.init(None)
    with pytest.raises(UsageError, match=r"one task needs about .*KiB of memory.* more than 1 KiB; .*Checkpointed"):
        meta_gradient(accelerate(learner, memory="1KiB"), meta, ROWS)


def test_what_the_refusal_proposes_helps():
    module, meta = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double(), None
    episodes = random_episodes((4,), tasks=2, support=200)
    for adjoint, fits in ((headstart.Unrolled(), False), (Checkpointed(), True)):
        learner = maml_of(module, steps=20, adjoint=adjoint)
        meta = learner.init(None)
        fast = accelerate(learner, memory=200_000, threads=1, replay=False)
        if fits:
            assert_same(meta_gradient(fast, meta, episodes), meta_gradient(learner, meta, episodes))
        else:
            with pytest.raises(UsageError, match="graph of one task"):
                meta_gradient(fast, meta, episodes)


@pytest.mark.parametrize(
    "options",
    [{"threads": 0}, {"threads": 1.5}, {"threads": "many"}, {"chunk": 0}, {"chunk": -1}, {"memory": "much"},
     {"memory": 0}, {"memory": "0.4"}, {"chunk": 2, "memory": "1GiB"}, {"threads": None}, {"threads": True},
     {"chunk": "auto"}, {"chunk": True}],
)  # fmt: skip
def test_options_out_of_their_range_are_refused(options):
    with pytest.raises(UsageError, match=r"threads|chunk|memory"):
        accelerate(maml_of(perceptron()), **options)


@pytest.mark.parametrize("method", ["reptile", "es_maml"])
@pytest.mark.parametrize("options", [{"threads": 2}, {"chunk": 1}, {"memory": 1}, {"compile": True}])
def test_learners_of_another_gradient_stay_as_they_are(method, options, caplog):
    learner = getattr(headstart, method)(perceptron(), steps=2)
    assert accelerate(learner, **options) is learner
    assert ("not by back-propagation" in caplog.text) == ("compile" in options)


def test_a_learner_is_accelerated_once():
    fast = accelerate(maml_of(perceptron()), chunk=2)
    assert accelerate(fast) is fast


@pytest.mark.parametrize("threads", [1, 2])
def test_a_learner_that_changes_while_it_learns_is_accelerated_throughout(threads):
    learner = headstart.maml_plus_plus(convolutional(), steps=2, taskmap="vmap", first_order_until=0.3)
    fast, meta = accelerate(learner, chunk=2, threads=threads), learner.init(None)
    found = {}
    for done in (0.0, 0.5, 1.0):
        now, plain = at(fast, done), at(learner, done)
        assert now.gradient is not backprop
        found[done] = meta_gradient(now, meta, IMAGES)
        assert_same(found[done], meta_gradient(plain, meta, IMAGES))
    assert not torch.allclose(found[0.0][0].params["0.weight"], found[1.0][0].params["0.weight"])


def test_a_stage_of_another_gradient_keeps_it():
    learner = maml_of(perceptron())
    other = headstart.reptile(perceptron(), steps=2)
    changing = learner._replace(during=lambda done: other if done > 0.5 else learner)
    fast = accelerate(changing, chunk=2)
    assert at(fast, 1.0).gradient is other.gradient
    assert at(fast, 0.0).gradient is fast.gradient


class Bad(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        if x[0, 0] > 100:
            raise ValueError("these are no measurements")
        return self.layer(x)


def test_an_error_in_a_thread_reaches_the_caller(two_threads):
    learner = maml_of(Bad().double(), taskmap="loop")
    fast, meta = accelerate(learner, threads=2), learner.init(None)
    spoiled = ROWS.support.x.clone()
    spoiled[4, 0, 0] = 1000
    with pytest.raises(ValueError, match="these are no measurements"):
        meta_gradient(fast, meta, ROWS._replace(support=ROWS.support._replace(x=spoiled)))
    assert torch.get_num_threads() == 2
    assert_same(meta_gradient(fast, meta, ROWS), meta_gradient(learner, meta, ROWS))


def test_an_error_in_a_thread_is_explained():
    def task_loss(outputs, batch):
        return torch.cdist(outputs, torch.ones_like(outputs), p=3.0).mean((1, 2))

    learner = headstart.maml(perceptron(), loss=task_loss, steps=1, taskmap="vmap")
    with pytest.raises(DifferentiationError, match="no second derivative"):
        meta_gradient(accelerate(learner, threads=2), learner.init(None), ROWS)


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
def test_attention_in_threads_uses_kernels_with_second_derivatives(chunk, taskmap):
    episodes = random_episodes((3, 4), tasks=6)
    learner = maml_of(Attentive().double(), taskmap=taskmap)
    fast, meta = accelerate(learner, threads=3, chunk=chunk), learner.init(None)
    expected = meta_gradient(learner, meta, episodes)
    for _ in range(5):
        assert_same(meta_gradient(fast, meta, episodes), expected)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


def as_floats(episodes):
    return headstart.Episodes(*(batch._replace(x=batch.x.float()) for batch in episodes))


def test_autocast_holds_in_threads(two_threads):
    learner = headstart.maml(perceptron().float(), steps=2, taskmap="vmap")
    meta, episodes = learner.init(torch.Generator().manual_seed(0)), as_floats(ROWS)
    fast = accelerate(learner, threads=2, chunk=1)
    alone = accelerate(learner, threads=1, chunk=1, replay=False)
    for _ in range(2):
        results = []
        for on in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=on, cache_enabled=False):
                results.append(meta_gradient(alone, meta, episodes)[0].params)
                found = meta_gradient(fast, meta, episodes)[0].params
            assert all(torch.equal(found[name], results[-1][name]) for name in found)
        assert not torch.equal(results[0]["0.weight"], results[1]["0.weight"])


def test_inside_hooks_the_tasks_are_worked_on_in_this_thread(two_threads):
    learner, seen = parts_of(maml_of(perceptron()))
    fast, meta = accelerate(learner, threads=2), learner.init(None)
    meta_gradient(fast, meta, ROWS)
    seen.clear()
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, keep):
        found = meta_gradient(fast, meta, ROWS)
    assert kept and {name for _, name, _ in seen} == {threading.current_thread().name}
    assert_same(found, meta_gradient(learner, meta, ROWS))


def test_what_is_decided_does_not_go_by_how_far_a_run_is(two_threads):
    """A run that goes on must work as one that was not broken off."""
    wide = nn.Sequential(nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 3)).double()
    learner, cheap = maml_of(wide, steps=3), maml_of(wide, steps=3, adjoint=headstart.FirstOrder())
    changing = learner._replace(during=lambda done: cheap if done < 0.5 else learner)
    meta, episodes = learner.init(None), random_episodes((300,), tasks=4, support=60, query=60)
    plans = []
    for order in ((0.0, 1.0), (1.0,)):
        fast = accelerate(changing, memory="5MB")
        for done in order:
            meta_gradient(at(fast, done), meta, episodes)
        plans.append(list(fast.gradient.plans.values()))
    assert plans[0] == plans[1] and len(plans[0]) == 1
    with Counted() as live:
        backprop(learner, meta, headstart.Episodes(*(b._replace(x=b.x[:1], y=b.y[:1]) for b in episodes)))
    assert plans[0][0].size * live.peak * plans[0][0].workers <= 5_000_000


def test_trials_of_the_task_map_are_no_part_of_the_work():
    for _ in range(2):
        learner = maml_of(perceptron(), taskmap="auto")
        found = accelerate_module._looked_at(learner, learner.init(None), ROWS)
        again = accelerate_module._looked_at(learner, learner.init(None), ROWS)
        assert found == again


def test_replaying_can_be_switched_off():
    weight = [1.0]
    learner = maml_of(perceptron(), loss=lambda outputs, batch: weight[0] * outputs.square().mean((1, 2)))
    fast, meta = accelerate(learner, replay=False), learner.init(None)
    for step in range(accelerate_module.REPLAYED.after + 3):
        weight[0] = 1.0 + step
        found = meta_gradient(fast, meta, ROWS)
    assert_same(found, meta_gradient(learner, meta, ROWS))
    assert fast.gradient.recorded.programs == {}


@pytest.mark.parametrize("threads", [1, 2])
def test_small_operations_are_replayed_with_any_number_of_threads(threads, monkeypatch, two_threads):
    monkeypatch.setattr(accelerate_module, "REPLAYED", accelerate_module.REPLAYED._replace(after=1))
    learner = maml_of(perceptron())
    fast, meta = accelerate(learner, threads=threads, chunk=2), learner.init(None)
    for _ in range(4):
        found = meta_gradient(fast, meta, ROWS)
    assert any(program is not None for program in fast.gradient.recorded.programs.values())
    assert_same(found, meta_gradient(learner, meta, ROWS))


def test_only_so_many_plans_are_remembered(monkeypatch):
    monkeypatch.setattr(accelerate_module, "REMEMBERED", 2)
    learner = maml_of(perceptron())
    fast, meta = accelerate(learner), learner.init(None)
    for support in (2, 3, 4):
        meta_gradient(fast, meta, random_episodes((4,), support=support))
    assert len(fast.gradient.plans) == 2


def test_small_operations_have_one_thread_compiled_or_replayed(two_threads, monkeypatch):
    seen = {}

    def noting(way):
        def translate(record):
            def run(*inputs):
                seen[way.name] = torch.get_num_threads()
                return record(*inputs)

            return run

        return way._replace(translate=translate, after=0)

    for name in ("COMPILED", "REPLAYED"):
        monkeypatch.setattr(accelerate_module, name, noting(getattr(accelerate_module, name)))
    for compile in (True, False):
        fast = accelerate(maml_of(perceptron()), compile=compile)
        for _ in range(3):
            meta_gradient(fast, fast.init(None), ROWS)
    assert seen == {"compiled": 1, "replayed": 1}
    assert torch.get_num_threads() == 2


def test_texts_are_looked_at_by_few_lengths(monkeypatch):
    """Each new length of the longest text was, which took as long as the step itself."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 4)

        def forward(self, ids):
            return self.words(ids).mean(-2)

    looked, look = [], accelerate_module._looked_at

    def counted(stage, meta, episodes):
        looked.append(episodes.query.x.shape[-1])
        return look(stage, meta, episodes)

    monkeypatch.setattr(accelerate_module, "_looked_at", counted)
    plain = headstart.prototypes(Words().double())
    learner, meta = accelerate(plain), plain.init(None)
    y = torch.arange(2).expand(1, 2)
    for length in range(5, 28):
        ids = torch.randint(9, (1, 2, length), generator=torch.Generator().manual_seed(length))
        episodes = Episodes(Batch(ids, y), Batch(ids.flip(-1), y))
        assert_same(meta_gradient(learner, meta, episodes), meta_gradient(plain, meta, episodes))
    assert sorted(looked) == [6, 8, 12, 16, 24, 32]


def test_ragged_tasks_are_looked_at_by_few_numbers_of_examples(monkeypatch):
    """Each new number was, which took ten steps; from 5 to 27 there are six."""
    looked, look = [], accelerate_module._looked_at

    def counted(stage, meta, episodes):
        looked.append(episodes.support.y.shape)
        return look(stage, meta, episodes)

    monkeypatch.setattr(accelerate_module, "_looked_at", counted)
    plain = headstart.maml(perceptron(), steps=1)
    learner, meta = accelerate(plain), plain.init(None)
    for examples in range(5, 28):
        episodes = random_episodes((4,), tasks=2, support=examples, query=5)
        assert_same(meta_gradient(learner, meta, episodes), meta_gradient(plain, meta, episodes))
    assert sorted({shape[1] for shape in looked}) == [6, 8, 12, 16, 24, 32] and len(looked) == 12


def _scarce(
    room, error=RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error")
):
    """Return a learner for which there is no memory for more than ``room`` tasks at a time, and one with enough."""
    plenty = headstart.maml(perceptron(), loss="mse", steps=1, taskmap="vmap")

    def objective(learner, meta, episodes):
        if len(episodes.query.y) > room:
            raise error
        return headstart.core.objective.after_adapting(learner, meta, episodes)

    return plenty._replace(objective=objective), plenty


@pytest.mark.parametrize(
    ("room", "options", "fits"), [(4, {}, 3), (2, {"replay": False}, 2), (1, {}, 1), (2, {"threads": 2}, 3)], ids=str
)
def test_out_of_memory_says_what_fits_and_auto_goes_on_with_it(room, options, fits, two_threads, caplog):
    scarce, plenty = _scarce(room)
    meta, episodes = plenty.init(None), random_episodes((4,), tasks=TASKS, regression=True)
    learner = accelerate(scarce, **options)
    for _ in range(2):
        with pytest.raises(
            OutOfMemoryError, match=rf"out of memory .* \(tried to allocate 8 bytes\); {fits} at a time fit"
        ):
            meta_gradient(learner, meta, episodes)
    expected, told = meta_gradient(plenty, meta, episodes)
    auto = accelerate(scarce, memory="auto", **options)
    for _ in range(2):
        found, info = meta_gradient(auto, meta, episodes)
        for name, value in expected.params.items():
            assert torch.allclose(found.params[name], value, rtol=1e-12)
        assert torch.allclose(info.query_loss, told.query_loss)
    assert [record.message.rpartition(" ")[2] for record in caplog.records if record.levelno == logging.WARNING] == [
        str(fits)
    ]


def test_where_not_one_task_fits_and_where_it_is_another_error(two_threads):
    meta, episodes = _scarce(0)[1].init(None), random_episodes((4,), tasks=TASKS, regression=True)
    for memory in (None, "auto"):
        with pytest.raises(OutOfMemoryError, match="not even one at a time fits; .*--adjoint checkpointed"):
            meta_gradient(accelerate(_scarce(0, MemoryError())[0], memory=memory), meta, episodes)
        with pytest.raises(RuntimeError, match="something else"):
            meta_gradient(accelerate(_scarce(0, RuntimeError("something else"))[0], memory=memory), meta, episodes)


def test_in_a_process_of_little_memory_what_is_advised_fits_and_gives_the_same():
    words = [sys.executable, "-W", "error", str(Path(__file__).with_name("under_a_limit.py"))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert re.match(
        r"out of memory with 4096 tasks at a time \(tried to allocate \d+ bytes\); \d+ at a time", found["told"]
    )
    assert found["same"] and found["gap"] < 1e-5 and any("from now on" in message for message in found["said"])


def test_compiling_repays_for_many_steps_of_one_shape(monkeypatch):
    small, large = headstart.mlp(4, 3).double(), headstart.mlp(4, 3, hidden=(256, 256)).double()
    few, many = random_episodes((4,), tasks=8), random_episodes((4,), tasks=8, support=6)

    def asked(module=small, episodes=(few, few), steps=20_000, **options):
        learner = headstart.maml(module, **{"steps": 5, **options})
        return repays(learner, learner.init(None), episodes, steps)

    assert asked()
    assert not asked(steps=300)
    assert not asked(episodes=(few, many))
    # large operations are computed for one task after the other, so that there are more of them
    parts = (random_episodes((4,), tasks=8, support=200, query=200),)
    assert asked(large, parts, steps=300) and not asked(large, parts, steps=199)
    learner = headstart.prototypes(small)
    assert not repays(learner, learner.init(None), (few,), 300)
    monkeypatch.setattr(accelerate_module, "has_compiler", lambda: False)
    assert not asked()
