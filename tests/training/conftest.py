"""Small learners and tasks with answers known by hand."""

import pytest
import torch

from headstart.core.losses import mse
from headstart.types import Adapted, Batch, Episodes, Info, Learner, Meta, Tasks


def _mean_learner(steps=1):
    """Predict ``w + d``; each of ``steps`` steps moves d by half of what is left to the support targets' mean."""

    def init(generator):
        return Meta({"w": torch.zeros(1)}, {"s": torch.ones(2)})

    def adapt(meta, support, /, steps=None):
        count = (default if steps is None else steps) or 0
        mean = support.y.mean(1)
        shift = (mean - meta.params["w"]) * (1 - 0.5**count)
        return Adapted(meta, {"d": shift}, {}, support.seed), Info(torch.zeros(count, len(mean)))

    def predict(adapted, x):
        value = adapted.meta.params["w"] + adapted.params["d"]
        return value.unsqueeze(1).expand(x.shape)

    def gradient(learner, meta, episodes):
        leaves = Meta(*({n: v.detach().requires_grad_() for n, v in part.items()} for part in meta))
        adapted, info = learner.adapt(leaves, episodes.support)
        losses = learner.loss(learner.predict(adapted, episodes.query.x), episodes.query)
        (grad,) = torch.autograd.grad(losses.mean(), [leaves.params["w"]])
        return Meta({"w": grad}, {"s": torch.zeros(2)}), info._replace(query_loss=losses.detach())

    default = steps
    return Learner(init, adapt, predict, mse, gradient, steps)


def _line_tasks(spoil=None):
    """Task t of a split has all its targets at t, and x = 1."""

    def sample(split, numbers):
        y = torch.tensor([float(number) for number in numbers]).view(-1, 1, 1).expand(-1, 3, 1).clone()
        if spoil is not None:
            spoil(numbers, y)
        batch = Batch(torch.ones_like(y), y)
        return Episodes(batch, batch)

    return Tasks("line", sample, "regression", (1,), 1, {})


@pytest.fixture
def mean_learner():
    return _mean_learner


@pytest.fixture
def line_tasks():
    return _line_tasks
