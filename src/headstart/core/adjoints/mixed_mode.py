"""Derivatives through all steps whose second order is a forward-mode derivative of the first."""

import functools
import logging
import math
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils._pytree import tree_map

from headstart.core import tree
from headstart.core.adjoints.checkpointed import Checkpointed
from headstart.core.adjoints.leaves import Slopes, added, draws, leaf, slopes_of, tensors_of
from headstart.core.adjoints.sweep import Pullback, reverse
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
    warning says so; the derivative is the same. So it does where forward mode gives another derivative, as it does of
    values computed under ``torch.no_grad()``, or, by rounding, in bfloat16: to know, the last step of every sweep is
    differentiated both ways.

    Args:
        every: as for `Checkpointed`.
        place: as for `Checkpointed`.
        memory: as for `Checkpointed`.

    Reference: Kemaev, Calian, Zintgraf, Farquhar, van Hasselt 2025, arXiv:2505.00793 (MixFlow-MG).
    """

    def _pullback(self) -> Pullback:
        return _ForwardOverReverse()


class _ForwardOverReverse:
    """The `Pullback` of forward over reverse, until forward mode fails; from then on that of reverse over reverse."""

    def __init__(self) -> None:
        self.failed = False
        self.compared = get_proxy_mode() is not None  # what is recorded cannot depend on values

    def __call__(self, step: Step, given: Given, inner: Inner, number: int, slopes: Slopes) -> tuple[Slopes, Slopes]:
        if self.failed:
            return reverse(step, given, inner, number, slopes)
        before = draws(inner)
        grads, through = _through_update(step, given, inner, number, slopes)
        before.restore()
        try:
            along = _along(step, given, inner, number, grads)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # the same pass has just run without tangents, so it is forward mode that fails
            _warn(str(error).strip().splitlines()[0])
            self.failed = True
            before.restore()
            return reverse(step, given, inner, number, slopes)
        found, held = added(through, along), len(tensors_of(given))
        if not self.compared and grads:
            before.restore()
            expected = reverse(step, given, inner, number, slopes)
            if _differ(found, through, [*expected[0], *expected[1]]):
                _warn("its derivative differs, as of values computed under torch.no_grad(), or in low precision")
                self.failed = True
                return expected
            self.compared = True
        return found[:held], found[held:]


def _differ(found: Slopes, through: Slopes, expected: Slopes) -> bool:
    """Return whether slopes differ by more than rounding, as a share of what second derivatives add to ``through``."""
    gap = added = size = precision = 0.0
    for slopes in zip(found, through, expected):
        like = next((slope for slope in slopes if slope is not None), None)
        if like is None or not like.numel():
            continue
        ours, first, theirs = (like.new_zeros(()) if slope is None else slope for slope in slopes)
        largest = torch.stack([each.abs().max() for each in (ours - theirs, theirs - first, theirs)]).tolist()
        if not math.isfinite(largest[2]):
            return False  # there is no derivative to differ from
        gap = max(gap, largest[0] if math.isfinite(largest[0]) else math.inf)
        added, size = max(added, largest[1]), max(size, largest[2])
        precision = max(precision, torch.finfo(like.dtype).eps)
    return gap > precision**0.5 * added + 64 * precision * size


def _through_update(step: Step, given: Given, inner: Inner, number: int, slopes: Slopes) -> tuple[Params, Slopes]:
    """Return the slopes of the gradient, and of the leaves of (given, inner) otherwise than through the gradient."""
    below = len(slopes) - len(tensors_of(inner.buffers))
    through_buffers = any(slope is not None for slope in slopes[below:])
    used, buffers = (given, inner.buffers) if through_buffers else tree_map(_still, (given, inner.buffers))
    with torch.enable_grad():
        params = {name: value if value.requires_grad else leaf(value, True) for name, value in inner.params.items()}
        losses, buffers = step.loss(used, Inner(params, inner.rule, buffers), number)
        found = torch.autograd.grad(
            losses.sum(), list(params.values()), retain_graph=through_buffers, materialize_grads=True
        )
        grads = {name: leaf(slope, True) for name, slope in zip(params, found)}
        moved, state = step.displacement(given, inner, number, grads)
        after = Inner(tree.subtract(inner.params, moved), state, buffers)
    slopes = slopes_of(tensors_of(after), slopes, [*grads.values(), *tensors_of((given, inner))])
    named = zip(grads, slopes)
    return {name: slope for name, slope in named if slope is not None}, slopes[len(grads) :]


def _still(value: Any) -> Any:
    return leaf(value, False)


def _along(step: Step, given: Given, inner: Inner, number: int, way: Params) -> Slopes:
    """Return the changes of the loss's gradient by the leaves of (given, inner) as the parameters go along ``way``.

    Since second derivatives commute, these are the slopes of ⟨way, ∂loss/∂params⟩.
    """
    leaves = tensors_of((given, inner))
    nothing: Slopes = [None] * len(leaves)
    if not way or not any(one.requires_grad for one in leaves):
        return nothing
    with _LEVEL:
        _load()
    with torch.enable_grad(), _LEVEL, forward_ad.dual_level():
        # a tensor that is expanded, as those of a first step are, cannot have a tangent
        params = {
            name: forward_ad.make_dual(value.contiguous(), way[name].contiguous()) if name in way else value
            for name, value in inner.params.items()
        }
        losses, _ = step.loss(given, inner._replace(params=params), number)
        if not losses.requires_grad:  # what is asked for, such as a rate, is no part of the loss
            return nothing
        stands_for = {id(value): params[name] for name, value in inner.params.items()}
        points = [stands_for.get(id(one), one) for one in leaves]
        asked = [point for point, one in zip(points, leaves) if one.requires_grad]
        found = iter(torch.autograd.grad(losses.sum(), asked, allow_unused=True))
        return [_tangent(next(found)) if one.requires_grad else None for one in leaves]


def _tangent(dual: Tensor | None) -> Tensor | None:
    found = None if dual is None else forward_ad.unpack_dual(dual).tangent
    return None if found is None else found.detach()


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
