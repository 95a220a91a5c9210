"""CAVIA: adapt a few context parameters, and nothing else."""

from math import sqrt
from typing import Any, Literal

from torch import Generator, Tensor, nn
from torch.nn.modules.conv import _ConvNd

from headstart.algorithms.adaptation import uniform
from headstart.algorithms.film import film, layers_to_modulate, reachable
from headstart.algorithms.maml import Rate, maml
from headstart.core.parameters import Context, Leaf, What, choose
from headstart.core.rules import chain, only, scale
from headstart.errors import UsageError, unknown_name
from headstart.forward.surgery import followed
from headstart.schema import Size, extends
from headstart.types import Learner, Meta

Where = Literal["input", "film"]


@extends(maml, without=("rule",))
def cavia(
    module: nn.Module,
    *,
    size: Size = 5,
    where: Where | None = None,
    what: What | None = None,
    rate: Rate = 1.0,
    **options: Any,
) -> Learner:
    """CAVIA: adaptation moves context parameters φ alone; θ is learned by the outer loop and shared by all tasks.

    ``φᵢ ← φᵢ − rate · ∇_φ loss(φᵢ, θ, Sᵢ)``, T times from φᵢ = 0; L(θ) = Σᵢ loss(φᵢ, θ, Qᵢ). The network reads φ

    - as ``"input"``: concatenated to the inputs of its first linear layer, W x + V φ + b;
    - or by ``"film"``: it scales and shifts the channels of its hidden layers, h (1 + A φ) + B φ.

    V, A and B are in θ, drawn as for an ``nn.Linear``, and have no bias: with φ = 0 the network does exactly what the
    module does. What is kept for a task is φ: ``size`` numbers.

    Args:
        module: the model.
        size: how many context parameters there are. The paper takes 4 or 5 for sine curves and 100 for images.
        where: how the network reads them: ``"input"`` or ``"film"``; by default ``"film"`` where the module has
            convolutions, else ``"input"``.
        what: the layers that read φ: names, a type or a predicate; by default the first linear layer, or for FiLM
            every hidden one (behind its normalisation).
        rate: the inner step size; the paper's is 1.
        options: those of `maml`.

    Raises:
        UsageError: a size below 1, or a module without such layers.

    Reference: Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson 2018, arXiv:1810.03642.

    >>> import torch, headstart
    >>> learner = cavia(headstart.mlp(1, 1), loss="mse", steps=1)
    >>> meta = learner.init(torch.Generator().manual_seed(0))
    >>> adapted, info = learner.adapt(meta, headstart.Batch(torch.ones(3, 10, 1), torch.ones(3, 10, 1)))
    >>> {name: tuple(value.shape) for name, value in adapted.params.items()}
    {'hidden1.after.context.values': (3, 5)}
    """
    if size < 1:
        raise UsageError(f"size is the number of context parameters and must be at least 1, got {size}")
    body, maps = _reading(module, size, where, what)
    learner = maml(body, rule=chain(only(Context), scale(rate)), **options)

    def init(generator: Generator | None = None) -> Meta:
        meta = learner.init(generator)
        # a map behind a layer in M is in M itself; no inner step moves it, here or there
        like = {**meta.params, **meta.structure}
        drawn = {name: uniform(like[name].shape, bound, like[name], generator) for name, bound in maps.items()}
        return Meta(*({name: drawn.get(name, value) for name, value in part.items()} for part in meta))

    return learner._replace(init=init)


class ContextParameters(Context):
    """φ: each task's own, zero at its start."""

    def __init__(self, size: int, like: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(like.new_zeros(size))


class ReadsContext(nn.Module):
    """Follows a layer: scales and shifts its channels along ``axis``, or without one adds V φ to its outputs."""

    def __init__(self, context: ContextParameters, rows: int, axis: int | None, owns: bool) -> None:
        super().__init__()
        if owns:
            self.context = context
        # in a tuple, so that φ is a submodule of one reader alone; copies of the module copy it once
        self.shared = (context,)
        self.axis = axis
        self.weight = nn.Parameter(context.values.new_zeros(rows, len(context.values)))

    def forward(self, y: Tensor) -> Tensor:
        """Take outputs ``(n, …)``."""
        read = self.weight @ self.shared[0].values
        if self.axis is None:
            return y + read
        gamma, beta = read.chunk(2)
        return film(y, gamma, beta, self.axis)


def _reading(
    module: nn.Module, size: int, where: Where | None, what: What | None
) -> tuple[nn.Module, dict[str, float]]:
    """Return a copy of ``module`` that reads φ, and the names of the maps with the bounds between which they start."""
    if where not in ("input", "film", None):
        raise unknown_name("place for context parameters", str(where), ("input", "film"))
    if where is None:
        where = "film" if any(isinstance(layer, _ConvNd) for layer in module.modules()) else "input"
    linear = _linear_layers(module, what) if where == "input" else {}
    modulated = layers_to_modulate(module, what) if where == "film" else {}
    context = ContextParameters(size, next(module.parameters()).detach())
    maps: dict[str, float] = {}

    def reader(path: str, layer: nn.Module) -> nn.Module | None:
        if path in linear:
            rows, axis, read = linear[path].out_features, None, linear[path].in_features + size
        elif path in modulated:
            rows, axis, read = 2 * modulated[path].count, modulated[path].axis, size
        else:
            return None
        owns = not maps
        maps[f"{path}.after.weight" if path else "after.weight"] = 1 / sqrt(read)
        return ReadsContext(context, rows, axis, owns)

    return followed(module, reader), maps


def _linear_layers(module: nn.Module, what: What | None) -> dict[str, nn.Linear]:
    linear = {path: layer for path, layer in reachable(module).items() if isinstance(layer, nn.Linear)}
    if not linear:
        raise UsageError(
            f"{type(module).__name__} has no linear layer that can be changed, so it cannot take context parameters "
            f"as inputs; use where='film'"
        )
    if what is None:
        return dict(list(linear.items())[:1])
    leaves = {path: Leaf(path, tuple(layer.weight.shape), type(layer)) for path, layer in linear.items()}
    return {path: linear[path] for path in choose(leaves, what)}
