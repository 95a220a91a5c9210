"""One inner step: the gradient of the support loss for B tasks at once, and the rule's update."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from headstart.core import tree
from headstart.core.rules import Rule
from headstart.core.unread import unread
from headstart.errors import UsageError
from headstart.types import Params, Tree


class Inner(NamedTuple):
    """What an inner step changes."""

    params: Params
    """The parameters that move, each ``(B, *shape)``."""
    rule: Tree
    """The rule's state."""
    buffers: Params
    """The tasks' own buffers, each ``(B, *shape)``."""


class Given(NamedTuple):
    """What inner steps use and do not change; derivatives flow to all of its tensors."""

    structure: Params
    """M"""
    params: Params = {}
    """The parameters that do not move, with a task axis or shared."""
    support: Any = None
    """What the loss is of: a `headstart.Batch`, or whatever the loss understands."""
    features: Tree = None
    """What the layers below all that moves make of the support set, where they are computed once for all steps."""


SupportLoss: TypeAlias = Callable[[Given, Params, Params, int], tuple[Tensor, Params]]
"""``(given, params, buffers, step) -> (support losses (B,), buffers)``; all that it uses is in its arguments."""


class Step(NamedTuple):
    """One inner step as a function of values; steps are numbered from ``first`` on."""

    support_loss: SupportLoss
    rule: Rule
    first: int = 0
    direct: bool = False
    """Whether no layer of `core.layers` has weights that are a curved function of what moves: they are that itself.

    Then gradients that are differentiated and not read need no numbers (see `core.unread`)."""

    def __call__(
        self, given: Given, inner: Inner, number: int, create_graph: bool, read: bool = True
    ) -> tuple[Inner, Tensor]:
        """Return what the step leads to, and the support losses ``(B,)`` before it, without history.

        ``g = ∂(Σᵢ lossᵢ)/∂params`` holds every task's own gradient, since task i's loss depends on task i's tensors
        alone; then ``params ← params − rule(g)``. Of what comes out by an affine rule, ``read=False`` leaves the
        derivatives right, and not always the numbers.
        """
        losses, grads, buffers = gradients(self.support_loss, given, inner, number + self.first, create_graph, read)
        moved, state = self.displacement(given, inner, number, grads)
        del grads  # as much as all parameters: not to be held while the new ones are made
        params = tree.subtract(inner.params, moved)
        if create_graph and len(moved) < len(params):
            # as tensors of their own: the next gradient holds the others still, which depend on those of this step
            params = {name: value if name in moved else value.view_as(value) for name, value in params.items()}
        return Inner(params, state, buffers), losses.detach()

    def loss(self, given: Given, inner: Inner, number: int) -> tuple[Tensor, Params]:
        """Return the support losses ``(B,)`` that the step goes down, and the buffers after the pass."""
        return self.support_loss(given, inner.params, inner.buffers, number + self.first)

    def displacement(self, given: Given, inner: Inner, number: int, grads: Params) -> tuple[Params, Tree]:
        """Return what the step subtracts for such gradients, by name, and the rule's next state."""
        return self.rule.update(given.structure, inner.rule, grads, inner.params, number + self.first)


def gradients(
    support_loss: SupportLoss, given: Given, inner: Inner, number: int, create_graph: bool, read: bool = True
) -> tuple[Tensor, Params, Params]:
    """Return the support losses ``(B,)``, every task's own gradient of them, and the buffers after the pass.

    Gradients that are not to be ``read`` have derivatives, and not always numbers (see `core.unread`).

    Raises:
        UsageError: the loss has no derivative with respect to any of the parameters.
    """
    with torch.enable_grad():
        leaves = {
            name: value if create_graph and value.requires_grad else value.detach().requires_grad_()
            for name, value in inner.params.items()
        }
        losses, buffers = support_loss(given, leaves, inner.buffers, number)
        if not losses.requires_grad:
            raise UsageError(
                f"the support loss has no derivative with respect to any parameter that moves: {', '.join(leaves)}; it "
                f"does not depend on them, or by operations without one (argmax, rounding, comparisons, what is under "
                f"torch.no_grad()). Adapt by a loss that has one, and keep accuracies for the report"
            )
        asked = list(leaves.values())
        with unread(not read):
            found = torch.autograd.grad(losses.sum(), asked, create_graph=create_graph, allow_unused=True)
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
