"""What adaptation does not move is computed once for a support set, and nothing else changes."""

import dataclasses
from collections import OrderedDict

import pytest
import torch
from torch import nn

import headstart
from headstart import rules
from headstart.algorithms.adaptation import Adaptation, InnerLoss
from headstart.core.adjoints import Checkpointed, FirstOrder, Truncated, Unrolled
from headstart.core.objective import meta_gradient
from headstart.testing import random_episodes

ADJOINTS = [Unrolled(), FirstOrder(), Checkpointed(every=2), Truncated(1)]


class Counting(nn.Module):
    """A layer of somebody's own that counts its passes."""

    passes: list = []

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x):
        Counting.passes.append(len(x))
        return x * self.weight


def network(frozen=False):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), Counting(32))
    body.requires_grad_(not frozen)
    return nn.Sequential(OrderedDict(body=body, middle=nn.Linear(32, 4), tanh=nn.Tanh(), head=nn.Linear(4, 3))).double()


EPISODES = random_episodes((1, 5, 5))


def whole(learner):
    """Return the learner without the trunk computed apart."""
    adaptation = learner.init.__self__
    assert isinstance(adaptation, Adaptation) and adaptation.halves is not None
    other = dataclasses.replace(adaptation, halves=None)
    return learner._replace(init=other.init, adapt=other.adapt, predict=other.predict, path=other.path)


LEARNERS = {
    "anil": lambda **options: headstart.anil(network(), steps=4, rate=0.1, taskmap="loop", **options),
    "frozen body": lambda **options: headstart.maml(network(True), steps=4, rate=0.1, taskmap="loop", **options),
    "learned rates": lambda **options: headstart.maml(
        network(), rule=rules.chain(rules.only("head*"), rules.per_weight()), steps=4, taskmap="loop", **options
    ),
}


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("buffers", ["batch", "frozen", "task"])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_the_meta_gradient_is_that_of_the_whole(name, adjoint, buffers):
    learner = LEARNERS[name](adjoint=adjoint, buffers=buffers)
    below = {layer.split(".")[1] for layer in dict(learner.init.__self__.halves[0].leaves)} if name == "anil" else set()
    # those before the statistics, where these move
    assert name != "anil" or below == ({"0"} if buffers == "task" else {"0", "1", "4", "weight", "bias"})
    meta = learner.init(torch.Generator().manual_seed(0))
    found = meta_gradient(learner, meta, EPISODES)
    torch.testing.assert_close(found, meta_gradient(whole(learner), meta, EPISODES), rtol=1e-10, atol=1e-12)
    assert any(value.abs().max() > 0 for value in found[0].params.values())


def weighted(outputs, batch):
    """A loss that looks into the inputs."""
    weight = batch.x.square().mean((2, 3, 4))
    return (weight * nn.functional.cross_entropy(outputs.mT, batch.y, reduction="none")).mean(1)


@pytest.mark.parametrize("inner", [False, True], ids=["loss", "inner loss"])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_a_loss_sees_the_inputs_and_not_the_features(adjoint, inner):
    options = {"loss": weighted}
    if inner:
        options = {"inner_loss": InnerLoss(lambda m, outputs, batch, step: weighted(outputs, batch), lambda *_: {})}
    learner = LEARNERS["anil"](adjoint=adjoint, **options)
    meta = learner.init(None)
    found = meta_gradient(learner, meta, EPISODES)
    torch.testing.assert_close(found, meta_gradient(whole(learner), meta, EPISODES), rtol=1e-10, atol=1e-12)


class Several(nn.Module):
    """A body that hands on more than a tensor."""

    def __init__(self, kind):
        super().__init__()
        self.layer = nn.Linear(4, 5)
        self.kind = kind

    def forward(self, x):
        hidden = torch.tanh(self.layer(x))
        return {"dict": {"hidden": hidden, "x": x}, "tuple": (hidden, x), "list": [hidden, x]}[self.kind]


class Both(nn.Module):
    """A head that takes what `Several` gives, as one argument."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(9, 3)

    def forward(self, given):
        return self.layer(torch.cat(list(given.values()) if isinstance(given, dict) else list(given), -1))


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
@pytest.mark.parametrize("kind", ["tuple", "list", "dict"])
def test_features_may_be_more_than_a_tensor(kind, adjoint, taskmap):
    torch.manual_seed(0)
    module = nn.Sequential(OrderedDict(body=Several(kind), head=Both())).double()
    learner = headstart.anil(module, steps=3, rate=0.1, adjoint=adjoint, taskmap=taskmap)
    meta, episodes = learner.init(None), random_episodes((4,))
    found = meta_gradient(learner, meta, episodes)
    torch.testing.assert_close(found, meta_gradient(whole(learner), meta, episodes), rtol=1e-10, atol=1e-12)
    assert all(value.abs().max() > 0 for value in found[0].params.values())


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=str)
def test_adapters_in_a_frozen_network(adjoint):
    torch.manual_seed(0)
    module = network(frozen=True)
    for layer in (module.middle, module.head):
        layer.requires_grad_(False)
    learner = headstart.maml(
        headstart.low_rank(module, what="middle", rank=2), steps=4, rate=0.1, adjoint=adjoint, taskmap="loop"
    )
    meta = learner.init(torch.Generator().manual_seed(0))
    found = meta_gradient(learner, meta, EPISODES)
    torch.testing.assert_close(found, meta_gradient(whole(learner), meta, EPISODES), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("adjoint", [Unrolled(), FirstOrder(), Checkpointed(every=2)], ids=str)
def test_the_trunk_runs_once_for_a_support_set(adjoint):
    learner = LEARNERS["anil"](adjoint=adjoint)
    meta = learner.init(None)
    meta_gradient(learner, meta, EPISODES)  # checks of the first call
    counts = []
    for each in (learner, whole(learner)):
        Counting.passes.clear()
        meta_gradient(each, meta, EPISODES)
        counts.append(sum(size == EPISODES.support.y.shape[1] for size in Counting.passes))
        assert sum(size == EPISODES.query.y.shape[1] for size in Counting.passes) == 3
    assert counts[0] == 3  # once for each of three tasks
    assert counts[1] >= 4 * 3


def test_the_path_and_fewer_steps_are_those_of_the_whole():
    learner = LEARNERS["anil"]()
    meta, other = learner.init(None), whole(learner)
    for steps in (0, 1, 6):
        one, two = (each.adapt(meta, EPISODES.support, steps=steps) for each in (learner, other))
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)
    Counting.passes.clear()
    one, two = (list(each.path(meta, EPISODES.support)) for each in (learner, other))
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)
    assert [info.support_loss.shape for _, info in one] == [(0, 3)] + [(1, 3)] * 4


def test_dropout_draws_what_it_drew():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    module = nn.Sequential(body, nn.Dropout(0.3), nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3)).double()
    learner = headstart.anil(module, steps=3, rate=0.1, taskmap="vmap")
    episodes = headstart.Episodes(*(b._replace(seed=torch.tensor([5, 6, 7])) for b in random_episodes((4,))))
    meta = learner.init(None)
    found = meta_gradient(learner, meta, episodes)
    torch.testing.assert_close(found, meta_gradient(whole(learner), meta, episodes), rtol=1e-10, atol=1e-12)


def test_nothing_is_split_where_the_first_layer_moves():
    assert headstart.maml(network()).init.__self__.halves is None
    assert headstart.boil(network()).init.__self__.halves is None
