"""A linear map of features that are good already: it starts as no change at all."""

from collections import OrderedDict
from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.types import Params


def projection(inputs: int | Sequence[int], outputs: int | None = None, *, normalised: bool = False) -> "Projection":
    """Return x ↦ z + W z with z = x − c, where W starts at 0 and c at the mean of the training inputs.

    A head on it thus starts as a head on the features themselves, centred: with the cosine as a distance, features that
    all point the same way, as pretrained networks' do, are told apart better so (Wang et al. 2019, arXiv:1911.04623).
    Where nobody reads the training inputs, c starts at 0.

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
    return Projection(OrderedDict(layers))


class Projection(nn.Sequential):
    """What `projection` returns."""

    def start_by_inputs(self, inputs: Sequence[Tensor]) -> Params:
        """Return the centre: the mean of inputs ``(n, *features)``."""
        return {"residual.centre": torch.cat([x.flatten(1) for x in inputs]).mean(0)}


class Residual(nn.Module):
    """x ↦ z + W z with z = x − c, from W = 0 and c = 0."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(size))
        self.linear = nn.Linear(size, size, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x - self.centre
        return x + self.linear(x)


class Unit(nn.Module):
    """x ↦ x / ‖x‖."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)
