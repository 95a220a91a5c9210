"""The operations of a meta-gradient, written down while it is computed for tensors that hold no values.

Since they hold none, a computation that goes by values (a branch, a number read out) cannot be written down; what
PyTorch does not see, such as a Python number that changes between two steps, is written down as it is.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from headstart.core import tree
from headstart.core.objective import backprop
from headstart.core.tree import pack
from headstart.core.values import conditions
from headstart.engine.loops import Recording
from headstart.engine.rewrite import settle
from headstart.engine.steps import RecordedStep
from headstart.types import Batch, Episodes, Learner, Meta


class Program(NamedTuple):
    """A meta-gradient for inputs of certain shapes."""

    run: Any
    """``(*tensors_of) -> the gradients of θ and of M, what there is of `Info`, and whether `conditional` holds``: the
    graph of operations as it was recorded, or a function that was made of it."""
    told: tuple[bool, ...]
    """Which fields of `Info` there are."""
    conditional: bool
    """Whether the last output says if the values of the inputs are as demanded."""
    steps: tuple[RecordedStep, ...]
    """The inner steps of its loops, which the graph calls."""
    operations: int
    """A loop's are those of one step."""
    dtypes: frozenset[torch.dtype]
    """Of all numbers in it."""


def recorded(learner: Learner, meta: Meta, episodes: Episodes, most: int = 20_000, at_once: bool = True) -> Program:
    """Return the operations of `backprop`, in which a loop of inner steps is one, if they are recorded ``at_once``.

    Raises:
        RuntimeError: the computation goes by values, or takes more than ``most`` operations.
    """
    packed, given = pack((meta, episodes))
    told: list[bool] = []
    conditional: list[Tensor] = []

    def flat(*tensors: Tensor) -> list[Tensor]:
        with conditions() as noted:
            gradient, info = backprop(learner, *packed.unpack(tensors))
        found = [holds for *_, holds in noted.values()]
        if found and found[0].device.type != "cpu":  # reading it would stall an accelerator, so losses become NaN
            if info.query_loss is not None:
                info = info._replace(query_loss=torch.where(torch.stack(found).all(), info.query_loss, torch.nan))
            found = []
        held = [torch.stack(found).all()] if found else []
        told[:], conditional[:] = [part is not None for part in info], held
        own = [part for part in info if part is not None]
        return [*gradient.params.values(), *gradient.structure.values(), *own, *held]

    inputs, loops = [tensor.detach().contiguous() for tensor in given], Recording(most, at_once)
    with loops.listening():
        graph = make_fx(flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)
    settle(graph.graph)
    for node in graph.graph.nodes:
        if _sized_by_values(node):
            raise RuntimeError(f"{node.target} gives as many numbers as its inputs' values say")
    operations = sum(node.op == "call_function" for node in graph.graph.nodes)
    steps: Any = tuple(loop.step for loop in loops.loops.values())
    operations += sum(step.operations for step in steps)
    made = (node.meta.get("val") for node in graph.graph.nodes)
    dtypes = frozenset(value.dtype for value in made if isinstance(value, Tensor))
    loops.link(graph)
    return Program(graph, tuple(told), bool(conditional), steps, operations, dtypes)


def without_notes(record: fx.GraphModule) -> fx.GraphModule:
    """Return a record that has let go of what recording found of its tensors."""
    for node in record.graph.nodes:
        node.meta.clear()
    record.recompile()
    return record


def _sized_by_values(node: fx.Node) -> bool:
    if node.target != torch.ops.aten.index.Tensor:
        return torch.Tag.dynamic_output_shape in getattr(node.target, "tags", ())
    places: Any = node.args[1]
    return any(isinstance(place, fx.Node) and place.meta["val"].dtype == torch.bool for place in places)


def tensors_of(meta: Meta, episodes: Episodes) -> list[Tensor]:
    """Return all tensors, those of θ and M first: what `pack` finds, at each step, in less time."""
    leaves = [*meta.params.values(), *meta.structure.values()]
    for x, *others in episodes:
        leaves += [x] if isinstance(x, Tensor) else tree.tensors_of(x)
        leaves += [part for part in others if part is not None]
    return leaves


def layout(batch: Batch) -> tuple[Any, ...]:
    """Return what of a batch is not said by its tensors: which there are, and how the inputs are nested."""
    nesting = None if isinstance(batch.x, Tensor) else repr(pack(batch.x)[0].tree)
    return nesting, batch.mask is None, batch.seed is None
