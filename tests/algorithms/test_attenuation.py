import pytest
import torch
from torch import nn

import headstart
from headstart import rules
from headstart.algorithms.attenuation import l2f
from headstart.errors import UsageError
from headstart.testing import random_episodes


def net():
    return headstart.mlp(2, 3, hidden=(5, 4)).double()


def test_every_tensor_is_multiplied_by_what_the_network_says_of_the_mean_gradients():
    module, episodes = net(), random_episodes((2,))
    learner = l2f(module)
    meta = learner.init(torch.Generator().manual_seed(0))
    start = learner.adapt(meta, episodes.support, steps=0)[0].params
    names = sorted(meta.params)
    layers = [[meta.structure[f"attenuator.{layer}.{part}"] for part in ("weight", "bias")] for layer in LAYERS]
    for task in range(3):
        loss = nn.functional.cross_entropy(module(episodes.support.x[task]), episodes.support.y[task])
        named = dict(module.named_parameters())
        grads = torch.autograd.grad(loss, [named[name] for name in names])
        x = torch.stack([grad.mean() for grad in grads])
        for index, (weight, bias) in enumerate(layers):
            x = weight @ x + bias
            x = x.relu() if index < 2 else x.sigmoid()
        for factor, name in zip(x, names):
            assert torch.allclose(start[name][task], factor * named[name], rtol=1e-10, atol=0)


LAYERS = ("first", "middle", "last")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
def test_factors_start_near_what_is_to_be_kept(keep):
    learner, episodes = l2f(net(), keep=keep), random_episodes((2,))
    meta = learner.init(torch.Generator().manual_seed(0))
    start = learner.adapt(meta, episodes.support, steps=0)[0].params
    factors = torch.stack([(start[name] / meta.params[name]).mean() for name in start])
    assert ((0 < factors) & (factors < 1)).all()
    assert abs(torch.logit(factors) - torch.logit(torch.tensor(keep))).max() < 1


def test_what_does_not_move_is_not_attenuated():
    learner = l2f(net(), rule=rules.chain(rules.only("head"), rules.scale(0.1)), steps=1)
    meta = learner.init(torch.Generator().manual_seed(0))
    assert meta.structure["attenuator.first.weight"].shape == (2, 2)
    adapted, _ = learner.adapt(meta, random_episodes((2,)).support)
    assert adapted.params.keys() == {"head.weight", "head.bias"}


def test_a_context_that_does_not_move_is_left_as_it_is():
    class Own(headstart.Context):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.ones(3).double())

        def forward(self, y):
            return y + self.bias

    learner = l2f(nn.Sequential(net(), Own()), rule=rules.chain(rules.exclude(Own), rules.scale(0.1)), steps=1)
    adapted, _ = learner.adapt(learner.init(None), random_episodes((2,)).support)
    assert torch.equal(adapted.params["1.bias"], torch.ones(3, 3).double())


@pytest.mark.parametrize("keep", [0.0, 1.0, -1.0])
def test_a_factor_outside_its_range_is_refused(keep):
    with pytest.raises(UsageError, match="between 0 and 1"):
        l2f(net(), keep=keep)
