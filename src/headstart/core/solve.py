"""The only inner loop: T steps of a rule on the support loss, for B tasks at once."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from headstart.core import tree
from headstart.core.adjoint import Adjoint
from headstart.core.rules import Rule
from headstart.errors import UsageError
from headstart.types import Info, Params, Tree


class Inner(NamedTuple):
    """What an inner step changes."""

    params: Params
    """The parameters that move, each ``(B, *shape)``."""
    rule: Tree
    """The rule's state."""
    buffers: Params
    """The tasks' own buffers, each ``(B, *shape)``."""


SupportLoss = Callable[[Params, Params, int], tuple[Tensor, Params]]
"""``(params, buffers, step) -> (support losses (B,), buffers)``."""


def solve(
    support_loss: SupportLoss,
    start: Inner,
    structure: Params,
    rule: Rule,
    adjoint: Adjoint,
    steps: int,
    first: int = 0,
) -> tuple[Inner, Info]:
    """Return the state after ``steps`` inner steps and the support losses before each, ``(steps, B)``.

    Steps are numbered from ``first`` on.

    Step t computes ``g = ∂(Σᵢ lossᵢ)/∂params``, which holds every task's own gradient since task i's loss depends on
    task i's tensors alone, and then ``params ← params − rule(g)``. The result is differentiable as the adjoint says;
    where gradients are off, nothing is remembered.
    """

    def step(inner: Inner, number: int, create_graph: bool) -> tuple[Inner, Tensor]:
        number += first
        losses, grads, buffers = gradients(support_loss, inner, number, create_graph)
        moved, state = rule.update(structure, inner.rule, grads, inner.params, number)
        return Inner(tree.subtract(inner.params, moved), state, buffers), losses.detach()

    if steps < 0:
        raise UsageError(f"the number of inner steps must be 0 or more, got {steps}")
    end, losses = adjoint(step, start, steps)
    like = next(iter(start.params.values()))
    return end, Info(torch.stack(losses) if losses else like.new_zeros(0, like.shape[0]))


def gradients(
    support_loss: SupportLoss, inner: Inner, number: int, create_graph: bool
) -> tuple[Tensor, Params, Params]:
    """Return the support losses ``(B,)``, every task's own gradient of them, and the buffers after the pass."""
    with torch.enable_grad():
        leaves = {
            name: value if create_graph and value.requires_grad else value.detach().requires_grad_()
            for name, value in inner.params.items()
        }
        losses, buffers = support_loss(leaves, inner.buffers, number)
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), create_graph=create_graph, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise UsageError(f"the support loss does not depend on any parameter that moves: {', '.join(leaves)}")
    named = {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found)
    }
    if not create_graph:
        # the graph that made them is gone with the gradients
        buffers = {name: value.detach() for name, value in buffers.items()}
    return losses, named, buffers


def expanded(params: Params, names: Iterable[str], tasks: int) -> Params:
    """Return the named parameters with a task axis, ``(tasks, *shape)``, all tasks starting from the same values."""
    return {name: params[name].expand(tasks, *params[name].shape) for name in params if name in set(names)}
