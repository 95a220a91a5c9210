"""Checking that a module has second derivatives, and right ones, before they are relied on.

PyTorch's own layers are known. Code that we have not seen (a custom layer, a custom autograd function) can raise in
the second derivative or, worse, leave terms out silently; so its Hessian-vector product is compared once with finite
differences of its gradient, in float64, on one task's examples. A module that fails is named with its path.

What a pass detaches (``.detach()``, ``.data``, ``.item()``, ``torch.no_grad()``) is left out on purpose: where
differences do not agree, they are taken again with those values held as they were, which is what the derivative then
means.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from headstart.core.tree import mapped, tensors_of, within
from headstart.errors import DifferentiationError
from headstart.forward.normalisation import OWN
from headstart.forward.skeleton import Skeleton
from headstart.forward.task_map import TROUBLE, first_line
from headstart.types import Params

logger = logging.getLogger("headstart")

#: Finite differences of a smooth float64 gradient agree to about 1e-6; an error worth naming is far larger.
TOLERANCE = 1e-3

#: Lengths of the differences, relative to random directions of unit variance.
STEPS = (1e-6, 1e-7, 1e-8, 1e-9)

#: The same where something is rounded to float32; of numbers that are rounded more than this, none can tell.
WIDE, COARSE = (1e-2, 3e-3, 1e-3), 1e-4

#: What takes a tensor out of the graph.
_DETACHING = (
    Tensor.detach, Tensor.detach_, torch.detach, vars(torch._C.TensorBase)["data"].__get__, Tensor.item,
    Tensor.__float__,
)  # fmt: skip


#: Operations whose second derivatives are known to be right, as autograd names them; a module of nothing else is, too.
_RIGHT = frozenset(
    f"{name}Backward{number}"
    for name in (
        "Abs", "AdaptiveAvgPool2D", "Add", "Addmm", "Alias", "AvgPool2D", "Baddbmm", "Bmm", "Cat", "Clone",
        "Convolution", "Div", "Elu", "Exp", "Expand", "Gelu", "LeakyRelu", "Log", "LogSoftmax", "MaskedFill",
        "MaxPool2DWithIndices", "Mean", "Mm", "Mul", "NativeBatchNorm", "NativeGroupNorm", "NativeLayerNorm", "Neg",
        "Permute", "Pow", "Relu", "ReshapeAlias", "Rsqrt", "Select", "Sigmoid", "Silu", "Slice", "Softmax", "Split",
        "Sqrt", "Squeeze", "Stack", "Sub", "Sum", "T", "Tanh", "Transpose", "UnsafeView", "Unsqueeze", "View", "Where",
    )
    for number in (0, 1)
) | {"AccumulateGrad"}  # fmt: skip


#: What autograd's names do not tell of.
_MEDDLING = (Tensor.register_hook, vars(torch._C.TensorBase)["data"].__set__)


class Call(NamedTuple):
    """One call of a submodule in a forward pass."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Held(TorchFunctionMode):
    """Notes what a pass takes out of the graph; a pass under the mode of another gets what that one noted."""

    def __init__(self, before: "_Held | None" = None) -> None:
        super().__init__()
        self.noted: list[Tensor | float] = []
        self.left = None if before is None else iter(before.noted)
        self.rounding = 0.0
        """That of the least precise numbers."""
        self.hooked = False
        """Whether a hook changes a gradient, or the numbers of a tensor are set behind autograd's back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.rounding = max(self.rounding, torch.finfo(out.dtype).eps if _is_floating(out) else 0.0)
        self.hooked |= func in _MEDDLING
        if func is F.embedding and torch.is_grad_enabled():
            return self._padded(out, *args, **(kwargs or {}))
        if not (func in _DETACHING or not torch.is_grad_enabled()) or not (_is_floating(out) or isinstance(out, float)):
            return out
        value = self._noted(out)
        if value is out:
            return out
        if isinstance(out, Tensor) and any(out is arg for arg in args):  # in place
            return out.data.copy_(torch.as_tensor(value))
        return value.clone() if isinstance(value, Tensor) else value

    def _noted(self, out: Any) -> Any:
        """Note what is taken out of the graph, or return what was noted in its place."""
        if self.left is None:
            self.noted.append(out.detach().clone() if isinstance(out, Tensor) else out)
            return out
        value = next(self.left, None)
        if value is None or getattr(value, "shape", ()) != getattr(out, "shape", ()):
            raise RuntimeError("a pass takes something else out of the graph than the one before it")
        return value

    def _padded(
        self, out: Tensor, ids: Tensor, weight: Tensor, padding_idx: int | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """Hold the vectors of padding still, which take no part in gradients."""
        if padding_idx is None:
            return out
        return torch.where(ids.eq(padding_idx % len(weight)).unsqueeze(-1), self._noted(out.detach()), out)


def certified(
    frame: Skeleton, state: Params, names: Collection[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Raise `DifferentiationError` unless a body with the tensors ``state`` is differentiable twice by those named.

    A module that cannot run in float64, or is random, cannot be checked, and is let through: false where it cannot run.
    """
    state, (args, kwargs) = doubled(state), doubled((args, kwargs))
    body, stored = frame.body, {name for name, _ in frame.body.named_buffers()}

    def forward(params: Params) -> Any:
        own = {name: value.clone() if name in stored else value for name, value in {**state, **params}.items()}
        with frame.afresh():
            return functional_call(body, own, *mapped(Tensor.clone, (args, kwargs)))

    own = _floating({name: state[name] for name in names})
    try:
        if _is_right(forward, own):
            return True
        problem = _problem(forward, own)
        if not problem:
            return True
        path, kind = _culprit(frame, state, args, kwargs)
    except TROUBLE as error:
        logger.debug("second derivatives of %s were not checked: %s", type(body).__name__, error)
        return False
    way = ""
    if not problem.startswith(_NONE):
        way = ", or, if it is meant to be no derivative (as in a gradient reversal), check=False to take it as it is"
    raise DifferentiationError(
        f"{kind} at {path or 'the top'!r} {problem}; rewrite it with operations that PyTorch can differentiate "
        f"twice, or use adjoint=FirstOrder(){way}"
    )


def _culprit(frame: Skeleton, state: Params, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, str]:
    """Return the path and type of the innermost submodule that fails by itself."""
    calls: list[Call] = []

    def hook(path: str) -> Callable[..., None]:
        return lambda m, args, kwargs, out: calls.append(Call(path, m, args, kwargs))

    with torch.no_grad(), frame.afresh(), contextlib.ExitStack() as hooks:
        for path, module in frame.body.named_modules():
            hooks.callback(module.register_forward_hook(hook(path), with_kwargs=True).remove)
        functional_call(frame.body, dict(state), *mapped(Tensor.clone, (args, kwargs)))
    for call in sorted(calls, key=lambda call: -call.path.count(".") - bool(call.path)):
        own = within(state, call.path) if call.path else state
        inputs = {f"input {i}": a for i, a in enumerate(call.args) if _is_floating(a)}
        with frame.afresh():
            if _fails(call, own, inputs):
                return call.path, type(call.module).__name__
    return "", type(frame.body).__name__


def _fails(call: Call, own: Params, inputs: Params) -> bool:
    def forward(p: Params) -> Any:
        args = tuple(p.get(f"input {i}", a) for i, a in enumerate(call.args))
        tensors = {n: t for n, t in p.items() if n not in inputs}
        return functional_call(call.module, {**own, **tensors}, mapped(Tensor.clone, args), call.kwargs)

    try:
        return bool(_problem(forward, {**_floating(own), **inputs}))
    except TROUBLE:
        return False


def _is_right(forward: Callable[[Params], Any], params: Params) -> bool:
    """Return whether a pass is made of operations that are known to be right, which needs no differences to tell."""
    with torch.enable_grad(), _Held() as held:
        given = forward({name: value.detach().requires_grad_() for name, value in params.items()})
    nodes = [out.grad_fn for out in tensors_of(given) if out.grad_fn is not None]
    seen = set(nodes)
    while nodes and (type(nodes[-1]).__name__ in _RIGHT or getattr(nodes[-1], "_forward_cls", None) in OWN):
        new = {node for node, _ in nodes.pop().next_functions if node is not None} - seen
        seen |= new
        nodes += new
    return not (nodes or held.hooked) and held.rounding <= torch.finfo(torch.float64).eps


_NONE = "has no second derivative"


class _SparseError(Exception):
    pass


def _problem(forward: Callable[[Params], Any], params: Params) -> str:
    """Return what is wrong with the second derivative of ``Σ forward(params)²``, or nothing."""
    generator = torch.Generator().manual_seed(0)

    def direction() -> Params:
        return {
            n: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device) for n, p in params.items()
        }

    v, w = direction(), direction()

    def slope(p: Params, held: _Held, create_graph: bool = False) -> Tensor:
        """Return ⟨∇, w⟩."""
        with torch.enable_grad():
            with held:
                given = forward(p)
            outputs = [out for out in tensors_of(given) if _is_floating(out)]
            total = torch.stack([out.square().sum() for out in outputs]).sum()
            grads = torch.autograd.grad(total, list(p.values()), create_graph=create_graph, materialize_grads=True)
            if any(grad.is_sparse for grad in grads):
                raise _SparseError
            return torch.stack([(g * w[n]).sum() for g, n in zip(grads, p)]).sum()

    def at(shift: float, before: _Held | None = None) -> Tensor:
        shifted = {n: (p + shift * v[n]).detach().requires_grad_() for n, p in params.items()}
        return slope(shifted, _Held(before)).detach()

    try:
        if not torch.equal(start := at(0.0), at(0.0)):
            return ""
    except _SparseError:
        return f"{_NONE} of its sparse gradients (sparse=True; use sparse=False)"
    leaves = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
    held = _Held()
    try:
        first = slope(leaves, held, create_graph=True)
        second = [torch.zeros(())] * len(leaves)
        if first.requires_grad:
            second = list(torch.autograd.grad(first, list(leaves.values()), materialize_grads=True))
    except RuntimeError as error:
        if "is not implemented" in str(error) or "once_differentiable" in str(error):
            return f"{_NONE} ({first_line(error)})"
        raise
    got = float(torch.stack([(h * v[n]).sum() for h, n in zip(second, leaves)]).sum())
    expected = _disagreement(got, float(start), lambda shift: float(at(shift)))
    if expected is not None and held.noted:
        try:
            expected = _disagreement(got, float(start), lambda shift: float(at(shift, held)))
        except RuntimeError as error:
            logger.debug("second derivatives were not checked with what is detached held still: %s", error)
    if expected is not None and held.rounding > COARSE:
        logger.debug(
            "second derivatives were not checked: differences cannot tell, of numbers that are rounded so much"
        )
        return ""
    if expected is not None and held.rounding > torch.finfo(torch.float64).eps:  # they have to be longer
        expected = _disagreement(got, float(start), lambda shift: float(at(shift, held)), WIDE, 10 * TOLERANCE)
    if expected is None:
        return ""
    return f"has a wrong second derivative (a directional one is {got:.6g}, should be {expected:.6g})"


def _disagreement(
    got: float,
    start: float,
    at: Callable[[float], float],
    steps: Sequence[float] = STEPS,
    tolerance: float = TOLERANCE,
) -> float | None:
    """Return the derivative of ``at`` at 0, where it is ``start``, if it can be told and is not ``got``.

    A network of many ReLUs has a kink within almost any distance, where differences of the gradient say nothing of the
    second derivative on either side. So shorter steps are tried, and two that agree refuse ``got``.
    """
    least = max(1e-6 * abs(start), 1e-9)

    def close(one: float, other: float) -> bool:
        return abs(one - other) <= tolerance * max(abs(one), abs(other), least)

    last = settled = None
    for step in steps:
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


def doubled(tree: Any) -> Any:
    """Return a tree with its numbers in float64 and without history."""
    return mapped(lambda leaf: leaf.detach().double() if _is_floating(leaf) else leaf, tree)
