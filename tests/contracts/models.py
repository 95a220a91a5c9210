"""Small float64 modules, one for each kind of layer, and episodes that fit them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from headstart.testing import random_episodes
from headstart.types import Batch, Episodes


class Zoo(NamedTuple):
    """A module and how to check learners of it."""

    module: nn.Module
    input_shape: tuple[int, ...]
    tokens: int | None = None
    seeded: bool = False
    masks: bool = True
    """False where examples of a set see each other."""
    taskmaps: tuple[str, str] = ("vmap", "loop")
    examples: int = 4
    buffers: str = "batch"

    def episodes(self) -> Episodes:
        drawn = random_episodes(
            self.input_shape, tokens=self.tokens, support=self.examples, query=self.examples + 1, seed=1
        )
        if not self.seeded:
            return drawn
        return Episodes(*(batch._replace(seed=7 + torch.arange(batch.y.shape[0])) for batch in drawn))


def seeded(batch: Batch, seed: int = 7) -> Batch:
    return batch._replace(seed=seed + torch.arange(batch.y.shape[0]))


class Attention(nn.Module):
    def __init__(self, need_weights: bool) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out, weights = self.attention(x, x, x, need_weights=self.need_weights)
        return self.head(out.mean(1)) + (weights.square().mean((1, 2))[:, None] if self.need_weights else 0)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.recurrent = kind(3, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def _normed(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def _used(module: nn.Module) -> nn.Module:
    """Give batch normalisation running statistics that differ from the initial ones."""
    module.train()
    with torch.no_grad():
        module(2 * torch.randn(20, 1, 4, 4) + 0.5)
    return module


def zoo() -> dict[str, Zoo]:
    """Return the modules by name, with the same weights at every call."""
    torch.manual_seed(0)
    image = (1, 4, 4)
    made = {
        "linear": Zoo(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)), (3,)),
        "conv": Zoo(_normed(nn.MaxPool2d(1)), image),
        "batch norm": Zoo(_normed(nn.BatchNorm2d(4)), image, masks=False),
        "batch norm, frozen": Zoo(_used(_normed(nn.BatchNorm2d(4))), image, buffers="frozen"),
        "batch norm, task": Zoo(_used(_normed(nn.BatchNorm2d(4, momentum=0.7))), image, masks=False, buffers="task"),
        "batch norm, no statistics": Zoo(_normed(nn.BatchNorm2d(4, track_running_stats=False)), image, masks=False),
        "instance norm": Zoo(_normed(nn.InstanceNorm2d(4, affine=True)), image),
        "layer norm": Zoo(nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)), (3,)),
        "group norm": Zoo(_normed(nn.GroupNorm(2, 4)), image),
        "embedding": Zoo(nn.Sequential(nn.Embedding(8, 3), nn.Flatten(), nn.Linear(6, 3)), (2,), tokens=8),
        "tied": Zoo(Tied(), (3,)),
        "dropout": Zoo(
            nn.Sequential(nn.Linear(3, 6), nn.Dropout(0.3), nn.Tanh(), nn.Linear(6, 3)), (3,), seeded=True, masks=False
        ),
        "attention": Zoo(Attention(need_weights=False), (3, 4)),
        "attention with weights": Zoo(Attention(need_weights=True), (3, 4)),
        "transformer": Zoo(Encoder(), (3, 4)),
        "lstm": Zoo(Recurrent(nn.LSTM), (3, 3), taskmaps=("auto", "loop")),
        "gru": Zoo(Recurrent(nn.GRU), (3, 3), taskmaps=("auto", "loop")),
    }
    return {name: one._replace(module=one.module.double()) for name, one in made.items()}
