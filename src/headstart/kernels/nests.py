"""Loops over a shape, in C: those of operations on numbers, of sums, of copies and of lookups."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND, elementwise_dtypes

from headstart.kernels.loops import Copies, Lookup, Pointwise, Shape, View
from headstart.kernels.operations import MEANS, POINTWISE, REDUCTIONS, TYPES

SIMD = "#pragma omp simd"
#: Sums of more numbers are made in double precision.
MANY = 256
#: So many sums beside each other have room among a function's own variables.
LONG = 4096


class Nest:
    """Loops over the dimensions of a shape from the first on, as few as its views can be counted through by."""

    def __init__(
        self,
        shape: Shape,
        views: Sequence[View],
        at: Callable[[View], str],
        first: int,
        reduced: Shape = (),
        merging: bool = True,
    ) -> None:
        self.shape, self.at, self.reduced = shape, at, reduced
        """Where in memory a view begins, by `at`."""
        self.dims = _merged(views, shape, reduced, first, merging)
        """For each loop, the dimensions of the shape that it goes through."""

    def size(self, place: int) -> int:
        """Return how often a loop goes round."""
        return math.prod(self.shape[dim] for dim in self.dims[place])

    def place(self, dim: int) -> str:
        """Return the variable of a dimension that has a loop of its own."""
        return next((f"i{place}" for place, dims in enumerate(self.dims) if dim in dims), "0")

    def index(self, view: View) -> str:
        """Return the number of a view at the place where the loops are."""
        steps = ((view.strides[dims[-1]], place) for place, dims in enumerate(self.dims))
        text = " + ".join(f"{step} * i{place}" for step, place in steps if step)
        return f"({self.at(view)})[{text or 0}]"

    def around(self, places: Sequence[int], lines: list[str], pragma: str = SIMD) -> list[str]:
        """Return the loops of some places around lines."""
        head = []
        for place in places:
            head += [pragma] if pragma and place == places[-1] else []
            head.append(f"for (long i{place} = 0; i{place} < {self.size(place)}; i{place}++)")
        return [*head, "{", *lines, "}"]

    def every(self, lines: list[str], pragma: str = SIMD) -> list[str]:
        """Return all loops around lines."""
        return self.around(range(len(self.dims)), lines, pragma)


def _merged(views: Sequence[View], shape: Shape, reduced: Shape, first: int, merging: bool) -> list[Shape]:
    """Return the dimensions from the first on, those together that all views count through as one.

    The last one is that along which most numbers lie beside each other.
    """
    found: list[Shape] = []
    dims = [dim for dim in range(first, len(shape)) if shape[dim] > 1]
    dims.sort(key=lambda dim: -sum(view.strides[dim] for view in views))
    for dim in dims:
        last = found[-1][-1] if found else None
        together = merging and last is not None and (last in reduced) == (dim in reduced)
        if together and all(view.strides[last] == view.strides[dim] * shape[dim] for view in views):
            found[-1] += (dim,)
        else:
            found.append((dim,))
    return found


def copied(view: View | None, to: View, at: Callable[[View], str], first: int) -> list[str]:
    """Return the loops that copy numbers, or write zeros."""
    nest = Nest(to.shape, [to] if view is None else [view, to], at, first)
    return nest.every([f"{nest.index(to)} = {0 if view is None else nest.index(view)};"])


def copies(loop: Copies, at: Callable[[View], str], first: int) -> list[str]:
    """Return the loops of several copies."""
    return [line for view, to in loop.parts for line in copied(view, to, at, first)]


def lookup(loop: Lookup, out: View, at: Callable[[View], str], first: int) -> list[str]:
    """Return the loops that take numbers from where others say; where there is no such place, NaN or 0.

    PyTorch raises there: what is demanded of the inputs says then what is wrong with them.
    """
    nest = Nest(loop.places.shape, [loop.places, out], at, first, merging=False)
    steps = [(step, dim) for step, dim in zip(loop.table.strides, loop.others) if not (first and dim == 0)]
    where = " + ".join(f"{step} * {'place' if dim < 0 else nest.place(dim)}" for step, dim in steps)
    none = "NAN" if out.buffer.dtype.is_floating_point else "0"
    outside = f"place < 0 || place >= {loop.table.shape[loop.along]}"
    lines = [
        f"int64_t place = {nest.index(loop.places)};",
        f"{nest.index(out)} = {outside} ? {none} : ({at(loop.table)})[{where}];",
    ]
    return nest.every(lines, pragma="")


def pointwise(
    loop: Pointwise, read: dict[fx.Node, View], written: dict[fx.Node, View], at: Callable[[View], str], first: int
) -> list[str]:
    """Return the loops of operations on numbers and of sums: of what is ``read``, and what of it is ``written``."""
    nest = Nest(loop.shape, [*read.values(), *written.values()], at, first, loop.reduced)
    names: dict[fx.Node, str] = {}
    lines = []

    def name(node: fx.Node, value: str) -> None:
        names[node] = f"x{len(names)}"
        lines.append(f"{TYPES[node.meta['val'].dtype]} {names[node]} = {value};")

    for node, view in read.items():
        name(node, nest.index(view))
    for node in loop.nodes:
        if node.target not in REDUCTIONS:
            name(node, _expression(node, names))
            lines += [f"{nest.index(written[node])} = {names[node]};"] if node in written else []
    sums = [_sum(nest, written[node], node, names) for node in loop.nodes if node.target in REDUCTIONS]
    return _reduced(nest, sums, lines) if sums else nest.every(lines)


class _Sum(NamedTuple):
    """What sums up: its type, what it begins with, how it goes on, by what, and where the sum is to be."""

    kind: str
    begin: str
    joined: str
    value: str
    out: str


def _sum(nest: Nest, store: View, node: fx.Node, names: dict[fx.Node, str]) -> _Sum:
    dtype, name = node.meta["val"].dtype, names[node.all_input_nodes[0]]
    value = f"({name} != 0)" if dtype == torch.bool else f"(({TYPES[dtype]}){name})"
    if node.target in MEANS:
        value += f" * {_number(1 / math.prod(nest.shape[dim] for dim in nest.reduced), dtype)}"
    return _Sum(TYPES[dtype], *REDUCTIONS[node.target], value, nest.index(store))


def _reduced(nest: Nest, sums: Sequence[_Sum], lines: list[str]) -> list[str]:
    """Return the loops that sum up, in variables along the last dimensions if these are summed up, else in memory."""
    summed = [place for place, dims in enumerate(nest.dims) if dims[0] in nest.reduced]
    kept = [place for place in range(len(nest.dims)) if place not in summed]
    if not summed:
        return nest.around(kept, [*lines, *(f"{one.out} = {one.value};" for one in sums)])
    plain = all("+" in one.joined for one in sums)
    if plain and math.prod(map(nest.size, summed)) > MANY:  # of many numbers the last ones would be lost
        sums = [one._replace(kind="double" if one.kind == "float" else one.kind) for one in sums]
    trailing = [place for place in summed if place > max(kept, default=-1)]
    if not trailing:
        return _in_rows(nest, sums, lines, summed[0])
    before = [place for place in range(len(nest.dims)) if place not in trailing]
    whole = trailing == summed
    first = [] if whole else nest.around(kept, [f"{one.out} = {one.begin};" for one in sums])
    names = [f"sum{number}" for number in range(len(sums))]
    lines = [*lines, *(f"{name} = {one.joined.format(name, one.value)};" for name, one in zip(names, sums))]
    begins = [f"{one.kind} {name} = {one.begin};" for name, one in zip(names, sums)]
    ends = [f"{one.out} = {name if whole else one.joined.format(one.out, name)};" for name, one in zip(names, sums)]
    inner = nest.around(trailing, lines, f"{SIMD} reduction(+ : {', '.join(names)})" if plain else "")
    return [*first, *nest.around(before, [*begins, *inner, *ends], pragma="")]


def _in_rows(nest: Nest, sums: Sequence[_Sum], lines: list[str], first: int) -> list[str]:
    """Return the loops that sum up numbers beside each other, from that of the first dimension that is summed up on."""
    places = range(first, len(nest.dims))
    kept = [place for place in places if nest.dims[place][0] not in nest.reduced]
    numbers = math.prod(map(nest.size, kept))
    if numbers > LONG:  # in the memory of the result
        rows, begins = [one.out for one in sums], []
    else:
        steps = [math.prod(map(nest.size, kept[number + 1 :])) for number in range(len(kept))]
        index = " + ".join(f"{step} * i{place}" for step, place in zip(steps, kept))
        rows = [f"sum{number}[{index}]" for number in range(len(sums))]
        begins = [f"{one.kind} sum{number}[{numbers}];" for number, one in enumerate(sums)]
    zeros = nest.around(kept, [f"{row} = {one.begin};" for row, one in zip(rows, sums)])
    added = [*lines, *(f"{row} = {one.joined.format(row, one.value)};" for row, one in zip(rows, sums))]
    ends = nest.around(kept, [f"{one.out} = {row};" for row, one in zip(rows, sums)]) if begins else []
    return nest.around(range(first), [*begins, *zeros, *nest.around(places, added), *ends], pragma="")


def _number(value: Any, dtype: torch.dtype) -> str:
    if not dtype.is_floating_point:
        return str(int(value))
    if not math.isfinite(value):
        return "NAN" if math.isnan(value) else "INFINITY" if value > 0 else "(-INFINITY)"
    text = repr(float(value)) + ("f" if dtype == torch.float32 else "")
    return f"({text})" if text.startswith("-") else text


def _expression(node: fx.Node, names: dict[fx.Node, str]) -> str:
    """Return what an operation gives, of arguments that have names."""
    row, kind = POINTWISE[node.target], node.meta["val"].dtype
    if row.within == "arguments":
        values: Any = fx.map_arg(node.args, lambda one: one.meta["val"])
        kind, _ = elementwise_dtypes(*values, type_promotion_kind=ELEMENTWISE_TYPE_PROMOTION_KIND.DEFAULT)

    def written(value: Any) -> str | None:
        if not isinstance(value, fx.Node):
            return None if value is None else _number(value, kind)
        own = value.meta["val"].dtype
        if own == kind or (row.within == "choice" and own == torch.bool):
            return names[value]
        return f"({names[value]} != 0)" if kind == torch.bool else f"({TYPES[kind]}){names[value]}"

    arguments = [written(one) for one in node.args if one is None or isinstance(one, int | float | fx.Node)]
    options = {name: written(one) for name, one in node.kwargs.items() if _is_number(one)}
    return _in_precision(row.expression(*arguments, **options), kind)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | fx.Node) and not isinstance(value, bool)


def _in_precision(text: str, kind: torch.dtype) -> str:
    """Return an expression with the functions of C for a type: ``MATH(exp)`` is ``expf`` or ``exp``."""
    before, *calls = text.split("MATH(")
    suffix = "f" if kind == torch.float32 else ""
    return before + "".join(call.replace(")", suffix, 1) for call in calls)
