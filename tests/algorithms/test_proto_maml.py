"""Proto-MAML starts as the prototype classifier, and adapts from there."""

import pytest
import torch
from torch import nn

import headstart
from headstart.algorithms.proto_maml import proto_maml, prototype_start
from headstart.errors import UnknownNameError, UsageError
from headstart.testing import random_episodes


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def test_before_any_step_it_is_the_prototype_classifier():
    episodes, model = random_episodes((2,)), net()
    learner = proto_maml(model, steps=2, rate=0.1, taskmap="vmap")
    adapted, _ = learner.adapt(learner.init(None), episodes.support, steps=0)
    embedding = headstart.prototypes(nn.Sequential(*model[:2]), ways=3, taskmap="vmap")
    centres, _ = embedding.adapt(embedding.init(None), episodes.support)
    ours, theirs = (
        one.predict(found, episodes.query.x).log_softmax(-1)
        for one, found in ((learner, adapted), (embedding, centres))
    )
    present = torch.isfinite(theirs)
    # a class without examples has the origin as its mean here, and no probability there
    assert torch.allclose((ours - ours[..., :1])[present], (theirs - theirs[..., :1])[present]) or not present.all()
    rows, offsets = adapted.params["2.weight"], adapted.params["2.bias"]
    means = centres.params["prototypes"]
    assert torch.allclose(rows, 2 * means) and torch.allclose(offsets, -means.square().sum(-1))


def test_the_classes_numbers_mean_nothing():
    episodes, order = random_episodes((2,)), torch.tensor([2, 0, 1])
    start = prototype_start(net(), blend=True, taskmap="vmap")
    learner = headstart.maml(net(), steps=3, rate=0.1, start=start, taskmap="vmap")
    meta = learner.init(None)
    adapted, _ = learner.adapt(meta, episodes.support)
    renamed, _ = learner.adapt(meta, episodes.support._replace(y=order[episodes.support.y]))
    outputs, others = (learner.predict(found, episodes.query.x) for found in (adapted, renamed))
    assert torch.allclose(outputs, others[..., order])


def test_the_blend_starts_small_and_shows_its_scale():
    learner = headstart.maml(net(), start=prototype_start(net(), blend=True), steps=1)
    assert learner.shown is not None
    assert learner.shown(learner.init(None))["prototypes.scale"].item() == pytest.approx(1 / 5)


def test_a_head_that_is_no_linear_layer_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.Flatten())
    with pytest.raises(UsageError, match="needs a head that is an nn.Linear; '2' is a Conv2d"):
        proto_maml(model)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(3, 4), nn.Linear(4, 3, bias=False)
        self.head.weight = self.embedding.weight


def test_a_head_that_is_not_its_own_is_refused():
    with pytest.raises(UsageError, match=r"'head.weight' is tied: embedding.weight and head.weight are one"):
        proto_maml(Tied(), head="head")
    frozen = net()
    frozen[2].bias.requires_grad_(False)
    with pytest.raises(UsageError, match=r"'2.bias' is frozen"):
        proto_maml(frozen)
    with pytest.raises(UsageError, match=r"'2.layer.weight' is not in θ"):
        proto_maml(nn.Sequential(nn.Linear(2, 5), nn.Tanh(), headstart.Structural(nn.Linear(5, 3))), head="2.layer")


def test_an_unknown_head_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown layer 'haed'; did you mean 'head'"):
        proto_maml(headstart.mlp(2, 3), head="haed")
