"""A record as graphs of a GPU: one for a step of each loop, one for its derivative, and for long stretches between.

A graph hands all its kernels to the GPU at once, and they read and write the same memory every time. So what a call is
given is copied there, and what comes out is copied from there, before any other graph runs. None needs what another one
left, and all graphs of a learner share their memory.
"""

import contextlib
import threading
import weakref
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module

from headstart.core.adjoints.steps import Steps
from headstart.engine.record import Run, replayed
from headstart.engine.tracing import without_notes

#: Fewer operations take less time as they are than calling a graph of them.
FEW = 20
#: Operations that would do once and for all what they have to do every time.
_ONCE = {torch.Tag.data_dependent_output, torch.Tag.nondeterministic_seeded}
#: Held while a graph is captured: PyTorch allows one at a time.
CAPTURING = threading.Lock()


class Graphs:
    """Graphs that share memory and run one at a time: those of a learner."""

    def __init__(self, cuda: Any = torch.cuda, kind: str = "cuda") -> None:
        self.cuda, self.kind = cuda, kind
        """What graphs, streams and memory are made by, and which type of devices that is for."""
        self.memories = dict[torch.device, _Memory]()
        self.lock = threading.Lock()

    def graphed(self, record: fx.GraphModule) -> Run:
        """Return the record with its operations captured at their first call.

        Raises:
            RuntimeError: they cannot be captured.
        """
        return _between(record, self._part)

    def _part(self, record: fx.GraphModule) -> Run:
        if sum(node.op == "call_function" for node in record.graph.nodes) < FEW:
            return replayed(record)
        device = _device_of(record)
        if device.type != self.kind:
            raise RuntimeError(f"its tensors are on the {device.type}, and graphs are of CUDA devices")
        with self.lock:
            memory = self.memories.get(device) or self.memories.setdefault(device, _Memory(self.cuda, device))
        alone = any(isinstance(node.args[0], fx.Node) for node in record.graph.nodes if node.op == "output")
        run, graphs = replayed(record), dict[Any, _Graph]()
        # after that, an operation that reads an input may be gone
        read = [bool(node.users) for node in record.graph.nodes if node.op == "placeholder"]

        def listed(*tensors: Any) -> Sequence[Any]:
            found = run(*tensors)
            return [found] if alone else found

        def graphed(*tensors: Tensor) -> Any:
            given = [tensor if there else None for tensor, there in zip(tensors, read)]
            layout = tuple([None if one is None else one.stride() for one in given])
            with self.lock:  # between two graphs nobody writes into their memory, or waits to read it
                memory.wait()
                graph = graphs.get(layout)
                if graph is None:
                    graph = graphs[layout] = _captured(memory, listed, given)
                found = graph(given)
            return found[0] if alone else found

        return graphed


class _Memory:
    """Memory of a device for graphs of which one runs at a time."""

    def __init__(self, cuda: Any, device: torch.device) -> None:
        self.cuda, self.device, self.stream = cuda, device, cuda.Stream(device)
        self.last = cuda.current_stream(device)
        self.graphs = weakref.WeakSet[Any]()
        self.pool: Any = None

    def wait(self) -> None:
        """Let what follows come after all that went before in this memory, on whatever stream."""
        here = self.cuda.current_stream(self.device)
        if here != self.last:
            here.wait_stream(self.last)
            self.last = here

    def captured(self, run: Run, inputs: Sequence[Any]) -> tuple[Callable[[], None], Sequence[Tensor]]:
        """Return a function that computes what ``run(*inputs)`` does, and the outputs, which it gives their values."""
        if not self.graphs:  # a pool whose graphs are gone takes no more
            self.pool = self.cuda.graph_pool_handle()
        here = self.cuda.current_stream(self.device)
        with self.cuda.stream(self.stream):
            self.stream.wait_stream(here)
            run(*inputs)  # libraries load and choose their kernels, which they cannot do inside
            self.cuda.synchronize(self.device)
            self.cuda.empty_cache()  # nor can memory be given back for more
            torch._C._cuda_clearCublasWorkspaces()  # the graph's is in its own memory: the stream's may be freed
            try:
                graph, outputs = self._graph(run, inputs)
            finally:
                torch._C._cuda_clearCublasWorkspaces()
        here.wait_stream(self.stream)
        self.graphs.add(graph)
        return graph.replay, outputs

    def _graph(self, run: Run, inputs: Sequence[Any]) -> tuple[Any, Sequence[Tensor]]:
        graph, outputs, failed = self.cuda.CUDAGraph(), list[Tensor](), None
        # other threads may do meanwhile what this one may not
        graph.capture_begin(self.pool, capture_error_mode="thread_local")
        try:
            outputs = [*run(*inputs)]
        except BaseException as error:
            failed = error
        try:
            graph.capture_end()  # in any case, or the stream would go on capturing
        except RuntimeError as error:
            failed = failed or error
            with contextlib.suppress(RuntimeError):  # which PyTorch before 2.12 leaves undone
                torch._C._cuda_endAllocateToPool(self.device.index, self.pool)
        if failed is not None:
            self.graphs.clear()  # no other is to lie in memory that PyTorch may never get back
            raise failed
        return graph, outputs


class _Graph(NamedTuple):
    replay: Callable[[], None]
    inputs: list[tuple[list[int], list[Tensor]]]
    """By type, the places of inputs, and where they are copied to."""
    made: list[Tensor]
    """The memory of what it computes, as bytes."""
    outputs: list[tuple[bool, int, Tensor]]
    """Whether it lies in an input, or else in what is made, in which, and how."""

    def __call__(self, given: Sequence[Any]) -> list[Tensor]:
        for places, memory in self.inputs:
            torch._foreach_copy_(memory, [_flat(given[place]) for place in places])
        self.replay()
        kept = [torch.empty_like(one) for one in self.made]
        torch._foreach_copy_(kept, self.made)
        found = []
        for is_given, place, like in self.outputs:
            lies, start = (given[place], given[place].storage_offset()) if is_given else (kept[place], 0)
            start += like.storage_offset()
            found.append(like.new_empty(0).set_(lies.untyped_storage(), start, like.shape, like.stride()))
        return found


def _captured(memory: _Memory, run: Run, given: Sequence[Any]) -> _Graph:
    """Return the graph of a function for tensors laid out like those given."""
    flat = {place: _flat(one).clone() for place, one in enumerate(given) if one is not None}
    own = {place: one.as_strided(given[place].shape, given[place].stride()) for place, one in flat.items()}
    with CAPTURING, torch.no_grad():
        replay, outputs = memory.captured(run, [own.get(place) for place in range(len(given))])
    if any(one.is_conj() or one.is_neg() for one in outputs):
        raise RuntimeError("it gives numbers that are not those in memory, but their conjugates or negatives")
    inputs = {_where(one): place for place, one in flat.items() if one.numel()}
    made, ends = dict[int, tuple[int, Tensor]](), []
    for one in outputs:
        place = inputs.get(_where(one))
        if place is not None and one.dtype == flat[place].dtype:
            ends.append((True, place, one))
        else:
            storage = torch.empty(0, dtype=torch.uint8, device=one.device).set_(one.untyped_storage())
            ends.append((False, made.setdefault(_where(one), (len(made), storage))[0], one))
    types = {one.dtype: [place for place in flat if flat[place].dtype == one.dtype] for one in flat.values()}
    copied = [(places, [flat[place] for place in places]) for places in types.values()]
    return _Graph(replay, copied, [storage for _, storage in made.values()], ends)


def _flat(tensor: Tensor) -> Tensor:
    """Return all memory from the first number of a tensor to the last, as a tensor of one axis."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.as_strided((1 + last if tensor.numel() else 0,), (1,))


def _where(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _device_of(record: fx.GraphModule) -> torch.device:
    """Return the device that a record's tensors are on.

    Raises:
        RuntimeError: they are on several, or its operations read values, draw random numbers or wait for a copy.
    """
    tensors = {node: _tensors(record, node) for node in record.graph.nodes}
    inputs = [node for node in record.graph.nodes if node.op == "placeholder" and node.users]
    devices = {one.device for node in inputs for one in tensors[node]}
    if len(devices) != 1:
        raise RuntimeError(f"its tensors are on {', '.join(sorted(map(str, devices))) or 'no device'}")
    for node in record.graph.nodes:
        if _ONCE.intersection(getattr(node.target, "tags", ())):
            raise RuntimeError(f"{node.target} reads values or draws random numbers")
        read = [one for other in node.all_input_nodes for one in tensors[other]]
        for one in tensors[node] if read else ():
            elsewhere = [other for other in read if other.device != one.device]
            # a number elsewhere is a constant, which kernels take by its value
            if len(elsewhere) == len(read) or any(other.ndim for other in elsewhere):
                raise RuntimeError(f"{node.target} copies from one device to another")
    return devices.pop()


def _tensors(record: fx.GraphModule, node: fx.Node) -> list[Tensor]:
    value = attrgetter(str(node.target))(record) if node.op == "get_attr" else node.meta.get("val")
    return [one for one in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(one, Tensor)]


def _between(record: fx.GraphModule, made: Callable[[fx.GraphModule], Run]) -> Run:
    """Return a record with what is made of its parts in their places: all but its loops, whose steps are records."""
    loops = [node for node in record.graph.nodes if isinstance(getattr(node.target, "__self__", None), Steps)]
    if not loops:
        return made(record)
    parts, part = dict[fx.Node, int](), 0
    for node in record.graph.nodes:
        if node in loops:
            part += 2
            parts[node] = part - 1
        else:  # what a loop gives is taken apart where it is
            parts[node] = next((parts[one] for one in node.all_input_nodes[:1] if one in loops), part)
    whole = split_module(record, nn.Module(), parts.__getitem__, keep_original_order=True)
    for name, child in [*whole.named_children()]:
        if isinstance(child, fx.GraphModule) and name not in {f"submod_{parts[node]}" for node in loops}:
            setattr(whole, name, _Called(made(child)))
    run: Run = without_notes(whole).forward
    return run


class _Called(nn.Module):
    """A function as a part of a record."""

    def __init__(self, function: Run) -> None:
        super().__init__()
        self.forward = function
