"""The inner loop: T steps of a rule on the support loss, for B tasks at once, and what an adjoint of it is.

θᵢ ← θᵢ − rule(∇ support lossᵢ(θᵢ)), T times. An `Adjoint` runs the steps and decides what is remembered for the
backward pass; the mathematics of a step is not its business. Here are those that remember all steps, the last, or none.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from headstart.core import tree
from headstart.core.process import differentiated_once
from headstart.core.rules import Rule
from headstart.core.schedules import Schedule
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


class Given(NamedTuple):
    """What inner steps use and do not change; derivatives flow to all of its tensors."""

    structure: Params
    """M"""
    params: Params = {}
    """The parameters that do not move, with a task axis or shared."""
    support: Any = None
    """What the loss is of: a `headstart.Batch`, or whatever the loss understands."""
    steps: Tensor | None = None
    """``(B,)``, after how many steps each task stays as it is; ``None``: no task does before the last one."""
    features: Tree = None
    """What the layers below all that moves make of the support set, where they are computed once for all steps."""


SupportLoss: TypeAlias = Callable[[Given, Params, Params, int], tuple[Tensor, Params]]
"""``(given, params, buffers, step) -> (support losses (B,), buffers)``; all that it uses is in its arguments."""


class Step(NamedTuple):
    """One inner step as a function of values; steps are numbered from ``first`` on."""

    support_loss: SupportLoss
    rule: Rule
    first: int = 0
    loop: "Loop | None" = None
    """What takes all steps of its loops, where nothing else does (`looping_by`)."""

    def __call__(self, given: Given, inner: Inner, number: Any, create_graph: bool) -> tuple[Inner, Tensor]:
        """Return what the step leads to, and the support losses ``(B,)`` before it, without history.

        Where a record is made of all steps at once, its number is a tensor.

        ``g = ∂(Σᵢ lossᵢ)/∂params`` holds every task's own gradient, since task i's loss depends on task i's tensors
        alone; then ``params ← params − rule(g)``.
        """
        losses, grads, buffers = gradients(self.support_loss, given, inner, number + self.first, create_graph)
        moved, state = self.displacement(given, inner, number, grads)
        del grads  # as much as all parameters: not to be held while the new ones are made
        if given.steps is not None:
            going = given.steps > number + self.first
            moved, state, buffers = (
                _only(going, moved, tree.zeros_like(moved)),
                *(_only(going, new, old) for new, old in ((state, inner.rule), (buffers, inner.buffers))),
            )
        params = tree.subtract(inner.params, moved)
        if create_graph and len(moved) < len(params):
            # as tensors of their own: the next gradient holds the others still, which depend on those of this step
            params = {name: value if name in moved else value.view_as(value) for name, value in params.items()}
        return Inner(params, state, buffers), losses.detach()

    def displacement(self, given: Given, inner: Inner, number: int, grads: Params) -> tuple[Params, Tree]:
        """Return what the step subtracts for such gradients, by name, and the rule's next state."""
        return self.rule.update(given.structure, inner.rule, grads, inner.params, number + self.first)


def _only(going: Tensor, new: Tree, old: Tree) -> Tree:
    """Return what is new for the tasks that are going on, and what is old for the others."""
    packed, parts = tree.pack(new)
    before = tree.tensors_of(old) or parts  # a state may begin with the first step
    pairs = zip(parts, before, strict=True)
    return packed.unpack(torch.where(tree.over_tasks(going, one), one, other) for one, other in pairs)


def gradients(
    support_loss: SupportLoss, given: Given, inner: Inner, number: int, create_graph: bool
) -> tuple[Tensor, Params, Params]:
    """Return the support losses ``(B,)``, every task's own gradient of them, and the buffers after the pass."""
    with torch.enable_grad(), differentiated_once(not create_graph):
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
        found = torch.autograd.grad(losses.sum(), asked, create_graph=create_graph, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise UsageError(f"the support loss does not depend on any parameter that moves: {', '.join(leaves)}")
    named = {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found)
    }
    if not create_graph:  # the graph that made them is gone with the gradients
        buffers = {name: value.detach() for name, value in buffers.items()}
    return losses, named, buffers


class Adjoint(Protocol):
    """How adapted parameters are differentiated: ``(step, given, start, steps) -> (state, losses (steps, B))``."""

    @property
    def exact(self) -> bool:
        """Whether the derivative is exact."""

    def __call__(self, step: Step, given: Given, start: Inner, steps: int, /) -> tuple[Inner, Tensor]: ...


Loop: TypeAlias = Callable[[Step, Given, Inner, range, bool, Schedule | None], "tuple[Inner, Tensor] | None"]
"""What takes all steps of a loop in the place of `run`; ``None``: it does not take these."""

#: Set while a computation is recorded, which then holds an inner step once, not as often as it is taken.
looping: ContextVar[Loop | None] = ContextVar("looping", default=None)


@contextlib.contextmanager
def looping_by(loop: Loop | None) -> Iterator[None]:
    """Take the loops that are run inside by this one, by none where it is ``None``."""
    token = looping.set(loop)
    try:
        yield
    finally:
        looping.reset(token)


def run(step: Step, given: Given, inner: Inner, numbers: range, create_graph: bool) -> tuple[Inner, Tensor]:
    """Take the steps of these numbers one after another: the loop of all adjoints."""
    loop = looping.get() or step.loop
    found = None if loop is None else loop(step, given, inner, numbers, create_graph, None)
    if found is not None:
        return found
    losses = []
    for number in numbers:
        inner, loss = step(given, inner, number, create_graph)
        losses.append(loss)
    return inner, stacked(losses, inner)


def stacked(losses: list[Tensor], inner: Inner) -> Tensor:
    """Return the losses of steps, ``(steps, B)``, of which there may be none."""
    like = next(iter(inner.params.values()))
    return torch.stack(losses) if losses else like.new_zeros(0, like.shape[0])


@dataclass(frozen=True)
class Unrolled:
    """Remember every step and differentiate through all of them: exact, memory grows with T."""

    exact = True

    def __call__(self, step: Step, given: Given, start: Inner, steps: int) -> tuple[Inner, Tensor]:
        return run(step, given, start, range(steps), torch.is_grad_enabled())


@dataclass(frozen=True)
class FirstOrder:
    """Take the inner gradients as constants, ∂(θ − α g)/∂θ = I: cheap, not exact (FOMAML)."""

    exact = False

    def __call__(self, step: Step, given: Given, start: Inner, steps: int) -> tuple[Inner, Tensor]:
        return run(step, given, start, range(steps), create_graph=False)


@dataclass(frozen=True)
class Truncated:
    """Differentiate through the ``last`` steps only, and take the inner gradients of those before as constants.

    Memory and time of the backward pass are those of ``last`` steps, whatever T is. With ``last=0`` it is
    `FirstOrder`, from ``last=T`` on `Unrolled`. θ, where adaptation starts, gets its derivative as if the first
    T − last steps only shifted it; what multiplies their gradients, such as a learned rate, gets its own still.

    Reference: Shaban, Cheng, Hatch, Boots 2019, arXiv:1810.10667 (K-RMD; there the outer parameters enter every step,
    and the derivative with respect to the start is left out).
    """

    last: int

    exact = False

    def __post_init__(self) -> None:
        if not isinstance(self.last, int) or self.last < 0:
            raise UsageError(f"Truncated(last=...) must be a number of steps from 0 up, got {self.last!r}")

    def __call__(self, step: Step, given: Given, start: Inner, steps: int) -> tuple[Inner, Tensor]:
        kept = min(self.last, steps)
        inner, before = run(step, given, start, range(steps - kept), create_graph=False)
        end, after = run(step, given, inner, range(steps - kept, steps), torch.is_grad_enabled())
        return end, torch.cat([before, after])


def solve(
    support_loss: SupportLoss,
    start: Inner,
    given: Given,
    rule: Rule,
    adjoint: Adjoint,
    steps: int,
    first: int = 0,
    loop: Loop | None = None,
) -> tuple[Inner, Info]:
    """Return the state after ``steps`` inner steps, numbered from ``first`` on, and the losses before each.

    ``loop`` may take all of them. The result is differentiable as the adjoint says; where gradients are off, nothing is
    remembered.
    """
    if steps < 0:
        raise UsageError(f"the number of inner steps must be 0 or more, got {steps}")
    end, losses = adjoint(Step(support_loss, rule, first, loop), given, start, steps)
    return end, Info(losses)


def expanded(params: Params, names: Iterable[str], tasks: int) -> Params:
    """Return the named parameters with a task axis, ``(tasks, *shape)``, all tasks starting from the same values."""
    wanted = set(names)
    return {name: value.expand(tasks, *value.shape) for name, value in params.items() if name in wanted}
