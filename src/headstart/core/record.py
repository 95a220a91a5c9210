"""The meta-gradient as a list of tensor operations, recorded once and run again.

The whole computation, the inner steps with their derivatives and the outer derivative, is recorded for inputs of
certain shapes. Every derivative is taken while recording, so running the record needs none of the work of finding
out what to compute, and computes the same, operation by operation.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx
from torch._functorch.compile_utils import fx_graph_cse
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from headstart.core.objective import backprop
from headstart.core.taskmap import first_line
from headstart.types import Batch, Episodes, Info, Learner, Meta

logger = logging.getLogger("headstart")

#: A learner that changes while it learns is recorded in so many of its forms, and no more.
FORMS = 4
#: How far a compiled program may be from the computation that it was made of, in single and in double precision: at
#: the kink of a ReLU a rounding error may turn a derivative by a hundredth.
TOLERANCE = {torch.float64: 1e-6}
LOOSE = 0.05

Run: TypeAlias = Callable[..., Sequence[Tensor]]


class Way(NamedTuple):
    """What becomes of a record."""

    name: str
    """As a participle: ``"compiled"``."""
    translate: Callable[[fx.GraphModule, list[Tensor]], Run]
    """``(record, tensors like its inputs) -> a function of such tensors``."""
    after: int
    """How often to compute as it is before recording pays."""
    same: bool
    """Whether the function gives the same bits."""
    level: int
    """Of the line of the log that says why it cannot be done."""


class Program(NamedTuple):
    """A meta-gradient for inputs of certain shapes."""

    run: Run
    """``(tensors) -> the gradients of θ and of M, and what there is of `Info```."""
    told: tuple[bool, ...]
    """Which fields of `Info` there are."""
    operations: int
    seconds: float
    """That recording, and compiling if any, took."""


class Recorded:
    """The `MetaGradient` that records `backprop` for every shape that it meets.

    A record is made with other weights and other examples than those that it is then tried on, and must give for these
    what `backprop` gives: a model whose computation depends on values does not, and is computed as it is.
    """

    def __init__(self, way: Way) -> None:
        self.way = way
        self.lock = threading.Lock()  # threads wait for the one that records
        self.calls: dict[Any, int] = {}
        self.programs: dict[Any, Program | None] = {}
        # the learners recorded, so that none is forgotten and another one taken for it
        self.learners: list[tuple[Any, ...]] = []

    def __call__(self, learner: Learner, meta: Meta, episodes: Episodes) -> tuple[Meta, Info]:
        tensors = [leaf.detach().contiguous() for leaf in tensors_of(meta, episodes)]
        shapes = tuple((leaf.shape, leaf.dtype, leaf.device) for leaf in tensors)
        with self.lock:
            form = self._form(learner)
            key = (form, shapes, *map(tuple, meta), *map(_layout, episodes), torch.get_num_threads())
            if form is None or key not in self.programs:
                return self._first(key, learner, meta, episodes, tensors)
            program = self.programs[key]
        if program is None:
            return backprop(learner, meta, episodes)
        with torch.no_grad():
            return _named(program, meta, program.run(*tensors))

    def _first(
        self, key: tuple[Any, ...], learner: Learner, meta: Meta, episodes: Episodes, tensors: list[Tensor]
    ) -> tuple[Meta, Info]:
        """Compute as it is, and record when it is time."""
        before = torch.get_rng_state()
        found = backprop(learner, meta, episodes)
        self.calls[key] = self.calls.get(key, 0) + 1
        if key[0] is not None and self.calls[key] > self.way.after:
            drawn = not torch.equal(before, torch.get_rng_state())
            self.programs[key] = None if drawn else self._program(learner, meta, episodes, tensors, found)
            if drawn:
                self._say("the model draws from PyTorch's global generator")
        return found

    def _program(
        self, learner: Learner, meta: Meta, episodes: Episodes, tensors: list[Tensor], found: tuple[Meta, Info]
    ) -> Program | None:
        start = time.perf_counter()
        try:
            record, told = recorded(learner, *_others(meta, episodes))
            operations = sum(node.op == "call_function" for node in record.graph.nodes)
            program = Program(self.way.translate(record, tensors), told, operations, 0.0)
            with torch.no_grad():
                again = _named(program, meta, program.run(*tensors))
        except Exception as error:  # whatever PyTorch or a compiler may raise, the usual way is there
            self._say(f"{type(error).__name__}: {first_line(error)}")
            return None
        if not _agree(again, found, self.way.same):
            self._say("what the model computes depends on more than the shapes of its inputs")
            return None
        seconds = time.perf_counter() - start
        logger.info("meta-gradient %s: %d operations in %.1f s", self.way.name, operations, seconds)
        return program._replace(seconds=seconds)

    def _form(self, learner: Learner) -> int | None:
        """Return the number of this form of the learner; ``None`` where there have been too many."""
        parts = tuple(part for name, part in learner._asdict().items() if name not in ("gradient", "during"))
        for number, known in enumerate(self.learners):
            if known and all(a is b or a == b for a, b in zip(known, parts)):
                return number
        if len(self.learners) == FORMS:
            self._say("the learner changes at every step")
            self.learners.append(())
        if len(self.learners) > FORMS:
            return None
        self.learners.append(parts)
        return len(self.learners) - 1

    def _say(self, why: str) -> None:
        logger.log(self.way.level, "meta-gradient not %s, running as it is: %s", self.way.name, why)


def recorded(learner: Learner, meta: Meta, episodes: Episodes) -> tuple[fx.GraphModule, tuple[bool, ...]]:
    """Return the operations of `backprop` as a function of `tensors_of`, and which fields of `Info` it gives."""
    told: list[bool] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        gradient, info = backprop(learner, *_rebuilt(meta, episodes, tensors))
        told[:] = [part is not None for part in info]
        return [*gradient.params.values(), *gradient.structure.values(), *(part for part in info if part is not None)]

    # of copies, since what is recorded is also run, and may write into its inputs
    copies = [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors_of(meta, episodes)]
    record = make_fx(flat, tracing_mode="real")(*copies)
    for node in record.graph.nodes:
        if _sized_by_values(node):
            raise RuntimeError(f"{node.target} gives as many numbers as its inputs' values say")
    for node in record.graph.nodes:
        node.meta.clear()  # what recording found of the copies
    return record, tuple(told)


def replayed(record: fx.GraphModule, tensors: list[Tensor]) -> Run:
    """Return the record itself, without operations that do nothing, or the same once more."""
    graph = record.graph
    if not any(_writes(node) for node in graph.nodes):
        graph = fx_graph_cse(graph)
        nothing = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)
        for node in list(graph.nodes):
            if node.target in nothing:
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
        graph.eliminate_dead_code()
    run: Run = fx.GraphModule(record, graph).forward
    return run


def _sized_by_values(node: fx.Node) -> bool:
    if (
        torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())
        and node.target != torch.ops.aten.index.Tensor
    ):
        return True
    places: Any = node.args[1] if node.target == torch.ops.aten.index.Tensor else ()
    return any(isinstance(place, fx.Node) and place.meta["val"].dtype == torch.bool for place in places)


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def tensors_of(meta: Meta, episodes: Episodes) -> list[Tensor]:
    """Return all tensors, those of θ and M first."""
    leaves = [*meta.params.values(), *meta.structure.values()]
    for batch in episodes:
        leaves.extend([batch.x] if isinstance(batch.x, Tensor) else tree_leaves(batch.x))
        leaves.extend(part for part in batch[1:] if part is not None)
    return leaves


def _layout(batch: Batch) -> tuple[Any, ...]:
    """Return what of a batch is not said by its tensors: which there are, and how the inputs are nested."""
    nesting = None if isinstance(batch.x, Tensor) else str(tree_flatten(batch.x)[1])
    return (nesting, *(part is None for part in batch[1:]))


def _rebuilt(meta: Meta, episodes: Episodes, tensors: Iterable[Tensor]) -> tuple[Meta, Episodes]:
    left = iter(tensors)

    def following(_: Any) -> Any:
        return next(left)

    own = Meta(*({name: next(left) for name in part} for part in meta))
    batches = []
    for batch in episodes:
        x, y = tree_map(following, batch.x), next(left)
        batches.append(Batch(x, y, *(None if part is None else next(left) for part in batch[2:])))
    return own, Episodes(*batches)


def _others(meta: Meta, episodes: Episodes) -> tuple[Meta, Episodes]:
    """Return other weights, and other tasks of the same shapes: in reverse, nearer to zero, every example there."""

    def other(leaf: Any) -> Any:
        if leaf is None:
            return None
        turned: Tensor = leaf.flip((0, 1) if leaf.ndim > 1 else 0)
        return turned * 0.5 if leaf.is_floating_point() else turned

    def batch_of(batch: Batch) -> Batch:
        mask = None if batch.mask is None else torch.ones_like(batch.mask)
        return Batch(tree_map(other, batch.x), other(batch.y), mask, other(batch.seed))

    weights = Meta(*({name: 0.9 * value.detach() for name, value in part.items()} for part in meta))
    return weights, Episodes(*map(batch_of, episodes))


def _named(program: Program, meta: Meta, found: Sequence[Tensor]) -> tuple[Meta, Info]:
    left = iter(found)
    gradient = Meta(*({name: next(left) for name in part} for part in meta))
    return gradient, Info(*(next(left) if there else None for there in program.told))  # pyrefly: ignore


def _agree(got: tuple[Meta, Info], expected: tuple[Meta, Info], same: bool) -> bool:
    ours, theirs = ([*gradient.params.values(), *gradient.structure.values()] for gradient, _ in (got, expected))
    if same:
        return all(torch.equal(a, b) or bool(b.isnan().any()) for a, b in zip(ours, theirs))
    length = torch.nn.utils.get_total_norm(theirs)
    gap = torch.nn.utils.get_total_norm([a - b for a, b in zip(ours, theirs)])
    return not bool(gap > TOLERANCE.get(length.dtype, LOOSE) * length)
