"""What neural processes share: several modules as one pure function, and sets of examples as they read them."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from headstart.algorithms.neural_process.networks import Sizes
from headstart.core.masks import present
from headstart.core.tree import prefixed, within
from headstart.errors import ShapeError, UsageError
from headstart.forward.functional import Functional, functional
from headstart.forward.task_map import TaskMap
from headstart.types import Batch, Gaussian, Meta, Params, Tree


class Networks(NamedTuple):
    """Several modules as pure functions of one θ, in which each has its name for a prefix."""

    parts: dict[str, Functional]
    like: Tensor
    """An empty tensor of their type, on their device."""
    modules: dict[str, nn.Module]
    """Their structure, without weights."""

    def start(self, generator: Generator | None) -> Params:
        """Draw θ to start from."""
        weights: Params = {}
        for name, module in self.modules.items():
            weights |= prefixed(name, _drawn(module, self.like, generator))
        return weights

    def run(self, name: str, meta: Meta, *x: Tensor) -> Tensor:
        """Return the outputs of a module on B tasks."""
        return self.parts[name].apply(within(meta.params, name), {}, x)[0]


def _drawn(module: nn.Module, like: Tensor, generator: Generator | None) -> Params:
    """Return weights uniform in ±√(6 / (inputs + outputs of a layer)) (Glorot, Bengio 2010), and biases of 0.

    As in the authors' code; with the smaller weights of ``nn.Linear``, little of a support set reaches the targets.
    """
    weights: Params = {}
    for name, value in module.named_parameters():
        if value.ndim == 1:
            weights[name] = like.new_zeros(value.shape)
            continue
        # drawn on the CPU, so that a seed means the same numbers on every device
        draw = torch.rand(value.shape, generator=generator, dtype=torch.float64)
        weights[name] = ((2 * draw - 1) * math.sqrt(6 / sum(value.shape))).to(like)
    return weights


def networks(modules: Mapping[str, nn.Module], taskmap: str | TaskMap, like: Tensor) -> Networks:
    """Return modules on the ``meta`` device as pure functions, of weights like ``like`` in type and place."""
    parts = {name: functional(module, taskmap=taskmap) for name, module in modules.items()}
    return Networks(parts, like, dict(modules))


def checked(sizes: Sizes, floor: float) -> Sizes:
    """Return the sizes, or raise `UsageError` where there is no such network."""
    if min(sizes) < 1 or sizes.depth < 2 or not 0 < floor < 1:
        raise UsageError(
            f"a neural process needs inputs, outputs and hidden of at least 1, a depth of at least 2 and a floor "
            f"between 0 and 1; got {', '.join(f'{name}={size}' for name, size in sizes._asdict().items())}, "
            f"floor={floor}"
        )
    return sizes


def examples(batch: Batch, sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``x`` ``(B, n, inputs)``, ``y`` ``(B, n, outputs)`` and 1 where there is such an example, ``(B, n)``."""
    batch = present(batch)
    y = batch.y
    if not y.is_floating_point() or tuple(y.shape[2:]) != (sizes.outputs,):
        raise ShapeError(
            f"a neural process of {sizes.outputs} target values needs floating targets (tasks, examples, "
            f"{sizes.outputs}); got y {tuple(y.shape)} of {y.dtype}"
        )
    return flat(batch.x, sizes), y, there(batch, y)


def flat(x: Tree, sizes: Sizes) -> Tensor:
    """Return inputs as vectors, ``(B, n, inputs)``."""
    if not isinstance(x, Tensor) or math.prod(x.shape[2:]) != sizes.inputs:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(
            f"a neural process of {sizes.inputs} inputs needs a tensor x (tasks, examples, *features) with as many "
            f"features; got {got}"
        )
    return x.flatten(2)


def there(batch: Batch, like: Tensor) -> Tensor:
    """Return 1 where there is such an example and 0 where not, ``(B, n)``."""
    return like.new_ones(batch.y.shape[:2]) if batch.mask is None else batch.mask.to(like.dtype)


def gaussian(raw: Tensor, floor: float) -> Gaussian:
    """Return what a decoder says: the mean, and σ² with σ = floor + (1 − floor) softplus(s)."""
    mean, spread = raw.chunk(2, -1)
    return Gaussian(mean, (floor + (1 - floor) * nn.functional.softplus(spread)).square())
