"""Low-rank adapters: small additions to large layers, for an inner loop that moves them alone."""

from math import sqrt
from typing import cast

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from headstart.algorithms.adaptation import uniform
from headstart.algorithms.film import reachable
from headstart.core.parameters import Leaf, What, choose, matches
from headstart.errors import UsageError
from headstart.forward.surgery import replaced


def low_rank(
    module: nn.Module,
    *,
    rank: int = 4,
    what: What | None = None,
    alpha: float | None = None,
    generator: Generator | None = None,
) -> nn.Module:
    """Return a copy of ``module`` whose layers have a low-rank product added: W x + b + (α / rank) · up · down · x.

    ``up`` starts at zero, so the copy does exactly what the module does. Both are ordinary parameters, called
    ``….up`` and ``….down``, and the layer's own ``….layer.…``; an inner loop that moves `LowRank` alone learns a task
    in a small fraction of the numbers.

    Args:
        module: it is not changed.
        rank: rows of ``down``; a layer with fewer inputs or outputs gets as many as it has.
        what: the layers: names, a type or a predicate; by default every linear and convolution layer (of one group)
            outside PyTorch's attention and transformer layers, which read the weights of the layers inside them.
        alpha: α; by default the rank, so that the product counts as it is.
        generator: draws ``down``; by default PyTorch's global one, as for ``nn.Linear``.

    Raises:
        UsageError: a rank below 1, or no layer that can be changed.
        UnknownNameError: ``what`` matches nothing.

    Reference: Hu et al. 2021, arXiv:2106.09685 (``down`` is drawn as ``nn.Linear`` draws its weight, as in their
    code). A convolution's ``down`` is a convolution to ``rank`` channels, and its ``up`` works pixel by pixel.

    >>> import headstart
    >>> from headstart.core.rules import chain, only, scale
    >>> net = low_rank(headstart.mlp(8, 3, hidden=(64,)), rank=2)
    >>> learner = headstart.maml(net, rule=chain(only(LowRank), scale(0.1)))
    >>> [name for name in learner.init(None).params if name.endswith(("up", "down"))]
    ['hidden1.down', 'hidden1.up', 'head.down', 'head.up']
    """
    if rank < 1:
        raise UsageError(f"rank must be at least 1, got {rank}")
    names = _adapted(module, what)

    def adapted(path: str, layer: nn.Module) -> nn.Module | None:
        if path not in names:
            return None
        return LowRank(layer, rank, 1.0 if alpha is None else alpha / rank, generator)

    return replaced(module, adapted)


class LowRank(nn.Module):
    """A linear or convolution layer with a low-rank product beside it: move it with ``only(LowRank)``."""

    layer: nn.Module

    def __init__(self, layer: nn.Module, rank: int, strength: float, generator: Generator | None) -> None:
        super().__init__()
        weight = cast(Tensor, layer.weight).detach()
        outputs, inputs = weight.shape[0], weight[0].numel()
        rank = min(rank, outputs, inputs)
        self.layer = layer
        self.strength = strength
        self.down = nn.Parameter(uniform((rank, *weight.shape[1:]), 1 / sqrt(inputs), weight, generator))
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Take the layer's inputs: ``(n, …, features)`` or ``(n, channels, *space)``."""
        if isinstance(self.layer, nn.Linear):
            added = linear(linear(x, self.down), self.up)
        else:  # with the layer's own stride, dilation and padding of whatever mode
            few = cast(nn.Conv2d, self.layer)._conv_forward(x, self.down, None)
            added = torch.einsum("or,nr...->no...", self.up, few)
        return self.layer(x) + self.strength * added


def _adapted(module: nn.Module, what: What | None) -> frozenset[str]:
    layers = reachable(module)
    there = {
        path: layer
        for path, layer in layers.items()
        if isinstance(layer, nn.Linear)
        or (isinstance(layer, _ConvNd) and layer.groups == 1 and not isinstance(layer, _ConvTransposeNd))
    }
    if isinstance(what, str):
        names = [name for name, _ in module.named_parameters() if name.rpartition(".")[0] not in layers]
        if sealed := [name for name in names if matches(name, what)]:
            raise UsageError(
                f"{what!r} asks for an adapter beside {', '.join(sealed)}, inside PyTorch's attention or transformer "
                f"layers, which read the weights of the layers inside them; adapt other layers, or write the "
                f"attention with nn.Linear layers"
            )
    if what is None:
        if not there:
            raise UsageError(f"{type(module).__name__} has no linear or convolution layer that can take an adapter")
        return frozenset(there)
    leaves = {path: Leaf(path, tuple(cast(Tensor, layer.weight).shape), type(layer)) for path, layer in there.items()}
    return choose(leaves, what)
