"""Gates over what moves."""

import math

import pytest
import torch
from torch import nn

from headstart import errors
from headstart.core.rules import chain, fixed_mask, mask, only, scale, unit_mask
from headstart.forward.functional import functional
from headstart.testing import check_rule
from headstart.types import Batch

KINDS = {
    "hard concrete": mask(),
    "by unit": mask(granularity="unit", temperature=0.5),
    "by tensor": mask(granularity="tensor"),
    "unit mask": unit_mask(),
    "cold unit mask": unit_mask(temperature=0.3),
}


def shaken(rule, size=1.0):
    """Return the rule with random logits."""

    def structure(params, generator):
        return {
            key: value + size * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
            for key, value in rule.structure(params, generator).items()
        }

    return rule._replace(structure=structure)


def gates(rule, m, shapes, seed=None, tasks=1):
    """Return the gates of tasks, ``(B, *shape)``: what becomes of gradients of one."""
    ones = {name: torch.ones(tasks, *shape, dtype=torch.float64) for name, shape in shapes.items()}
    return rule.update(m, rule.state(m, ones, Batch(None, None, seed=seed)), ones, ones, 0)[0]


def logits(rule, shapes):
    return rule.structure({name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}, None)


@pytest.mark.parametrize("name", KINDS)
def test_masks_are_exact(name):
    unseeded = shaken(KINDS[name])
    check_rule(unseeded)
    check_rule(
        unseeded._replace(state=lambda m, params, support: unseeded.state(m, params, support._replace(seed=None)))
    )


@pytest.mark.parametrize("rule", [mask(kind="straight_through"), unit_mask(hard=True)])
def test_masks_that_are_not_exact_say_so_and_keep_the_rest_of_the_contract(rule):
    assert not rule.exact
    check_rule(shaken(rule))


@pytest.mark.parametrize("logit", [-2.0, -0.5, 0.0, 1.5])
@pytest.mark.parametrize("temperature", [0.4, 2 / 3])
def test_hard_concrete_gates_are_open_as_often_as_expected(logit, temperature):
    rule = mask(temperature=temperature, target=0.25, strength=3.0)
    m = {"mask.w": torch.full((100, 100), logit, dtype=torch.float64)}
    drawn = gates(rule, m, {"w": (100, 100)}, torch.arange(8), tasks=8)["w"]
    expected = 1 / (1 + math.exp(-(logit + temperature * math.log(11))))
    assert abs((drawn > 0).double().mean().item() - expected) < 4.5 * (expected * (1 - expected) / 80_000) ** 0.5
    assert drawn.min() == 0 and drawn.max() == 1 and 0 < ((drawn > 0) & (drawn < 1)).double().mean() < 1
    assert rule.penalty(m).item() == pytest.approx(3.0 * (expected - 0.25) ** 2)


def test_without_a_seed_gates_are_those_of_test_time():
    m = {"mask.w": torch.tensor([-9.0, -0.7, 0.4, 9.0], dtype=torch.float64)}
    expected = [min(1.0, max(0.0, 1.2 / (1 + math.exp(-x)) - 0.1)) for x in (-9.0, -0.7, 0.4, 9.0)]
    assert gates(mask(), m, {"w": (4,)})["w"][0].tolist() == pytest.approx(expected)
    assert mask().shown(m)["mask.w"].tolist() == pytest.approx(expected)
    assert expected[0] == 0 and expected[-1] == 1


@pytest.mark.parametrize("rule", [*KINDS.values(), unit_mask(hard=True)])
def test_a_draw_is_the_task_s_own_and_the_same_at_every_step(rule):
    shapes = {"body.weight": (4, 3), "body.bias": (4,), "head.weight": (5, 4)}
    m = logits(rule, shapes)
    seeds = torch.tensor([3, 2**62 + 1, 8])
    together = gates(rule, m, shapes, seeds, tasks=3)
    again = gates(rule, m, shapes, seeds, tasks=3)
    alone = gates(rule, m, shapes, seeds[1:2])
    assert all(torch.equal(together[k], again[k]) for k in shapes)
    torch.testing.assert_close({k: v[1:2] for k, v in together.items()}, alone, rtol=1e-14, atol=0)
    assert any(not torch.equal(together[k][0], together[k][1]) for k in shapes)
    ones = {k: torch.ones_like(v) for k, v in together.items()}
    state = rule.state(m, ones, Batch(None, None, seed=seeds))
    for step in range(3):
        moved, state = rule.update(m, state, ones, ones, step)
        assert all(torch.equal(moved[k], together[k]) for k in shapes)


def test_draws_differ_by_tensor_and_by_mask():
    shapes = {"a": (50, 40), "b": (50, 40)}
    seed = torch.tensor([7])
    first, second = mask(), mask(name="second")
    one, two = (gates(rule, logits(rule, shapes), shapes, seed) for rule in (first, second))
    for left, right in ((one["a"], one["b"]), (one["a"], two["a"])):
        assert abs(torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1]) < 4.5 / 2000**0.5


def test_coarser_gates_cover_rows_or_tensors():
    shapes = {"w": (3, 4, 2), "b": (3,), "s": ()}
    unit, tensor = mask(granularity="unit"), mask(granularity="tensor")
    assert {k: v.shape for k, v in logits(unit, shapes).items()} == {"mask.w": (3,), "mask.b": (3,), "mask.s": ()}
    assert all(v.shape == () for v in logits(tensor, shapes).values())
    seed = torch.tensor([5, 6])
    rows = gates(unit, logits(unit, shapes), shapes, seed, tasks=2)["w"].flatten(2)
    assert torch.equal(rows, rows[..., :1].expand_as(rows))
    assert len(rows[0, :, 0].unique()) > 1
    whole = gates(tensor, logits(tensor, shapes), shapes, seed, tasks=2)["w"].flatten(1)
    assert torch.equal(whole, whole[:, :1].expand_as(whole))


def test_the_outer_loop_can_bring_a_mask_to_its_target():
    rule = mask(target=0.2, strength=1.0)
    value = logits(rule, {"w": (10, 10)})["mask.w"].requires_grad_()
    optimiser = torch.optim.Adam([value], 0.1)
    for _ in range(150):
        optimiser.zero_grad()
        rule.penalty({"mask.w": value, "rate": torch.ones(())}).backward()
        optimiser.step()
    drawn = gates(rule, {"mask.w": value.detach()}, {"w": (10, 10)}, torch.arange(200), tasks=200)["w"]
    assert (drawn > 0).double().mean().item() == pytest.approx(0.2, abs=0.02)


def test_straight_through_gates_are_steps_with_the_derivative_of_a_sigmoid():
    rule = mask(kind="straight_through", target=0.5)
    value = torch.tensor([-1.0, 0.0, 0.3, 2.0], dtype=torch.float64, requires_grad=True)
    for seed in (None, torch.tensor([1])):
        out = gates(rule, {"mask.w": value}, {"w": (4,)}, seed)["w"]
        assert out.tolist() == [[0.0, 0.0, 1.0, 1.0]]
        (slope,) = torch.autograd.grad(out.sum(), value)
        torch.testing.assert_close(slope, value.sigmoid() * (1 - value.sigmoid()))
    penalty = rule.penalty({"mask.w": torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64)})
    assert penalty.item() == pytest.approx((0.75 - 0.5) ** 2)
    assert bool((gates(rule, logits(rule, {"w": (4,)}), {"w": (4,)})["w"] == 1).all()), "it starts open"


def test_a_unit_mask_shares_one_draw_between_a_weight_and_its_bias():
    rule = unit_mask()
    shapes = {"body.0.weight": (4, 3), "body.0.bias": (4,), "head.weight": (4, 4), "head.bias": (4,)}
    m = logits(rule, shapes)
    assert {k: v.tolist() for k, v in m.items()} == {"mask.body.0": [0.0] * 4, "mask.head": [0.0] * 4}
    out = gates(rule, m, shapes, torch.arange(6), tasks=6)
    for module in ("body.0", "head"):
        weight, bias = out[f"{module}.weight"], out[f"{module}.bias"]
        assert torch.equal(weight, bias[..., None].expand_as(weight))
    assert not torch.equal(out["body.0.bias"], out["head.bias"])
    assert len(out["head.bias"].unique()) == 24
    assert bool(((out["head.bias"] > 0) & (out["head.bias"] < 1)).all())
    shown = rule.shown({"mask.head": torch.tensor([0.0, math.log(3)]), "rate": torch.ones(())})
    assert {k: v.tolist() for k, v in shown.items()} == {"mask.head": [0.5, pytest.approx(0.75)]}


def test_a_unit_mask_without_a_seed_is_its_expectation():
    m = {"mask": torch.tensor([0.0, math.log(3)], dtype=torch.float64)}
    shapes = {"weight": (2, 2), "bias": (2,)}
    assert gates(unit_mask(), m, shapes)["weight"][0].flatten().tolist() == pytest.approx([0.5, 0.5, 0.75, 0.75])
    assert gates(unit_mask(hard=True), m, shapes)["bias"].tolist() == [[1.0, 1.0]]
    assert unit_mask().shown(m)["mask"].tolist() == pytest.approx([0.5, 0.75])


@pytest.mark.parametrize("logit", [-1.0, 0.0, 2.0])
def test_hard_unit_gates_are_bernoulli_with_soft_derivatives(logit):
    value = torch.full((50,), logit, dtype=torch.float64, requires_grad=True)
    seeds = torch.arange(400)
    hard, soft = (
        gates(unit_mask(hard=hard, temperature=0.8), {"mask": value}, {"weight": (50, 2)}, seeds, tasks=400)["weight"]
        for hard in (True, False)
    )
    assert hard.unique().tolist() == [0.0, 1.0]
    p = 1 / (1 + math.exp(-logit))
    assert abs(hard[..., 0].mean().item() - p) < 4.5 * (p * (1 - p) / 20_000) ** 0.5
    assert torch.equal(hard == 1, soft >= 0.5)
    slopes = [torch.autograd.grad(out.sum(), value)[0] for out in (hard, soft)]
    torch.testing.assert_close(slopes[0], slopes[1])


def test_parameters_of_a_module_with_other_numbers_of_rows_have_gates_of_their_own():
    shapes = {"m.a": (3, 2), "m.b": (3,), "m.c": (2, 3), "m.scale": ()}
    m = logits(unit_mask(), shapes)
    assert {k: v.shape for k, v in m.items()} == {"mask.m.3_rows": (3,), "mask.m.2_rows": (2,), "mask.m.single": ()}
    out = gates(unit_mask(), m, shapes, torch.arange(2), tasks=2)
    assert torch.equal(out["m.a"][..., 0], out["m.b"])
    assert out["m.scale"].shape == (2,)


def test_fixed_masks_hold_weights_where_they_are():
    held = torch.tensor([[1, 0], [0, 1]])
    rule = fixed_mask({"w": held})
    grads = {"w": torch.randn(3, 2, 2), "b": torch.randn(3, 2)}
    out, _ = rule.update({}, {}, grads, grads, 0)
    assert torch.equal(out["w"], grads["w"] * held) and torch.equal(out["b"], grads["b"])
    check_rule(chain(fixed_mask({"body.weight": torch.eye(4, 3, dtype=torch.bool)}), scale(0.1)))
    held.zero_()
    assert torch.equal(rule.update({}, {}, grads, grads, 0)[0]["w"], out["w"]), "masks are copied"


def leaves():
    module = nn.Sequential()
    module.add_module("body", nn.Linear(3, 4))
    module.add_module("head", nn.Linear(4, 2))
    return functional(module).leaves


def test_a_parameter_whose_mask_is_all_zeros_does_not_move():
    rule = fixed_mask({"body.weight": torch.zeros(4, 3), "body.bias": torch.tensor([0, 0, 1, 0])})
    assert rule.moves(leaves()) == {"body.bias", "head.weight", "head.bias"}
    assert chain(only("body"), rule).moves(leaves()) == {"body.bias"}


@pytest.mark.parametrize(
    ("masks", "error", "message"),
    [
        ({"body.wieght": torch.ones(4, 3)}, errors.UnknownNameError, "'body.wieght'; nearest: body.weight"),
        ({"body": torch.ones(4, 3)}, errors.UsageError, "'body' names several parameters"),
        ({"body.weight": torch.ones(3, 4)}, errors.ShapeError, r"'body.weight' is \(3, 4\), the parameter \(4, 3\)"),
        (
            {name: torch.zeros(leaf.shape) for name, leaf in leaves().items()},
            errors.UsageError,
            "nothing is left to move among body.weight",
        ),
    ],
)
def test_fixed_masks_that_do_not_fit_are_refused(masks, error, message):
    with pytest.raises(error, match=message):
        fixed_mask(masks).moves(leaves())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mask(target=0.0), "target is .* got 0.0"),
        (lambda: mask(target=1.1), "target is .* got 1.1"),
        (lambda: mask(target=math.nan), "target is .* got nan"),
        (lambda: mask(strength=-1.0), "strength must be at least 0, got -1.0"),
        (lambda: mask(temperature=0.0), "temperature must be greater than 0"),
        (lambda: mask(granularity="weights"), "unknown granularity 'weights'; did you mean 'weight'"),
        (lambda: mask(kind="concrete"), "unknown kind of mask 'concrete'; did you mean 'hard_concrete'"),
        (lambda: unit_mask(temperature=-1.0), "temperature must be greater than 0"),
        (lambda: fixed_mask({}), "got no masks"),
        (lambda: fixed_mask({"w": torch.tensor([0.0, 0.5])}), "that of 'w' holds other values"),
    ],
)
def test_what_makes_no_mask_is_refused(make, message):
    with pytest.raises(errors.UsageError, match=message):
        make()
