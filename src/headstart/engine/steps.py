"""One inner step and its derivative as two graphs of operations that were recorded."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx

from headstart.core.adjoints.steps import Tensors, taken
from headstart.core.inner import Given, Inner, Step
from headstart.core.schedules import Keep
from headstart.core.tree import Packed, pack, tensors_of
from headstart.core.values import Conditions, conditions
from headstart.engine.rewrite import fold, numbers_apart, settle, shorten, writes

Run: TypeAlias = Callable[..., Sequence[Any]]

#: So often a step is recorded, until what it gives is laid out as what it is given.
TRIES = 4


class Demand(NamedTuple):
    """What must hold of the inputs of a step: that they are all true, or below a bound where a mask has them."""

    place: int
    mask: int | None
    """Its place."""
    bound: int
    """0: all must be true."""


class RecordedStep:
    """The graphs of a step and its derivative, or functions that were made of them."""

    def __init__(
        self,
        graph: fx.GraphModule,
        packed: Packed,
        inputs: Tensors,
        held: int,
        asked: Sequence[bool],
        numbers: range,
        demands: Sequence[Demand],
    ) -> None:
        self.demands = demands
        """What must hold of its inputs: `headstart.core.values.conditions`."""
        self.inner = Packed(packed.tree[1])
        self.state, self.asked = inputs[held:], (asked[:held], asked[held:])
        self.inputs, self.device = [*compress(inputs, asked)], inputs[-1].device
        self.numbers: Any = numbers
        self.operations = sum(node.op == "call_function" for node in graph.graph.nodes)
        ends: Any = next(node for node in graph.graph.nodes if node.op == "output").args[0]
        self.losses: Tensor = ends[len(self.state)].meta["val"]
        self.runs: list[Run] = [*_halves(graph, len(inputs), held)]

    def translate(self, function: Callable[[Any], Run]) -> None:
        """Put functions in the places of the graphs, and tensors in those of the numbers; nothing is recorded now."""
        self.numbers = {number: torch.tensor(number, device=self.device) for number in self.numbers}
        self.runs = [*map(function, self.runs)]

    def forward(self, given: Tensors, inner: Tensors, number: int) -> tuple[Tensors, Tensor, Any]:
        """Return the next state, the losses before it, and what `backward` takes first."""
        size = len(self.state)
        found = self.runs[0](*given, *inner, self.numbers[number])
        return found[:size], found[size], found[size + 1 :]

    def kept(self, inner: Tensors, keep: Keep) -> Callable[[], Tensors]:
        """Keep the last state; the function returns it, so that the steps behind it can be taken again."""
        fetch = keep(self.inner.unpack(inner))
        return lambda: tensors_of(fetch())

    def totals(self, given: Tensors) -> Tensors:
        """Return zeros like what is given, where there are derivatives of it."""
        return [*map(torch.zeros_like, compress(given, self.asked[0]))]

    def backward(self, kept: Any, given: Tensors, number: int, slopes: Tensors) -> Tensors:
        """Return the slopes of what is given, added to those of the steps behind, and those of the state."""
        return self.runs[1](*given, self.numbers[number], *kept, *slopes)


def recorded_step(step: Step, given: Given, inner: Inner, numbers: range, create_graph: bool) -> RecordedStep | int:
    """Return the record of one step that is any of them, or, where there is none, how many operations a step takes.

    Their tensors hold no values, since what the steps are part of is being recorded.
    """
    (packed, tensors), held = pack((given, inner)), len(tensors_of(given))
    mode = detect_fake_mode(tensors)
    assert mode is not None
    with mode:
        inputs = [tensor.detach() for tensor in tensors]
    asked = [torch.is_grad_enabled() and tensor.requires_grad for tensor in tensors]
    behind: Tensors = [*compress(inputs, asked)]
    for _ in range(TRIES):
        form = _Form(step, packed, asked, held, create_graph)
        form.recorded(inputs, numbers[0], behind)
        operations = form.operations
        kind, ends = pack(form.after)
        if kind.tree != packed.tree[1] or any(map(_differ, inputs[held:], ends)):
            break
        asked_then = [*asked[:held], *(old or end.requires_grad for old, end in zip(asked[held:], ends))]
        given_then = [*inputs[:held], *ends]
        behind_then = form.slopes if asked_then == asked else [*compress(given_then, asked_then)]
        if asked_then == asked and not any(map(_lie_otherwise, [*inputs, *behind], [*given_then, *behind_then])):
            return _for_all(form, inputs, behind, numbers) or operations
        asked = asked_then
        with mode:
            inputs, behind = [*inputs[:held], *map(like, ends)], [*map(like, behind_then)]
    return form.operations


def _for_all(form: "_Form", inputs: Tensors, behind: Tensors, numbers: range) -> RecordedStep | None:
    """Return the record of a step of any number with its derivative, if there is one."""
    graph, demands = _of_any_number(form, inputs, behind)
    if graph is None:
        return None
    return RecordedStep(graph, form.packed, inputs, form.held, form.asked, numbers, demands)


def _of_any_number(form: "_Form", inputs: Tensors, behind: Tensors) -> tuple[fx.GraphModule | None, list[Demand]]:
    """Return the graph of a step of any number, if there is one, and what it demands."""
    try:  # with a number that Python cannot read, so that it decides nothing, in no step between the first and last
        with _not_looked_up():
            graph = form.recorded(inputs, None, behind)
    except Exception:  # whatever Python raises where it needs the number itself: each step is recorded then
        return None, []
    demands = form.demands()
    if writes(graph):  # also through views, by which its halves would not follow
        return None, []
    # more than what it is given decides what it computes, or what must hold for it
    if demands is None or any(isinstance(value, FakeTensor) for value in constants(graph)):
        return None, []
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.view.default:  # the first step and the last may be given other layouts
            node.target = torch.ops.aten.reshape.default
    return graph, demands


@contextlib.contextmanager
def _not_looked_up() -> Iterator[None]:
    """Refuse to look up a number that is a tensor in a dict or a set, which would find no other tensor equal to it."""
    usual = FakeTensor.__hash__

    def refused(tensor: FakeTensor) -> int:
        if tensor.ndim == 0 and tensor.dtype == torch.int64:
            raise TypeError("a number that serves all steps is looked up")
        return usual(tensor)

    FakeTensor.__hash__ = refused  # pyrefly: ignore
    try:
        yield
    finally:
        FakeTensor.__hash__ = usual  # pyrefly: ignore


def _lie_otherwise(one: Tensor, other: Tensor) -> bool:
    return one.stride() != other.stride()


def like(tensor: Tensor) -> Tensor:
    """Return an empty tensor that lies in memory as this one does."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def _differ(one: Tensor, other: Tensor) -> bool:
    return (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device)


class _Form:
    """A step with its derivative as a function of tensors, and what was seen of it when it ran."""

    def __init__(self, step: Step, packed: Packed, asked: list[bool], held: int, create_graph: bool) -> None:
        self.step, self.packed, self.asked, self.held, self.create_graph = step, packed, asked, held, create_graph
        self.noted: Conditions = {}
        self.own: Tensors = ()
        self.after: Any = None
        self.slopes: Tensors = ()
        self.operations = 0

    def recorded(self, inputs: Tensors, number: int | None, behind: Tensors) -> fx.GraphModule:
        """Return the graph of the step of that number, or of any, for which its number is an input.

        Recorded with tensors like those; ``behind`` are like the slopes of what
        is given, as far as they are summed up, and of the next state.

        ``(*given, *inner, number, *slopes behind) -> (*next state, losses, *slopes)``
        """

        def joint(*values: Tensor) -> list[Tensor]:
            own, (at, *slopes) = values[: len(self.asked)], values[len(self.asked) :]
            with conditions() as self.noted:
                found = taken(
                    self.step, self.packed, own, self.asked, at if number is None else number, self.create_graph
                )
            self.own, self.after, after = found.own, found.after, tensors_of(found.after)
            state, totals = self.asked[self.held :], sum(self.asked[: self.held])
            # what has a derivative behind other steps may have none behind this one, or the other way about
            there = [True] * totals + [end.requires_grad for end in compress(after, state)]
            known = [True] * totals + [asked for asked, end in zip(state, after) if end.requires_grad]
            graph = found.graph._replace(ends=[*compress(found.graph.ends, known)])
            self.slopes = graph.back([*compress(slopes, there)])
            return [*(end.detach() for end in after), found.losses, *self.slopes]

        mode = detect_fake_mode(inputs)
        assert mode is not None
        with mode:
            values = [*inputs, torch.empty((), dtype=torch.int64, device=inputs[-1].device), *map(like, behind)]
        graph = make_fx(joint, tracing_mode="fake", _allow_non_fake_inputs=True)(*values)
        self.operations = sum(node.op == "call_function" for node in graph.graph.nodes)
        settle(graph.graph)
        return graph

    def demands(self) -> list[Demand] | None:
        """Return what the step demands of its inputs, or ``None`` where it demands something of what it computes."""
        places, found = {id(one): place for place, one in enumerate(self.own)}, []
        for (about, counting, bound), (_, mask, _) in self.noted.items():
            if about not in places or not (mask is None or counting in places):
                return None
            found.append(Demand(places[about], None if mask is None else places[counting], bound))
        return found


def constants(record: fx.GraphModule) -> list[Tensor]:
    """Return the tensors that a record holds."""
    held = (attrgetter(str(node.target))(record) for node in record.graph.nodes if node.op == "get_attr")
    return [value for value in held if isinstance(value, Tensor)]


def _halves(record: fx.GraphModule, size: int, held: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return a step ``(*given, *inner, number) -> (*next state, losses, *kept)``, and its derivative
    ``(*given, number, *kept, *slopes behind) -> slopes``."""
    places = [node for node in record.graph.nodes if node.op == "placeholder"]
    outputs: Any = next(node for node in record.graph.nodes if node.op == "output").args[0]
    ends, slopes = outputs[: size - held + 1], outputs[size - held + 1 :]
    given, number, behind = places[:held], places[size], places[size + 1 :]
    first = _before(ends)
    # what there are several of is taken apart where it is made
    several = [one for one in first if one.op == "call_function" and not isinstance(one.meta.get("val"), Tensor)]
    first |= {user for node in several for user in node.users}
    second = _before(slopes) - first
    free = {*given, number, *behind, *(node for node in record.graph.nodes if node.op == "get_attr")}
    used = [one for node in second for one in node.all_input_nodes] + [one for one in slopes if one in first]
    there = {*used} - second - free
    kept = [node for node in record.graph.nodes if node in there]
    forward = _part(record, places[: size + 1], first, [*ends, *kept])
    return forward, _part(record, [*given, number, *kept, *behind], second, slopes)


def undifferentiated(
    step: Step, given: Given, inner: Inner
) -> tuple[fx.GraphModule, fx.GraphModule, list[Demand]] | None:
    """Return the record of a step of any number without a derivative, in two, and what it demands, if there is one.

    What follows from what is given alone is ``(*given) -> found``, which a loop needs once; the step by that is
    ``(*found, *inner, number) -> (*next state, losses)``. Tensors hold no values; ``inner`` is laid out as it is after
    a step.
    """
    (packed, inputs), held = pack((given, inner)), len(tensors_of(given))
    form = _Form(step, packed, [False] * len(inputs), held, create_graph=False)
    graph, demands = _of_any_number(form, inputs, ())
    kind, ends = pack(form.after)
    if graph is None or kind.tree != packed.tree[1]:
        return None
    if any(_differ(one, end) or _lie_otherwise(one, end) for one, end in zip(inputs[held:], ends)):
        return None
    shorten(graph.graph)
    fold(graph)
    numbers_apart(graph.graph)
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    outputs: Any = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    settled, rest = set(places[:held]), set(places[held:])
    for node in graph.graph.nodes:
        if node.op in ("call_function", "get_attr"):
            (settled if rest.isdisjoint(node.all_input_nodes) else rest).add(node)
    found = [node for node in graph.graph.nodes if node in settled]
    found = [node for node in found if any(user in rest or user.op == "output" for user in node.users)]
    return _part(graph, places[:held], settled, found), _part(graph, [*found, *places[held:]], rest, outputs), demands


def _before(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Return the nodes and all that they are computed from."""
    found, left = set[fx.Node](), [*nodes]
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left.extend(node.all_input_nodes)
    return found


def _part(
    record: fx.GraphModule, inputs: Sequence[fx.Node], inside: set[fx.Node], outputs: Sequence[fx.Node]
) -> fx.GraphModule:
    """Return the part of a record that computes ``outputs`` by the nodes ``inside``."""
    part, there = fx.Graph(), dict[fx.Node, fx.Node]()
    for place, node in enumerate(inputs):
        there[node] = part.placeholder(f"input_{place}")
        there[node].meta = dict(node.meta)
    for node in record.graph.nodes:
        if node not in there and node.op != "placeholder" and (node in inside or node.op == "get_attr"):
            there[node] = part.node_copy(node, there.__getitem__)
    part.output([there[node] for node in outputs])
    part.eliminate_dead_code()
    return fx.GraphModule(record, part)
