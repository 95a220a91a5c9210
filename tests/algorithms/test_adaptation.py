"""What adaptation does not move is computed once for a support set, and nothing else changes."""

import dataclasses
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import headstart
from headstart import Batch, Episodes, rules
from headstart.algorithms.adaptation import Adaptation, InnerLoss
from headstart.core.adjoints import Checkpointed, FirstOrder, Truncated, Unrolled
from headstart.core.objective import meta_gradient
from headstart.core.tree import mapped, per_task_norm
from headstart.errors import UsageError
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
        options = {
            "inner_loss": InnerLoss(lambda m, outputs, batch, step, now: weighted(outputs, batch), lambda *_: {})
        }
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


def task(i, episodes):
    return mapped(lambda leaf: leaf[i : i + 1], episodes)


def by_task(learner, meta, episodes, steps):
    """Return the meta-gradient where task i adapts by ``steps[i]`` steps."""
    quick = learner._replace(adapt=lambda meta, support, steps=steps: learner.adapt(meta, support, steps=steps))
    return headstart.meta_gradient(quick, meta, episodes)[0]


RULES = {
    "scale": rules.scale(0.1, learn=True),
    "momentum": rules.chain(rules.momentum(decay=0.5, learn=True), rules.scale(0.1)),
    "adam": rules.chain(rules.adam(), rules.scale(0.01)),
}


@pytest.mark.parametrize("adjoint", [Unrolled(), Checkpointed(every=2)], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_each_task_may_take_its_own_number_of_steps(rule, adjoint):
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    learner = headstart.maml(module, rule=RULES[rule], adjoint=adjoint, buffers="task", taskmap="loop")
    meta, episodes, numbers = learner.init(None), random_episodes((4,), tasks=4), (0, 3, 1, 2)
    got = by_task(learner, meta, episodes, torch.tensor(numbers))
    alone = [by_task(learner, meta, task(i, episodes), steps) for i, steps in enumerate(numbers)]
    for part, *parts in zip(got, *alone):
        for name, slope in part.items():
            mean = torch.stack([own[name] for own in parts]).mean(0)
            torch.testing.assert_close(slope, mean, rtol=1e-10, atol=1e-13)
    adapted, info = learner.adapt(meta, episodes.support, steps=torch.tensor(numbers))
    assert adapted.step == len(info.support_loss) == 3
    for i, steps in enumerate(numbers):
        own = learner.adapt(meta, task(i, episodes).support, steps=steps)[0]
        for part in ("params", "buffers"):
            torch.testing.assert_close(task(i, getattr(adapted, part)), getattr(own, part), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("steps", [torch.tensor([1.0, 2.0]), torch.tensor([1]), torch.tensor([1, -1])])
def test_steps_by_task_are_one_whole_number_a_task(steps):
    learner = headstart.maml(nn.Linear(4, 3).double())
    with pytest.raises(UsageError, match=r"whole numbers \(2,\) from 0 up"):
        learner.adapt(learner.init(None), random_episodes((4,), tasks=2).support, steps=steps)


def test_rates_and_masks_may_differ_by_task():
    rates = (0.2, 0.5, 2.0)
    given = torch.tensor(rates, dtype=torch.float64)
    rows = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 1]], dtype=torch.float64)

    def alone(i, episodes):
        mask = rules.fixed_mask({"weight": rows[i][:, None].expand(3, 4)})
        learner = headstart.maml(nn.Linear(4, 3).double(), rule=rules.chain(mask, rules.scale(0.1 * rates[i])))
        meta = learner.init(None)._replace(params=theta)
        return headstart.meta_gradient(learner, meta, task(i, episodes))[0].params["weight"]

    episodes = random_episodes((4,), tasks=3)
    seeded = Episodes(*(batch._replace(seed=torch.arange(3)) for batch in episodes))
    rate = rules.per_task(lambda m, params, support: given[support.seed])
    mask = rules.per_task(lambda m, params, support: {"weight": rows[support.seed]})
    learner = headstart.maml(nn.Linear(4, 3).double(), rule=rules.chain(mask, rate, rules.scale(0.1)))
    theta = learner.init(None).params
    got = headstart.meta_gradient(learner, learner.init(None), seeded)[0].params["weight"]
    torch.testing.assert_close(got, torch.stack([alone(i, episodes) for i in range(3)]).mean(0), rtol=1e-12, atol=1e-14)


def test_an_inner_loss_sees_the_current_parameters():
    def loss(m, outputs, batch, step, now):
        torch.testing.assert_close(now.predict(batch.x), outputs)
        return headstart.losses.cross_entropy(outputs, batch) + 0.05 * per_task_norm(now.params).square()

    episodes, module = random_episodes((4,)), nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    pulled = headstart.maml(module, steps=3, inner_loss=InnerLoss(loss, lambda *_: {}), rule=rules.scale(0.2))
    rule = rules.chain(rules.weight_decay(0.1), rules.scale(0.2))
    got, expected = (
        headstart.meta_gradient(learner, learner.init(None), episodes)[0]
        for learner in (pulled, headstart.maml(module, steps=3, rule=rule))
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("adjoint", [Unrolled(), Checkpointed(every=2)], ids=str)
def test_examples_may_be_chosen_by_the_current_parameters(adjoint):
    """Each step learns from the two rows that the model is least sure of."""

    def hardest(support, step, now):
        with torch.no_grad():
            rows = now.predict(support.x).logsumexp(-1).topk(2).indices
        seen.append(rows)
        x = support.x.gather(1, rows[..., None].expand(-1, -1, support.x.shape[-1]))
        return Batch(x, support.y.gather(1, rows))

    episodes, module, seen = random_episodes((4,), support=6), nn.Linear(4, 3).double(), []
    learner = headstart.maml(module, steps=3, rate=3.0, adjoint=adjoint, examples=hardest)
    got = headstart.meta_gradient(learner, learner.init(None), episodes)[0].params
    assert any(not torch.equal(one, seen[0]) for one in seen)  # what is chosen moves with the parameters
    params, total = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}, 0.0
    for x, y, query, target in zip(*episodes.support[:2], *episodes.query[:2]):
        own = params
        for _ in range(3):
            rows = functional_call(module, own, x).logsumexp(-1).topk(2).indices
            loss = F.cross_entropy(functional_call(module, own, x[rows]), y[rows])
            slopes = torch.autograd.grad(loss, list(own.values()), create_graph=True)
            own = {name: p - 3.0 * slope for (name, p), slope in zip(own.items(), slopes)}
        total = total + F.cross_entropy(functional_call(module, own, query), target) / 3
    expected = dict(zip(params, torch.autograd.grad(total, list(params.values()))))
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)
