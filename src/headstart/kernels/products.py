"""How to sum up products of two numbers: which dimensions are rows and columns of matrices, and which are around."""

import math
from typing import NamedTuple, TypeAlias

from headstart.kernels.loops import Product

#: So many numbers has a vector at most, of 64 bytes.
WIDEST = {"float": 16, "double": 8}
#: A second factor of more numbers is gone through in pieces: it would not stay in the processor's memory for all rows.
LARGE = 2**16
#: For so few columns, the sums along rows of both factors take less time than columns beside each other.
FEW = 4


class _Dim(NamedTuple):
    """A dimension: its size, and its steps through both factors and the result."""

    size: int
    a: int
    b: int
    c: int


_Dims: TypeAlias = list[_Dim]
_ONE = _Dim(1, 0, 0, 0)


class Written(NamedTuple):
    """The body of a function in C."""

    text: str
    scratch: int
    """How many numbers of memory it needs."""
    adds: bool
    """Whether it adds to what is there."""


def product(loop: Product, kind: str, first: int) -> Written:
    """Return what multiplies ``a`` and ``b`` into ``c``; the dimensions before the first are left to what is around."""
    (one, other), c = loop.factors, (*loop.out.strides, *(0 for _ in loop.reduced))
    every = [*map(_Dim, loop.shape, one.strides, other.strides, c)]
    kept = [dim for dim in every[first : len(every) - len(loop.reduced)] if dim.size > 1]
    summed = [dim for dim in every[len(every) - len(loop.reduced) :] if dim.size > 1]
    columns = next((dim for dim in kept if dim.c == 1 and not (dim.a and dim.b)), _ONE)
    a, b = "a", "b"
    if columns.a:  # the other way round: the factor whose columns they are is the second one
        a, b = "b", "a"
        kept, summed = ([dim._replace(a=dim.b, b=dim.a) for dim in dims] for dims in (kept, summed))
        columns = columns._replace(a=columns.b, b=columns.a)
    if columns is not _ONE:
        kept.remove(columns)
    rows = max((dim for dim in kept if not dim.b), key=lambda dim: dim.size, default=_ONE)
    if rows is not _ONE:
        kept.remove(rows)
    return _Writing(kind, rows, columns, _together(summed), loop.begins is not None).written(a, b, kept)


def _together(summed: _Dims) -> _Dims:
    """Return three dimensions that are summed up, the one that goes through a in the smallest steps last."""
    found: _Dims = []
    for dim in sorted(summed, key=lambda dim: -abs(dim.a)):
        last = found[-1] if found else _ONE
        if found and last.a == dim.a * dim.size and last.b == dim.b * dim.size:
            found[-1] = dim._replace(size=last.size * dim.size)
        else:
            found.append(dim)
    return [_ONE] * (3 - len(found)) + found


class _Writing:
    def __init__(self, kind: str, rows: _Dim, columns: _Dim, summed: _Dims, adds: bool) -> None:
        self.kind, self.rows, self.columns, self.summed, self.adds = kind, rows, columns, summed, int(adds)
        self.scratch = 0
        numbers = columns.size * math.prod(dim.size for dim in summed)
        self.pieces = summed[0] if numbers > LARGE and summed[0].size > 1 else None
        """What is summed up one after the other, of which all else is done for each."""
        if self.pieces:
            self.adds, self.summed = 1, [_ONE, *summed[1:]]

    def written(self, a: str, b: str, around: _Dims) -> Written:
        """Return the function, with loops over the dimensions around it: outside, those that b goes along."""
        around = sorted(around, key=lambda dim: not dim.b)
        around = [self.pieces, *around] if self.pieces else around
        outside = sum(dim.b != 0 for dim in around)
        heads = [f"for (long o{place} = 0; o{place} < {dim.size}; o{place}++) {{" for place, dim in enumerate(around)]
        a, b, c = (
            _at(name, [getattr(dim, which) for dim in around]) for name, which in ((a, "a"), (b, "b"), ("c", "c"))
        )
        *others, last = self.summed
        alone = all(dim is _ONE for dim in others)
        if alone and last.a == last.b == 1 and (self.columns.size <= FEW or self.rows.size == 1):
            packing, body = [], self._dots(a, b, c)
        else:
            packing, b, steps = self._packed(b)
            body = self._multiplied(a, b, c, steps)
        lines = [*heads[:outside], *packing, *heads[outside:], body, "}" * len(around)]
        return Written("\n".join(lines), self.scratch, bool(self.adds))

    def _room(self, numbers: int) -> str:
        self.scratch += numbers
        return f"(scratch + {self.scratch - numbers})"

    def _dots(self, a: str, b: str, c: str) -> str:
        rows, columns = self.rows, self.columns
        sizes = f"{self.adds}, {rows.size}, {columns.size}, {self.summed[-1].size}"
        return f"{self.kind}_dots({sizes}, {a}, {rows.a}, {b}, {columns.b}, {c}, {rows.c}, {columns.c});"

    def _packed(self, b: str) -> tuple[list[str], str, list[int]]:
        """Return what puts the columns of b beside each other, where they are then, and the steps through that."""
        n, (k0, k1, k2) = self.columns.size, self.summed
        if n == 1 or self.columns.b == 1:
            return [], b, [dim.b for dim in self.summed]
        packed = self._room(k0.size * k1.size * k2.size * n)
        lines = [
            f"for (long p = 0; p < {k0.size}; p++) for (long q = 0; q < {k1.size}; q++)",
            f"{self.kind}_packed({k2.size}, {n}, {b} + {k0.b} * p + {k1.b} * q, {k2.b}, {self.columns.b},",
            f"{packed} + (p * {k1.size} + q) * {k2.size * n});",
        ]
        return lines, packed, [k1.size * k2.size * n, k2.size * n, n]

    def _multiplied(self, a: str, b: str, c: str, steps: list[int]) -> str:
        (k0, k1, k2), m, n = self.summed, self.rows.size, self.columns.size
        wide = WIDEST[self.kind]
        filled = self._room((k0.size * k1.size * k2.size + m) * wide) if n % wide else "scratch"
        sizes = f"{self.adds}, {k0.size}, {k1.size}, {k2.size}, {m}, {n}"
        factors = f"{a}, {k0.a}, {k1.a}, {k2.a}, {self.rows.a}, {b}, {steps[0]}, {steps[1]}, {steps[2]}"
        return f"{self.kind}_product({sizes}, {factors}, {c}, {self.rows.c}, {filled});"


def _at(name: str, steps: list[int]) -> str:
    return " + ".join([name, *(f"{step} * o{place}" for place, step in enumerate(steps) if step)])
