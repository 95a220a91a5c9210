"""MAML of a linear support vector machine: the squared hinge of one class against the rest."""

import torch
from torch import nn

import headstart
from headstart.testing import check_learner, random_episodes
from headstart.types import Batch, Episodes


def machine(features=3, ways=3):
    torch.manual_seed(0)
    return nn.Linear(features, ways).double()


def test_the_contract_of_a_learner():
    module, episodes = machine(), random_episodes((3,))
    check_learner(
        lambda taskmap: headstart.maml(module, loss="squared_hinge", steps=3, rate=0.1, taskmap=taskmap),
        episodes,
        module=module,
    )


def test_adaptation_separates_the_classes_of_a_task():
    support, _ = random_episodes((30,), support=9)
    learner = headstart.maml(machine(30), loss="squared_hinge", steps=200, rate=0.02)
    adapted, info = learner.adapt(learner.init(None), support)
    scores = learner.predict(adapted, support.x)
    assert (info.support_loss.diff(dim=0) < 0).all()
    assert torch.equal(scores.argmax(-1), support.y)
    signs = 2 * nn.functional.one_hot(support.y, 3) - 1
    assert (signs * scores > 0.5).all()


def test_meta_training_finds_a_start_from_which_few_steps_do():
    """Classes lie at the same places in all tasks, up to a turn of the labels."""
    generator = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(3, 4, generator=generator, dtype=torch.float64)

    def sample():
        y = torch.stack([torch.arange(9) % 3 for _ in range(8)])
        turn = torch.randint(0, 2, (8, 1), generator=generator)
        x = centres[y] + 0.3 * torch.randn(8, 9, 4, generator=generator, dtype=torch.float64)
        labels = torch.where(y < 2, (y + turn) % 2, y)
        return Episodes(Batch(x[:, :3], labels[:, :3]), Batch(x[:, 3:], labels[:, 3:]))

    learner = headstart.maml(machine(4), loss="squared_hinge", steps=2, rate=0.1)
    meta = learner.init(None)
    optimizer = torch.optim.Adam([value.requires_grad_() for value in meta.params.values()], 0.03)
    losses = []
    for _ in range(80):
        loss, _ = headstart.meta_loss(learner, meta, sample())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
