"""Looking once at a module that nobody here has seen: what a pass changes, and whether tasks can be mapped at once.

PyTorch's own layers, and ours, are known. Any other may write into its inputs, or keep something for its next pass; and
``vmap`` has operations that lose an option on the way, such as the ``padding_idx`` of ``F.embedding``: the outputs are
right and the derivatives are not, without a word. So both ways of mapping are compared on two tasks that differ, in
float64, by their outputs and their first and second derivatives.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _get_current_dispatch_mode

from headstart.core.process import generators, put_back
from headstart.core.tree import mapped, tensors_of
from headstart.errors import UsageError
from headstart.forward.normalisation import FUNCTIONS
from headstart.forward.skeleton import Skeleton
from headstart.forward.task_map import TROUBLE, TaskMap, loop
from headstart.types import Params, Tree

logger = logging.getLogger("headstart")

#: What two ways to compute the same in float64 may differ by, relative to the largest of its numbers.
TOLERANCE = 1e-5


def is_traced(tree: Tree) -> bool:
    """Return whether a computation is watched, or has no values, so that nothing can be tried beside it."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or _get_current_dispatch_mode():
        return True
    return any(leaf.is_meta or type(leaf) not in (Tensor, torch.nn.Parameter) for leaf in tensors_of(tree))


class Seen(NamedTuple):
    """What a pass was seen to do."""

    writes: bool = False
    """It writes into its inputs."""
    inexact: bool = False
    """It calls functions whose derivatives are not right, of which there are others (`Exact`)."""


class _Watch(TorchFunctionMode):
    inexact = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        padded = kwargs.get("padding_idx") is not None or args[2:3] not in ((), (None,))
        self.inexact |= func in _EXACT and (func is not F.embedding or padded)
        return func(*args, **kwargs)


class Exact(TorchFunctionMode):
    """Lets functions have right derivatives.

    ``vmap`` forgets of ``F.embedding(padding_idx=…)`` that padding takes no part in gradients, and the second
    derivatives of normalisation are wrong where they are differentiated.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _EXACT.get(func, func)(*args, **(kwargs or {}))


def _embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
    out = F.embedding(input, weight, None, *args, **kwargs)
    if padding_idx is None:
        return out
    return torch.where(input.eq(padding_idx % len(weight)).unsqueeze(-1), out.detach(), out)


_EXACT = {F.embedding: _embedding, **FUNCTIONS}


def seen(frame: Skeleton, restart: Callable[[], None], state: Params, args: Any, kwargs: Any) -> Seen:
    """Return what a pass on one task's inputs does.

    Raises:
        UsageError: a second pass gives something else, by what the first one left behind.
    """
    stored = {name for name, _ in frame.body.named_buffers()}
    outputs, writing, watch = [], False, _Watch()
    with torch.no_grad(), put_back(), frame.afresh() as before:
        start = generators()
        for _ in range(2):
            start.restore()
            restart()
            own = {name: value.clone() if name in stored else value for name, value in state.items()}
            own_args, own_kwargs = mapped(Tensor.clone, (args, kwargs))
            with watch:
                outputs.append(tensors_of(functional_call(frame.body, own, own_args, own_kwargs)))
            writing |= any(leaf._version > 0 for leaf in tensors_of((own_args, own_kwargs)))
        if not all(torch.allclose(*pair, equal_nan=True) for pair in zip(*outputs)):
            raise UsageError(
                f"a second forward pass gives something else, since the first one left {_changed(frame, before)} "
                f"behind; keep it in a buffer (register_buffer) and give every task a copy with buffers='task'"
            )
    return Seen(writing, watch.inexact)


def _changed(frame: Skeleton, before: list[Any]) -> str:
    paths = {layer: path for path, layer in frame.body.named_modules()}
    names = [
        f"{paths[layer]}.{name}".lstrip(".")
        for layer, attributes in before
        for name, value in vars(layer).items()
        if value is not attributes.get(name)
    ]
    return ", ".join(map(repr, names)) or "something (in a list, a dict or an object that it holds or uses)"


def misbatched(
    run: Callable[..., tuple[Tree, Params]], task_map: TaskMap, params: Params, shared: set[str], rest: Any
) -> str:
    """Return in what a task map differs from `loop`, and by how much, or nothing.

    Args:
        run: ``(task map, params, *rest) -> (outputs, buffers)``, in float64.
        params: where ``shared`` by all tasks without a task axis.
        rest: other arguments, each with a task axis.
    """
    generator = torch.Generator().manual_seed(0)

    def differing(name: str, value: Tensor) -> Tensor:
        one = value.detach().double()
        one = one if name in shared else one[0]
        noise = torch.randn(2, *one.shape, generator=generator, dtype=torch.float64).to(one.device)
        return one + 0.1 * noise * (one.square().mean().sqrt() if one.any() else 1)

    own = {name: differing(name, value) for name, value in params.items()}
    pair = mapped(lambda leaf: leaf.detach()[torch.arange(2) % len(leaf)], rest)
    ways = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in own.values()]

    def derivatives(task_map: TaskMap) -> dict[str, list[Tensor]]:
        leaves = {name: value.clone().requires_grad_() for name, value in own.items()}
        outputs = [out for out in tensors_of(run(task_map, leaves, pair)[0]) if out.is_floating_point()]
        found = {"outputs": outputs}
        total = torch.stack([out.square().sum() for out in outputs]).sum()
        if not (leaves and total.requires_grad):
            return found
        moved = list(leaves.values())
        found["gradients"] = list(torch.autograd.grad(total, moved, create_graph=True, materialize_grads=True))
        slope = torch.stack([(g * way.to(g.device)).sum() for g, way in zip(found["gradients"], ways)]).sum()
        if slope.requires_grad:
            try:
                found["second derivatives"] = list(torch.autograd.grad(slope, moved, materialize_grads=True))
            except RuntimeError as error:  # there are none
                logger.debug("second derivatives were not compared: %s", error)
        return mapped(Tensor.detach, found)

    keep = torch.nn.Identity()
    # the trial is no part of the pass around it, which may checkpoint or offload what is saved
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, keep), put_back():
        before = generators()
        try:
            expected = derivatives(loop)
            if generators() != before:
                return ""  # by chance
            got = derivatives(task_map)
        except TROUBLE as error:
            logger.debug("vmap was not compared with loop: %s", error)
            return ""
    for what, ours in got.items():
        theirs = expected.get(what, [])
        gap = max((float((a - b).abs().max()) for a, b in zip(ours, theirs) if a.numel()), default=0.0)
        size = max((float(b.abs().max()) for b in theirs if b.numel()), default=0.0)
        if gap > TOLERANCE * max(size, TOLERANCE):
            return f"{what} that are off by {gap / size if size else 1:.2g}"
    return ""
