"""Calling the operations of a record by the functions of PyTorch that take the least time to call.

An operation as it is recorded is called with its arguments checked in Python and boxed; most have a function or a
method that is bound to C++ directly and costs half as much to call.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
#: A number becomes a tensor of no dimensions on the way; what is computed is the same.
_SAME = {ATEN.mul.Scalar: ATEN.mul.Tensor, ATEN.div.Scalar: ATEN.div.Tensor}
_SAME |= {ATEN.add.Scalar: ATEN.add.Tensor, ATEN.sub.Scalar: ATEN.sub.Tensor}


def direct(graph: fx.Graph) -> None:
    """Replace the operations of a graph, as `make_fx` wrote it, by functions and methods that call the same ones.

    Each is called once, with tensors that hold no values, to see which operation it calls.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = node.target.name().removeprefix("aten::").partition(".")[0]
        function = getattr(torch, name, None)
        wanted = _SAME.get(node.target, node.target)
        if inspect.isbuiltin(function) and _calls(function, node) == [wanted]:
            node.target = function
        elif callable(method := getattr(torch.Tensor, name, None)) and _calls(method, node) == [wanted]:
            with graph.inserting_before(node):
                called = graph.call_method(name, node.args, node.kwargs)
            called.meta = node.meta
            node.replace_all_uses_with(called)
            graph.erase_node(node)


class _Heard(TorchDispatchMode):
    """Notes the operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append(func)
        return func(*args, **kwargs or {})


def _calls(function: Any, node: fx.Node) -> list[Any]:
    """Return the operations that a function calls with what a node takes."""
    try:
        args, kwargs = fx.map_arg((node.args, node.kwargs), _empty)
        with _Heard() as heard:
            function(*args, **kwargs)
    except Exception:  # it takes other arguments
        return []
    return heard.operations


def _empty(node: fx.Node) -> Tensor:
    """Return a tensor like a node's, without values."""
    value = node.meta["val"]
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
