"""What a record need not do: operations whose result is there already, with the same bits.

All of it holds for records that write into nothing.
"""

from typing import Any

import torch
from torch import Tensor, fx

ATEN = torch.ops.aten
_TIMES = {ATEN.mul.Tensor, ATEN.mul.Scalar}
_BY_ONE = {*_TIMES, ATEN.div.Tensor, ATEN.div.Scalar, ATEN.pow.Tensor_Scalar}
#: What they return depends on the shape, type and place of their first argument, not on its values.
_LIKE = {ATEN.ones_like.default, ATEN.zeros_like.default, ATEN.full_like.default}
_LIKE |= {ATEN.new_ones.default, ATEN.new_zeros.default, ATEN.new_full.default}
#: A constant that is kept has at most so many numbers.
_KEPT = 2**14


def shorten(graph: fx.Graph) -> None:
    """Take out of a graph, as `make_fx` wrote it, what gives a tensor that is there already."""
    seen: dict[Any, fx.Node] = {}
    roots: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        _negate_the_number(node)
        if _is_view(node):
            roots[node] = roots.get(node.args[0], node.args[0])
            seen.setdefault((roots[node], *_place(node.args[0])), node.args[0])
            there = seen.setdefault((roots[node], *_place(node)), node)
        else:
            there = node.args[0] if _changes_nothing(node) else node
        if there is not node:
            node.replace_all_uses_with(there)
    graph.eliminate_dead_code()


def fold(record: fx.GraphModule) -> None:
    """Compute once what depends on no input: it becomes a constant of the record."""
    values: dict[fx.Node, Tensor] = {}
    for node in list(record.graph.nodes):
        if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor):
            value = _value(node, values)
            if value is not None and value.untyped_storage().nbytes() <= _KEPT * value.element_size():
                values[node] = value
            _spare_ones(node, values)
    _hold(record, {node: value for node, value in values.items() if not all(user in values for user in node.users)})
    record.graph.eliminate_dead_code()


def _value(node: fx.Node, values: dict[fx.Node, Tensor]) -> Tensor | None:
    """Return what a node gives, if it follows from ``values`` and the shapes of its inputs."""
    call: Any = node.target
    args: Any = node.args
    if _is_like(node) and args[0].meta["val"].numel() <= _KEPT:
        one = args[0].meta["val"]
        like = torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=one.device)
        return call(like, *args[1:], **node.kwargs)
    if node.all_input_nodes and all(given in values for given in node.all_input_nodes) and _is_settled(node):
        return call(*fx.map_arg(args, values.__getitem__), **node.kwargs)
    return None


def _hold(record: fx.GraphModule, values: dict[fx.Node, Tensor]) -> None:
    """Put values in the places of nodes, equal ones once."""
    names: dict[Any, str] = {}
    for node, value in values.items():
        numbers = value.contiguous().flatten().view(torch.uint8).cpu().numpy().tobytes()
        name = names.setdefault((*_place(node), numbers), f"constant_{len(names)}")
        if not hasattr(record, name):
            record.register_buffer(name, value, persistent=False)
        with record.graph.inserting_before(node):
            constant = record.graph.get_attr(name)
        constant.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(constant)


def _negate_the_number(node: fx.Node) -> None:
    """Make of ``(−x) c`` the same ``x (−c)``."""
    args: Any = node.args
    if node.target not in _TIMES or len(args) < 2 or not isinstance(args[1], float):
        return
    negated, number = args
    if negated.target == ATEN.neg.default and _like(negated, negated.args[0]):
        node.args = (negated.args[0], -number)


def _changes_nothing(node: fx.Node) -> bool:
    if node.target == ATEN.clone.default:
        return _like(node, node.args[0])
    if node.target in _BY_ONE and len(node.args) == 2 and not node.kwargs:
        return isinstance(node.args[1], int | float) and node.args[1] == 1 and _like(node, node.args[0])
    return False


def _spare_ones(node: fx.Node, values: dict[fx.Node, Tensor]) -> None:
    """Take a product with a constant of ones for what it is a product of."""
    args: Any = node.args
    if node.target == ATEN.mul.Tensor and node not in values:
        for one, other in (args, args[::-1]):
            if one in values and _like(node, other) and bool((values[one] == 1).all()):
                node.replace_all_uses_with(other)
                return


def _is_like(node: fx.Node) -> bool:
    """Whether the values of the first argument do not matter."""
    return node.target in _LIKE or (node.target == ATEN.pow.Tensor_Scalar and node.args[1] in (0, 0.0))


def _is_view(node: fx.Node) -> bool:
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and node.target.is_view
        and isinstance(node.meta.get("val"), Tensor)
        and isinstance(node.args[0], fx.Node)
        and isinstance(node.args[0].meta.get("val"), Tensor)
    )


def _is_settled(node: fx.Node) -> bool:
    """Whether an operation gives the same whenever it is run."""
    return torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())


def _place(node: fx.Node) -> tuple[Any, ...]:
    """Return all that tells apart two views of the same memory."""
    value = node.meta["val"]
    return value.shape, value.stride(), value.storage_offset(), value.dtype, value.is_conj(), value.is_neg()


def _like(one: fx.Node, other: Any) -> bool:
    """Whether two tensors have the same type and their numbers in the same order in memory."""
    if not isinstance(other, fx.Node):
        return False
    first, second = one.meta.get("val"), other.meta.get("val")
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False
    own = [(value.shape, value.stride(), value.dtype, value.device) for value in (first, second)]
    return own[0] == own[1]
