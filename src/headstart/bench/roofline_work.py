"""What a computation consists of: floating-point operations, bytes moved, and operations."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from headstart.engine.workload import computes


class Traffic(NamedTuple):
    """What operations move when each reads its inputs and writes its outputs."""

    bytes: int
    operations: int
    """Without views, which move nothing."""


def traffic(function: Callable[[], object]) -> Traffic:
    """Run ``function``, and count what its operations move, those of backward passes in it included.

    >>> import torch
    >>> x = torch.ones(1000)
    >>> traffic(lambda: x + x)
    Traffic(bytes=8000, operations=1)
    """
    counter = _Traffic()
    with counter:
        function()
    return Traffic(counter.bytes, counter.operations)


class _Traffic(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.operations = 0, 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if computes(func):
            self.operations += 1
            self.bytes += _size((args, kwargs)) + _size(out)
        return out


def _size(tree: Any) -> int:
    """Return the bytes of a tree's tensors, each one once; an expanded one has those that it really has."""
    tensors = {id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
    return sum(min(leaf.nbytes, leaf.untyped_storage().nbytes()) for leaf in tensors.values())


def flops(function: Callable[[], object]) -> int:
    """Run ``function``, and count the floating-point operations of its matrix products and convolutions.

    A multiplication and an addition are two. Second derivatives are counted: PyTorch composes them of the same
    products and convolutions, and of one more, with respect to the input, even where nobody asks for that (as in a
    network's first layer). Those of grouped convolutions are counted too high: run tasks one by one.

    >>> import torch
    >>> x = torch.ones(2, 3)
    >>> flops(lambda: x @ x.T)
    24
    """
    counter = FlopCounterMode(display=False)
    with counter:
        function()
    return int(counter.get_total_flops())


KINDS: dict[str, tuple[str, ...]] = {
    "products and convolutions": ("conv", "mm", "linear", "matmul", "einsum"),
    "normalisation": ("norm",),
    "pooling": ("pool",),
    "moving and filling": ("copy", "cat", "stack", "clone", "contiguous", "fill", "zero", "index", "select_backward",
                           "slice_backward", "gather", "scatter", "full", "ones"),
    "views and bookkeeping": ("view", "reshape", "transpose", "::t$", "expand", "permute", "slice", "select", "squeeze",
                              "as_strided", "empty", "detach", "alias", "unbind", "chunk", "split", "narrow", "flatten",
                              "resize", "result_type", "item", "::to$", "_is", "lift", "set_"),
}  # fmt: skip
"""What the names of PyTorch's operations contain ($: end with); all others work on numbers one by one."""

ELEMENTWISE = "elementwise and sums"
OUTSIDE = "Python and autograd"


def kind(name: str) -> str:
    """Return the kind of work that an operation of the profiler does.

    >>> kind("aten::mkldnn_convolution"), kind("aten::mul"), kind("autograd::engine::evaluate_function: MulBackward0")
    ('products and convolutions', 'elementwise and sums', 'Python and autograd')
    """
    if not name.startswith("aten::"):
        return OUTSIDE
    return next((each for each, words in KINDS.items() if any(word in f"{name}$" for word in words)), ELEMENTWISE)


def shares(function: Callable[[], object]) -> dict[str, float]:
    """Run ``function`` under PyTorch's profiler, and return each kind's share of the time, the largest first."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints when it starts and stops
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        function()
    return grouped((event.key, event.self_cpu_time_total) for event in profiler.key_averages())


def grouped(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return each kind's share of the times of operations, the largest first.

    >>> grouped([("aten::mm", 3.0), ("aten::add", 1.0)])
    {'products and convolutions': 0.75, 'elementwise and sums': 0.25}
    """
    found: dict[str, float] = {}
    for name, time in times:
        found[kind(name)] = found.get(kind(name), 0.0) + time
    total = sum(found.values()) or 1.0
    return {name: time / total for name, time in sorted(found.items(), key=lambda each: -each[1])}
