"""A record with its operations translated, all that can be: the others are called between kernels."""

import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from headstart.kernels.library import loaded
from headstart.kernels.loops import View, can_be, is_view, loops, needed, viewed
from headstart.kernels.source import source

#: Fewer operations together are called as they are.
FEW = 3


class _Scratch(threading.local):
    """Memory of a thread that kernels may write into, one after the other; those that did hold it."""

    block: Callable[[], Tensor | None] = staticmethod(lambda: None)

    def of(self, size: int) -> Tensor:
        """Return memory of so many bytes or more."""
        block = self.block()
        if block is None or len(block) < size:
            block = torch.empty(size, dtype=torch.uint8)
            self.block = weakref.ref(block)
        return block


_SCRATCH = _Scratch()


class Kernel:
    """A function of tensors that runs a function in C; several threads may call it."""

    def __init__(self, given: Sequence[fx.Node], nodes: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> None:
        found = loops(given, nodes, outputs)
        self.text, self.scratch = source(found)
        self.views: dict[fx.Node, View] = found.views
        """Of its outputs, and of what is seen of them."""
        self.run = loaded(self.text)
        self.strides = [one.meta["val"].stride() for one in given]
        self.kinds = [(value.shape, value.stride(), value.dtype) for value in (one.meta["val"] for one in outputs)]
        self.pointers: Any = ctypes.c_void_p * (len(given) + len(outputs) + 1)
        self.held: dict[int, Tensor] = {}
        """Memory by threads: a large block that is asked for anew at each call is slow to fill."""
        self.__name__ = "kernel"

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        given = [*map(_laid_out, tensors, self.strides)]
        found = [torch.empty_strided(shape, strides, dtype=dtype) for shape, strides, dtype in self.kinds]
        scratch = self.held[threading.get_ident()] = _SCRATCH.of(self.scratch)
        self.run(self.pointers(*map(Tensor.data_ptr, (*given, *found, scratch))))
        return found


def _laid_out(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    own = tensor.stride()
    if own == strides or all(one == other or size == 1 for one, other, size in zip(own, strides, tensor.shape)):
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def translated(record: fx.GraphModule) -> fx.GraphModule:
    """Return a record in which kernels compute what they can, each as much as there is before others have to."""
    return _Translation(record).graph()


class _Translation:
    def __init__(self, record: fx.GraphModule) -> None:
        self.record, self.new = record, fx.Graph()
        self.there: dict[fx.Node, fx.Node] = {}
        """The nodes of the new graph, by those of the record."""
        self.kernels: dict[fx.Node, Kernel] = {}
        """Which one gives a tensor."""

    def graph(self) -> fx.GraphModule:
        rounds = _rounds(self.record.graph)
        for node in self.record.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                self.there[node] = self.new.node_copy(node)
        for nodes in rounds:
            inside = [node for node in nodes if can_be(node)]
            if sum(not is_view(node) for node in inside) >= FEW:
                self._kernel(inside)
            for node in nodes:
                if not is_view(node):
                    self._brought(node)
        ends: Any = next(node for node in self.record.graph.nodes if node.op == "output").args[0]
        self.new.output(fx.map_arg(ends, self._brought))
        self.new.eliminate_dead_code()
        return fx.GraphModule(self.record, self.new)

    def _brought(self, node: fx.Node) -> fx.Node:
        """Return the node in the new graph; what is seen of a kernel's output is one view of it."""
        if node in self.there:
            return self.there[node]
        root = _root(node)
        kernel = self.kernels.get(root)
        if kernel is not None and node in kernel.views:
            _, *place = kernel.views[node]
            self.there[node] = self.new.call_function(torch.as_strided, (self.there[root], *place))
            self.there[node].meta = dict(node.meta)
        else:
            self.there[node] = self.new.node_copy(node, self._brought)
        return self.there[node]

    def _kernel(self, nodes: list[fx.Node]) -> None:
        """Add a kernel that computes some nodes."""
        own = {*nodes}
        roots = (_root(one) for node in nodes for one in needed(node))
        given = [*dict.fromkeys(root for root in roots if root not in own)]
        outputs = [node for node in nodes if not is_view(node) and _is_needed(node, own)]
        kernel = Kernel(given, _with_views(nodes), outputs)
        called = self.new.call_function(kernel, tuple(map(self._brought, given)))
        for place, node in enumerate(outputs):
            self.there[node] = self.new.call_function(getitem, (called, place))
            self.there[node].meta = dict(node.meta)
            self.kernels[node] = kernel


def _root(node: fx.Node) -> fx.Node:
    """Return what a node is a view of in the end, or itself."""
    while is_view(node) and can_be(node):
        node = viewed(node)
    return node


def _with_views(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the nodes with all views that they go by, which may be of an earlier round."""
    found: dict[fx.Node, None] = {}

    def add(node: fx.Node) -> None:
        if node not in found:
            for one in needed(node):
                if is_view(one) and can_be(one):
                    add(one)
            found[node] = None

    for node in nodes:
        add(node)
    return [*found]


def _is_needed(node: fx.Node, own: set[fx.Node]) -> bool:
    """Whether what is outside needs what a node gives, or a view of it."""

    def needs(user: fx.Node) -> bool:
        several = getattr(user.target, "is_view", False) and not isinstance(user.meta.get("val"), Tensor)
        return _is_needed(user, own) if several or (user in own and is_view(user)) else user not in own

    return any(map(needs, node.users))


def _rounds(graph: fx.Graph) -> list[list[fx.Node]]:
    """Return the operations in rounds: in each come first those that can be in kernels, and then what needs them."""
    found: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op not in ("placeholder", "get_attr", "output"):
            own = can_be(node)
            behind = (found[one] + (own and not can_be(one)) for one in needed(node) if one in found)
            found[node] = max(behind, default=0)
    rounds: list[list[fx.Node]] = [[] for _ in range(max(found.values(), default=-1) + 1)]
    for node, number in found.items():
        rounds[number].append(node)
    return rounds
