"""Step sizes."""

import pytest
import torch

from headstart import errors
from headstart.core.rules import per_tensor, per_weight, scale


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


@pytest.mark.parametrize(
    "make",
    [
        lambda: scale(0.0),
        lambda: scale(-1.0),
        lambda: scale(float("nan")),
        lambda: per_weight((0.1, 0.01)),
        lambda: per_tensor(0.0),
        lambda: per_tensor(0.1, steps=0),
    ],
)
def test_numbers_out_of_range_are_refused(make):
    with pytest.raises(errors.UsageError, match=r"got|first"):
        make()
