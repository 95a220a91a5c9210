"""Soft oblivious decision trees: a forest that gradients can learn."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from headstart.errors import UsageError


class SoftTrees(nn.Module):
    """The share of each leaf of soft oblivious trees in a row, ``(*rows, inputs) -> (*rows, trees * 2**depth)``.

    In an oblivious tree all nodes of a level ask the same question. Level d of tree t asks whether

        softmax(feature[t, d]) · x > threshold[t, d],    answered by σ(exp(log_sharpness[t, d]) (softmax(…) · x − …))

    and a leaf's share is the product of its levels' answers, divided by √trees.
    """

    def __init__(self, inputs: int, trees: int, depth: int) -> None:
        super().__init__()
        # most of a level's weight is on one feature or two
        self.feature = nn.Parameter(2 * torch.randn(trees, depth, inputs))
        self.threshold = nn.Parameter(0.5 * torch.randn(trees, depth))
        self.log_sharpness = nn.Parameter(torch.full((trees, depth), math.log(4.0)))

    def forward(self, x: Tensor) -> Tensor:
        asked = torch.einsum("...f,tdf->...td", x, self.feature.softmax(-1))
        high = ((asked - self.threshold) * self.log_sharpness.exp()).sigmoid()
        shares = high.new_full((*high.shape[:-1], 1), 1 / math.sqrt(len(self.threshold)))
        for level in range(self.threshold.shape[1]):
            answer = high[..., level, None]
            shares = torch.stack([shares * (1 - answer), shares * answer], -1).flatten(-2)
        return shares.flatten(-2)


def soft_forest(
    inputs: int | Sequence[int],
    outputs: int | None,
    *,
    trees: Annotated[int, Ge(1), Le(10_000)] = 16,
    depth: Annotated[int, Ge(1), Le(12)] = 4,
) -> nn.Sequential:
    """Return soft oblivious decision trees whose leaves are a linear layer, called ``head``, on the leaves' shares.

    It can be differentiated any number of times, so every method that takes a module takes it; those that adapt the
    head alone (``anil``, ridge heads, …) adapt the values of leaves. Standardise inputs: thresholds start around 0.

    Args:
        inputs: number of input values, or the shape of an input, which is flattened.
        outputs: number of output values; ``None`` leaves the head out, for an embedding.
        trees: number of trees, which are added up.
        depth: levels of each tree, which has ``2**depth`` leaves.

    After the oblivious trees of Popov, Morozov, Babenko 2019, arXiv:1909.06312 (NODE), but softmax where they have
    entmax, a logistic function where they have entmoid, no stacking of layers, and no start from the data.

    >>> import torch
    >>> soft_forest(3, 2, trees=8)(torch.zeros(10, 3)).shape
    torch.Size([10, 2])
    """
    flat = inputs if isinstance(inputs, int) else math.prod(inputs)
    if min(flat, trees, depth, 1 if outputs is None else outputs) < 1:
        raise UsageError(
            f"soft_forest needs positive sizes, got inputs {inputs}, outputs {outputs}, trees {trees}, depth {depth}"
        )
    layers = OrderedDict[str, nn.Module]()
    if not isinstance(inputs, int) and len(inputs) > 1:
        layers["flatten"] = nn.Flatten()
    layers["trees"] = SoftTrees(flat, trees, depth)
    if outputs is not None:
        layers["head"] = nn.Linear(trees * 2**depth, outputs)
    return nn.Sequential(layers)
