import pytest
import torch
from torch import nn

import headstart
from headstart import FirstOrder, Unrolled, rules
from headstart.core.adjoints import ConjugateGradient, Implicit, Neumann, Truncated
from headstart.core.linear import Solution
from headstart.errors import UsageError
from headstart.testing import random_episodes

PULL = rules.chain(rules.proximal(1.0, learn=True), rules.scale(0.3))
SOLVERS = [ConjugateGradient(iterations=60), Neumann(terms=150)]


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_where_adaptation_rests_it_is_the_derivative_of_the_unrolled_loop(rows, solver, taskmap):
    options = {"rule": PULL, "taskmap": taskmap}
    gaps = [rows.gap(Implicit(solver), Unrolled(), steps=steps, **options) for steps in (1, 10, 100)]
    assert gaps[0] > 5 * gaps[1] and gaps[1] > 100 * gaps[2] and gaps[2] < 1e-7


def test_derivatives_flow_to_parameters_that_stay_and_to_all_of_m(rows):
    rule = rules.chain(rules.only("2"), rules.proximal(0.5, learn=True), rules.clip(norm=50.0), rules.scale(0.3))
    gradient = rows.gradient(Implicit(ConjugateGradient(iterations=60)), rule=rule, steps=200)[0]
    expected = rows.gradient(Unrolled(), rule=rule, steps=200)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)
    assert all(bool(value.any()) for part in gradient for value in part.values())


def test_the_start_has_no_part_in_the_rest_of_a_rule_that_forgets_it(rows):
    rule = rules.chain(rules.weight_decay(0.5, learn=True), rules.per_weight((0.1, 0.4)))
    options = {"rule": rule, "steps": 300}
    got, expected = rows.gradient(Implicit(Neumann(terms=300)), **options)[0], rows.gradient(Unrolled(), **options)[0]
    assert not any(bool(value.any()) for value in got.params.values())
    assert max(value.abs().max() for value in expected.params.values()) < 1e-9
    torch.testing.assert_close(got.structure, expected.structure, rtol=1e-5, atol=1e-8)
    assert got.structure["log_weight_decay.0.weight"].any()


def test_more_terms_of_a_series_come_nearer(rows):
    got = rows.gradient(Implicit(Neumann(terms=2)), rule=PULL, steps=200)[0].params["0.weight"]
    full = rows.gradient(Implicit(Neumann(terms=200)), rule=PULL, steps=200)[0].params["0.weight"]
    more = rows.gradient(Implicit(Neumann(terms=6)), rule=PULL, steps=200)[0].params["0.weight"]
    assert (got - full).norm() > 3 * (more - full).norm() > 0


def test_memory_does_not_grow_with_the_steps(rows, peak_bytes):
    few, many = (peak_bytes(lambda steps=steps: rows.gradient(Implicit(), rule=PULL, steps=steps)) for steps in (2, 20))
    assert many < 1.01 * few


def test_any_function_is_a_solver(rows):
    def first_order(product, right):
        """Take ∂d/∂φ for rate · λ, as if the loss were flat."""
        value = {name: each / 0.3 for name, each in right.items()}
        return Solution(value, torch.ones(3))

    rule = rules.chain(rules.proximal(1.0), rules.scale(0.3))
    got = rows.gradient(Implicit(first_order), rule=rule, steps=3)[0].params
    torch.testing.assert_close(got, rows.gradient(FirstOrder(), rule=rule, steps=3)[0].params)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_it_takes_the_same_steps_as_others(images, steps):
    options = {"rule": PULL, "buffers": "task", "steps": steps}
    learners = [headstart.maml(images.module, adjoint=one, **options) for one in (Implicit(), Unrolled())]
    meta = learners[0].init(None)
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded):
            leaves = meta._replace(params={n: v.clone().requires_grad_(recorded) for n, v in meta.params.items()})
            (got, told), (expected, known) = (one.adapt(leaves, images.episodes.support) for one in learners)
        torch.testing.assert_close([got.params, got.buffers, told], [expected.params, expected.buffers, known])
        assert recorded == any(value.requires_grad for value in got.params.values())


def test_statistics_of_the_task_are_constants(images):
    learner = headstart.maml(images.module, adjoint=Implicit(), rule=PULL, buffers="task", steps=3)
    meta = learner.init(None)
    for value in meta.params.values():
        value.requires_grad_()
    adapted, _ = learner.adapt(meta, images.episodes.support)
    assert adapted.buffers and not any(value.requires_grad for value in adapted.buffers.values())
    assert all(value.requires_grad for value in adapted.params.values())
    gradient = images.gradient(Implicit(), rule=PULL, buffers="task", steps=3)[0]
    assert all(bool(value.isfinite().all()) and bool(value.any()) for part in gradient for value in part.values())


def test_parameters_that_the_rule_leaves_out_stay_where_they_start(rows):
    def update(m, state, grads, params, number):
        moved, state = PULL.update(m, state, grads, params, number)
        return {name: value for name, value in moved.items() if "weight" in name}, state

    rule = PULL._replace(update=update)
    got, expected = (
        rows.gradient(one, rule=rule, steps=200)[0] for one in (Implicit(ConjugateGradient(iterations=60)), Unrolled())
    )
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
    assert all(bool(value.any()) for value in got.params.values())


def test_those_that_only_earlier_steps_moved_count_as_constants(rows):
    def update(m, state, grads, params, number):
        moved, state = PULL.update(m, state, grads, params, number)
        return {name: value for name, value in moved.items() if "weight" in name or number == 0}, state

    got = rows.gradient(Implicit(ConjugateGradient(iterations=60)), rule=PULL._replace(update=update), steps=9)[
        0
    ].params
    assert not got["0.bias"].any() and not got["2.bias"].any() and got["0.weight"].any()


@pytest.mark.parametrize("rule", [None, rules.weight_decay(0.1), "nothing"], ids=["scale", "decay", "nothing"])
def test_a_rest_that_nothing_to_be_learned_has_a_part_in_is_refused(rows, rule):
    if rule == "nothing":
        rule = rules.Rule(lambda m, state, grads, params, number: ({} if number else grads, state))
    with pytest.raises(UsageError, match=r"Implicit would learn nothing: .*rules.proximal\(...\)"):
        rows.gradient(Implicit(), rule=rule)


@pytest.mark.parametrize("rule", [rules.momentum(decay=0.9), rules.adam()], ids=["momentum", "adam"])
def test_rules_whose_state_changes_are_refused(rows, rule):
    learner = headstart.maml(rows.module, rule=rules.chain(rule, rules.scale(0.1)), adjoint=Implicit())
    with pytest.raises(UsageError, match="the rule's state must not change from step to step, as that of momentum"):
        learner.adapt(learner.init(None), rows.episodes.support)


def test_a_state_that_changes_is_refused_whatever_it_is(rows):
    rule = rules.Rule(
        lambda m, state, grads, params, number: (grads, {"count": state["count"] + 1}),
        lambda m, params, seed: {"count": 0},
    )
    with pytest.raises(UsageError, match="the rule's state must not change from step to step"):
        rows.gradient(Implicit(), rule=rule)
    late = rules.Rule(lambda m, state, grads, params, number: (grads, {"seen": torch.ones(3)}))
    with pytest.raises(UsageError, match="the rule's state must not change from step to step"):
        rows.gradient(Implicit(), rule=late)


def test_terms_are_counted_from_the_right_side_on(rows):
    """At the point of rest, K terms after the first are the last K + 1 of many steps."""
    rule = rules.chain(rules.only("2"), rules.proximal(1.0), rules.scale(0.3))
    got, same, other = (
        rows.gradient(one, rule=rule, steps=200)[0].params["0.weight"]
        for one in (Implicit(Neumann(terms=3)), Truncated(4), Truncated(3))
    )
    torch.testing.assert_close(got, same, rtol=1e-6, atol=1e-9)
    assert (got - other).norm() > 1e-3 * got.norm()


def test_a_model_without_second_derivatives_is_refused(generator):
    loss = headstart.core.losses.per_task(nn.functional.multi_margin_loss)
    learner = headstart.maml(nn.Linear(4, 3).double(), loss=loss, rule=PULL, adjoint=Implicit())
    with pytest.raises(headstart.errors.DifferentiationError, match="multi_margin_loss"):
        headstart.meta_gradient(learner, learner.init(None), random_episodes((4,)))


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: ConjugateGradient(iterations=0),
            r"ConjugateGradient\(iterations=...\) must be a whole number from 1 up, got 0",
        ),
        (lambda: ConjugateGradient(iterations=2.5), "whole number"),
        (
            lambda: ConjugateGradient(iterations=5, tolerance=-1),
            "tolerance and damping must be 0 or more, got -1 and 0.0",
        ),
        (lambda: ConjugateGradient(iterations=5, damping=-1), "damping"),
        (lambda: Neumann(terms=-1), r"Neumann\(terms=...\) must be a whole number from 0 up, got -1"),
    ],
)
def test_solvers_that_cannot_be_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_it_is_a_value_and_says_that_it_is_not_exact():
    assert Implicit() == Implicit(ConjugateGradient(iterations=5)) != Implicit(Neumann())
    assert not Implicit().exact
