"""Checkpoints change what is remembered, and nothing else: what they keep, and the sweep back."""

import pytest
import torch
from torch import nn

import headstart
from headstart import Checkpointed, FirstOrder, OnDisk, Unrolled, rules
from headstart.core import losses
from headstart.core.adjoints import Implicit
from headstart.core.adjoints.checkpointed import kept_bytes, measured
from headstart.core.inner import Given, Inner, Step
from headstart.core.rules import momentum, scale
from headstart.core.rules.rule import Rule
from headstart.engine.loops import step_by_step
from headstart.errors import DifferentiationError, UsageError
from headstart.testing import random_episodes


@pytest.mark.parametrize("buffers", ["batch", "task"])
@pytest.mark.parametrize("taskmap", ["vmap", "loop", "auto"])
@pytest.mark.parametrize("every", [1, 3, "sqrt", 7])
def test_checkpoints_change_no_gradient(images, every, taskmap, buffers):
    known = "loop" if taskmap == "auto" else taskmap
    expected, told = images.gradient(Unrolled(), taskmap=known, buffers=buffers)
    got, info = images.gradient(Checkpointed(every=every), taskmap=taskmap, buffers=buffers)
    tolerance = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(got.params, expected.params, **tolerance)
    torch.testing.assert_close(info, told, **tolerance)


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
@pytest.mark.parametrize("memory", ["300 KB", "400 KB", "1GB"])
def test_nor_does_an_amount_of_memory(images, memory, taskmap):
    assert images.gap(Checkpointed(memory=memory), Unrolled(), taskmap=taskmap, buffers="task") < 1e-12


def test_the_memory_of_checkpoints_grows_slower_than_that_of_an_unrolled_loop(rows, peak_bytes):
    def peak(adjoint, steps):
        return peak_bytes(lambda: rows.gradient(adjoint, steps=steps))

    unrolled = [peak(Unrolled(), steps) for steps in (3, 12)]
    square_root = [peak(Checkpointed(), steps) for steps in (3, 12)]
    assert unrolled[1] / unrolled[0] > 2.5
    assert square_root[1] / square_root[0] < 1.2
    assert square_root[1] < 0.3 * unrolled[1]
    assert peak(Checkpointed(every=1), 12) < 0.3 * unrolled[1]


@pytest.fixture
def needs(rows):
    """What a sweep over the steps of ``rows`` needs."""
    seen = []

    def adjoint(step, given, start, steps):
        seen.append(measured(step, given, start))
        return FirstOrder()(step, given, start, steps)

    adjoint.exact = False
    rows.gradient(adjoint)
    return seen[0]


@pytest.mark.parametrize("states", [1, 2, 5])
def test_an_amount_of_memory_is_kept_to(rows, peak_bytes, needs, states):
    # the query loss and θ with its gradient come on top
    besides = peak_bytes(lambda: rows.gradient(Unrolled(), steps=0)) + needs.state
    room = needs.backward + states * needs.state
    peak = peak_bytes(lambda: rows.gradient(Checkpointed(memory=room), steps=10))
    assert 0.9 * room < peak <= room + besides < 0.5 * peak_bytes(lambda: rows.gradient(Unrolled(), steps=10))


@pytest.mark.parametrize("share", [1.0, 0.8])
def test_where_all_has_room_no_step_is_taken_again(share):
    taken = []

    def loss(given, params, buffers, number):
        taken.append(number)
        return (params["w"] * given.structure["m"]).sin().sum(1), buffers

    step = Step(loss, scale(0.1))
    start = Inner({"w": torch.ones(2, 3000, requires_grad=True)}, {}, {})
    given = Given({"m": torch.ones((), requires_grad=True)})
    needs, kept = measured(step, given, start), kept_bytes(step, given, start)
    taken.clear()
    adjoint = Checkpointed(memory=int(share * (needs.backward + 19 * kept)))
    adjoint(step, given, start, 20)[0].params["w"].sum().backward()
    first = [0, 0]  # to measure it
    assert (sorted(taken) == sorted(first + list(range(20)))) == (share == 1)
    # a sweep takes each step once more at least, to differentiate it
    assert share == 1 or len(taken) >= 2 + 2 * 20


def test_an_amount_that_one_step_does_not_fit_in_is_refused(rows, needs):
    with pytest.raises(UsageError, match="one inner step of these tasks needs about .* KiB of memory, .*fewer tasks"):
        rows.gradient(Checkpointed(memory=needs.backward))
    assert rows.gap(Checkpointed(memory=needs.backward + needs.state), Unrolled()) < 1e-12


@pytest.mark.parametrize("every", [0, -1, 1.5, "root"])
def test_checkpoints_at_no_interval_are_refused(every):
    with pytest.raises(UsageError, match=r"Checkpointed\(every=...\) must be a positive number of steps or 'sqrt'"):
        Checkpointed(every=every)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"every": 2, "memory": "1GB"}, "takes every= or memory=, not both; got 2 and 1GB"),
        ({"memory": "much"}, "memory must be"),
        ({"memory": "1MiB", "place": OnDisk("folder")}, "memory= or place="),
        ({"every": 1, "place": "a/folder"}, r"Checkpointed\(place=...\) must say how .* got .*OnDisk\(folder\)"),
    ],
)
def test_one_says_how_often_or_how_much_and_where(options, match):
    with pytest.raises(UsageError, match=match):
        Checkpointed(**options)


def test_adjoints_are_values():
    assert Unrolled() == Unrolled() and Checkpointed(every=2) == Checkpointed(every=2) != Checkpointed(every=3)
    assert (Unrolled().exact, Checkpointed().exact, FirstOrder().exact) == (True, True, False)


SIZE = 1000


def noise_loss(given, params, buffers, number):
    noise = torch.rand_like(params["w"])
    return (params["w"].sin() * given.structure["m"] + noise).sum(1), buffers


def problem(rule, state):
    start = Inner({"w": torch.ones(2, SIZE, requires_grad=True)}, state, {})
    return Step(noise_loss, rule), Given({"m": torch.ones((), requires_grad=True)}), start


def test_a_state_is_all_that_a_step_changes():
    rule = momentum(decay=0.9)
    params = {"w": torch.ones(2, SIZE)}
    state = rule.state({}, params, None)
    step, given, start = problem(rule, state)
    needs = measured(step, given, start)
    held = sum(value.nbytes for value in state["momentum"].values()) if "momentum" in state else params["w"].nbytes
    assert needs.state == 2 * SIZE * 4 + held
    # going back holds the slopes of a state, and the step's graph
    assert needs.backward > 2 * needs.state
    assert kept_bytes(step, given, start) > needs.state


def test_what_is_no_tensor_counts_nothing():
    def update(m, state, grads, params, number):
        return grads, {"number": state["number"] + 1}

    step, given, start = problem(Rule(update), {"number": 0})
    assert measured(step, given, start).state == 2 * SIZE * 4


def test_measuring_draws_nothing_and_leaves_no_gradient():
    step, given, start = problem(momentum(decay=0.9), momentum(decay=0.9).state({}, {"w": torch.ones(2, SIZE)}, None))
    before = torch.get_rng_state()
    measured(step, given, start)
    kept_bytes(step, given, start)
    assert torch.equal(torch.get_rng_state(), before)
    assert start.params["w"].grad is None and given.structure["m"].grad is None


@pytest.mark.parametrize("options", [{"every": 1}, {"every": 3}, {}], ids=str)
def test_any_place_gives_the_same_derivative_and_is_asked_for_all_states_but_the_start(noisy, options):
    kept, fetched = [], []

    def place():
        def keep(inner):
            number = len(kept)
            kept.append(inner)

            def fetch():
                fetched.append(number)
                return inner

            return fetch

        return keep

    adjoint = Checkpointed(**options, place=place)
    assert noisy.gap(adjoint, Unrolled()) < 1e-12
    assert len(kept) == 4 and set(fetched) == set(range(4))  # of 5 steps


PULL = rules.chain(rules.proximal(0.5), rules.scale(0.1))
# as much memory as a sweep over the steps of ``noisy`` needs, and less than remembering all of them
LITTLE = Checkpointed(memory=7_000)
SWEPT = [Checkpointed(), Checkpointed(every=1), LITTLE]


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
@pytest.mark.parametrize("adjoint", SWEPT, ids=str)
def test_steps_that_are_taken_again_draw_the_same_random_numbers(noisy, adjoint, taskmap):
    assert noisy.gap(adjoint, Unrolled(), taskmap=taskmap) < 1e-12


def test_what_memory_allows_is_a_sweep_here(noisy):

    def passes(one):
        calls = []

        def loss(outputs, batch):
            calls.append(1)
            return losses.cross_entropy(outputs, batch)

        noisy.gradient(one, loss=loss)
        return len(calls)

    assert passes(LITTLE) >= passes(Checkpointed(memory=16_000)) + 5


@pytest.mark.parametrize("adjoint", [*SWEPT, Implicit()], ids=str)
def test_the_generator_goes_on_as_if_no_step_had_been_taken_again(noisy, adjoint):
    noisy.gradient(Unrolled() if adjoint.exact else FirstOrder(), rule=PULL)
    expected = torch.get_rng_state()
    noisy.gradient(adjoint, rule=PULL)
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("adjoint", [Checkpointed(), Implicit()], ids=str)
def test_a_derivative_of_the_derivative_is_refused(rows, adjoint):
    learner = headstart.maml(rows.module, adjoint=adjoint, **rows.options)
    meta = learner.init(None)
    leaves = [value.requires_grad_() for value in meta.params.values()]
    loss, _ = headstart.meta_loss(learner, meta, rows.episodes)
    with pytest.raises(DifferentiationError, match=r"first derivatives only.*adjoint=Unrolled\(\)"):
        torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)


@pytest.mark.parametrize("adjoint", [Checkpointed(), Implicit()], ids=str)
def test_a_graph_that_is_kept_gives_the_same_derivative_again(rows, adjoint):
    learner = headstart.maml(rows.module, adjoint=adjoint, rule=rules.proximal(0.1), steps=5)
    meta = learner.init(None)
    leaves = [value.requires_grad_() for value in meta.params.values()]
    loss, _ = headstart.meta_loss(learner, meta, rows.episodes)
    first, second = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert any(bool(slope.any()) for slope in first)


def counted(m, state, grads, params, number):
    """Steps by a rate that falls with a count that is no tensor."""
    return {name: 0.1 / (1 + state["count"]) * grad for name, grad in grads.items()}, {"count": state["count"] + 1}


def late(m, state, grads, params, number):
    """Momentum whose state is there from the first step on."""
    total = {name: grad + 0.5 * state[name] if state else grad for name, grad in grads.items()}
    return {name: 0.1 * value for name, value in total.items()}, total


STATES = {"a number": Rule(counted, lambda m, params, seed: {"count": 0}), "none at first": Rule(late)}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("adjoint", SWEPT, ids=str)
def test_a_rules_state_may_be_more_than_tensors(noisy, adjoint, name):
    assert noisy.gap(adjoint, Unrolled(), rule=STATES[name]) < 1e-12


@pytest.mark.parametrize("adjoint", [Unrolled(), Checkpointed(), Checkpointed(every=1), Implicit()], ids=str)
def test_a_start_that_is_changed_before_the_derivative_is_taken_is_noticed(rows, adjoint):
    learner = headstart.maml(rows.module, adjoint=adjoint, **{**rows.options, "rule": PULL})
    meta = learner.init(None)
    leaves = [value.requires_grad_() for value in meta.params.values()]
    loss, _ = headstart.meta_loss(learner, meta, rows.episodes)
    with torch.no_grad():
        for value in leaves:
            value.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, leaves)


def slopes(adjoint, forward, backward, seen):
    """Return the meta-gradient with autocast around the forward pass, the backward pass, or both."""
    torch.manual_seed(0)

    def loss(outputs, batch):
        seen.append(torch.is_autocast_enabled("cpu"))
        return losses.cross_entropy(outputs, batch)

    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    rule = rules.chain(rules.proximal(1.0), rules.scale(0.3))
    learner = headstart.maml(net, loss=loss, steps=3, rule=rule, adjoint=adjoint, taskmap="loop")
    episodes = headstart.Episodes(*(batch._replace(x=batch.x.float()) for batch in random_episodes((4,))))
    meta = learner.init(None)
    leaves = [value.requires_grad_() for value in meta.params.values()]
    with torch.autocast("cpu", torch.bfloat16, enabled=forward, cache_enabled=False):
        value, _ = headstart.meta_loss(learner, meta, episodes)
    with torch.autocast("cpu", torch.bfloat16, enabled=backward, cache_enabled=False):
        return torch.cat([slope.flatten() for slope in torch.autograd.grad(value, leaves)])


@pytest.mark.parametrize("adjoint", [Checkpointed(), Checkpointed(every=1), Implicit()], ids=str)
@pytest.mark.parametrize("forward", [True, False])
def test_steps_are_taken_again_in_the_precision_of_the_first_time(adjoint, forward):
    seen = []
    slopes(adjoint, forward, not forward, seen)
    assert len(seen) > 4 and set(seen) == {forward}


@pytest.mark.parametrize("adjoint", [Checkpointed(), Checkpointed(every=1), Implicit()], ids=str)
def test_the_derivative_does_not_depend_on_whether_autocast_is_still_on(adjoint):
    inside, outside = slopes(adjoint, True, True, []), slopes(adjoint, True, False, [])
    assert torch.equal(inside, outside)
    assert not torch.equal(inside, slopes(adjoint, False, False, []))
    if adjoint.exact:
        torch.testing.assert_close(inside, slopes(Unrolled(), True, True, []), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("adjoint", [Unrolled(), Checkpointed()], ids=str)
def test_a_graph_that_is_gone_is_told(rows, adjoint, steps):
    learner = headstart.maml(rows.module, adjoint=adjoint, steps=steps)
    meta = learner.init(None)
    leaves = [value.requires_grad_() for value in meta.params.values()]
    with step_by_step():
        loss, _ = headstart.meta_loss(learner, meta, rows.episodes)
    torch.autograd.grad(loss, leaves, allow_unused=True)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, leaves, allow_unused=True)
