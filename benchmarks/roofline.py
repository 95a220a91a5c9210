"""``python -m benchmarks roofline``: how near a meta-gradient comes to what the machine can do, and what takes time."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers.case import Case
from benchmarks.peers.ours import STEPS, episodes_of, keep_memory, learner_of, soon
from benchmarks.plan import Plan, check, chosen
from benchmarks.report import machine, number, table
from benchmarks.speed import ANIL, RESNET, conv4, sine
from headstart.core.counting import computes
from headstart.core.objective import meta_gradient
from headstart.engine.accelerate import accelerate, repays
from headstart.forward.task_map import loop
from headstart.training.files import to_json, write


class Traffic(NamedTuple):
    """What operations move when each reads its inputs and writes its outputs."""

    bytes: int
    operations: int
    """Without views, which move nothing."""


def traffic(function: Callable[[], object]) -> Traffic:
    """Run ``function``, and count what its operations move, those of backward passes in it included.

    >>> import torch
    >>> x = torch.ones(1000)
    >>> traffic(lambda: x + x)
    Traffic(bytes=8000, operations=1)
    """
    counter = _Traffic()
    with counter:
        function()
    return Traffic(counter.bytes, counter.operations)


class _Traffic(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.operations = 0, 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if computes(func):
            self.operations += 1
            self.bytes += _size((args, kwargs)) + _size(out)
        return out


def _size(tree: Any) -> int:
    """Return the bytes of a tree's tensors, each one once; an expanded one has those that it really has."""
    tensors = {id(leaf): leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
    return sum(min(leaf.nbytes, leaf.untyped_storage().nbytes()) for leaf in tensors.values())


def flops(function: Callable[[], object]) -> int:
    """Run ``function``, and count the floating-point operations of its matrix products and convolutions.

    A multiplication and an addition are two. Second derivatives are counted: PyTorch composes them of the same
    products and convolutions, and of one more, with respect to the input, even where nobody asks for that (as in a
    network's first layer). Those of grouped convolutions are counted too high: run tasks one by one.

    >>> import torch
    >>> x = torch.ones(2, 3)
    >>> flops(lambda: x @ x.T)
    24
    """
    counter = FlopCounterMode(display=False)
    with counter:
        function()
    return int(counter.get_total_flops())


KINDS: dict[str, tuple[str, ...]] = {
    "products and convolutions": ("conv", "mm", "linear", "matmul", "einsum"),
    "normalisation": ("norm",),
    "pooling": ("pool",),
    "moving and filling": ("copy", "cat", "stack", "clone", "contiguous", "fill", "zero", "index", "select_backward",
                           "slice_backward", "gather", "scatter", "full", "ones"),
    "views and bookkeeping": ("view", "reshape", "transpose", "::t$", "expand", "permute", "slice", "select", "squeeze",
                              "as_strided", "empty", "detach", "alias", "unbind", "chunk", "split", "narrow", "flatten",
                              "resize", "result_type", "item", "::to$", "_is", "lift", "set_"),
}  # fmt: skip
"""What the names of PyTorch's operations contain ($: end with); all others work on numbers one by one."""

ELEMENTWISE = "elementwise and sums"
OUTSIDE = "Python and autograd"


def kind(name: str) -> str:
    """Return the kind of work that an operation of the profiler does.

    >>> kind("aten::mkldnn_convolution"), kind("aten::mul"), kind("autograd::engine::evaluate_function: MulBackward0")
    ('products and convolutions', 'elementwise and sums', 'Python and autograd')
    """
    if not name.startswith("aten::"):
        return OUTSIDE
    return next((each for each, words in KINDS.items() if any(word in f"{name}$" for word in words)), ELEMENTWISE)


def shares(function: Callable[[], object]) -> dict[str, float]:
    """Run ``function`` under PyTorch's profiler, and return each kind's share of the time, the largest first."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints when it starts and stops
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        function()
    return grouped((event.key, event.self_cpu_time_total) for event in profiler.key_averages())


def grouped(times: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return each kind's share of the times of operations, the largest first.

    >>> grouped([("aten::mm", 3.0), ("aten::add", 1.0)])
    {'products and convolutions': 0.75, 'elementwise and sums': 0.25}
    """
    found: dict[str, float] = {}
    for name, own in times:
        found[kind(name)] = found.get(kind(name), 0.0) + own
    total = sum(found.values()) or 1.0
    return {name: own / total for name, own in sorted(found.items(), key=lambda each: -each[1])}


LARGE = 2048
"""Rows and columns of the large product."""
_SECONDS = 0.3


class Floors(NamedTuple):
    """With a number of threads."""

    threads: int
    product: float
    """FLOP a second of a float32 product of 2,048 x 2,048 matrices."""
    small_product: float
    """The same of 25 products (10 x 40) (40 x 40) in one operation: the sine network's."""
    convolution: float
    """The same of a 3 x 3 convolution from 64 to 64 channels of 25 images of 14 x 14: conv4's."""
    memory: float
    """Bytes a second, read and written, of copying 128 MiB."""
    cache: float
    """The same of copying 256 KiB, again and again."""
    operation: float
    """Seconds of adding two numbers: an operation that has nothing to do."""

    @property
    def arithmetic(self) -> float:
        """The most FLOP a second that was seen: of some processors, convolutions get more than products."""
        return max(self.product, self.convolution)

    def rate_of(self, size: float) -> float:
        """Return the bytes a second for operations that move ``size`` bytes each."""
        return self.cache if size <= 2**20 else self.memory


def floors(threads: int) -> Floors:
    """Measure; takes about two seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            return _floors(threads)
    finally:
        torch.set_num_threads(before)


def _floors(threads: int) -> Floors:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    large, left, right = draw(LARGE, LARGE), draw(25, 10, 40), draw(25, 40, 40)
    images, filters, one = draw(25, 64, 14, 14), draw(64, 64, 3, 3), draw(1)
    (block, other), (piece, same) = ((torch.zeros(size), torch.zeros(size)) for size in (2**25, 2**16))
    return Floors(
        threads,
        2 * LARGE**3 / seconds(lambda: large @ large),
        2 * 25 * 10 * 40 * 40 / seconds(lambda: torch.bmm(left, right)),
        2 * 25 * 64 * 64 * 9 * 14 * 14 / seconds(lambda: F.conv2d(images, filters, padding=1)),
        2 * block.nbytes / seconds(lambda: other.copy_(block)),
        2 * piece.nbytes / seconds(lambda: same.copy_(piece)),
        seconds(lambda: torch.add(one, one)),
    )


def seconds(function: Callable[[], object], least: float = _SECONDS) -> float:
    """Return the shortest time of a call, of calls in blocks that take ``least`` seconds together."""
    function()
    began = time.perf_counter()
    function()
    count = max(1, int(least / 10 / max(1e-7, time.perf_counter() - began)))
    found = []
    until = time.perf_counter() + least
    while len(found) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        for _ in range(count):
            function()
        found.append((time.perf_counter() - began) / count)
    return float(np.min(found))


CASES = (sine(1), sine(5), conv4(1, 8, 1), conv4(1, 32, 1), conv4(1, 8, 5), ANIL, RESNET)
#: A case is timed for about so long, at least `FEWEST` times.
SECONDS, FEWEST = 3.0, 3


class Row(NamedTuple):
    """A case's work, floors and time; times in milliseconds."""

    case: str
    flops: int
    """Of products and convolutions, of the tasks one by one."""
    moved: Traffic
    arithmetic: float
    """The FLOP at the best rate of the machine."""
    at_own_size: float
    """The FLOP at the rate of the products or convolutions of about this case's size."""
    memory: float
    """The bytes at the rate of copying, from the cache where operations are small."""
    dispatch: float
    """The operations at the cost of an empty one."""
    eager: float
    """As in the first steps of `headstart.fit`."""
    measured: float
    """As in `headstart.fit` in a long run: compiled where that repays, else replayed from a record."""
    runs: int
    shares: dict[str, float]
    """Of the time, by kind of work."""

    @property
    def floor(self) -> float:
        """The largest of the three floors: arithmetic, memory, dispatch."""
        return max(self.arithmetic, self.memory, self.dispatch)

    @property
    def reached(self) -> float:
        """Which part of the measured time the floor is."""
        return self.floor / self.measured


class Roofline(NamedTuple):
    """What was found."""

    rows: tuple[Row, ...]
    floors: tuple[Floors, ...]
    """With one thread, and with those of the cases."""
    machine: dict[str, str]


def run(plan: Plan) -> Roofline:
    """Measure the machine's floors, and count and time every case in this process.

    Raises:
        UsageError: a plan that cannot be carried out.
    """
    plan = check(plan)
    names = chosen(plan, [case.name for case in CASES])
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        plan.note("roofline: the machine's floors")
        found = tuple(floors(threads) for threads in sorted({1, plan.threads}))
        rows = []
        for case in (case for case in CASES if case.name in names):
            plan.note(f"roofline: {case.name}")
            rows.append(row(case, found[-1], plan.repeats))
    finally:
        torch.set_num_threads(before)
    return Roofline(tuple(rows), found, machine(plan))


def row(case: Case, best: Floors, repeats: int | None = None) -> Row:
    """Return what one meta-gradient of a case takes."""
    episodes = episodes_of(case)
    one_by_one, together = learner_of(case, taskmap=loop), learner_of(case)
    keep_memory()
    meta, ready = together.init(None), accelerate(together, replay=False)
    compiled = repays(together, meta, [episodes], STEPS)
    settled = accelerate(together, compile=True) if compiled else soon(accelerate(together))
    meta_gradient(together, meta, episodes)  # the task map's choice is no part of what is counted
    moved = traffic(lambda: meta_gradient(together, meta, episodes))
    count = flops(lambda: meta_gradient(one_by_one, meta, episodes))
    eager, times = (
        _times(lambda learner=learner: meta_gradient(learner, meta, episodes), repeats) for learner in (ready, settled)
    )
    parts = shares(lambda: meta_gradient(together, meta, episodes))
    own = best.small_product if case.model == "mlp" else best.convolution
    return Row(
        case.name,
        count,
        moved,
        count / best.arithmetic * 1e3,
        count / own * 1e3,
        moved.bytes / best.rate_of(moved.bytes / max(1, moved.operations)) * 1e3,
        moved.operations * best.operation * 1e3,
        float(np.median(eager)) * 1e3,
        float(np.median(times)) * 1e3,
        len(times),
        parts,
    )


def _times(function: Any, repeats: int | None) -> list[float]:
    for _ in range(2):  # the second one records
        function()
    found: list[float] = []
    while len(found) < (repeats or FEWEST) or (repeats is None and sum(found) < SECONDS):
        began = time.perf_counter()
        function()
        found.append(time.perf_counter() - began)
    return found


FLOOR_HEADINGS = ("threads", "large product, GFLOP/s", "25 x (10x40)(40x40), GFLOP/s", "3x3 convolution, GFLOP/s",
          "memory, GB/s", "cache, GB/s", "empty operation, µs")  # fmt: skip
CASE_HEADINGS = ("case", "GFLOP", "GB moved", "operations", "arithmetic, ms", "at its own sizes, ms", "memory, ms",
         "dispatch, ms", "eager, ms", "measured, ms", "floor reached")  # fmt: skip


def floor_cells(found: Floors) -> tuple[str, ...]:
    """Return the machine's floors as texts, one a heading of `FLOOR_HEADINGS`."""
    rates = (found.product, found.small_product, found.convolution, found.memory, found.cache)
    return str(found.threads), *(number(rate / 1e9) for rate in rates), number(found.operation * 1e6)


def case_cells(row: Row) -> tuple[str, ...]:
    """Return a case's figures as texts, one a heading of `CASE_HEADINGS`."""
    times = (row.arithmetic, row.at_own_size, row.memory, row.dispatch, row.eager, row.measured)
    work = (f"{row.flops / 1e9:.3g}", f"{row.moved.bytes / 1e9:.3g}", f"{row.moved.operations:,}")
    return row.case, *work, *map(number, times), f"{row.reached:.0%}"


def tables_of(found: Roofline) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Return titles, headings and rows: of the machine, the cases, and where the time goes."""
    kinds = list(dict.fromkeys(kind for row in found.rows for kind in row.shares))
    shared = [(row.case, *(f"{row.shares.get(kind, 0.0):.0%}" for kind in kinds)) for row in found.rows]
    return [
        ("The machine", FLOOR_HEADINGS, [floor_cells(each) for each in found.floors]),
        ("The cases", CASE_HEADINGS, [case_cells(each) for each in found.rows]),
        ("Where the time goes", ("case", *kinds), shared),
    ]


def to_markdown(found: Roofline) -> str:
    """Return the roofline as a page."""
    used = "; ".join(f"{name} {value}" for name, value in found.machine.items())
    lines = ["# Roofline: how near to what the machine can do", ""]
    lines += [f"`python -m benchmarks roofline`: one meta-gradient of second-order MAML. {used}.", ""]
    lines += ["How to read it: docs/roofline.md.", ""]
    for title, headings, rows in tables_of(found):
        lines += [f"## {title}", "", *table(headings, rows), ""]
    return "\n".join(lines)


def to_values(found: Roofline) -> dict[str, Any]:
    """Return the roofline as JSON values."""
    return {
        "machine": found.machine,
        "floors": [each._asdict() for each in found.floors],
        "cases": [
            {**each._asdict(), "moved": each.moved._asdict(), "floor": each.floor, "reached": each.reached}
            for each in found.rows
        ],
    }


def write_roofline(out: Path, found: Roofline) -> list[Path]:
    """Write ``roofline.json`` and ``roofline.md`` in the folder ``out``, and return their paths.

    Raises:
        FileError: a file cannot be written.
    """
    files = {"json": to_json(to_values(found)), "md": to_markdown(found).encode()}
    paths = {kind: out / f"roofline.{kind}" for kind in files}
    for kind, data in files.items():
        write(paths[kind], data)
    return list(paths.values())
