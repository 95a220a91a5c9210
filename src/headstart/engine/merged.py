"""Products with a matrix that all tasks share, and products that are summed over tasks: one in place of many.

In a first inner step all tasks have the same weights, and what comes back to those is a sum over tasks. A record says
so by a tensor that is expanded along the tasks, and by a sum over them. What is computed is the same to rounding: the
sums are taken in another order.
"""

from typing import Any

import torch
from torch import fx

ATEN = torch.ops.aten


def merge(record: fx.GraphModule) -> None:
    """Rewrite a record, as `make_fx` wrote it, that writes into nothing."""
    graph = record.graph
    for node in list(graph.nodes):
        if node.target == ATEN.sum.dim_IntList and node.args[1] == [0] and not node.kwargs:
            _sum(graph, node)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.target in (ATEN.bmm.default, ATEN.baddbmm.default) and not node.kwargs:
            _share(graph, node)
    graph.eliminate_dead_code()
    record.recompile()


def _share(graph: fx.Graph, node: fx.Node) -> None:
    """Make of products with one matrix, of all tasks, a product of all their rows."""
    *start, left, right = node.args
    if not _is_shared(right) or not _in_rows(left):
        return
    shape = tasks, rows, _ = _shape(node)
    with graph.inserting_before(node):
        flat = _call(graph, ATEN.view.default, left, [tasks * rows, _shape(left)[2]])
        product = _call(graph, ATEN.mm.default, flat, _call(graph, ATEN.select.int, right, 0, 0))
        whole = _call(graph, ATEN.view.default, product, list(shape))
        if start:
            whole = _call(graph, ATEN.add.Tensor, whole, start[0])
    node.replace_all_uses_with(whole)


def _sum(graph: fx.Graph, node: fx.Node) -> None:
    """Make of a sum over tasks of products one product."""
    summed: Any = node.args[0]
    if len(_shape(summed)) != 3 or not summed.meta["val"].is_floating_point():
        return
    terms = _terms(summed)
    if not any(_is_product(part) for part, _ in terms):
        return
    with graph.inserting_before(node):
        total: Any = None
        for part, turned in terms:
            own = _product(graph, part) if _is_product(part) else _call(graph, ATEN.sum.dim_IntList, part, [0])
            own = _call(graph, ATEN.t.default, own) if turned else own
            total = own if total is None else _call(graph, ATEN.add.Tensor, total, own)
        if len(node.args) > 2 and node.args[2]:
            total = _call(graph, ATEN.unsqueeze.default, total, 0)
    node.replace_all_uses_with(total)


def _terms(node: fx.Node, turned: bool = False) -> list[tuple[fx.Node, bool]]:
    """Return what a node is a sum of, and which of it is turned, as far as nothing else needs the sums."""
    if len(node.users) == 1:
        args: Any = node.args
        if node.target == ATEN.transpose.int and {axis % 3 for axis in args[1:]} == {1, 2}:
            return _terms(args[0], not turned)
        if node.target == ATEN.add.Tensor and not node.kwargs and all(_is_like(node, part) for part in args):
            return [term for part in args for term in _terms(part, turned)]
    return [(node, turned)]


def _product(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Return Σᵢ AᵢBᵢ: the columns of all A beside each other, by the rows of all B."""
    left, right = node.args
    tasks, inner, width = _shape(right)
    turned = _call(graph, ATEN.transpose.int, left, 1, 2)
    columns = _call(graph, ATEN.reshape.default, turned, [tasks * inner, _shape(left)[1]])
    rows = _call(graph, ATEN.reshape.default, right, [tasks * inner, width])
    return _call(graph, ATEN.mm.default, _call(graph, ATEN.t.default, columns), rows)


def _is_product(node: fx.Node) -> bool:
    """Whether a node is a product of two matrices of each task that nothing else needs."""
    return node.target == ATEN.bmm.default and len(node.users) == 1


def _is_shared(node: Any) -> bool:
    value = node.meta["val"]
    return value.stride(0) == 0 and value.shape[0] > 1


def _in_rows(node: Any) -> bool:
    """Whether the rows of all tasks follow each other in memory."""
    value = node.meta["val"]
    return value.stride(0) == value.shape[1] * value.stride(1)


def _is_like(node: fx.Node, part: Any) -> bool:
    return isinstance(part, fx.Node) and _shape(part) == _shape(node)


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = target(*fx.map_arg(args, lambda one: one.meta["val"]))
    return node
