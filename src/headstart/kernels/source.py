"""Loops over numbers in memory, written down as a function in C.

What is done for each task comes together in one loop over the tasks, so that what one operation leaves is still in the
processor's nearest memory when the next one takes it, and what nothing else needs has room for one task alone.
"""

from dataclasses import dataclass
from importlib.resources import files
from typing import NamedTuple

import torch
from torch import fx

from headstart.kernels.loops import Buffer, Copies, Lookup, Loop, Loops, Pointwise, Product, View
from headstart.kernels.memory import Need, arranged
from headstart.kernels.nests import copied, copies, lookup, pointwise
from headstart.kernels.operations import POINTWISE, TYPES
from headstart.kernels.products import product

#: A loop over fewer tasks is not one over tasks.
FEW = 2

HEAD = """#include <math.h>
#include <stdint.h>
#if defined(__AVX512F__)
enum { REGISTERS = 25, WIDEST = 5, VECTOR = 64 };
#elif defined(__AVX2__)
enum { REGISTERS = 12, WIDEST = 3, VECTOR = 32 };
#elif defined(__aarch64__)
enum { REGISTERS = 25, WIDEST = 5, VECTOR = 16 };
#else
enum { REGISTERS = 12, WIDEST = 3, VECTOR = 16 };
#endif
#define INLINE static inline __attribute__((always_inline))
#define float_FIRST 0, 8, 1, 9, 2, 10, 3, 11
#define float_LAST 4, 12, 5, 13, 6, 14, 7, 15
#define double_FIRST 0, 4, 1, 5
#define double_LAST 2, 6, 3, 7
"""


class Source(NamedTuple):
    """A function in C, ``kernel(void **tensors)``: of those that are given, of its outputs, and of ``scratch``."""

    text: str
    scratch: int
    """Bytes of memory for what is needed inside."""


@dataclass
class _Region:
    """Loops that follow one another, for one task after the other where there are ``tasks``."""

    tasks: int
    start: int
    """The place of its first loop among all."""
    loops: list[Loop]

    @property
    def end(self) -> int:
        return self.start + len(self.loops)


def source(found: Loops) -> Source:
    """Return the function that runs the loops."""
    return _Writing(found).source()


class _Writing:
    def __init__(self, found: Loops) -> None:
        self.found = found
        self.within = {node: loop for loop in found.loops for node in loop.nodes}
        self.read = [self._read(loop) for loop in found.loops]
        self.written = [
            {node: found.stores[node] for node in loop.nodes if self._is_stored(node)} for loop in found.loops
        ]
        self.regions = self._regions()
        self.names = {found.views[node].buffer: f"given{place}" for place, node in enumerate(found.given)}
        self.names |= {found.views[node].buffer: f"output{place}" for place, node in enumerate(found.outputs)}
        self.inner: set[Buffer] = set()
        """Those with room for one task."""
        self.functions: dict[str, str] = {}
        """The names of functions that multiply, by their text."""
        self.room = 0
        """Bytes that they need."""

    def _is_stored(self, node: fx.Node) -> bool:
        """Whether what an operation gives is needed outside of its loop."""
        if node in self.found.outputs or node.target not in POINTWISE:
            return True
        return any(self.within.get(user) is not self.within[node] for user in node.users)

    def _read(self, loop: Loop) -> dict[fx.Node, View]:
        """Return what operations on numbers read, over the shape of their loop."""
        if not isinstance(loop, Pointwise):
            return {}
        own, views = {*loop.nodes}, self.found.views
        needed = (one for node in loop.nodes for one in node.all_input_nodes if one not in own)
        return {one: views[one].over(loop.shape) for one in dict.fromkeys(needed)}

    def _reads(self, place: int) -> list[View]:
        """Return the views of all that a loop reads; the first dimension may be tasks."""
        loop = self.found.loops[place]
        if isinstance(loop, Product):
            return [*loop.factors, *([loop.begins] if loop.begins else [])]
        if isinstance(loop, Copies):
            return [view for view, _ in loop.parts if view is not None]
        return [loop.table, loop.places] if isinstance(loop, Lookup) else [*self.read[place].values()]

    def _writes(self, place: int) -> list[View]:
        loop = self.found.loops[place]
        if isinstance(loop, Product):
            return [loop.out]
        return [to for _, to in loop.parts] if isinstance(loop, Copies) else [*self.written[place].values()]

    def _regions(self) -> list[_Region]:
        """Return the loops with those together that go over the same tasks, none of which needs what is of another."""
        regions: list[_Region] = []
        steps: dict[Buffer, int] = {}
        for place, loop in enumerate(self.found.loops):
            writes = self._writes(place)
            alone = loop.tasks >= FEW and all(_is_within(view, view.strides[0]) for view in writes)
            tasks = loop.tasks if alone else 0
            seen = (view for view in self._reads(place) if view.buffer in steps)
            apart = all(_is_within(view, steps[view.buffer]) for view in seen)
            if not (regions and tasks and regions[-1].tasks == tasks and apart):
                regions.append(_Region(tasks, place, []))
                steps = {}
            regions[-1].loops.append(loop)
            steps |= {view.buffer: view.strides[0] for view in writes if view.strides}
        return regions

    def source(self) -> Source:
        count = len(self.names)
        scratch, start = self._scratch()
        body = [line for region in self.regions for line in self._region(region)]
        kinds = sorted({TYPES[loop.out.buffer.dtype] for loop in self.found.loops if isinstance(loop, Product)})
        template = files("headstart.kernels").joinpath("products.h").read_text("utf-8")
        functions = [f"static __attribute__((noinline)) void {name}{text}" for text, name in self.functions.items()]
        pointers = []
        for place, (buffer, name) in enumerate(self.names.items()):
            where = f"(char *)tensors[{count}] + {scratch[buffer]}" if buffer in scratch else f"tensors[{place}]"
            # gcc makes no vectors of truth values that are not bytes
            kind = "uint8_t" if buffer.dtype == torch.bool else TYPES[buffer.dtype]
            pointers.append(f"{kind} *{name} = (void *)({where});")
        pointers.append(f"void *room = (char *)tensors[{count}] + {start};")
        lines = ["void kernel(void **tensors) {", *pointers, *body, "}"]
        text = [HEAD, *(template.replace("REAL", kind) for kind in kinds), *functions, *lines, ""]
        return Source("\n".join(text), start + self.room)

    def _scratch(self) -> tuple[dict[Buffer, int], int]:
        """Name the buffers that are needed inside, and return where each begins, and how many bytes all take."""
        used: dict[Buffer, list[tuple[int, _Region]]] = {}
        steps: dict[Buffer, int] = {}
        for region in self.regions:
            for place in range(region.start, region.end):
                writes = self._writes(place)
                for view in [*self._reads(place), *writes]:
                    if view.buffer not in self.names:
                        used.setdefault(view.buffer, []).append((place, region))
                steps |= {view.buffer: view.strides[0] for view in writes if view.strides}
        needs = {}
        for number, (buffer, uses) in enumerate(used.items()):
            self.names[buffer] = f"scratch{number}"
            (first, start), (last, end) = uses[0], uses[-1]
            if start is end and start.tasks:
                self.inner.add(buffer)
                needs[buffer] = Need(steps[buffer] * buffer.dtype.itemsize, first, last + 1)
            else:  # of all tasks, before those of which there are loops again
                needs[buffer] = Need(buffer.numbers * buffer.dtype.itemsize, start.start, end.end)
        return arranged(needs)

    def _region(self, region: _Region) -> list[str]:
        of_a_task = bool(region.tasks)
        lines = [line for place in range(region.start, region.end) for line in self._loop(place, of_a_task)]
        return [f"for (long t = 0; t < {region.tasks}; t++) {{", *lines, "}"] if of_a_task else lines

    def _loop(self, place: int, of_a_task: bool) -> list[str]:
        loop, written, first = self.found.loops[place], self.written[place], int(of_a_task)

        def at(view: View) -> str:
            """Return the place in memory where a view begins, or its part that is of the task ``t``."""
            text = self.names[view.buffer]
            if of_a_task and view.strides[0] and view.buffer not in self.inner:
                text += f" + {view.strides[0]} * t"
            return text + (f" + {view.offset}" if view.offset else "")

        if isinstance(loop, Pointwise):
            return pointwise(loop, self.read[place], written, at, first)
        if isinstance(loop, Copies):
            return copies(loop, at, first)
        if isinstance(loop, Lookup):
            (out,) = written.values()
            return lookup(loop, out, at, first)
        kind = TYPES[loop.out.buffer.dtype]
        text, scratch, adds = product(loop, kind, first)
        begun = copied(loop.begins, loop.out, at, first) if adds else []
        self.room = max(self.room, scratch * loop.out.buffer.dtype.itemsize)
        head = f"(const {kind} *a, const {kind} *b, {kind} *c, {kind} *scratch)"
        name = self.functions.setdefault(f"{head} {{\n{text}\n}}", f"product{len(self.functions)}")
        return [*begun, f"{name}({', '.join(map(at, (*loop.factors, loop.out)))}, room);"]


def _is_within(view: View, step: int) -> bool:
    """Whether what is of a task lies within a step, the one from which to the next its buffer is of that task."""
    if not view.strides or view.strides[0] != step:
        return False
    low, high = view.ends(first=1)
    return 0 <= low and high < step
