"""Derivatives through all steps whose second order is a forward-mode derivative of the first."""

import functools
import logging
import threading
import warnings
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.utils._pytree import tree_map

from headstart.core.adjoint.adjoint import run
from headstart.core.adjoint.checkpointed import Checkpointed
from headstart.core.adjoint.leaves import Slopes, added, draws, slopes_of, tensors_of, wanted
from headstart.core.adjoint.needs import measured
from headstart.core.adjoint.sweep import reverse, sweep
from headstart.core.step import Given, Inner, Step
from headstart.types import Params

logger = logging.getLogger("headstart")

#: PyTorch has one level of forward mode for all threads, and leaving it forgets every tangent.
_LEVEL = threading.RLock()


@dataclass(frozen=True)
class MixedMode(Checkpointed):
    """`Checkpointed`, with each step differentiated forward over reverse: exact, no graph of a backward pass.

    A step's second order is H c, the change of its gradient along c, and that is one forward-mode derivative of the
    gradient; the graph of the gradient's own backward pass, which `Checkpointed` makes of one step at a time, is never
    made. The paper's savings come with a compiler and with activations that are computed again layer by layer. Run
    operation by operation, as here, PyTorch keeps about two tensors more for each that has a tangent: on networks of 2
    to 8 layers and a transformer of 4, going back over a step took 1.2 to 1.6 times the memory of `Checkpointed`. So
    measure before choosing it.

    Where an operation of the model has no forward-mode derivative, the run goes on reverse over reverse, and a
    warning says so; the derivative is the same.

    Args:
        every: as for `Checkpointed`.
        place: as for `Checkpointed`.
        memory: as for `Checkpointed`; where there is room for everything, each step is still taken again once, to
            differentiate it.

    Reference: Kemaev, Calian, Zintgraf, Farquhar, van Hasselt 2025, arXiv:2505.00793 (MixFlow-MG).
    """

    def __call__(self, step: Step, given: Given, start: Inner, steps: int) -> tuple[Inner, list[Tensor]]:
        if not wanted((given, start)) or steps == 0:
            return run(step, given, start, range(steps), create_graph=False)
        if self.memory is None:
            return sweep(
                step, given, start, self._periodic(steps), _ForwardOverReverse(), self.place() if self.place else None
            )
        pullback = _ForwardOverReverse()
        segments = self._binomial(steps, measured(step, given, start, pullback))
        return sweep(step, given, start, segments, pullback)


class _ForwardOverReverse:
    """The `Pullback` of forward over reverse, until forward mode fails; from then on that of reverse over reverse."""

    def __init__(self) -> None:
        self.failed = False

    def __call__(self, step: Step, given: Given, inner: Inner, number: int, slopes: Slopes) -> tuple[Slopes, Slopes]:
        if self.failed:
            return reverse(step, given, inner, number, slopes)
        before = draws(inner)
        grads, totals = _through_update(step, given, inner, number, slopes)
        before.restore()
        try:
            more = _along(step, given, inner, number, grads)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # the same pass has just run without tangents, so it is forward mode that fails
            _warn(str(error).strip().splitlines()[0])
            self.failed = True
            before.restore()
            return reverse(step, given, inner, number, slopes)
        totals = added(totals, more)
        held = len(tensors_of(given))
        return totals[:held], totals[held:]


def _through_update(step: Step, given: Given, inner: Inner, number: int, slopes: Slopes) -> tuple[Params, Slopes]:
    """Return the slopes of the gradient, and of the leaves of (given, inner) otherwise than through the gradient."""
    leaves, moving = tensors_of((given, inner)), len(tensors_of(inner.params))
    below = len(slopes) - len(tensors_of(inner.buffers))
    through_buffers = any(slope is not None for slope in slopes[below:])
    number += step.first
    with torch.enable_grad():
        params = {name: value if value.requires_grad else _leaf(value) for name, value in inner.params.items()}
        used = (given, inner.buffers) if through_buffers else tree_map(_still, (given, inner.buffers))
        losses, buffers = step.support_loss(used[0], params, used[1], number)
        found = torch.autograd.grad(
            losses.sum(), list(params.values()), retain_graph=through_buffers, materialize_grads=True
        )
        grads = dict(zip(params, map(_leaf, found)))
        moved, state = step.rule.update(given.structure, inner.rule, grads, inner.params, number)
        after = [*({name: value - moved[name] for name, value in inner.params.items()}).values()]
    ends = [*after[:moving], *tensors_of(state), *tensors_of(buffers)]
    through = slopes_of(ends, slopes, [*grads.values(), *leaves])
    named = zip(grads, through[: len(grads)])
    return {name: slope for name, slope in named if slope is not None}, through[len(grads) :]


def _along(step: Step, given: Given, inner: Inner, number: int, way: Params) -> Slopes:
    """Return the changes of the loss's gradient by the leaves of (given, inner) as the parameters go along ``way``.

    Since second derivatives commute, these are the slopes of ⟨way, ∂loss/∂params⟩.
    """
    leaves = tensors_of((given, inner))
    if not way or not any(leaf.requires_grad for leaf in leaves):
        return [None] * len(leaves)
    with _LEVEL:
        _load()
    with torch.enable_grad(), _LEVEL, forward_ad.dual_level():
        # a tensor that is expanded, as those of a first step are, cannot have a tangent
        params = {
            name: forward_ad.make_dual(value.contiguous(), way[name].contiguous()) if name in way else value
            for name, value in inner.params.items()
        }
        losses, _ = step.support_loss(given, params, inner.buffers, number + step.first)
        stands_for = {id(value): params[name] for name, value in inner.params.items()}
        points = [stands_for.get(id(leaf), leaf) for leaf in leaves]
        asked = [point for point, leaf in zip(points, leaves) if leaf.requires_grad]
        found = iter(torch.autograd.grad(losses.sum(), asked, allow_unused=True))
        return [_tangent(next(found)) if leaf.requires_grad else None for leaf in leaves]


def _tangent(dual: Tensor | None) -> Tensor | None:
    found = None if dual is None else forward_ad.unpack_dual(dual).tangent
    return None if found is None else found.detach()


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _still(value: object) -> object:
    return value.detach() if isinstance(value, Tensor) else value


@functools.cache
def _load() -> None:
    """Let PyTorch load its forward-mode formulas, which it does at the first use, and not without a warning."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(()), torch.zeros(()))


@functools.cache
def _warn(reason: str) -> None:
    """Say once what keeps forward mode from working."""
    logger.warning("MixedMode differentiates reverse over reverse here, since forward mode cannot: %s", reason)
