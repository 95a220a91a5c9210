import pytest
import torch

from headstart import FirstOrder, Unrolled
from headstart.core.rules import scale
from headstart.core.solve import expanded, solve
from headstart.core.step import Given, Inner
from headstart.errors import UsageError

A = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


def quadratic(given, params, buffers, step):
    """Task i has the loss aᵢ w² / 2."""
    return 0.5 * A * params["w"][:, 0].square(), {"seen": buffers["seen"] + params["w"]}


def start(w=1.0):
    params = {"w": torch.full((3, 1), w, dtype=torch.float64, requires_grad=True)}
    return Inner(params, {}, {"seen": torch.zeros(3, 1, dtype=torch.float64)})


def test_gradient_steps_on_a_quadratic_have_their_closed_form():
    begin = start()
    end, info = solve(quadratic, begin, Given({}), scale(0.1), Unrolled(), 4)
    factor = (1 - 0.1 * A) ** 4
    torch.testing.assert_close(end.params["w"][:, 0], factor)
    (slope,) = torch.autograd.grad(end.params["w"].sum(), begin.params["w"])
    torch.testing.assert_close(slope[:, 0], factor)
    expected = torch.stack([0.5 * A * (1 - 0.1 * A) ** (2 * t) for t in range(4)])
    torch.testing.assert_close(info.support_loss, expected)
    torch.testing.assert_close(end.buffers["seen"][:, 0], sum((1 - 0.1 * A) ** t for t in range(4)))


def test_the_first_order_takes_the_gradients_as_constants():
    begin = start()
    end, _ = solve(quadratic, begin, Given({}), scale(0.1), FirstOrder(), 4)
    (slope,) = torch.autograd.grad(end.params["w"].sum(), begin.params["w"])
    torch.testing.assert_close(end.params["w"][:, 0], (1 - 0.1 * A) ** 4)
    assert slope.flatten().tolist() == [1, 1, 1]
    assert not end.buffers["seen"].requires_grad


def test_no_steps_change_nothing():
    begin = start()
    end, info = solve(quadratic, begin, Given({}), scale(0.1), Unrolled(), 0)
    assert end is begin and info.support_loss.shape == (0, 3) and info.support_loss.dtype == torch.float64
    with pytest.raises(UsageError, match="must be 0 or more, got -1"):
        solve(quadratic, begin, Given({}), scale(0.1), Unrolled(), -1)


def test_what_the_loss_does_not_depend_on_stays_and_a_loss_that_depends_on_nothing_is_refused():
    begin = start()
    begin.params["idle"] = torch.ones(3, 2, dtype=torch.float64)
    end, _ = solve(quadratic, begin, Given({}), scale(0.1), Unrolled(), 2)
    assert torch.equal(end.params["idle"], begin.params["idle"])

    def deaf(given, params, buffers, step):
        return A.clone().requires_grad_() * 2, buffers

    with pytest.raises(UsageError, match="does not depend on any parameter that moves: w"):
        solve(deaf, start(), Given({}), scale(0.1), Unrolled(), 1)


def test_all_tasks_start_from_the_same_values():
    out = expanded({"a": torch.arange(2), "b": torch.zeros(1)}, ["a"], 3)
    assert out.keys() == {"a"} and out["a"].tolist() == [[0, 1]] * 3
