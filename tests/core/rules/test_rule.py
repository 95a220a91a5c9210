"""Rules, chains of them, and what they move."""

import copy

import pytest
import torch
from torch import nn

from headstart import errors
from headstart.core.parameters import Leaf
from headstart.core.rules import (
    adam,
    chain,
    exclude,
    mask,
    momentum,
    only,
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
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), chain(momentum(decay=0.9), scale(0.1))),
        (
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, nesterov=True),
            chain(momentum(decay=0.8, nesterov=True), scale(0.1)),
        ),
        (
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.2),
            chain(weight_decay(0.2), momentum(decay=0.9), scale(0.1)),
        ),
        (lambda p: torch.optim.Adam(p, 0.05), chain(adam(), scale(0.05))),
        (
            lambda p: torch.optim.Adam(p, 0.05, betas=(0.0, 0.99), eps=1e-3),
            chain(adam(decay=0.0, square_decay=0.99, epsilon=1e-3), scale(0.05)),
        ),
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


def test_a_chain_is_exact_where_all_its_rules_are():
    assert chain(momentum(), scale(0.1), mask()).exact
    assert not chain(momentum(), mask(kind="straight_through"), scale(0.1)).exact
    assert not chain(chain(unit_mask(hard=True)), scale(0.1)).exact


@pytest.mark.parametrize(
    ("what", "chosen"),
    [
        (("head",), {"head.weight", "head.bias"}),
        (("*.bias",), {"block1.0.bias", "block1.1.bias", "block2.0.bias", "block2.1.bias", "head.bias"}),
        (("block?.0",), {"block1.0.weight", "block1.0.bias", "block2.0.weight", "block2.0.bias"}),
        ((nn.BatchNorm2d,), {"block1.1.weight", "block1.1.bias", "block2.1.weight", "block2.1.bias"}),
        ((nn.Linear, "block1.0.bias"), {"head.weight", "head.bias", "block1.0.bias"}),
        ((lambda leaf: len(leaf.shape) == 4,), {"block1.0.weight", "block2.0.weight"}),
    ],
)
def test_only_and_exclude_choose_by_pattern_type_and_predicate(what, chosen):
    assert only(*what).moves(leaves()) == chosen
    assert exclude(*what).moves(leaves()) == leaves().keys() - chosen


def test_what_chooses_nothing_is_answered_with_what_there_is():
    with pytest.raises(errors.UnknownNameError, match="no parameter matches 'haed'; nearest: head"):
        only("haed").moves(leaves())
    with pytest.raises(
        errors.UnknownNameError, match="belongs to a LSTM. There are parameters of: BatchNorm2d, Conv2d, Lin"
    ):
        only(nn.LSTM).moves(leaves())
    with pytest.raises(errors.UnknownNameError, match="the predicate chooses none"):
        exclude(lambda leaf: False).moves(leaves())


def test_a_leaf_knows_the_layer_that_holds_it():
    assert leaves()["block2.1.weight"] == Leaf("block2.1.weight", (2,), nn.BatchNorm2d)
