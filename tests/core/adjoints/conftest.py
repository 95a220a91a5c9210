from typing import NamedTuple

import pytest
import torch
from torch import nn

import headstart
from headstart.core.counting import Counted
from headstart.testing import random_episodes


@pytest.fixture
def peak_bytes():
    """``(function) -> the most bytes at a time of the tensors that it makes``."""

    def measured(function):
        with Counted() as live:
            function()
        return live.peak

    return measured


class Problem(NamedTuple):
    """A learner's options and its tasks."""

    module: nn.Module
    episodes: headstart.Episodes
    options: dict

    def gradient(self, adjoint, **options):
        torch.manual_seed(0)
        learner = headstart.maml(self.module, adjoint=adjoint, **{**self.options, **options})
        return headstart.meta_gradient(learner, learner.init(torch.Generator().manual_seed(0)), self.episodes)

    def gap(self, adjoint, expected, **options):
        """Return the largest difference of two adjoints' gradients, relative to the largest value."""
        ours, theirs = (
            torch.cat([value.flatten() for part in self.gradient(one, **options)[0] for value in part.values()])
            for one in (adjoint, expected)
        )
        return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def seeded(episodes):
    return headstart.Episodes(*(batch._replace(seed=torch.arange(3) + 5) for batch in episodes))


@pytest.fixture
def images():
    """A small convolutional network with batch normalisation and dropout, and tasks of images."""
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten()]
    module = nn.Sequential(*layers, nn.Linear(48, 3)).double()
    return Problem(module, seeded(random_episodes((1, 4, 4))), {"steps": 5, "rate": 0.1, "taskmap": "vmap"})


@pytest.fixture
def rows():
    """A perceptron with a wide layer, and tasks of 100 rows."""
    module = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    return Problem(module, random_episodes((8,), support=100), {"steps": 16, "rate": 0.1, "taskmap": "vmap"})


class Noisy(nn.Module):
    """Draws from torch's own generator."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        hidden = torch.tanh(self.layer(x))
        return hidden * (1 + 0.5 * torch.randn_like(hidden))


@pytest.fixture
def noisy():
    return Problem(Noisy().double(), random_episodes((4,)), {"steps": 5, "rate": 0.1, "taskmap": "vmap"})
