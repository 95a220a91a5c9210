import copy

import pytest
import torch
from torch import nn

import headstart
from headstart import rules
from headstart.errors import UsageError
from headstart.testing import random_episodes
from headstart.types import Batch


def case(**options):
    module = nn.Linear(2, 1).double()
    learner = headstart.reptile(module, loss="mse", **{"steps": 3, "rule": rules.scale(0.1)} | options)
    return module, learner, learner.init(None), random_episodes((2,), outputs=1, regression=True)


def adapted_by_hand(start, episodes, task, steps=3, rate=0.1, optimiser=None):
    """Run SGD on the support and query examples of a task, with torch's own tools."""
    module = copy.deepcopy(start)
    optimiser = torch.optim.SGD(module.parameters(), rate) if optimiser is None else optimiser(module.parameters())
    x, y = (torch.cat([getattr(batch, part)[task] for batch in episodes]) for part in "xy")
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.mse_loss(module(x), y).backward()
        optimiser.step()
    return dict(module.named_parameters())


def test_the_gradient_is_the_mean_of_the_differences():
    module, learner, meta, episodes = case()
    gradient, info = headstart.meta_gradient(learner, meta, episodes)
    ends = [adapted_by_hand(module, episodes, task) for task in range(3)]
    for name, value in gradient.params.items():
        expected = torch.stack([meta.params[name] - end[name].detach() for end in ends]).mean(0)
        torch.testing.assert_close(value, expected)
    assert not learner.exact and info.query_loss.shape == (3,) and info.support_loss.shape == (3, 3)


def test_the_inner_optimiser_is_adam_without_momentum():
    module = nn.Linear(2, 1).double()
    learner = headstart.reptile(module, loss="mse", steps=4, rate=0.01)
    episodes = random_episodes((2,), outputs=1, regression=True)
    meta = learner.init(None)
    gradient, _ = headstart.meta_gradient(learner, meta, episodes)
    ends = [
        adapted_by_hand(module, episodes, t, 4, optimiser=lambda p: torch.optim.Adam(p, 0.01, betas=(0.0, 0.999)))
        for t in range(3)
    ]
    expected = torch.stack([meta.params["weight"] - end["weight"].detach() for end in ends]).mean(0)
    torch.testing.assert_close(gradient.params["weight"], expected)


def test_serial_followed_by_plain_sgd_is_algorithm_1():
    epsilon = 0.3
    module, learner, meta, episodes = case(serial=epsilon)
    gradient, _ = headstart.meta_gradient(learner, meta, episodes)
    leaves = {name: value.clone().requires_grad_() for name, value in meta.params.items()}
    optimiser = torch.optim.SGD(leaves.values(), lr=epsilon)
    for name, leaf in leaves.items():
        leaf.grad = gradient.params[name]
    optimiser.step()

    theta = copy.deepcopy(module)
    for task in range(3):
        end = adapted_by_hand(theta, episodes, task)
        with torch.no_grad():
            for name, p in theta.named_parameters():
                p += epsilon * (end[name] - p)
    for name, p in theta.named_parameters():
        torch.testing.assert_close(leaves[name].detach(), p.detach())


def test_inner_batch_takes_the_examples_by_turns():
    seen = []

    def loss(outputs, batch):
        seen.append(batch.x[0, :, 0].tolist())
        return (outputs - batch.y).square().mean((1, 2))

    learner = headstart.reptile(
        nn.Linear(2, 1).double(), loss=loss, steps=4, rule=rules.scale(0.1), inner_batch=3, taskmap="vmap"
    )
    support, query = random_episodes((2,), outputs=1, regression=True)
    headstart.meta_gradient(learner, learner.init(None), headstart.Episodes(support, query))
    everything = sorted([*support.x[0, :, 0].tolist(), *query.x[0, :, 0].tolist()])
    steps = [batch for batch in seen if len(batch) == 3]
    assert len(steps) == 4
    assert sorted(steps[0] + steps[1] + steps[2]) == everything, "9 examples in 3 steps of 3"
    assert steps[3] == steps[0]


def test_what_does_not_move_has_gradient_zero():
    learner = headstart.reptile(
        headstart.mlp(2, 3, hidden=(4,)), steps=2, rule=rules.chain(rules.only("head"), rules.scale(0.1, learn=True))
    )
    support, query = random_episodes((2,))
    episodes = headstart.Episodes(*(Batch(b.x.float(), b.y) for b in (support, query)))
    gradient, _ = headstart.meta_gradient(learner, learner.init(None), episodes)
    assert gradient.params["head.weight"].any()
    assert not gradient.params["hidden1.weight"].any() and not gradient.structure["rate"].any()


def test_masks_of_one_set_alone_are_joined():
    _, learner, meta, (support, query) = case()
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[:, 3:] = False
    got, _ = headstart.meta_gradient(learner, meta, headstart.Episodes(support._replace(mask=mask), query))
    short = headstart.Episodes(Batch(support.x[:, :3], support.y[:, :3]), query)
    torch.testing.assert_close(got.params, headstart.meta_gradient(learner, meta, short)[0].params)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(UsageError, match="serial is the outer step size .* got 0"):
        headstart.reptile(nn.Linear(2, 2), serial=0)
    with pytest.raises(UsageError, match="inner_batch must be at least 1, got 0"):
        headstart.reptile(nn.Linear(2, 2), inner_batch=0)


@pytest.mark.parametrize("serial", [None, 0.5])
def test_what_is_each_tasks_own_is_not_moved(serial):
    class Shift(headstart.Context):
        def __init__(self):
            super().__init__()
            self.values = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x):
            return x + self.values

    module = nn.Sequential(nn.Linear(2, 1).double(), Shift())
    learner = headstart.reptile(module, loss="mse", steps=2, rule=rules.scale(0.1), serial=serial)
    gradient, _ = headstart.meta_gradient(
        learner, learner.init(None), random_episodes((2,), outputs=1, regression=True)
    )
    assert gradient.params.keys() == {"0.weight", "0.bias"}
    assert all(value.abs().max() > 0 for value in gradient.params.values())
