import torch

from headstart.core.adjoints.needs import kept_bytes, measured
from headstart.core.adjoints.sweep import reverse
from headstart.core.rules import momentum
from headstart.core.rules.rule import Rule
from headstart.core.step import Given, Inner, Step

SIZE = 1000


def loss(given, params, buffers, number):
    noise = torch.rand_like(params["w"])
    return (params["w"].sin() * given.structure["m"] + noise).sum(1), buffers


def problem(rule, state):
    start = Inner({"w": torch.ones(2, SIZE, requires_grad=True)}, state, {})
    return Step(loss, rule), Given({"m": torch.ones((), requires_grad=True)}), start


def test_a_state_is_all_that_a_step_changes():
    rule = momentum(0.9)
    params = {"w": torch.ones(2, SIZE)}
    state = rule.state({}, params, None)
    step, given, start = problem(rule, state)
    needs = measured(step, given, start, reverse)
    held = sum(value.nbytes for value in state["momentum"].values()) if "momentum" in state else params["w"].nbytes
    assert needs.state == 2 * SIZE * 4 + held
    # going back holds the slopes of a state, and the step's graph
    assert needs.backward > 2 * needs.state
    assert kept_bytes(step, given, start) > needs.state


def test_what_is_no_tensor_counts_nothing():
    def update(m, state, grads, params, number):
        return grads, {"number": state["number"] + 1}

    step, given, start = problem(Rule(update), {"number": 0})
    assert measured(step, given, start, reverse).state == 2 * SIZE * 4


def test_measuring_draws_nothing_and_leaves_no_gradient():
    step, given, start = problem(momentum(0.9), momentum(0.9).state({}, {"w": torch.ones(2, SIZE)}, None))
    before = torch.get_rng_state()
    measured(step, given, start, reverse)
    kept_bytes(step, given, start)
    assert torch.equal(torch.get_rng_state(), before)
    assert start.params["w"].grad is None and given.structure["m"].grad is None
