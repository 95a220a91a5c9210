"""A linear map of features that are good already: it starts as no change at all."""

from collections.abc import Sequence
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn


def projection(inputs: int | Sequence[int], outputs: int | None = None, *, normalised: bool = False) -> nn.Sequential:
    """Return x ↦ x + W x with W = 0 at the start, so that a head on it starts as a head on the features themselves.

    Args:
        inputs: number of features, or the shape of an input, which is flattened.
        outputs: number of output values of a linear head; ``None`` leaves it out, for an embedding.
        normalised: scale what it gives to length 1.

    >>> import torch
    >>> x = torch.randn(5, 8)
    >>> bool((projection(8)(x) == x).all())
    True
    """
    flat = inputs if isinstance(inputs, int) else prod(inputs)
    layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten()), ("residual", Residual(flat))]
    layers += [("unit", Unit())] if normalised else []
    layers += [] if outputs is None else [("head", nn.Linear(flat, outputs))]
    found = nn.Sequential()
    for name, layer in layers:
        found.add_module(name, layer)
    return found


class Residual(nn.Module):
    """x ↦ x + W x, from W = 0."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


class Unit(nn.Module):
    """x ↦ x / ‖x‖."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)
