"""Mean functions of Gaussian processes, shared by all tasks, as pure functions of their parameters."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from headstart.algorithms.kernels import with_one
from headstart.core import tree
from headstart.core.masks import present
from headstart.forward.functional import Buffers, functional
from headstart.forward.task_map import TaskMap
from headstart.types import Batch, Params, Tasks

#: Most tasks from which starting values are read.
MOST_TASKS = 1024
#: Standard deviation of the prior on the weights of a network's head: small beside targets of variance 1.
HEAD = 0.1


class Mean(NamedTuple):
    """A mean function m(x)."""

    start: Callable[[Generator | None, torch.dtype], Params]
    values: Callable[[Params, Tensor, Params, Tensor | None, int], tuple[Tensor, Params]]
    """``(params, x, buffers, seed, draw) -> (m(x) (B, n, outputs), buffers)``."""
    cost: Callable[[Params], Tensor | float]
    """−log of the prior on its parameters, up to a constant."""
    buffers: Params
    """Buffers of which every task has its own copy."""
    batch_statistics: str
    """The path of a layer that normalises by the batch; empty where there is none."""


def constant(outputs: int) -> Mean:
    """m(x) = b, learned from 0."""

    def values(params: Params, x: Tensor, buffers: Params, seed: Tensor | None, draw: int) -> tuple[Tensor, Params]:
        return params["bias"].expand(*x.shape[:2], outputs), buffers

    return Mean(lambda generator, dtype: {"bias": torch.zeros(outputs, dtype=dtype)}, values, _free, {}, "")


def linear(inputs: int, outputs: int) -> Mean:
    """m(x) = b + x W, learned from 0."""

    def start(generator: Generator | None, dtype: torch.dtype) -> Params:
        return {"bias": torch.zeros(outputs, dtype=dtype), "linear": torch.zeros(inputs, outputs, dtype=dtype)}

    def values(params: Params, x: Tensor, buffers: Params, seed: Tensor | None, draw: int) -> tuple[Tensor, Params]:
        return params["bias"] + x.flatten(2) @ params["linear"], buffers

    return Mean(start, values, _free, {}, "")


def network(inputs: int, outputs: int, hidden: Sequence[int]) -> Mean:
    """m(x) = b + x W + tanh(… tanh(x V₁ + c₁) …) H: a line, and a smooth curve that starts as 0.

    The priors V ~ N(0, 1 / width), c ~ N(0, 1) and H ~ N(0, 0.1²) keep the curve small unless the data ask for it.
    """
    line = linear(inputs, outputs)
    widths = (inputs, *hidden)
    layers = range(1, len(widths))

    def start(generator: Generator | None, dtype: torch.dtype) -> Params:
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        made = line.start(generator, dtype)
        for layer, (before, after) in enumerate(zip(widths, widths[1:]), start=1):
            drawn = torch.randn(before + 1, after, generator=generator, dtype=torch.float64).to(dtype)
            made[f"hidden{layer}.weight"] = drawn[1:] / math.sqrt(before)
            made[f"hidden{layer}.bias"] = drawn[0].clone()
        made["head"] = torch.zeros(widths[-1], outputs, dtype=dtype)
        return made

    def values(params: Params, x: Tensor, buffers: Params, seed: Tensor | None, draw: int) -> tuple[Tensor, Params]:
        curve = x.flatten(2)
        for layer in layers:
            curve = torch.tanh(curve @ params[f"hidden{layer}.weight"] + params[f"hidden{layer}.bias"])
        straight, _ = line.values(params, x, {}, None, 0)
        return straight + curve @ params["head"], buffers

    def cost(params: Params) -> Tensor:
        squares = [params["head"].square().sum() / HEAD**2]
        for layer in layers:
            weight = params[f"hidden{layer}.weight"]
            squares += [len(weight) * weight.square().sum(), params[f"hidden{layer}.bias"].square().sum()]
        return 0.5 * torch.stack(squares).sum()

    return Mean(start, values, cost, {}, "")


def with_module(
    module: nn.Module, inputs: int, outputs: int, *, taskmap: str | TaskMap = "auto", buffers: Buffers = "batch"
) -> Mean:
    """m(x) = b + x W + f(x), f a module with outputs ``(n, outputs)``, whose weights have no prior."""
    function = functional(module, buffers=buffers, taskmap=taskmap)
    line = linear(inputs, outputs)

    def start(generator: Generator | None, dtype: torch.dtype) -> Params:
        own = {name: value.clone() for name, value in {**function.params, **function.structure}.items()}
        return line.start(generator, dtype) | tree.prefixed("module", own)

    def values(params: Params, x: Tensor, own: Params, seed: Tensor | None, draw: int) -> tuple[Tensor, Params]:
        phase = "support" if draw == 0 else "query"
        curve, own = function.apply(tree.within(params, "module"), own, x, seed=seed, draw=draw, phase=phase)
        straight, _ = line.values(params, x, {}, None, 0)
        return straight + curve.reshape(straight.shape), own

    return Mean(start, values, _free, function.buffers, function.batch_statistics)


def _free(params: Params) -> float:
    return 0.0


class Pooled(NamedTuple):
    """All training tasks taken together, by ordinary least squares."""

    weights: Tensor
    """``(1 + d, o)``, of y on [1, x]."""
    residual: Tensor
    """``(o,)``, the standard deviation of what they leave."""
    values: int
    """How many target values there are, in all training tasks."""
    tasks: int
    """How many tasks there are; 0 where there is no end of them."""


def pooled(tasks: Tasks, dtype: torch.dtype) -> Pooled:
    """Return the least-squares line through the rows of the training tasks (of `MOST_TASKS` of them at most)."""
    count = (tasks.counts or {}).get("train", 0)
    seen = min(count or MOST_TASKS, MOST_TASKS)
    x, y = (torch.cat(parts) for parts in zip(*map(_rows, tasks.sample("train", range(seen)))))
    design = with_one(x.unsqueeze(0)).squeeze(0).double()
    square = design.T @ design
    # a little ridge: features may be constant, or copies of each other
    ridge = 1e-6 * len(design) * torch.eye(len(square), dtype=square.dtype, device=square.device)
    weights = torch.linalg.solve(square + ridge, design.T @ y.double())
    residual = (y - design @ weights).square().mean(0).sqrt()
    return Pooled(weights.to(dtype), residual.to(dtype), round(y.numel() * (count or seen) / seen), count)


def _rows(batch: Batch) -> tuple[Tensor, Tensor]:
    batch = present(batch)
    there = torch.ones_like(batch.y[..., 0], dtype=torch.bool) if batch.mask is None else batch.mask
    return batch.x.flatten(2)[there], batch.y[there]
