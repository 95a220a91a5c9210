import pytest
import torch
from torch import nn

import headstart
from headstart import Checkpointed, MixedMode, Unrolled, rules
from headstart.core.adjoints import Implicit
from headstart.core.adjoints.precision import autocast
from headstart.testing import random_episodes

RULE = rules.chain(rules.proximal(1.0), rules.scale(0.3))


def test_the_precision_comes_back_and_goes_again():
    tensors = [torch.ones(1)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = autocast(tensors)
    outside = autocast(tensors)
    assert inside != outside and inside.kinds == (("cpu", True, torch.bfloat16),)
    with inside.restored():
        assert torch.is_autocast_enabled("cpu") and not torch.is_autocast_cache_enabled()
        with outside.restored():
            assert autocast(tensors) == outside
        assert autocast(tensors) == inside
    assert not torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled()


def test_devices_without_autocast_are_left_alone():
    with autocast([torch.ones(1, device="meta")]).restored():
        pass


SWEPT = [Checkpointed(), Checkpointed(1), MixedMode(), Implicit()]


def slopes(adjoint, forward, backward, seen):
    """Return the meta-gradient with autocast around the forward pass, the backward pass, or both."""
    torch.manual_seed(0)

    def loss(outputs, batch):
        seen.append(torch.is_autocast_enabled("cpu"))
        return headstart.core.losses.cross_entropy(outputs, batch)

    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    learner = headstart.maml(net, loss=loss, steps=3, rule=RULE, adjoint=adjoint, taskmap="loop")
    episodes = headstart.Episodes(*(batch._replace(x=batch.x.float()) for batch in random_episodes((4,))))
    meta = learner.init(None)
    leaves = [value.requires_grad_() for value in meta.params.values()]
    with torch.autocast("cpu", torch.bfloat16, enabled=forward, cache_enabled=False):
        value, _ = headstart.meta_loss(learner, meta, episodes)
    with torch.autocast("cpu", torch.bfloat16, enabled=backward, cache_enabled=False):
        return torch.cat([slope.flatten() for slope in torch.autograd.grad(value, leaves)])


@pytest.mark.parametrize("adjoint", SWEPT, ids=str)
@pytest.mark.parametrize("forward", [True, False])
def test_steps_are_taken_again_in_the_precision_of_the_first_time(adjoint, forward):
    seen = []
    slopes(adjoint, forward, not forward, seen)
    assert len(seen) > 4 and set(seen) == {forward}


@pytest.mark.parametrize("adjoint", SWEPT, ids=str)
def test_the_derivative_does_not_depend_on_whether_autocast_is_still_on(adjoint):
    inside, outside = slopes(adjoint, True, True, []), slopes(adjoint, True, False, [])
    assert torch.equal(inside, outside)
    assert not torch.equal(inside, slopes(adjoint, False, False, []))
    if adjoint.exact:
        torch.testing.assert_close(inside, slopes(Unrolled(), True, True, []), rtol=0.02, atol=1e-3)
