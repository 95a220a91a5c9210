import pytest
import torch
from torch import nn

import headstart
from headstart.errors import UsageError
from headstart.testing import random_episodes


def net():
    return headstart.mlp(2, 3, hidden=(4,)).double()


def test_joint_is_the_gradient_of_the_pooled_loss():
    module, episodes = net(), random_episodes((2,))
    learner = headstart.joint(module, steps=3, rate=0.1)
    gradient, info = headstart.meta_gradient(learner, learner.init(None), episodes)
    x, y = (torch.cat([getattr(batch, part) for batch in episodes], 1).flatten(0, 1) for part in "xy")
    nn.functional.cross_entropy(module(x), y).backward()
    torch.testing.assert_close(gradient.params, {name: p.grad for name, p in module.named_parameters()})
    assert info.query_loss.shape == (3,) and not learner.exact


def test_joint_and_scratch_fine_tune_like_maml():
    module, (support, query) = net(), random_episodes((2,))
    outputs = []
    for method in (headstart.maml, headstart.joint, headstart.scratch):
        learner = method(module, steps=3, rate=0.1, taskmap="vmap")
        outputs.append(learner.predict(learner.adapt(learner.init(None), support)[0], query.x))
        assert learner.steps == 3
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("method", ["scratch", "nearest"])
def test_baselines_without_meta_learning_have_no_gradient(method):
    learner = getattr(headstart, method)(net())
    assert learner.gradient is None
    with pytest.raises(UsageError, match="learns nothing across tasks"):
        headstart.meta_gradient(learner, learner.init(None), random_episodes((2,)))


def test_nearest_answers_with_the_class_of_the_nearest_mean():
    support, query = random_episodes((2, 3), support=7)
    learner = headstart.nearest()
    assert learner.init(None) == ({}, {})
    logits = learner.predict(learner.adapt(learner.init(None), support)[0], query.x)
    for task in range(3):
        means = torch.stack([support.x[task][support.y[task] == k].mean(0).flatten() for k in range(3)])
        distances = torch.cdist(query.x[task].flatten(1), means)
        assert torch.equal(logits[task].argmax(-1), distances.argmin(-1))
        torch.testing.assert_close(logits[task], -distances.square())
