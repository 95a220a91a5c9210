"""A computation as a record of PyTorch's own operations, with its weights: what every format is made of.

The record is made below automatic differentiation, so that the gradients of inner steps are ordinary operations in it,
and for any number of examples. What does not depend on the inputs is computed once, and kept as a weight.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from math import prod
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from headstart.exporting.linear import WRITTEN_OUT
from headstart.types import Params

#: Results of so many numbers are kept as weights although what they are made from has fewer.
_SMALL = 2**16


class Input(NamedTuple):
    """What a graph is given."""

    name: str
    some: Tensor
    """Examples, ``(n, …)``; n is no size that anything else has."""
    free: tuple[int, ...] = (0,)
    """The axes that may have any size."""


class Graph(NamedTuple):
    """A record of operations."""

    module: fx.GraphModule
    """``(*inputs) -> tuple of outputs``, with all weights."""
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Return the outputs by name."""
        with torch.no_grad():
            return dict(zip(self.outputs, self.module(*inputs)))

    @property
    def weights(self) -> Params:
        """All weights by name."""
        return {name: value.detach() for name, value in self.module.state_dict().items()}


class ByValuesError(RuntimeError):
    """A computation goes by the values of its inputs, or leaves PyTorch, so that there is no record of it."""


def recorded(
    function: Callable[..., dict[str, Tensor]], weights: Params, inputs: Sequence[Input], *, again: bool = True
) -> Graph:
    """Return the operations of ``function(weights, *inputs)``.

    Args:
        function: pure; it gives tensors by name.
        weights: by name.
        inputs: examples of what it takes.
        again: whether to compute it for these examples first, so that what it looks at once has been looked at.

    Raises:
        ByValuesError: no such record can be made.
    """
    names, outputs = list(weights), list[str]()

    def flat(*tensors: Tensor) -> list[Tensor]:
        found = function(dict(zip(names, tensors)), *tensors[len(names) :])
        outputs[:] = found
        return list(found.values())

    sizes = ShapeEnv(duck_shape=False)
    mode = FakeTensorMode(shape_env=sizes, allow_non_fake_inputs=True)

    def blank(one: Input) -> Tensor:
        kinds = [DimDynamic.DYNAMIC if axis in one.free else DimDynamic.STATIC for axis in range(one.some.ndim)]
        return mode.from_tensor(one.some, symbolic_context=StatelessSymbolicContext(dynamic_sizes=kinds))

    kept = {name: value.detach() for name, value in weights.items()}
    with torch.no_grad():
        if again:
            flat(*kept.values(), *(one.some for one in inputs))
        given = [mode.from_tensor(value, static_shapes=True) for value in kept.values()]
        try:
            with quiet(), mode:
                make = make_fx(flat, _WRITTEN_OUT, "real", _allow_non_fake_inputs=True)
                record = make(*given, *map(blank, inputs))
        except Exception as error:  # of whatever kind PyTorch has for what cannot be recorded
            raise ByValuesError(str(error).strip().splitlines()[0][:200] if str(error) else repr(error)) from error
        return Graph(_with_weights(record, list(kept.items()), inputs), tuple(inputs), tuple(outputs))


def _padded(x: Tensor, pad: Sequence[int], value: float = 0) -> Tensor:
    """Return what `torch.nn.functional.pad` does with a constant; PyTorch's own would record the sizes at hand."""
    for place, (before, after) in enumerate(zip(pad[::2], pad[1::2]), 1):
        start = max(0, -before)
        x = x.narrow(-place, start, x.shape[-place] - start - max(0, -after))
        beside = x.shape[:-place], x.shape[x.ndim + 1 - place :]
        first, last = (x.new_full((*beside[0], max(0, width), *beside[1]), value) for width in (before, after))
        x = torch.cat([first, x, last], -place)
    return x


#: By what is written out in their place.
_WRITTEN_OUT = {**WRITTEN_OUT, torch.ops.aten.constant_pad_nd.default: _padded}


def _with_weights(record: fx.GraphModule, weights: Sequence[tuple[str, Tensor]], inputs: Sequence[Input]) -> Any:
    """Return a record of the inputs alone: weights, and what is made of them alone, are held by it."""
    known, origin = dict[fx.Node, Any](), dict[fx.Node, str]()
    nodes = list(record.graph.nodes)
    places = [node for node in nodes if node.op == "placeholder"]
    for node, (name, value) in zip(places, weights):
        known[node], origin[node] = value, name
    record.graph.eliminate_dead_code()
    held, taken = nn.Module(), dict[fx.Node, fx.Node]()
    graph, mine = fx.Graph(), dict[fx.Node, fx.Node]()
    for node, one in zip(places[len(weights) :], inputs):
        mine[node] = graph.placeholder(one.name)

    def argument(node: fx.Node) -> Any:
        if node not in known:
            return mine[node]
        if node not in taken:
            value = known[node]
            if not isinstance(value, Tensor):  # a number that was read off a weight
                return value
            name = _hold(held, origin[node], value)
            taken[node] = graph.get_attr(name)
        return taken[node]

    for node in record.graph.nodes:
        if node.op == "get_attr":
            known[node] = attrgetter(str(node.target))(record)
            origin[node] = str(node.target).lstrip("_")
        elif node.op == "call_function":
            if all(parent in known for parent in node.all_input_nodes) and _foldable(node, known):
                args, options = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
                known[node] = node.target(*args, **options)
                origin[node] = next((origin[parent] for parent in node.all_input_nodes), node.name)
            elif node.target in _NOTHING:
                mine[node] = argument(node.args[0])
            elif torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                raise ByValuesError("it draws random numbers")
            else:
                mine[node] = graph.node_copy(node, argument)
        elif node.op == "output":
            graph.output(tuple(fx.node.map_arg(tuple(node.args[0]), argument)))
    graph.eliminate_dead_code()
    made = fx.GraphModule(held, graph, "Model")
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    assert set(made.state_dict()) == used, set(made.state_dict()) ^ used
    return made


#: What gives back what it is given.
_NOTHING = (torch.ops.aten.detach.default, torch.ops.aten.alias.default, torch.ops.aten.lift_fresh_copy.default)


def _foldable(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    """Return whether what is made of weights alone is better kept than made again."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:  # such as an item of several results
        return True
    if schema.is_mutable or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return False
    made = node.meta.get("val")
    if not isinstance(made, Tensor):
        return True
    if not all(isinstance(size, int) for size in made.shape):
        return False
    before = sum(known[parent].numel() for parent in node.all_input_nodes if isinstance(known[parent], Tensor))
    return prod(made.shape) <= max(_SMALL, before)


def _hold(module: nn.Module, name: str, value: Tensor) -> str:
    """Let a module hold a weight by its name, or by one like it where that is taken; return the name."""
    *path, last = name.split(".")
    found = list[str]()
    for part in path:
        while part not in module._modules and hasattr(module, part):
            part += "_"
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
        found.append(part)
    while hasattr(module, last):
        last += "_"
    value = value.detach().contiguous().clone()
    if value.is_floating_point():
        module.register_parameter(last, nn.Parameter(value))
    else:
        module.register_buffer(last, value)
    return ".".join([*found, last])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out what PyTorch says of its own progress, and of what it could not record."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
