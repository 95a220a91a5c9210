import logging

import pytest
import torch
from torch import nn

import headstart
from headstart.core import accelerate
from headstart.core.objective import backprop
from headstart.core.record import Recorded, Way, recorded, replayed, tensors_of
from headstart.testing import random_episodes

SOON = Way("replayed", replayed, after=1, same=True, level=logging.WARNING)


def recording(learner, way=SOON):
    return learner._replace(gradient=Recorded(way))


def equal(one, other):
    ours, theirs = (tensors_of(gradient, random_episodes((2,))) for gradient in (one[0], other[0]))
    same = all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    return same and torch.equal(one[1].query_loss, other[1].query_loss)


def net(outputs=3):
    return headstart.mlp(4, outputs, (8,)).double()


def images():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    )


LEARNERS = {
    "maml": lambda: (headstart.maml(net(), steps=2), (4,)),
    "images": lambda: (headstart.maml(images().double(), steps=2, taskmap="vmap"), (1, 4, 4)),
    "checkpointed": lambda: (headstart.maml(net(), steps=4, adjoint=headstart.Checkpointed()), (4,)),
    "meta_sgd": lambda: (headstart.meta_sgd(net(), steps=2), (4,)),
    "anil": lambda: (headstart.anil(net(), steps=2), (4,)),
    "prototypes": lambda: (headstart.prototypes(net(None), ways=3), (4,)),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_a_record_gives_the_same_bits_on_other_tasks_and_weights(name):
    plain, shape = LEARNERS[name]()
    learner = recording(plain)
    meta = plain.init(torch.Generator().manual_seed(0))
    for seed in range(4):
        episodes = random_episodes(shape, seed=seed)
        got = headstart.meta_gradient(learner, meta, episodes)
        assert equal(got, headstart.meta_gradient(plain, meta, episodes))
        params = {key: value - 0.1 * got[0].params[key] for key, value in meta.params.items()}
        meta = meta._replace(params=params)
    (program,) = learner.gradient.programs.values()
    assert program is not None and program.operations > 10


def test_other_shapes_have_a_record_of_their_own():
    learner = recording(headstart.maml(net(), steps=1))
    meta = learner.init(None)
    for support in (4, 5, 4, 5, 4, 5):
        headstart.meta_gradient(learner, meta, random_episodes((4,), support=support))
    assert len(learner.gradient.programs) == 2


class Spied(nn.Module):
    """Computes with a number that it reads from its inputs behind PyTorch's back."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(4, 3), how

    def forward(self, x):
        return self.layer(x) * self.how(x)


def by_numpy(x):
    return float(x.detach().numpy().sum())


def by_branch(x):
    return 2.0 if x.sum() > 0 else 1.0


def by_chance(x):
    return torch.rand(())


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "headstart"]


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (by_numpy, ""),
        (by_branch, ""),
        (by_chance, "draws from PyTorch's global generator"),
    ],
)
def test_what_depends_on_more_than_shapes_is_computed_as_it_is(how, why, caplog):
    plain = headstart.maml(Spied(how).double(), steps=1, taskmap="loop")
    learner = recording(plain)
    meta = learner.init(None)
    backprop(plain, meta, random_episodes((4,)))  # which checks the model's second derivatives, once
    for seed in range(4):
        episodes = random_episodes((4,), seed=seed)
        torch.manual_seed(seed)
        got = headstart.meta_gradient(learner, meta, episodes)
        torch.manual_seed(seed)
        assert equal(got, headstart.meta_gradient(plain, meta, episodes))
    assert list(learner.gradient.programs.values()) == [None]
    (line,) = lines(caplog)
    assert line.startswith("meta-gradient not replayed, running as it is: ") and why in line


def test_a_learner_that_changes_at_every_step_is_given_up(caplog):
    gradient = Recorded(SOON)
    episodes = random_episodes((4,))
    for step in range(8):
        plain = headstart.maml(net(), steps=1)
        meta = plain.init(torch.Generator().manual_seed(step))
        assert equal(gradient(plain, meta, episodes), backprop(plain, meta, episodes))
    assert lines(caplog) == ["meta-gradient not replayed, running as it is: the learner changes at every step"]


def test_a_record_is_a_list_of_operations():
    learner = headstart.maml(net(), steps=1)
    meta, episodes = learner.init(None), random_episodes((4,))
    record, told = recorded(learner, meta, episodes)
    assert told == (True, True)
    found = record(*(tensor.clone() for tensor in tensors_of(meta, episodes)))
    expected = backprop(learner, meta, episodes)[0].params
    assert all(torch.equal(a, b) for a, b in zip(found, expected.values()))


def test_small_operations_are_replayed_by_default():
    learner = accelerate.accelerate(headstart.maml(net(), steps=1, taskmap="vmap"))
    meta, episodes = learner.init(None), random_episodes((4,))
    for _ in range(accelerate.REPLAYED.after + 2):
        headstart.meta_gradient(learner, meta, episodes)
    assert [program is not None for program in learner.gradient.small.programs.values()] == [True]
