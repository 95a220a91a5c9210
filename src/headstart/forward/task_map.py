"""How B tasks go through the model: all at once, or one after another.

`vmap` batches every operation over the tasks; `loop` runs the tasks one by one and stacks, sharing every other line of
code, so it is the oracle for `vmap`. `auto` tries both on the first batch of each shape and keeps the faster.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from headstart.core.tree import Packed, mapped, pack, tensors_of
from headstart.types import Tree

logger = logging.getLogger("headstart")

#: What a pass of a module that cannot do what is tried may raise.
TROUBLE = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)

#: The seconds from which on a pass is timed once.
LONG = 0.05

TaskMapName: TypeAlias = Literal["auto", "vmap", "loop"]
Dims: TypeAlias = Sequence[Any]
"""For each argument a tree prefix of ``0`` (its tensors have a task axis) and ``None`` (shared by all tasks)."""


class TaskMap(Protocol):
    """``(function, dims, args) -> outputs with the task axis in front``."""

    def __call__(self, function: Callable[..., Tree], dims: Dims, args: Sequence[Tree], /) -> Tree: ...


@dataclass(frozen=True)
class OneTask:
    """A function of one task that is known for all tasks at once, too."""

    function: Callable[..., Tree]
    at_once: Callable[..., Tree]
    """What ``vmap`` of the function gives, of arguments as they are."""
    sure: bool = False
    """Whether it needs no trial: it maps nothing by ``vmap``."""

    def __call__(self, *args: Tree) -> Tree:
        return self.function(*args)


def vmap(function: Callable[..., Tree], dims: Dims, args: Sequence[Tree]) -> Tree:
    """Batch every operation of ``function`` over the tasks; random operations differ by task."""
    if isinstance(function, OneTask):
        return function.at_once(*args)
    # what is no tensor (a flag, None) goes around the batching, in and out
    given = [pack(arg) if dim == 0 else (None, arg) for dim, arg in zip(dims, args)]
    out: list[Packed] = []

    def of_tensors(*values: Any) -> list[Tensor]:
        packed, tensors = _open(function(*(v if p is None else p.unpack(v) for (p, _), v in zip(given, values))))
        out[:] = [packed]
        return tensors

    mapping = torch.func.vmap(of_tensors, in_dims=tuple(dims), randomness="different")
    tensors = mapping(*(value for _, value in given))
    return out[0].unpack(tensors)


def loop(function: Callable[..., Tree], dims: Dims, args: Sequence[Tree]) -> Tree:
    """Run ``function`` on one task after another and stack the outputs."""
    tasks = range(task_count(dims, args))
    outputs = [function(*(_select(dim, arg, task) for dim, arg in zip(dims, args))) for task in tasks]
    return _joined(torch.stack, outputs)


def in_turn(at_once: Callable[..., Tree], dims: Dims, args: Sequence[Tree]) -> Tree:
    """Run a function of all tasks at once on one task after another, and join the outputs."""
    tasks = task_count(dims, args)
    if tasks == 1:
        return at_once(*args)
    # by unbinding, which goes back as one stack; the slope of a slice is as large as what it was cut from
    parts = [_unbound(dim, arg, tasks) for dim, arg in zip(dims, args)]
    outputs = [at_once(*(part[task] for part in parts)) for task in range(tasks)]
    return _joined(torch.cat, outputs)


def _joined(join: Callable[[list[Tensor]], Tensor], outputs: Sequence[Tree]) -> Tree:
    return _open(outputs[0])[0].unpack(join(list(parts)) for parts in zip(*map(tensors_of, outputs)))


class OpaqueError(RuntimeError):
    """A function gave an object that may hold tensors out of sight, which could not get a task axis."""


def _open(outputs: Tree) -> tuple[Packed, list[Tensor]]:
    packed, tensors = pack(outputs)
    for leaf in tree_leaves(packed.tree):
        if not (leaf is None or leaf is Tensor or isinstance(leaf, (bool, int, float, str))):
            raise OpaqueError(f"a {type(leaf).__name__} may hold tensors")
    return packed, tensors


def _unbound(dim: Any, arg: Tree, tasks: int) -> list[Tree]:
    if isinstance(dim, dict):
        own = {name: _unbound(dim[name], value, tasks) for name, value in arg.items()}
        return [{name: parts[task] for name, parts in own.items()} for task in range(tasks)]
    if dim is None:
        return [arg] * tasks
    if isinstance(arg, Tensor):
        return [piece.unsqueeze(0) for piece in arg.unbind()]
    packed, leaves = pack(arg)
    if not leaves:
        return [arg] * tasks
    pieces = [leaf.unbind() for leaf in leaves]
    return [packed.unpack([piece[task].unsqueeze(0) for piece in pieces]) for task in range(tasks)]


def _select(dim: Any, arg: Tree, task: int) -> Tree:
    if isinstance(dim, dict):
        return {name: _select(dim[name], value, task) for name, value in arg.items()}
    return arg if dim is None else mapped(lambda leaf: leaf[task], arg)


def task_count(dims: Dims, args: Sequence[Tree]) -> int:
    """Return B, read off the first argument that has a task axis."""
    for dim, arg in zip(dims, args):
        pairs = [(dim[name], arg[name]) for name in dim] if isinstance(dim, dict) else [(dim, arg)]
        for inner, value in pairs:
            if inner == 0 and (leaves := tensors_of(value)):
                return int(leaves[0].shape[0])
    raise ValueError("no argument has a task axis")


def rounded(size: int) -> int:
    """Return the next of 1, 2, 3, 4, 6, 8, 12, 16, 24, …: batches of sizes between are much alike.

    >>> [rounded(size) for size in (0, 1, 5, 6, 7, 100)]
    [0, 1, 6, 6, 8, 128]
    """
    power = 1 << max(size - 1, 0).bit_length()
    return size if size < 2 else 3 * power // 4 if size <= 3 * power // 4 else power


class auto:
    """Try `vmap` and `loop` on the first batch of each shape, sizes `rounded`, keep the faster, and say which.

    A function that `vmap` cannot batch (recurrent kernels, ``.item()``, branches on values) is looped; one that is
    written for all tasks, without any ``vmap``, needs no trial.
    """

    #: `loop` must win by this factor, so that noise in a near tie does not change the choice.
    margin = 1.25

    def __init__(self) -> None:
        self.chosen: dict[tuple[Any, ...], TaskMap] = {}
        self.lock = threading.Lock()  # one thread tries, the others wait for what it finds

    def __call__(self, function: Callable[..., Tree], dims: Dims, args: Sequence[Tree]) -> Tree:
        if isinstance(function, OneTask) and function.sure:
            return function.at_once(*args)
        key = tuple((*map(rounded, leaf.shape), leaf.dtype, leaf.device) for leaf in tensors_of(args))
        if key not in self.chosen:
            with self.lock:
                if key not in self.chosen:
                    self.chosen[key] = self._choose(function, dims, args)
        return self.chosen[key](function, dims, args)

    def _choose(self, function: Callable[..., Tree], dims: Dims, args: Sequence[Tree]) -> TaskMap:
        if task_count(dims, args) == 1 and not isinstance(function, OneTask):
            return loop
        try:
            batched = _seconds(vmap, function, dims, args)
        except RuntimeError as error:
            logger.info("task map: loop, since vmap cannot batch this model (%s)", first_line(error))
            return loop
        looped = _seconds(loop, function, dims, args)
        winner = loop if looped * self.margin < batched else vmap
        times = (winner.__name__, batched * 1e3, looped * 1e3)
        logger.info("task map: %s (vmap %.1f ms, loop %.1f ms for a forward and backward pass)", *times)
        return winner


def _seconds(task_map: TaskMap, function: Callable[..., Tree], dims: Dims, args: Sequence[Tree]) -> float:
    """Return the shortest time of a forward and backward pass: of three, but that of one which takes long is enough."""
    times, keep = [], torch.nn.Identity()
    while len(times) < 3 and sum(times) < LONG:
        detached = mapped(lambda leaf: leaf.detach().requires_grad_(leaf.requires_grad), list(args))
        leaves = [leaf for leaf in tensors_of(detached) if leaf.requires_grad]
        _synchronize(leaves)
        start = time.perf_counter()
        # the trial is no part of the pass around it, which may checkpoint or offload what is saved, or be counted
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, keep), _disable_current_modes():
            outputs = tensors_of(task_map(function, dims, detached))
            total = sum((out.sum() for out in outputs if out.requires_grad), start=torch.zeros(()))
            if leaves and total.requires_grad:
                torch.autograd.grad(total, leaves, allow_unused=True)
        _synchronize(leaves)
        times.append(time.perf_counter() - start)
    return min(times)


def _synchronize(tensors: Sequence[Tensor]) -> None:
    if any(tensor.is_cuda for tensor in tensors):
        torch.cuda.synchronize()


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, for a line of a log."""
    return (str(error).strip().splitlines() or [""])[0][:160]
