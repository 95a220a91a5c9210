"""Checking that a module has second derivatives, and right ones, before they are relied on.

PyTorch's own layers are known. Code that we have not seen (a custom layer, a custom autograd function) can raise in
the second derivative or, worse, leave terms out silently; so its Hessian-vector product is compared once with finite
differences of its gradient, in float64, on one task's examples. A module that fails is named with its path.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from headstart.core.tree import mapped, within
from headstart.errors import DifferentiationError
from headstart.types import Params

logger = logging.getLogger("headstart")

#: Finite differences of a smooth float64 gradient agree to about 1e-6; an error worth naming is far larger.
TOLERANCE = 1e-3

#: Lengths of the differences, relative to random directions of unit variance.
STEPS = (1e-6, 1e-7, 1e-8, 1e-9)


class Call(NamedTuple):
    """One call of a submodule in a forward pass."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def is_known(module: nn.Module) -> bool:
    """Whether the module consists of layers that are tested, PyTorch's and ours, with nothing between them."""
    return all(type(m).__module__.startswith(("torch.nn.modules", "headstart.models.")) for m in module.modules())


def certify(body: nn.Module, state: Params, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Raise `DifferentiationError` unless ``body`` with the tensors ``state`` is differentiable twice at its input.

    A module that cannot run in float64, or is random, cannot be checked, and is let through: false where it cannot run.
    """
    state = _double(state)
    args, kwargs = _double(args), _double(kwargs)
    try:
        problem = _problem(lambda p: functional_call(body, {**state, **p}, args, kwargs), _floating(state))
    except (RuntimeError, TypeError, ValueError) as error:
        logger.debug("second derivatives of %s were not checked: %s", type(body).__name__, error)
        return False
    if problem:
        path, kind = _culprit(body, state, args, kwargs)
        raise DifferentiationError(
            f"{kind} at {path or 'the top'!r} {problem}; rewrite it with operations that PyTorch can differentiate "
            f"twice, or use adjoint=FirstOrder()"
        )
    return True


def _culprit(body: nn.Module, state: Params, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, str]:
    """Return the path and type of the innermost submodule that fails by itself."""
    calls: list[Call] = []

    def hook(path: str) -> Callable[..., None]:
        return lambda m, args, kwargs, out: calls.append(Call(path, m, args, kwargs))

    with torch.no_grad(), contextlib.ExitStack() as hooks:
        for path, module in body.named_modules():
            hooks.callback(module.register_forward_hook(hook(path), with_kwargs=True).remove)
        functional_call(body, state, args, kwargs)
    for call in sorted(calls, key=lambda call: -call.path.count(".") - bool(call.path)):
        own = within(state, call.path) if call.path else state
        inputs = {f"input {i}": a for i, a in enumerate(call.args) if _is_floating(a)}
        if _fails(call, own, inputs):
            return call.path, type(call.module).__name__
    return "", type(body).__name__


def _fails(call: Call, own: Params, inputs: Params) -> bool:
    def forward(p: Params) -> Any:
        args = tuple(p.get(f"input {i}", a) for i, a in enumerate(call.args))
        tensors = {n: t for n, t in p.items() if n not in inputs}
        return functional_call(call.module, {**own, **tensors}, args, call.kwargs)

    try:
        return bool(_problem(forward, {**_floating(own), **inputs}))
    except (RuntimeError, TypeError, ValueError):
        return False


def _problem(forward: Callable[[Params], Any], params: Params) -> str:
    """Return what is wrong with the second derivative of ``Σ forward(params)²``, or nothing."""
    generator = torch.Generator().manual_seed(0)

    def direction() -> Params:
        return {
            n: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device) for n, p in params.items()
        }

    v, w = direction(), direction()

    def slope(p: Params, create_graph: bool = False) -> Tensor:
        """Return ⟨∇, w⟩."""
        with torch.enable_grad():
            outputs = [out for out in tree_leaves(forward(p)) if _is_floating(out)]
            total = torch.stack([out.square().sum() for out in outputs]).sum()
            grads = torch.autograd.grad(total, list(p.values()), create_graph=create_graph, materialize_grads=True)
            return torch.stack([(g * w[n]).sum() for g, n in zip(grads, p)]).sum()

    def at(shift: float) -> Tensor:
        return slope({n: (p + shift * v[n]).detach().requires_grad_() for n, p in params.items()}).detach()

    if not torch.equal(start := at(0.0), at(0.0)):
        return ""
    leaves = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
    try:
        first = slope(leaves, create_graph=True)
        second = [torch.zeros(())] * len(leaves)
        if first.requires_grad:
            second = list(torch.autograd.grad(first, list(leaves.values()), materialize_grads=True))
    except RuntimeError as error:
        if "is not implemented" in str(error) or "once_differentiable" in str(error):
            return "has no second derivative"
        raise
    got = float(torch.stack([(h * v[n]).sum() for h, n in zip(second, leaves)]).sum())
    expected = _disagreement(got, float(start), lambda shift: float(at(shift)))
    if expected is None:
        return ""
    return f"has a wrong second derivative (a directional one is {got:.6g}, should be {expected:.6g})"


def _disagreement(got: float, start: float, at: Callable[[float], float]) -> float | None:
    """Return the derivative of ``at`` at 0, where it is ``start``, if it can be told and is not ``got``.

    A network of many ReLUs has a kink within almost any distance, where differences of the gradient say nothing of the
    second derivative on either side. So shorter steps are tried, and two that agree refuse ``got``.
    """
    least = max(1e-6 * abs(start), 1e-9)

    def close(one: float, other: float) -> bool:
        return abs(one - other) <= TOLERANCE * max(abs(one), abs(other), least)

    last = settled = None
    for step in STEPS:
        difference = (at(step) - at(-step)) / (2 * step)
        if close(difference, got):
            return None
        if last is not None and close(difference, last):
            settled = difference
        last = difference
    if settled is None:
        logger.debug("second derivatives were not checked: finite differences do not settle")
    return settled


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _floating(params: Params) -> Params:
    return {name: value for name, value in params.items() if value.is_floating_point()}


def _double(tree: Any) -> Any:
    return mapped(lambda leaf: leaf.detach().double() if _is_floating(leaf) else leaf, tree)
