"""Clipping, weight decay and the proximal pull."""

import pytest
import torch

from headstart import errors
from headstart.core.rules import chain, clip, proximal, scale, weight_decay
from headstart.testing import check_rule


def apply(rule, grads, params=None, m=None):
    params = grads if params is None else params
    return rule.update(m or {}, rule.state(m or {}, params, None), grads, params, 0)[0]


def test_clip_by_norm_takes_all_tensors_of_a_task_together_and_each_task_by_itself():
    grads = {"a": torch.tensor([[3.0, 0.0], [0.3, 0.0], [0.0, 0.0]]), "b": torch.tensor([[[4.0]], [[0.4]], [[0.0]]])}
    out = apply(clip(norm=1.0), grads)
    torch.testing.assert_close(out["a"], torch.tensor([[0.6, 0.0], [0.3, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(out["b"].flatten(), torch.tensor([0.8, 0.4, 0.0]))


def test_clip_by_norm_counts_parameters_of_a_single_number():
    grads = {"a": torch.tensor([3.0, 0.3]), "b": torch.tensor([[4.0], [0.4]])}
    out = apply(clip(norm=1.0), grads)
    assert out["a"].tolist() == [pytest.approx(0.6), pytest.approx(0.3)]
    assert out["b"].flatten().tolist() == [pytest.approx(0.8), pytest.approx(0.4)]


def test_clip_by_value_clips_elements():
    out = apply(clip(value=0.5), {"a": torch.tensor([[-2.0, 0.25, 0.6]])})
    assert out["a"].tolist() == [[-0.5, 0.25, 0.5]]


@pytest.mark.parametrize("make", [weight_decay, proximal])
def test_learned_strengths_start_as_the_fixed_one_and_are_exact(make, generator):
    learned = make(0.3, learn=True)
    check_rule(learned)
    check_rule(make(0.3))
    theta = {"w": torch.ones(2, 3), "b": torch.ones(3)}
    m = learned.structure(theta, None)
    name = make.__name__
    assert {k: v.shape for k, v in m.items()} == {f"log_{name}.w": (), f"log_{name}.b": ()}
    assert {k: v.item() for k, v in learned.shown(m).items()} == {
        f"{name}.w": pytest.approx(0.3),
        f"{name}.b": pytest.approx(0.3),
    }
    params = {k: torch.randn(2, *v.shape, generator=generator) for k, v in theta.items()}
    state = {k: torch.zeros_like(v) for k, v in params.items()} if make is proximal else {}
    ours, theirs = (rule.update(m, state, params, params, 0)[0] for rule in (learned, make(0.3)))
    torch.testing.assert_close(ours, theirs)


def test_a_learned_strength_pulls_on_its_own_tensor():
    m = {"log_weight_decay.w": torch.tensor(2.0).log(), "log_weight_decay.b": torch.tensor(-100.0)}
    params = {"w": torch.tensor([[3.0]]), "b": torch.tensor([[5.0]])}
    out = apply(weight_decay(0.1, learn=True), {"w": torch.ones(1, 1), "b": torch.ones(1, 1)}, params, m)
    assert out["w"].item() == pytest.approx(7.0)
    assert out["b"].item() == 1.0


def test_the_proximal_pull_is_the_gradient_of_the_proximal_term():
    start = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    at = torch.tensor([[0.3, 0.2], [-1.0, 4.0]], dtype=torch.float64, requires_grad=True)

    def loss(value):
        return value.sin().sum()

    grads = torch.autograd.grad(loss(at), at)[0]
    expected = torch.autograd.grad(loss(at) + 0.7 / 2 * (at - start).square().sum(), at)[0]
    rule = proximal(0.7)
    state = rule.state({}, {"w": start}, None)
    out, after = rule.update({}, state, {"w": grads}, {"w": at.detach()}, 0)
    torch.testing.assert_close(out["w"], expected)
    assert torch.equal(after["w"], start)


def test_the_proximal_pull_is_nothing_at_the_start_and_grows_on_the_way():
    rule = chain(proximal(0.5), scale(0.1))
    value = {"w": torch.zeros(1, 1)}
    state = rule.state({}, value, None)
    for step in range(300):
        update, state = rule.update({}, state, {"w": -torch.ones(1, 1)}, value, step)
        value = {"w": value["w"] - update["w"]}
    # the gradient −1 is balanced by λ (θ − θ⁰) where θ − θ⁰ = 1 / λ
    assert value["w"].item() == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: clip(),
        lambda: clip(value=1.0, norm=1.0),
        lambda: clip(norm=0.0),
        lambda: weight_decay(-1.0),
        lambda: weight_decay(0.0, learn=True),
        lambda: proximal(0.0),
    ],
)
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(errors.UsageError, match=r"got|first"):
        make()
