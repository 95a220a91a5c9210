"""Rules and chains of them."""

import copy

import pytest
import torch
from torch import nn

from headstart import errors
from headstart.core.rules import (
    adam,
    chain,
    clip,
    exclude,
    mask,
    momentum,
    only,
    per_weight,
    proximal,
    scale,
    unit_mask,
    weight_decay,
)
from headstart.forward.functional import functional


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def optimise(make, steps=6):
    """Return the parameters of two tasks after some steps of a torch optimiser on each, and the gradients used."""
    generator = torch.Generator().manual_seed(3)
    start = model()
    tasks = []
    for _ in range(2):
        module = copy.deepcopy(start)
        optimiser = make(module.parameters())
        gradients = []
        for _ in range(steps):
            for p in module.parameters():
                p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            gradients.append([p.grad.clone() for p in module.parameters()])
            optimiser.step()
        tasks.append((module, gradients))
    return start, tasks


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda p: torch.optim.SGD(p, 0.1), scale(0.1)),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), chain(momentum(0.9), scale(0.1))),
        (
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, nesterov=True),
            chain(momentum(0.8, nesterov=True), scale(0.1)),
        ),
        (
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.2),
            chain(weight_decay(0.2), momentum(0.9), scale(0.1)),
        ),
        (lambda p: torch.optim.Adam(p, 0.05), chain(adam(), scale(0.05))),
        (lambda p: torch.optim.Adam(p, 0.05, betas=(0.0, 0.99), eps=1e-3), chain(adam(0.0, 0.99, 1e-3), scale(0.05))),
        (lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.1), chain(weight_decay(0.1), adam(), scale(0.05))),
    ],
    ids=["sgd", "momentum", "nesterov", "weight decay", "adam", "adam betas", "adam weight decay"],
)
def test_rules_equal_torch_optim(make, rule):
    start, tasks = optimise(make)
    names = [name for name, _ in start.named_parameters()]
    params = {name: torch.stack([p.detach()] * 2) for name, p in start.named_parameters()}
    state = rule.state({}, params, None)
    for step in range(6):
        both = zip(*(gradients[step] for _, gradients in tasks))
        grads = {name: torch.stack(pair) for name, pair in zip(names, both)}
        update, state = rule.update({}, state, grads, params, step)
        params = {name: value - update[name] for name, value in params.items()}
    for task, (module, _) in enumerate(tasks):
        for name, p in module.named_parameters():
            torch.testing.assert_close(params[name][task], p.detach(), rtol=1e-12, atol=1e-14)


def leaves():
    module = nn.Sequential()
    module.add_module("block1", nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
    module.add_module("block2", nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)))
    module.add_module("head", nn.Linear(2, 2))
    return functional(module).leaves


def test_a_chain_moves_what_all_its_rules_move_and_says_when_that_is_nothing():
    assert chain(only("head"), exclude("*.bias"), scale(1.0)).moves(leaves()) == {"head.weight"}
    with pytest.raises(errors.UsageError, match="leaves nothing to move"):
        chain(only("head"), only("block1")).moves(leaves())


def apply(rule, grads, params=None, m=None):
    params = grads if params is None else params
    return rule.update(m or {}, rule.state(m or {}, params, None), grads, params, 0)[0]


def test_rules_that_learn_under_one_name_clash_unless_named_apart():
    theta = {"w": torch.zeros(2)}
    with pytest.raises(errors.UsageError, match="both hold 'rate'; give one of them another name="):
        chain(scale(0.1, learn=True), scale(0.2, learn=True)).structure(theta, None)
    both = chain(scale(0.1, learn=True), scale(0.2, learn=True, name="second"))
    assert {k: round(v.item(), 6) for k, v in both.structure(theta, None).items()} == {"rate": 0.1, "second": 0.2}
    assert apply(both, {"w": torch.ones(1, 2)}, m=both.structure(theta, None))["w"].tolist() == [
        [pytest.approx(0.02)] * 2
    ]


def test_a_chain_is_affine_where_all_its_rules_are():
    assert chain(momentum(nesterov=True), weight_decay(0.1), proximal(0.1, learn=True), scale(0.1)).affine
    assert chain(only("head"), scale(0.1)).affine
    for other in (scale(0.1, learn=True), momentum(learn=True), clip(norm=1.0), mask(), adam(), per_weight()):
        assert not chain(other, scale(0.1)).affine


def test_a_chain_is_exact_where_all_its_rules_are():
    assert chain(momentum(), scale(0.1), mask()).exact
    assert not chain(momentum(), mask(kind="straight_through"), scale(0.1)).exact
    assert not chain(chain(unit_mask(hard=True)), scale(0.1)).exact
