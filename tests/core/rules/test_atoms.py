"""The atoms: step sizes, running averages, clipping and pulls."""

import pytest
import torch

from headstart import errors
from headstart.core.rules import adam, chain, clip, momentum, per_tensor, per_weight, proximal, scale, weight_decay


def apply(rule, grads, params=None, m=None):
    params = grads if params is None else params
    return rule.update(m or {}, rule.state(m or {}, params, None), grads, params, 0)[0]


def test_learned_rates_multiply_their_own_tensor_or_weight(generator):
    theta = {"w": torch.zeros(2, 3), "b": torch.zeros(3)}
    grads = {"w": torch.ones(2, 2, 3), "b": torch.ones(2, 3)}
    tensor = per_tensor(0.3)
    m = tensor.structure(theta, None)
    assert {k: v.shape for k, v in m.items()} == {"rate.w": (), "rate.b": ()}
    out = apply(tensor, grads, m={"rate.w": torch.tensor(2.0), "rate.b": torch.tensor(-1.0)})
    assert out["w"].unique().item() == 2 and out["b"].unique().item() == -1

    weight = per_weight((0.01, 0.05))
    m = weight.structure(theta, generator)
    assert m["rate.w"].shape == (2, 3) and len(m["rate.w"].unique()) == 6
    assert all(bool(((v >= 0.01) & (v < 0.05)).all()) for v in m.values())
    assert torch.equal(apply(weight, grads, m=m)["w"], m["rate.w"].expand(2, 2, 3))
    assert per_weight(0.02).structure(theta, None)["rate.b"].tolist() == [pytest.approx(0.02)] * 3


def test_rates_of_each_step_go_on_with_the_last_one():
    rule = per_tensor(0.1, steps=2)
    m = {"rate.w": torch.tensor([2.0, 3.0])}
    assert rule.structure({"w": torch.zeros(4)}, None)["rate.w"].shape == (2,)
    g = {"w": torch.ones(1, 4)}
    assert [rule.update(m, {}, g, g, step)[0]["w"].unique().item() for step in range(4)] == [2, 3, 3, 3]


def test_adam_has_no_derivative_through_a_weight_without_gradient():
    g = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    hidden = torch.relu(g - 1)  # a dead unit: its gradient is 0, and stays 0
    (slope,) = torch.autograd.grad(apply(adam(), {"a": hidden})["a"].sum(), g)
    assert slope.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_learned_decay_starts_as_the_fixed_one(nesterov, generator):
    learned, fixed = (momentum(decay=0.7, nesterov=nesterov, learn=learn) for learn in (True, False))
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
def test_learned_strengths_start_as_the_fixed_one(make, generator):
    learned = make(0.3, learn=True)
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
        lambda: scale(0.0),
        lambda: scale(-1.0),
        lambda: scale(float("nan")),
        lambda: per_weight((0.1, 0.01)),
        lambda: per_tensor(0.0),
        lambda: per_tensor(0.1, steps=0),
        lambda: momentum(decay=1.0),
        lambda: momentum(decay=-0.1),
        lambda: momentum(decay=0.0, learn=True),
        lambda: adam(square_decay=1.0),
        lambda: adam(epsilon=0.0),
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
