import pytest
import torch
from torch import nn

import headstart
from headstart.errors import ShapeError, UnknownNameError
from headstart.testing import random_episodes


def case(**options):
    module = nn.Sequential(nn.Linear(2, 4), nn.Tanh()).double()
    learner = headstart.prototypes(module, **options)
    return module, learner, learner.init(None), random_episodes((2,), support=7, query=5)


def centres_by_hand(module, support, task):
    embedded = module(support.x[task])
    return torch.stack([embedded[support.y[task] == k].mean(0) for k in range(3)])


def test_logits_are_minus_the_squared_distances_to_the_class_means():
    module, learner, meta, (support, query) = case()
    adapted, info = learner.adapt(meta, support)
    logits = learner.predict(adapted, query.x)
    for task in range(3):
        centres = centres_by_hand(module, support, task)
        torch.testing.assert_close(adapted.params["prototypes"][task], centres)
        torch.testing.assert_close(logits[task], -torch.cdist(module(query.x[task]), centres).square())
    assert info.support_loss.shape == (0, 3) and learner.steps is None and learner.exact


def test_cosine_logits_are_scaled_by_a_learned_number():
    module, learner, meta, (support, query) = case(distance="cosine")
    assert meta.structure["scale"] == 10
    logits = learner.predict(learner.adapt(meta, support)[0], query.x)
    centres = centres_by_hand(module, support, 1)
    expected = 10 * nn.functional.cosine_similarity(module(query.x[1])[:, None], centres[None], dim=-1)
    torch.testing.assert_close(logits[1], expected)
    gradient, _ = headstart.meta_gradient(learner, meta, headstart.Episodes(support, query))
    assert gradient.structure["scale"] != 0


def test_the_gradient_is_that_of_the_loss_by_hand():
    module, learner, meta, (support, query) = case()
    losses = []
    for task in range(3):
        logits = -torch.cdist(module(query.x[task]), centres_by_hand(module, support, task)).square()
        losses.append(nn.functional.cross_entropy(logits, query.y[task]))
    torch.stack(losses).mean().backward()
    gradient, _ = headstart.meta_gradient(learner, meta, headstart.Episodes(support, query))
    torch.testing.assert_close(gradient.params, {name: p.grad for name, p in module.named_parameters()})


def test_the_number_of_ways_can_be_said():
    _, learner, meta, (support, query) = case(ways=6)
    assert learner.predict(learner.adapt(meta, support)[0], query.x).shape == (3, 5, 6)


def test_embeddings_of_any_shape_are_flattened():
    learner = headstart.prototypes(nn.Conv2d(1, 2, 3).double())
    support, query = random_episodes((1, 5, 5))
    out = learner.predict(learner.adapt(learner.init(None), support)[0], query.x)
    assert out.shape == (3, 5, 3)


def test_what_does_not_fit_is_refused():
    _, learner, meta, (support, _) = case()
    with pytest.raises(ShapeError, match="integer labels"):
        learner.adapt(meta, support._replace(y=support.y.double()))
    with pytest.raises(UnknownNameError, match="unknown distance 'cosin'; did you mean 'cosine'"):
        headstart.prototypes(nn.Linear(2, 2), distance="cosin")
