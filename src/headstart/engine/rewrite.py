"""A record rewritten to take less time, with the same bits: fewer operations, each called in the least time.

In records that write into nothing, operations whose result is there already go, and what depends on no input is
computed once. Those that are left are called by functions or methods that are bound to C++ directly, which cost half
as much as an operation as it is recorded, with its arguments checked in Python and boxed.
"""

import inspect
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from headstart.core.counting import computes

ATEN = torch.ops.aten
_BY_ONE = {ATEN.mul.Tensor, ATEN.mul.Scalar, ATEN.div.Tensor, ATEN.div.Scalar, ATEN.pow.Tensor_Scalar}
#: What they return depends on the shape, type and place of their first argument, not on its values.
_LIKE = {ATEN.ones_like.default, ATEN.zeros_like.default, ATEN.full_like.default}
_LIKE |= {ATEN.new_ones.default, ATEN.new_zeros.default, ATEN.new_full.default}
#: What they return depends on their arguments alone, which are no tensors.
_MADE = {ATEN.arange.default, ATEN.arange.start, ATEN.arange.start_step, ATEN.scalar_tensor.default}
_MADE |= {ATEN.zeros.default, ATEN.ones.default, ATEN.full.default}
#: A constant that is kept has at most so many numbers.
_KEPT = 2**14
#: A number becomes a tensor of no dimensions on the way; what is computed is the same.
_SAME = {ATEN.mul.Scalar: ATEN.mul.Tensor, ATEN.div.Scalar: ATEN.div.Tensor}
_SAME |= {ATEN.add.Scalar: ATEN.add.Tensor, ATEN.sub.Scalar: ATEN.sub.Tensor}
_SAME |= {ATEN.reshape.default: ATEN.view.default}


def writes(record: fx.GraphModule) -> bool:
    """Whether any operation of a record writes into a tensor."""
    schemas = (getattr(node.target, "_schema", None) for node in record.graph.nodes)
    return any(schema is not None and schema.is_mutable for schema in schemas)


def settle(graph: fx.Graph) -> None:
    """Let operations give what they would write into a tensor that was made for it: one that nothing else reads."""
    for node in graph.nodes:
        written = node.args[0] if node.op == "call_function" and node.args else None
        if not isinstance(written, fx.Node) or not _is_made(written) or len(written.users) > 1:
            continue
        name, _, kind = getattr(node.target, "_name", "").removeprefix("aten::").partition(".")
        if name.endswith("_") and hasattr(ATEN, name[:-1]):
            giving = getattr(getattr(ATEN, name[:-1]), kind or "default", None)
            if giving is not None and _schema(giving) == _schema(node.target) and _gives_the_same(giving, node):
                node.target = giving
    for node in [node for node in graph.nodes if node.target == ATEN.copy_.default]:
        _settle_copy(graph, node)


def _settle_copy(graph: fx.Graph, node: fx.Node) -> None:
    """Let what is copied over all of a tensor that was made for it be that tensor, as derivatives of views do it."""
    view: Any = node.args[0]
    made: Any = view.args[0] if view.target == ATEN.as_strided.default else None
    if made is None or node.users or len(view.users) > 1 or not _is_made(made) or len(node.args) > 2:
        return
    there, over, copied = made.meta["val"], view.meta["val"], node.args[1].meta["val"]  # pyrefly: ignore
    whole = there.is_contiguous() and over.is_contiguous() and there.numel() == over.numel()
    order = {one: place for place, one in enumerate(graph.nodes)}
    first = all(user is view or order[user] > order[node] for user in made.users)
    if not (whole and first) or (copied.dtype, copied.shape) != (over.dtype, over.shape):
        return
    with graph.inserting_before(node):
        own = graph.call_function(ATEN.clone.default, (node.args[1],), {"memory_format": torch.contiguous_format})
        flat = graph.call_function(ATEN.view.default, (own, list(there.shape)))
    own.meta, flat.meta = dict(view.meta), dict(made.meta)
    made.replace_all_uses_with(flat, delete_user_cb=lambda user: user is not view)
    graph.erase_node(node)
    graph.erase_node(view)


def _is_made(node: fx.Node) -> bool:
    """Whether an operation gives a tensor of its own memory."""
    return isinstance(node.target, torch._ops.OpOverload) and computes(node.target)


def _gives_the_same(operation: Any, node: fx.Node) -> bool:
    """Whether what an operation gives has the type and the layout of what a node writes into."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), _empty)
    own, there = operation(*args, **kwargs), node.meta["val"]
    return (own.dtype, own.shape, own.stride()) == (there.dtype, there.shape, there.stride())


def _schema(operation: Any) -> list[Any]:
    return [(one.name, str(one.type), one.kwarg_only) for one in operation._schema.arguments]


def shorten(graph: fx.Graph) -> None:
    """Take out of a graph, as `make_fx` wrote it, what gives a tensor that is there already."""
    seen: dict[Any, fx.Node] = {}
    roots: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
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
    _hold(record, {node: value for node, value in values.items() if not all(user in values for user in node.users)})
    record.graph.eliminate_dead_code()


def numbers_apart(graph: fx.Graph) -> None:
    """Let factors that are numbers be tensors, which are not made anew at each call; what is computed is the same."""
    made: dict[Any, fx.Node] = {}
    first = next(iter(graph.nodes))
    for node in [node for node in graph.nodes if node.target in (ATEN.mul.Tensor, ATEN.mul.Scalar)]:
        factor, like = node.args[1], node.args[0].meta.get("val")
        if not isinstance(factor, int | float) or getattr(like, "dtype", None) not in (torch.float32, torch.float64):
            continue
        key = factor, like.dtype, like.device
        if key not in made:
            options = {"dtype": like.dtype, "device": like.device}
            with graph.inserting_before(first):
                made[key] = graph.call_function(ATEN.scalar_tensor.default, (factor,), options)
            made[key].meta["val"] = like.new_empty(())
        node.target, node.args = ATEN.mul.Tensor, (node.args[0], made[key])


def _value(node: fx.Node, values: dict[fx.Node, Tensor]) -> Tensor | None:
    """Return what a node gives, if it follows from ``values`` and the shapes of its inputs."""
    call: Any = node.target
    args: Any = node.args
    # of which the values of the first argument do not matter
    like_it = call in _LIKE or (call == ATEN.pow.Tensor_Scalar and args[1] in (0, 0.0))
    if like_it and args[0].meta["val"].numel() <= _KEPT:
        one = args[0].meta["val"]
        like = torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=one.device)
        return call(like, *args[1:], **node.kwargs)
    if call in _MADE and node.meta["val"].numel() <= _KEPT:
        return call(*args, **node.kwargs)
    settled = torch.Tag.nondeterministic_seeded not in getattr(call, "tags", ())
    if settled and node.all_input_nodes and all(given in values for given in node.all_input_nodes):
        args, options = fx.map_arg((args, node.kwargs), values.__getitem__)
        return call(*args, **options)
    return None


def _hold(record: fx.GraphModule, values: dict[fx.Node, Tensor]) -> None:
    names: dict[Any, str] = {}
    free = (f"constant_{number}" for number in count() if not hasattr(record, f"constant_{number}"))
    for node, value in values.items():
        # all of its memory, once: an expanded tensor has a few numbers very often
        numbers = value.new_empty(0).set_(value.untyped_storage()).view(torch.uint8).cpu().numpy().tobytes()
        key = *_place(value), numbers
        if key not in names:
            names[key] = next(free)
            record.register_buffer(names[key], value, persistent=False)
        with record.graph.inserting_before(node):
            constant = record.graph.get_attr(names[key])
        constant.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(constant)


def _changes_nothing(node: fx.Node) -> bool:
    if node.target == ATEN.clone.default:
        return _like(node, node.args[0])
    if node.target in _BY_ONE and len(node.args) == 2 and not node.kwargs and not node.meta["val"].is_complex():
        return isinstance(node.args[1], int | float) and node.args[1] == 1 and _like(node, node.args[0])
    return False


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


def _place(value: Tensor) -> tuple[Any, ...]:
    """Return all that tells apart two views of the same memory."""
    own = (value.shape, value.stride(), value.storage_offset(), value.dtype, value.device)
    return *own, value.is_conj(), value.is_neg()


def _like(one: fx.Node, other: Any) -> bool:
    """Whether two tensors have the same type and their numbers in the same order in memory."""
    if not isinstance(other, fx.Node):
        return False
    first, second = one.meta.get("val"), other.meta.get("val")
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False
    own = [(v.shape, v.stride(), v.dtype, v.device, v.is_conj(), v.is_neg()) for v in (first, second)]
    return own[0] == own[1]


def call_directly(graph: fx.Graph) -> None:
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
    try:
        args, kwargs = fx.map_arg((node.args, node.kwargs), _empty)
        with _Heard() as heard:
            function(*args, **kwargs)
    except Exception:  # it takes other arguments
        return []
    return heard.operations


def _empty(node: fx.Node) -> Tensor:
    value = node.meta["val"]
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
