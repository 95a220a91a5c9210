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
            seen.setdefault((roots[node], *_place(node.args[0].meta["val"])), node.args[0])
            there = seen.setdefault((roots[node], *_place(node.meta["val"])), node)
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
            if value is not None and _is_kept(value):
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
        args, options = fx.map_arg((args, node.kwargs), values.__getitem__)
        return call(*args, **options)
    return None


def _hold(record: fx.GraphModule, values: dict[fx.Node, Tensor]) -> None:
    """Put values in the places of nodes, equal ones once."""
    names: dict[Any, str] = {}
    for node, value in values.items():
        numbers = _in_memory(value).view(torch.uint8).cpu().numpy().tobytes()
        name = names.setdefault((*_place(value), numbers), f"constant_{len(names)}")
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
    # of integers, −x may be out of their range; with complex ones, zeros would change their signs
    if (
        negated.target == ATEN.neg.default
        and negated.meta["val"].is_floating_point()
        and _like(negated, negated.args[0])
    ):
        node.args = (negated.args[0], -number)


def _changes_nothing(node: fx.Node) -> bool:
    if node.target == ATEN.clone.default:
        return _like(node, node.args[0])
    if node.target in _BY_ONE and len(node.args) == 2 and not node.kwargs and not node.meta["val"].is_complex():
        return isinstance(node.args[1], int | float) and node.args[1] == 1 and _like(node, node.args[0])
    return False


def _spare_ones(node: fx.Node, values: dict[fx.Node, Tensor]) -> None:
    """Take a product with a constant of ones for what it is a product of."""
    args: Any = node.args
    if node.target == ATEN.mul.Tensor and node not in values and not node.meta["val"].is_complex():
        for one, other in (args, args[::-1]):
            if one in values and _like(node, other) and bool((_in_memory(values[one]) == 1).all()):
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


def _is_kept(value: Tensor) -> bool:
    """Whether a constant is kept: a small one, whose numbers are those in its memory."""
    return value.untyped_storage().nbytes() <= _KEPT * value.element_size() and not (value.is_conj() or value.is_neg())


def _is_settled(node: fx.Node) -> bool:
    """Whether an operation gives the same whenever it is run."""
    return torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())


def _place(value: Tensor) -> tuple[Any, ...]:
    """Return all that tells apart two views of the same memory."""
    own = (value.shape, value.stride(), value.storage_offset(), value.dtype, value.device)
    return *own, value.is_conj(), value.is_neg()


def _in_memory(value: Tensor) -> Tensor:
    """Return all numbers in a tensor's memory, each once: an expanded tensor has a few of them very often."""
    return value.new_empty(0).set_(value.untyped_storage())


def _like(one: fx.Node, other: Any) -> bool:
    """Whether two tensors have the same type and their numbers in the same order in memory."""
    if not isinstance(other, fx.Node):
        return False
    first, second = one.meta.get("val"), other.meta.get("val")
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False
    own = [(v.shape, v.stride(), v.dtype, v.device, v.is_conj(), v.is_neg()) for v in (first, second)]
    return own[0] == own[1]
