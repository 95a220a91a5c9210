"""The inner loop: one step, alone and in its parts, and all of them."""

import pytest
import torch

from headstart import Checkpointed, FirstOrder, Unrolled
from headstart.core import tree
from headstart.core.inner import Given, Inner, Step, expanded, gradients, solve
from headstart.core.rules import chain, momentum, proximal, scale
from headstart.core.rules.rule import Rule
from headstart.errors import UsageError

A = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


def quadratic(given, params, buffers, number):
    """Task i has the loss (number + 1) aᵢ w² / 2, and a buffer that counts."""
    losses = 0.5 * (number + 1) * A * params["w"][:, 0].square()
    return losses, {"seen": buffers["seen"] + 1}


def start(**more):
    params = {"w": torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64), **more}
    return Inner(params, {}, {"seen": torch.zeros(3)})


def test_a_step_goes_down_every_tasks_own_loss():
    after, losses = Step(quadratic, scale(0.1))(Given({}), start(), 0, False)
    w = start().params["w"]
    torch.testing.assert_close(after.params["w"], w * (1 - 0.1 * A[:, None]))
    torch.testing.assert_close(losses, 0.5 * A * w[:, 0].square())
    assert after.buffers["seen"].tolist() == [1, 1, 1]
    assert not after.params["w"].requires_grad and not losses.requires_grad


def test_steps_are_numbered_from_the_first_on():
    seen = []

    def update(m, state, grads, params, number):
        seen.append(number)
        return grads, state

    step = Step(quadratic, Rule(update), first=4)
    _, losses = step(Given({}), start(), 2, False)
    torch.testing.assert_close(losses, 7 * 0.5 * A * start().params["w"][:, 0].square())
    step.displacement(Given({}), start(), 2, {})
    assert seen == [6, 6]


@pytest.mark.parametrize(
    "rule", [scale(0.1), chain(proximal(0.5), momentum(decay=0.5), scale(0.1))], ids=["plain", "chain"]
)
def test_its_parts_make_up_the_step(rule):
    inner = start()
    inner = inner._replace(rule=rule.state({}, inner.params, None))
    step = Step(quadratic, rule)
    losses, grads, buffers = gradients(quadratic, Given({}), inner, 3, create_graph=False)
    moved, state = step.displacement(Given({}), inner, 3, grads)
    expected = Inner(tree.subtract(inner.params, moved), state, buffers), losses.detach()
    torch.testing.assert_close(step(Given({}), inner, 3, False), expected, rtol=0, atol=0)


def test_a_parameter_that_the_rule_leaves_out_stays_as_it_is():
    rule = Rule(lambda m, state, grads, params, number: ({"w": grads["w"]}, state))
    inner = start(still=torch.ones(3, 2, dtype=torch.float64))
    after, _ = Step(quadratic, rule)(Given({}), inner, 0, False)
    assert after.params["still"] is inner.params["still"]


@pytest.mark.parametrize("create_graph", [True, False])
@pytest.mark.parametrize("why", ["accuracy", "no_grad", "constant"])
def test_a_loss_without_a_derivative_is_refused_in_words(create_graph, why):
    def loss(given, params, buffers, number):
        if why == "accuracy":
            return (params["w"][:, 0] > 0).double(), buffers
        with torch.set_grad_enabled(why != "no_grad"):
            return (params["w"][:, 0] if why == "no_grad" else A) * 2, buffers

    with pytest.raises(UsageError, match="the support loss has no derivative with respect to any .* moves: w; it does"):
        Step(loss, scale(0.1))(Given({}), start(), 0, create_graph)


@pytest.mark.parametrize("adjoint", [Unrolled(), Checkpointed(), FirstOrder()], ids=str)
def test_one_that_is_left_out_of_some_steps_is_held_still_with_the_others(adjoint):
    """The values are the same however they are differentiated: a gradient by b does not go through w."""

    def loss(given, params, buffers, number):
        return (params["w"] * params["b"] + params["w"].square())[:, 0], buffers

    def update(m, state, grads, params, number):
        return {name: 0.1 * grad for name, grad in grads.items() if name == "w" or number % 2}, state

    w, b = 1.0, 2.0
    for number in range(4):
        w, b = w - 0.1 * (b + 2 * w), b - 0.1 * w * (number % 2)
    params = {name: torch.full((1, 1), value, requires_grad=True) for name, value in (("w", 1.0), ("b", 2.0))}
    end, _ = solve(loss, Inner(params, {}, {}), Given({}), Rule(update), adjoint, 4)
    torch.testing.assert_close(end.params, {"w": torch.tensor([[w]]), "b": torch.tensor([[b]])})


def bowl(given, params, buffers, step):
    """Task i has the loss aᵢ w² / 2."""
    return 0.5 * A * params["w"][:, 0].square(), {"seen": buffers["seen"] + params["w"]}


def begin():
    params = {"w": torch.ones(3, 1, dtype=torch.float64, requires_grad=True)}
    return Inner(params, {}, {"seen": torch.zeros(3, 1, dtype=torch.float64)})


def test_gradient_steps_on_a_quadratic_have_their_closed_form():
    inner = begin()
    end, info = solve(bowl, inner, Given({}), scale(0.1), Unrolled(), 4)
    factor = (1 - 0.1 * A) ** 4
    torch.testing.assert_close(end.params["w"][:, 0], factor)
    (slope,) = torch.autograd.grad(end.params["w"].sum(), inner.params["w"])
    torch.testing.assert_close(slope[:, 0], factor)
    expected = torch.stack([0.5 * A * (1 - 0.1 * A) ** (2 * t) for t in range(4)])
    torch.testing.assert_close(info.support_loss, expected)
    torch.testing.assert_close(end.buffers["seen"][:, 0], sum((1 - 0.1 * A) ** t for t in range(4)))


def test_the_first_order_takes_the_gradients_as_constants():
    inner = begin()
    end, _ = solve(bowl, inner, Given({}), scale(0.1), FirstOrder(), 4)
    (slope,) = torch.autograd.grad(end.params["w"].sum(), inner.params["w"])
    torch.testing.assert_close(end.params["w"][:, 0], (1 - 0.1 * A) ** 4)
    assert slope.flatten().tolist() == [1, 1, 1]
    assert not end.buffers["seen"].requires_grad


def test_no_steps_change_nothing():
    inner = begin()
    end, info = solve(bowl, inner, Given({}), scale(0.1), Unrolled(), 0)
    assert end is inner and info.support_loss.shape == (0, 3) and info.support_loss.dtype == torch.float64
    with pytest.raises(UsageError, match="must be 0 or more, got -1"):
        solve(bowl, inner, Given({}), scale(0.1), Unrolled(), -1)


def test_what_the_loss_does_not_depend_on_stays_and_a_loss_that_depends_on_nothing_is_refused():
    inner = begin()
    inner.params["idle"] = torch.ones(3, 2, dtype=torch.float64)
    end, _ = solve(bowl, inner, Given({}), scale(0.1), Unrolled(), 2)
    assert torch.equal(end.params["idle"], inner.params["idle"])

    def deaf(given, params, buffers, step):
        return A.clone().requires_grad_() * 2, buffers

    with pytest.raises(UsageError, match="does not depend on any parameter that moves: w"):
        solve(deaf, begin(), Given({}), scale(0.1), Unrolled(), 1)


def test_all_tasks_start_from_the_same_values():
    out = expanded({"a": torch.arange(2), "b": torch.zeros(1)}, ["a"], 3)
    assert out.keys() == {"a"} and out["a"].tolist() == [[0, 1]] * 3
