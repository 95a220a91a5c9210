"""The networks that neural processes are made of, each for one task: no axis of tasks, and examples in any order."""

from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Sizes(NamedTuple):
    """What the networks are built for."""

    inputs: int
    outputs: int
    hidden: int
    depth: int
    """Linear layers of an encoder, at least 2; a decoder has one less and its last."""


def layers(inputs: int, hidden: int, depth: int, outputs: int | None = None) -> nn.Sequential:
    """Return ``depth`` linear layers with ReLU between them, the last of ``outputs`` units (``hidden`` by default)."""
    sizes = [inputs] + [hidden] * (depth - 1) + [hidden if outputs is None else outputs]
    stack: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:]):
        stack += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*stack[:-1])


class ExampleEncoder(nn.Module):
    """rᵢ = h(xᵢ, yᵢ) for each support example."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layers = layers(sizes.inputs + sizes.outputs, sizes.hidden, sizes.depth)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``(n, hidden)`` for ``x`` ``(n, inputs)`` and ``y`` ``(n, outputs)``."""
        return self.layers(torch.cat((x, y), -1))


class SetEncoder(nn.Module):
    """r = mean of h(xᵢ, yᵢ) over the support examples."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.each = ExampleEncoder(sizes)

    def forward(self, x: Tensor, y: Tensor, there: Tensor) -> Tensor:
        """Return ``(hidden,)``; ``there`` ``(n,)`` is 1 for an example, 0 for padding, which counts nowhere."""
        return (self.each(x, y) * there.unsqueeze(-1)).sum(-2) / there.sum().clamp(min=1)


class LatentEncoder(nn.Module):
    """The normal distribution of the latent variable given a set: z ~ N(μ(s), σ(s)²), s the mean of h(xᵢ, yᵢ).

    σ = 0.1 + 0.9 sigmoid(·), as in the authors' code.
    """

    def __init__(self, sizes: Sizes, latent: int) -> None:
        super().__init__()
        self.set = SetEncoder(sizes)
        middle = (sizes.hidden + latent) // 2
        self.head = nn.Sequential(nn.Linear(sizes.hidden, middle), nn.ReLU(), nn.Linear(middle, 2 * latent))

    def forward(self, x: Tensor, y: Tensor, there: Tensor) -> Tensor:
        """Return ``(2, latent)``: the mean and the standard deviation."""
        mean, raw = self.head(self.set(x, y, there)).chunk(2, -1)
        return torch.stack((mean, 0.1 + 0.9 * raw.sigmoid()))


class CrossAttention(nn.Module):
    """Multi-head dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) of queries to the support examples."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, there: Tensor) -> Tensor:
        """Return ``(m, width)`` for ``query`` ``(m, width)`` and ``key``, ``value`` ``(n, width)``.

        ``there`` ``(n,)`` is 1 for an example and 0 for padding, which gets no weight; where nothing is there, so is
        the answer.
        """
        heads = (self.query(query), self.key(key), self.value(value))
        asked, known, told = (part.unflatten(-1, (self.heads, -1)).transpose(0, 1) for part in heads)
        scores = asked @ known.transpose(1, 2) / sqrt(asked.shape[-1])
        scores = scores.masked_fill(there < 0.5, torch.finfo(scores.dtype).min)
        return self.output(((scores.softmax(-1) * there) @ told).transpose(0, 1).flatten(1))


class Decoder(nn.Module):
    """What is known of a target at x: the mean and the raw spread of a normal distribution."""

    def __init__(self, sizes: Sizes, context: int) -> None:
        super().__init__()
        self.layers = layers(context + sizes.inputs, sizes.hidden, sizes.depth, 2 * sizes.outputs)

    def forward(self, context: Tensor, x: Tensor) -> Tensor:
        """Return ``(…, m, 2 outputs)`` for a context ``(…, m or 1, context)`` and ``x`` ``(m, inputs)``."""
        shape = (*context.shape[:-2], len(x))
        return self.layers(torch.cat((context.expand(*shape, -1), x.expand(*shape, -1)), -1))
