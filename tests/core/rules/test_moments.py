"""Momentum and Adam."""

import pytest
import torch

from headstart import errors
from headstart.core.rules import adam, momentum
from headstart.testing import check_rule


def apply(rule, grads, params=None, m=None):
    params = grads if params is None else params
    return rule.update(m or {}, rule.state(m or {}, params, None), grads, params, 0)[0]


def test_adam_has_no_derivative_through_a_weight_without_gradient():
    g = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    hidden = torch.relu(g - 1)  # a dead unit: its gradient is 0, and stays 0
    (slope,) = torch.autograd.grad(apply(adam(), {"a": hidden})["a"].sum(), g)
    assert slope.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_learned_decay_starts_as_the_fixed_one_and_is_exact(nesterov, generator):
    learned, fixed = (momentum(0.7, nesterov=nesterov, learn=learn) for learn in (True, False))
    check_rule(learned)
    params = {"w": torch.randn(2, 3, generator=generator, dtype=torch.float64)}
    m = learned.structure(params, None)
    assert {k: v.shape for k, v in m.items()} == {"logit_momentum": ()}
    assert learned.shown(m)["momentum"].item() == pytest.approx(0.7)
    states = [rule.state(m, params, None) for rule in (learned, fixed)]
    for step in range(3):
        grads = {"w": torch.randn(2, 3, generator=generator, dtype=torch.float64)}
        ours, states[0] = learned.update(m, states[0], grads, params, step)
        theirs, states[1] = fixed.update({}, states[1], grads, params, step)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("logit", [-12.0, 12.0])
def test_no_outer_step_takes_a_learned_decay_out_of_its_range(logit):
    assert 0 < momentum(learn=True).shown({"logit_momentum": torch.tensor(logit)})["momentum"] < 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: momentum(1.0),
        lambda: momentum(-0.1),
        lambda: momentum(0.0, learn=True),
        lambda: adam(square_decay=1.0),
        lambda: adam(epsilon=0.0),
    ],
)
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(errors.UsageError, match=r"got|first"):
        make()
