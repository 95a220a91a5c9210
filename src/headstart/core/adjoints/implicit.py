"""The derivative of adaptation as of the point where it comes to rest, whatever way it took there."""

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from headstart.core.adjoints.pullback import Slopes, added, leaf, refuse_second_derivatives, slopes_of, wanted
from headstart.core.inner import Given, Inner, Step, gradients, run, stacked
from headstart.core.linear import ConjugateGradient, Product, Solver
from headstart.core.process import Autocast, Draws, autocast_of, casting, draws
from headstart.core.tree import Packed, pack, tensors_of
from headstart.errors import UsageError
from headstart.types import Params

logger = logging.getLogger("headstart")


@dataclass(frozen=True)
class Implicit:
    """Differentiate the end of adaptation as the root φ of a step's displacement: d(φ) = rule(∇loss(φ)) = 0.

    By the implicit function theorem dφ = −(∂d/∂φ)⁻¹ ∂d/∂z dz for all z that d depends on: M, the parameters that do
    not move, the support set, and the rule's state, of which the point that `rules.proximal` pulls towards is one.
    Memory does not grow with T; the backward pass costs one second derivative for each product of the solver.

    It is the derivative of the point of rest, exact to the accuracy of the solver once adaptation has come to rest
    there, so ``exact`` is False; before that it is off by as much as φ is, roughly. Where the start has no part in the
    point of rest, as it has none without `proximal`, its derivative is zero.

    The rule's state must be the same after a step as before it (not so for `momentum` and `adam`). The displacement is
    that of the last step, with its number; parameters that the rule leaves out of it are where they started, or count
    as constants if earlier steps moved them. The tasks' own buffers count as constants.

    Args:
        solver: `ConjugateGradient`, `Neumann`, or a function with their interface.

    Raises:
        UsageError: a rule whose state changes; in the backward pass, a point of rest that depends on nothing asked for.

    Reference: Rajeswaran, Finn, Kakade, Levine 2019, arXiv:1909.04630; Lorraine, Vicol, Duvenaud 2020,
    arXiv:1911.02590, for `Neumann`.
    """

    solver: Solver = ConjugateGradient()

    exact = False

    def __call__(self, step: Step, given: Given, start: Inner, steps: int) -> tuple[Inner, Tensor]:
        if steps == 0:
            return start, stacked([], start)
        if not wanted((given, start)):
            end, losses, _ = _descended(step, given, start, steps)
            return end, losses
        packed, tensors = pack((given, start))
        plan = _Plan(step, steps, packed, self.solver, autocast_of(tensors), [])
        *end, losses = _Rest.apply(plan, *tensors)
        params = dict(zip(start.params, end))
        return Inner(params, start.rule, plan.buffers[0].unpack(end[len(params) :])), losses


class _Plan(NamedTuple):
    step: Step
    steps: int
    packed: Packed
    """Of (given, start)."""
    solver: Solver
    autocast: Autocast
    buffers: list[Packed]
    """Filled by the forward pass: the buffers after the last step."""


class _Rest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        given, start = plan.packed.unpack(tensors)
        end, told, ctx.drawn = _descended(plan.step, given, start, plan.steps)
        packed, buffers = pack(end.buffers)
        plan.buffers.append(packed)
        ctx.plan, ctx.count = plan, len(tensors)
        ctx.still = {name for name, value in end.params.items() if value is start.params[name]}
        params = [end.params[name] for name in start.params]
        ctx.save_for_backward(*tensors, *params, *buffers)
        ctx.mark_non_differentiable(told, *buffers)
        return *params, *buffers, told

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        plan, saved = ctx.plan, ctx.saved_tensors
        given, start = plan.packed.unpack(map(leaf, saved[: ctx.count], ctx.needs_input_grad[1:]))
        names, left = list(start.params), saved[ctx.count :]
        params = {name: leaf(value, True) for name, value in zip(names, left)}
        rest = Inner(params, start.rule, plan.buffers[0].unpack(left[len(names) :]))
        before = draws(start)
        ctx.drawn.restore()
        with casting(plan.autocast):
            with torch.enable_grad():
                step, last = plan.step, plan.steps - 1
                grads = gradients(step.support_loss, given, rest, last + step.first, create_graph=True)[1]
                displacement = step.displacement(given, rest, last, grads)[0]
            before.restore()
            asked = tensors_of((given, start.rule))
            found, stayed = _solved(plan.solver, displacement, params, dict(zip(names, slopes)), asked)
        own = [stayed[name] if one.requires_grad and name in ctx.still else None for name, one in start.params.items()]
        if all(slope is None for slope in (*found, *own)):
            raise UsageError(
                "the point where these inner steps come to rest depends on nothing that is to be learned, so Implicit "
                "would learn nothing: a rule such as scale forgets where it started. Pull towards the start with "
                "rules.chain(rules.proximal(...), rules.scale(...)), as headstart.imaml does, or take another adjoint"
            )
        held, buffers = len(tensors_of(given)), len(tensors_of(start.buffers))
        return None, *found[:held], *own, *found[held:], *[None] * buffers


def _solved(
    solver: Solver, displacement: Params, params: Params, slopes: Params, asked: list[Tensor]
) -> tuple[Slopes, dict[str, Tensor | None]]:
    """Return the slopes of ``asked``, and of the parameters that the rule leaves where they are."""
    moved, stays = list(displacement.values()), [name for name in params if name not in displacement]
    if not moved:
        return [None] * len(asked), {**slopes}
    right = {name: slopes[name] for name in displacement}
    answer = solver(_product(moved, {name: params[name] for name in displacement}), right)
    logger.debug("implicit derivative: relative residuals %s", answer.residual)
    changes = [-answer.value[name] for name in displacement]
    found = slopes_of(moved, changes, [*asked, *(params[name] for name in stays)])
    return found[: len(asked)], dict(zip(stays, added([slopes[name] for name in stays], found[len(asked) :])))


def _product(moved: list[Tensor], params: Params) -> Product:
    """Return ``v -> (∂moved/∂params)ᵀ v``, through one graph for all products."""

    def product(value: Params) -> Params:
        found = slopes_of(moved, list(value.values()), list(params.values()), retain_graph=True)
        return {
            name: torch.zeros_like(own) if slope is None else slope for (name, own), slope in zip(params.items(), found)
        }

    return product


def _descended(step: Step, given: Given, start: Inner, steps: int) -> tuple[Inner, Tensor, Draws]:
    """Take the steps without history; return also where the generators stood before the last one."""
    inner, before = start, []
    if steps > 1:  # the first and the last by themselves, to see what they do to the rule's state
        inner, first = _rested(step, given, start, 0)
        inner, between = run(step, given, inner, range(1, steps - 1), create_graph=False)
        before = [first, *between]
    drawn = draws(start)
    end, last = _rested(step, given, inner, steps - 1)
    return end, stacked([*before, last], end), drawn


def _rested(step: Step, given: Given, inner: Inner, number: int) -> tuple[Inner, Tensor]:
    """Take a step that must leave the rule's state as it is."""
    after, loss = step(given, inner, number, False)
    (old, kind), (new, now) = tree_flatten(inner.rule), tree_flatten(after.rule)
    if kind != now or any(map(_differ, old, new)):
        raise UsageError(
            "Implicit differentiates a point where steps come to rest, so the rule's state must not change from "
            "step to step, as that of momentum and adam does; use rules such as scale, per_weight, proximal and "
            "clip, or another adjoint"
        )
    return after, loss


def _differ(old: Any, new: Any) -> bool:
    # a rule that keeps its state returns it as it is; only another tensor has to be read back
    if old is new:
        return False
    return not torch.equal(old, new) if isinstance(old, Tensor) and isinstance(new, Tensor) else bool(old != new)
