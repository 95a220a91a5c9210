"""The operations of a record as loops over numbers in memory: as few as possible, and what is together in one of them.

An operation on numbers joins the loop over the same shape that is there already, a sum the operations that it alone
needs, and what is added to a product begins it. Views cost nothing: they are other ways to count through memory.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import getitem
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import torch
from torch import Tensor, fx

from headstart.kernels.operations import (
    ATEN,
    COPIES,
    EXTREMES,
    LOOKUPS,
    POINTWISE,
    PRODUCTS,
    REDUCTIONS,
    RESHAPES,
    TYPES,
)

Shape: TypeAlias = tuple[int, ...]

#: A larger matrix to multiply by is left to PyTorch, whose products go through it in blocks.
LARGEST = 2**16


class Buffer:
    """Numbers in memory: those of a tensor, of which others may be views."""

    def __init__(self, numbers: int, dtype: torch.dtype) -> None:
        self.numbers, self.dtype = numbers, dtype


class View(NamedTuple):
    """How a tensor lies in a buffer."""

    buffer: Buffer
    shape: Shape
    strides: Shape
    offset: int

    def ends(self, first: int = 0) -> tuple[int, int]:
        """Return the least and the greatest place of its numbers in the buffer, along the dimensions from the first."""
        ends = [(size - 1) * step for size, step in zip(self.shape[first:], self.strides[first:])]
        return self.offset + sum(min(0, end) for end in ends), self.offset + sum(max(0, end) for end in ends)

    def turned(self, *axes: int) -> "View":
        """Return the view with its dimensions in another order."""
        shape, strides = (tuple(steps[axis] for axis in axes) for steps in (self.shape, self.strides))
        return self._replace(shape=shape, strides=strides)

    def over(self, shape: Shape) -> "View":
        """Return the view that is broadcast to a shape."""
        missing = len(shape) - len(self.shape)
        strides = (0,) * missing + tuple(0 if size == 1 else step for size, step in zip(self.shape, self.strides))
        return self._replace(shape=shape, strides=strides)


@dataclass
class Pointwise:
    """Operations on numbers, at each place of a shape one after the other, and sums of what they give."""

    shape: Shape
    nodes: list[fx.Node]
    reduced: Shape = ()
    """Along which dimensions those of them sum up that do."""

    @property
    def tasks(self) -> int:
        """How many times it does the same, independently of each other; 0: not so."""
        return self.shape[0] if self.shape and 0 not in self.reduced else 0


@dataclass
class Product:
    """Sums of products of two numbers: products of matrices, convolutions, and their derivatives."""

    nodes: list[fx.Node]
    """What it gives, if that is laid out as it has to be."""
    shape: Shape
    """Of all numbers that are summed up, along the last dimensions."""
    factors: tuple[View, View]
    """Over the shape."""
    reduced: Shape
    begins: View | None
    """What it is added to, over the dimensions that stay."""
    out: View
    """Over the dimensions that stay."""

    @property
    def tasks(self) -> int:
        """How many times it does the same, independently of each other; 0: not so."""
        return self.shape[0] if all(view.strides[0] for view in self.factors) else 0


@dataclass
class Copies:
    """What becomes a part of a tensor, one part after the other."""

    node: fx.Node
    parts: list[tuple[View | None, View]]
    """From where (zeros: from nowhere) to where."""

    @property
    def nodes(self) -> list[fx.Node]:
        """What it computes."""
        return [self.node]

    @property
    def tasks(self) -> int:
        """How many times it does the same, independently of each other; 0: not so."""
        first = {to.shape[:1] + to.strides[:1] for _, to in self.parts}
        return next(iter(first))[0] if len(first) == 1 and () not in first else 0


@dataclass
class Lookup:
    """Numbers of a tensor from where another one says."""

    node: fx.Node
    table: View
    places: View
    """Over the shape of what is found."""
    along: int
    """Which dimension of the table the places are in."""
    others: Shape
    """For each dimension of the table, which one of what is found goes through it; -1: the places do."""

    @property
    def nodes(self) -> list[fx.Node]:
        """What it computes."""
        return [self.node]

    @property
    def tasks(self) -> int:
        """How many times it does the same, independently of each other; 0: not so."""
        return self.places.shape[0] if self.others[0] == 0 else 0


Loop: TypeAlias = Pointwise | Product | Copies | Lookup


@dataclass
class Loops:
    """Loops in their order, and where in memory the tensors are that they read and write."""

    given: list[fx.Node]
    outputs: list[fx.Node]
    loops: list[Loop] = field(default_factory=list)
    views: dict[fx.Node, View] = field(default_factory=dict)
    stores: dict[fx.Node, View] = field(default_factory=dict)
    """Over the shape of the loop that computes it, how a tensor is written."""
    places: dict[fx.Node, int] = field(default_factory=dict)
    """In which loop a tensor is computed."""


def can_be(node: fx.Node) -> bool:
    """Whether what a node gives may be computed in loops."""
    value: Any = node.meta.get("val")
    if node.op != "call_function" or not _is_known(value):
        return False
    if is_view(node):
        return _is_known(viewed(node).meta.get("val"))
    if not all(_is_known(one.meta.get("val")) for one in node.all_input_nodes):
        return False
    if node.target in PRODUCTS:
        return _is_small_product(node)
    if node.target in EXTREMES and not value.dtype.is_floating_point:
        return False
    if node.target == torch.ops.prims.sum.default and not node.args[1]:
        return False  # it sums up nothing
    if node.target in REDUCTIONS or node.target in LOOKUPS:
        return value.is_contiguous() and all(one.meta["val"].ndim for one in node.all_input_nodes)
    if node.target == ATEN.constant_pad_nd.default:
        padding: Any = node.args[1]
        return _is_dense(value) and min(padding) >= 0 and node.args[2:] in ((), (0,), (0.0,))
    if node.target in COPIES:
        return _is_dense(value)
    row = POINTWISE.get(node.target)
    return row is not None and _is_dense(value) and (row.within != "real" or value.dtype.is_floating_point)


def is_view(node: fx.Node) -> bool:
    """Whether a node is another way to count through the memory of its first argument."""
    source: Any = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(node.meta.get("val"), Tensor):
        return False
    if node.target is getitem:
        return bool(getattr(source.target, "is_view", False)) and isinstance(source.args[0], fx.Node)
    return bool(getattr(node.target, "is_view", False)) or node.target in RESHAPES


def viewed(node: fx.Node) -> fx.Node:
    """Return what a view is a view of."""
    one: Any = node.args[0]
    return one.args[0] if node.target is getitem else one


def needed(node: fx.Node) -> list[fx.Node]:
    """Return what a node is computed of: of parts of a tensor, that tensor."""
    return [viewed(node)] if is_view(node) else node.all_input_nodes


def _is_known(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dtype in TYPES
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and value.numel() > 0
        and not (value.is_neg() or value.is_conj())
    )


def _is_dense(value: Tensor) -> bool:
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride()))
    return last == value.numel() - 1 and all(step or size == 1 for size, step in zip(value.shape, value.stride()))


def _is_small_product(node: fx.Node) -> bool:
    if node.target == ATEN.convolution.default:
        return _is_small_convolution(node)
    *_, first, second = node.args
    if node.kwargs or _value(node).dtype not in (torch.float32, torch.float64):
        return False
    return _value(second).shape[-2:].numel() <= LARGEST and _value(first).shape[-2:].numel() <= LARGEST


def _is_small_convolution(node: fx.Node) -> bool:
    x, weight, _, stride, padding, dilation, turned, more, groups = node.args
    out, kernel = _value(node), _value(weight).shape[2:]
    around = [size - 1 if turned else 0 for size in kernel]
    if (stride, padding, dilation, more, groups) != ([1, 1], around, [1, 1], [0, 0], 1):
        return False
    small = min(_value(weight).numel(), out.numel()) <= LARGEST
    return small and out.dtype in (torch.float32, torch.float64) and _is_dense(out)


def _value(node: Any) -> Any:
    return node.meta["val"]


def loops(given: Sequence[fx.Node], nodes: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> Loops:
    """Return the loops that compute some nodes of a record, all of which `can_be`, of those that are given."""
    found = Loops([*given], [*outputs])
    found.views |= {node: _alone(node) for node in given}
    inside = {*nodes}
    alone = {node: user for node in nodes if (user := _only_user(node)) in inside and node not in outputs}
    summed = _summed_up(nodes, alone)
    begun = {end: one for one, end in _begun(nodes, alone).items() if end not in summed}
    before: dict[fx.Node, list[fx.Node]] = {}
    for node, end in summed.items():
        before.setdefault(end, []).insert(0, node)
    waiting = {*summed, *begun.values()}
    for node in nodes:
        if is_view(node):
            _see(found, node)
        elif node in waiting:
            pass  # it comes with the one that it belongs to
        elif node in begun:
            _place_product(found, node, begun[node])
        elif node.target in REDUCTIONS:
            _place_reduction(found, node, before.get(node, []))
        elif node.target in POINTWISE:
            _place_pointwise(found, node)
        elif node.target in COPIES:
            _place_copies(found, node)
        elif node.target in LOOKUPS:
            _place(found, _lookup(found, node), node, _alone(node))
        else:
            _place_product(found, node, node)
    return found


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _alone(node: fx.Node) -> View:
    value = _value(node)
    numbers = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride())) + 1
    return View(Buffer(numbers, value.dtype), tuple(value.shape), tuple(value.stride()), 0)


def _see(found: Loops, node: fx.Node) -> None:
    """Add a view."""
    of, value = viewed(node), _value(node)
    there, shape = found.views[of], tuple(value.shape)
    if node.target in RESHAPES:  # whose layout need not be that of what was recorded
        strides = torch.empty_strided(there.shape, there.strides, device="meta").view(shape).stride()
        found.views[node] = View(there.buffer, shape, tuple(strides), there.offset)
    else:
        offset = there.offset + value.storage_offset() - _value(of).storage_offset()
        found.views[node] = View(there.buffer, shape, tuple(value.stride()), offset)
    found.places[node] = found.places.get(of, -1)


def _summed_up(nodes: Sequence[fx.Node], alone: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    """Return the operations on numbers that one sum alone needs, the last ones first, with that sum."""
    found: dict[fx.Node, fx.Node] = {}
    for node in reversed(nodes):
        if node in alone and node.target in POINTWISE:
            user = alone[node]
            end = user if user.target in REDUCTIONS else found.get(user)
            if end is not None and _value(node).shape == _value(end.args[0]).shape:
                found[node] = end
    return found


def _begun(nodes: Sequence[fx.Node], alone: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    """Return the products to which one tensor is added and nothing else is done, with that sum."""
    found: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node in alone and PRODUCTS.get(node.target, 0) is None:
            user = alone[node]
            added = user.target == ATEN.add.Tensor and not user.kwargs and len(user.all_input_nodes) == 2
            alike = all(getattr(_value(user), name) == getattr(_value(node), name) for name in ("shape", "dtype"))
            if added and alike and user not in found.values() and _value(user).is_contiguous():
                found[node] = user
    return found


def _place(found: Loops, loop: Loop, node: fx.Node, view: View) -> None:
    """Add a loop of its own, which gives what a node does, and how it is read and written."""
    found.views[node] = view
    found.stores.setdefault(node, view)
    found.places[node] = len(found.loops)
    found.loops.append(loop)


def _place_pointwise(found: Loops, node: fx.Node) -> None:
    shape, earliest = tuple(_value(node).shape), 0
    for one in node.all_input_nodes:
        place = found.places.get(one, -1)
        loop = found.loops[place] if place >= 0 else None
        # what it needs may be computed in the same loop, at the same place
        joins = _is_over(loop, shape) and one in loop.nodes and tuple(_value(one).shape) == shape
        earliest = max(earliest, place if joins else place + 1)
    found.views[node] = found.stores[node] = _alone(node)
    _join(found, [node], shape, earliest)


def _place_reduction(found: Loops, node: fx.Node, before: list[fx.Node]) -> None:
    """Add a sum, and before it the operations that it alone needs."""
    shape = tuple(_value(node.args[0]).shape)
    listed: Any = node.args[1] if len(node.args) > 1 else None
    dims = [listed] if isinstance(listed, int) else listed or range(len(shape))
    reduced = tuple(sorted(dim % len(shape) for dim in dims)) if shape else ()
    given = [one for each in (*before, node) for one in each.all_input_nodes if one not in before]
    found.views[node] = _alone(node)
    kept = torch.empty([1 if dim in reduced else size for dim, size in enumerate(shape)], device="meta")
    strides = tuple(0 if dim in reduced else step for dim, step in enumerate(kept.stride()))
    found.stores[node] = found.views[node]._replace(shape=shape, strides=strides)
    earliest = max(found.places.get(one, -1) for one in given) + 1
    _join(found, [*before, node], shape, earliest, reduced)


def _is_over(loop: Loop | None, shape: Shape, reduced: Shape = ()) -> TypeGuard[Pointwise]:
    return isinstance(loop, Pointwise) and loop.reduced == reduced and loop.shape == shape


def _join(found: Loops, nodes: list[fx.Node], shape: Shape, earliest: int, reduced: Shape = ()) -> None:
    """Add operations to the first loop over that shape from a place on, or to a new one."""
    for place in range(earliest, len(found.loops)):
        loop = found.loops[place]
        if _is_over(loop, shape, reduced):
            loop.nodes.extend(nodes)
            break
    else:
        place = len(found.loops)
        found.loops.append(Pointwise(shape, nodes, reduced))
    found.places |= dict.fromkeys(nodes, place)


def _place_copies(found: Loops, node: fx.Node) -> None:
    out = _alone(node)
    args: Any = node.args
    if node.target in (ATEN.cat.default, ATEN.stack.default):
        dim = (args[1] if len(args) > 1 else 0) % len(out.shape)
        views = [found.views[one] for one in args[0]]
        parts = _beside(views if node.target == ATEN.cat.default else [_with(view, dim) for view in views], out, dim)
    else:
        parts = [(None, out), (found.views[args[0]], _within(node, out, found.views[args[0]].shape))]
    _place(found, Copies(node, [*parts]), node, out)


def _with(view: View, dim: int) -> View:
    """Return a view with a dimension of size 1 more."""
    (shape, strides) = ((*steps[:dim], more, *steps[dim:]) for steps, more in ((view.shape, 1), (view.strides, 0)))
    return view._replace(shape=shape, strides=strides)


def _beside(views: Sequence[View], out: View, dim: int) -> Iterator[tuple[View, View]]:
    """Yield views with their places beside each other."""
    start = 0
    for view in views:
        yield view, out._replace(shape=view.shape, offset=start * out.strides[dim])
        start += view.shape[dim]


def _within(node: fx.Node, out: View, shape: Shape) -> View:
    """Return the part of a tensor that is not zero, which has a shape."""
    args: Any = node.args
    if node.target == ATEN.constant_pad_nd.default:
        before = args[1][-2::-2]
        steps = out.strides[len(out.shape) - len(before) :]
        return out._replace(shape=shape, offset=sum(step * size for step, size in zip(steps, before)))
    _, sizes, dim, start, *rest = args
    dim %= len(sizes)
    strides = [*out.strides]
    if node.target == ATEN.select_backward.default:
        first = start % sizes[dim]
        step = strides.pop(dim)
    else:
        first, step = min(max(start + sizes[dim] if start < 0 else start, 0), sizes[dim]), strides[dim]
        strides[dim] *= rest[1]
    return View(out.buffer, shape, tuple(strides), first * step)


def _lookup(found: Loops, node: fx.Node) -> Lookup:
    args: Any = node.args
    shape = tuple(_value(node).shape)
    if node.target == ATEN.embedding.default:
        table, where, along = found.views[args[0]], found.views[args[1]], 0
        places = where._replace(shape=shape, strides=(*where.strides, 0))
        return Lookup(node, table, places, 0, (-1, len(shape) - 1))
    table, where = found.views[args[0]], found.views[args[2]]
    along = args[1] % len(shape)
    if node.target == ATEN.index_select.default:
        strides = tuple(where.strides[0] if dim == along else 0 for dim in range(len(shape)))
        where = where._replace(shape=shape, strides=strides)
    others = tuple(-1 if dim == along else dim for dim in range(len(shape)))
    return Lookup(node, table, where.over(shape), along, others)


def _place_product(found: Loops, node: fx.Node, product: fx.Node) -> None:
    """Add a product, and what it is added to where ``node`` is that sum."""
    views = [found.views[one] for one in product.args if isinstance(one, fx.Node)]
    out, begins, place = _alone(node), None, PRODUCTS[product.target]
    if product.target == ATEN.convolution.default:
        turned: Any = product.args[6]
        shape, factors, count = _convolution(views[0], views[1], out.shape, turned)
        end = out.turned(0, 2, 3, 1)
    else:
        shape, factors, count = _matrices(views[-2], views[-1])
        end = out
    if node is not product:
        begins = next(found.views[one] for one in node.all_input_nodes if one is not product).over(out.shape)
        begins = begins if end is out else begins.turned(0, 2, 3, 1)
    elif place is not None and isinstance(product.args[place], fx.Node):
        begins = found.views[product.args[place]].over(end.shape)  # pyrefly: ignore
    reduced = tuple(range(len(shape) - count, len(shape)))
    if end.strides[-1] == 1 or end.shape[-1] == 1:
        _place(found, Product([node], shape, factors, reduced, begins, end), node, out)
    else:  # with the channels last, and then moved to where they have to be
        strides = torch.empty(end.shape, device="meta").stride()
        between = View(Buffer(math.prod(end.shape), out.buffer.dtype), end.shape, tuple(strides), 0)
        found.loops.append(Product([], shape, factors, reduced, begins, between))
        _place(found, Copies(node, [(between, end)]), node, out)


def _matrices(first: View, second: View) -> tuple[Shape, tuple[View, View], int]:
    """Return the shape of a product of matrices, its factors over that, and how many dimensions are summed up."""
    (*tasks, rows, inner), columns = first.shape, second.shape[-1]
    shape = (*tasks, rows, columns, inner)
    (*own, i, k), (*others, down, j) = first.strides, second.strides
    one = first._replace(shape=shape, strides=(*own, i, 0, k))
    return shape, (one, second._replace(shape=shape, strides=(*others, 0, j, down))), 1


def _convolution(x: View, weight: View, out: Shape, turned: bool) -> tuple[Shape, tuple[View, View], int]:
    """Return the same of a convolution, or of its derivative by its input, which goes through a kernel backwards.

    Its dimensions are those of the result, the channels last, those of the kernel, and the channels of the input.
    """
    (n, c, h, w), (o, i, down, right) = x.strides, weight.strides
    offset, (height, width) = weight.offset, weight.shape[2:]
    if turned:
        o, i, offset = i, o, offset + (height - 1) * down + (width - 1) * right
        down, right = -down, -right
    shape = (out[0], out[2], out[3], out[1], height, width, x.shape[1])
    one = x._replace(shape=shape, strides=(n, h, w, 0, h, w, c))
    return shape, (one, View(weight.buffer, shape, (0, 0, 0, o, down, right, i), offset)), 3
