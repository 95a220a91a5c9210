"""A network that reads a support set as a whole: an embedding of the task."""

from math import sqrt
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from headstart.errors import ShapeError, UsageError
from headstart.types import Batch, Params


class Sizes(NamedTuple):
    """What an encoder is built for."""

    reads: nn.Module
    """A layer whose kind of inputs the encoder takes: the first one of the model."""
    outputs: int
    """Classes, or target values of an example."""
    hidden: int
    embedding: int


class TaskEncoder(nn.Module):
    """Each example by itself, then their mean: so the order of the examples does not matter.

    e = tanh(W₃ · mean over examples and positions of ReLU(W₂ ReLU(f(x) + U y)))

    Positions are the pixels that three convolutions with stride 2 leave of an image, the tokens of a text, or the
    vectors of which an input consists; f is linear, an embedding, or the convolutions. y is one-hot for class ids.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        hidden = sizes.hidden
        self.inputs, self.width = _stem(sizes.reads, hidden)
        self.target = nn.Linear(sizes.outputs, hidden, bias=False)
        self.middle = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, sizes.embedding)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        """Return ``(B, embedding)`` for examples ``x`` ``(B, n, *features)`` and ``y`` ``(B, n)`` or ``(B, n, …)``."""
        features = self._features(x) + self.target(self._targets(y)).unsqueeze(2)
        each = self.middle(features.relu()).relu().mean(2)
        if mask is None:
            pooled = each.mean(1)
        else:
            there = mask.unsqueeze(-1)
            pooled = torch.where(there, each, 0).sum(1) / there.sum(1).clamp(min=1)
        # bounded, so that a task with large targets cannot send the modulation far off
        return self.last(pooled).tanh()

    def _features(self, x: Tensor) -> Tensor:
        """Return ``(B, n, positions, hidden)``."""
        if isinstance(self.inputs, nn.Embedding):
            return self.inputs(x.reshape(*x.shape[:2], -1))
        if isinstance(self.inputs, nn.Linear):
            if x[0, 0].numel() % self.width:
                raise ShapeError(
                    f"the task encoder reads vectors of {self.width} values, as the model's first layer does, but "
                    f"inputs have shape {tuple(x.shape[2:])}"
                )
            return self.inputs(x.reshape(*x.shape[:2], -1, self.width))
        return self.inputs(x.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, x.shape[:2])

    def _targets(self, y: Tensor) -> Tensor:
        """Return ``(B, n, outputs)``."""
        outputs, like = self.target.in_features, self.middle.weight
        if not y.is_floating_point():
            return (y.unsqueeze(-1) == torch.arange(outputs, device=y.device)).to(like.dtype)
        if y[0, 0].numel() != outputs:
            raise ShapeError(
                f"the task encoder reads {outputs} target values of an example, but y has shape {tuple(y.shape)}; "
                f"say how many with outputs="
            )
        return y.reshape(*y.shape[:2], outputs)


def encoder(sizes: Sizes) -> TaskEncoder:
    """Return an encoder without weights, on the ``meta`` device: they are in M.

    Raises:
        UsageError: the model's first layer is of a kind that says nothing of its inputs.
    """
    with torch.device("meta"):
        return TaskEncoder(sizes)


def drawn(network: nn.Module, like: Tensor, generator: Generator | None) -> Params:
    """Return weights to start from, drawn uniformly from ± 1/√(inputs of a unit), as ``nn.Linear`` does."""
    weights: Params = {}
    for path, layer in network.named_modules():
        own = dict(layer.named_parameters(recurse=False))
        for name in own:
            fan_in = 1 if isinstance(layer, nn.Embedding) else own["weight"][0].numel()
            # drawn on the CPU, so that a seed means the same numbers on every device
            draw = torch.rand(own[name].shape, generator=generator, dtype=torch.float64)
            weights[f"{path}.{name}"] = ((2 * draw - 1) / sqrt(fan_in)).to(like)
    return weights


def embedded(network: TaskEncoder, weights: Params, support: Batch) -> Tensor:
    """Return the embedding ``(B, size)`` of each task's support set.

    Raises:
        ShapeError: examples that the encoder cannot read.
    """
    if not isinstance(support.x, Tensor):
        raise ShapeError(f"the task encoder reads one tensor x, got {type(support.x).__name__}")
    return functional_call(network, weights, (support.x, support.y, support.mask))


def _stem(reads: nn.Module, hidden: int) -> tuple[nn.Module, int]:
    """Return what reads an input, and the width of the vectors that it takes (0 where it takes none)."""
    if isinstance(reads, nn.Linear):
        return nn.Linear(reads.in_features, hidden), reads.in_features
    if isinstance(reads, nn.RNNBase):
        return nn.Linear(reads.input_size, hidden), reads.input_size
    if isinstance(reads, nn.MultiheadAttention):
        return nn.Linear(reads.embed_dim, hidden), reads.embed_dim
    if isinstance(reads, nn.Embedding):
        return nn.Embedding(reads.num_embeddings, hidden), 0
    if isinstance(reads, _ConvNd):
        convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(reads.kernel_size)]
        layers: list[nn.Module] = []
        for channels in (reads.in_channels, hidden, hidden):
            layers += [convolution(channels, hidden, 3, stride=2, padding=1), nn.ReLU()]
        return nn.Sequential(*layers[:-1]), 0
    raise UsageError(
        f"the task encoder takes its kind of inputs from the model's first layer, and a {type(reads).__name__} "
        f"does not tell; it can be a linear, convolution, embedding, recurrent or attention layer"
    )
