"""The derivative of T steps by going through them backwards from kept states.

The forward pass takes the steps without history and keeps some of the states. The backward pass takes the steps
between two kept states again, and differentiates one step at a time, so that no more than one step's graph exists.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import get_device_states, set_device_states

from headstart.core.adjoint.schedule import Segment, split
from headstart.core.step import Given, Inner, Step

Slopes: TypeAlias = list[Tensor | None]
"""Derivatives with respect to a list of tensors; ``None`` is zero."""

Pullback: TypeAlias = Callable[[Step, Given, Inner, int, Slopes], tuple[Slopes, Slopes]]
"""``(step, given, inner, number, slopes of the leaves of the next state) -> slopes of the leaves of (given, inner)``;
the leaves of ``given`` and ``inner`` that matter require gradients."""


class _Plan(NamedTuple):
    """What a sweep is told besides its tensors."""

    step: Step
    segments: Sequence[Segment]
    pullback: Pullback
    leaves: Sequence[Any]
    """The leaves of (given, start), with ``Tensor`` itself in the place of each tensor."""
    spec: Any
    end: list[Any]
    """Filled by the forward pass: the tree of the last state."""

    def trees(self, tensors: Sequence[Tensor]) -> tuple[Given, Inner]:
        left = iter(tensors)
        given, start = tree_unflatten([next(left) if leaf is Tensor else leaf for leaf in self.leaves], self.spec)
        return given, start


class _Kept(NamedTuple):
    """A state, and that of the generators that a module may draw from."""

    number: int
    inner: Inner
    cpu: Tensor
    devices: tuple[list[int], list[Tensor]]


def sweep(
    step: Step, given: Given, start: Inner, segments: Sequence[Segment], pullback: Pullback
) -> tuple[Inner, list[Tensor]]:
    """Take the steps of ``segments``; their derivative is a sweep back through them. Second ones are refused."""
    leaves, spec = tree_flatten((given, start))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    marked = [Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    plan = _Plan(step, segments, pullback, marked, spec, [])
    *end, losses = _Sweep.apply(plan, *tensors)
    return tree_unflatten(end, plan.end[0]), list(losses.unbind())


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> tuple[Tensor, ...]:
        given, inner = plan.trees(tensors)
        kept, losses = [], []
        for segment in plan.segments:
            kept.append(_keep(segment.start, inner))
            for number in range(segment.start, segment.end):
                inner, loss = plan.step(given, inner, number, False)
                losses.append(loss)
        end, spec = tree_flatten(inner)
        plan.end.append(spec)
        ctx.plan, ctx.kept = plan, kept
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        told = torch.stack(losses)
        ctx.mark_non_differentiable(told, *(leaf for leaf in end if not leaf.is_floating_point()))
        return *end, told

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        plan, tensors = ctx.plan, ctx.saved_tensors
        needed = iter(ctx.needs_input_grad[1:])
        given, start = plan.trees([_leaf(tensor, next(needed)) for tensor in tensors])
        back = _Backward(plan, given, [leaf.requires_grad for leaf in _tensors(start)], list(slopes[:-1]))
        before = _keep(0, start)
        for segment, kept in zip(reversed(plan.segments), reversed(ctx.kept)):
            back.through(kept, segment.end, segment.slots)
        _restore(before)
        return None, *back.totals, *back.slopes


class _Backward:
    """The reverse sweep: the slopes of the state that it has come to, and the totals of what all steps are given."""

    def __init__(self, plan: _Plan, given: Given, wanted: Sequence[bool], slopes: Slopes) -> None:
        self.plan, self.given, self.wanted, self.slopes = plan, given, wanted, slopes
        self.totals: Slopes = [None] * len(_tensors(given))

    def through(self, kept: _Kept, end: int, slots: int) -> None:
        """Go back from the state after step ``end − 1`` to ``kept``, keeping up to ``slots`` more states."""
        while end > kept.number:
            if end == kept.number + 1:
                self._step(kept)
                return
            middle = kept.number + split(end - kept.number, slots) if slots else end - 1
            self.through(self._advanced(kept, middle), end, max(slots - 1, 0))
            end = middle

    def _advanced(self, kept: _Kept, number: int) -> _Kept:
        _restore(kept)
        inner = kept.inner
        with torch.no_grad():
            for taken in range(kept.number, number):
                inner, _ = self.plan.step(self.given, inner, taken, False)
        return _keep(number, inner)

    def _step(self, kept: _Kept) -> None:
        """Go back over the step that begins at ``kept``."""
        _restore(kept)
        leaves, spec = tree_flatten(kept.inner)
        wanted = self.wanted if kept.number == 0 else [True] * len(leaves)
        inner = tree_unflatten([_leaf(leaf, need) for leaf, need in zip(leaves, wanted)], spec)
        given, self.slopes = self.plan.pullback(self.plan.step, self.given, inner, kept.number, self.slopes)
        self.totals = [_sum(total, more) for total, more in zip(self.totals, given)]


def reverse(step: Step, given: Given, inner: Inner, number: int, slopes: Slopes) -> tuple[Slopes, Slopes]:
    """The `Pullback` that differentiates the step's own backward pass: reverse over reverse."""
    with torch.enable_grad():
        after, _ = step(given, inner, number, True)
        ends = [(leaf, slope) for leaf, slope in zip(_tensors(after), slopes) if slope is not None]
        ends = [(leaf, slope) for leaf, slope in ends if leaf.requires_grad]
    held, moved = _tensors(given), _tensors(inner)
    leaves = [leaf for leaf in (*held, *moved) if leaf.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(leaves)
    if ends:
        found = torch.autograd.grad([e for e, _ in ends], leaves, [s for _, s in ends], allow_unused=True)
    left = iter(found)
    everything = [next(left) if leaf.requires_grad else None for leaf in (*held, *moved)]
    return everything[: len(held)], everything[len(held) :]


def _keep(number: int, inner: Inner) -> _Kept:
    return _Kept(number, inner, torch.get_rng_state(), get_device_states(*_tensors(inner)))


def _restore(kept: _Kept) -> None:
    torch.set_rng_state(kept.cpu)
    set_device_states(*kept.devices)


def _leaf(tensor: Tensor, wanted: bool) -> Tensor:
    return tensor.detach().requires_grad_(wanted and tensor.is_floating_point())


def _sum(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    return more if total is None else total if more is None else total + more


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]
