"""Operations taken apart into those that kernels compute."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch.fx.experimental.proxy_tensor import make_fx

from headstart.kernels.loops import can_be
from headstart.kernels.operations import ATEN, KNOWN

#: What depends on numbers alone, and is made once.
_MADE = {ATEN.arange.default, ATEN.arange.start, ATEN.arange.start_step}


def _variance(x: Tensor, dims: list[int] | None, correction: float = 1.0, *, output_dtype: Any = None) -> Tensor:
    dims = [*range(x.ndim)] if dims is None else dims
    count = x.numel() // torch.Size(size for dim, size in enumerate(x.shape) if dim not in dims).numel()
    apart = x - x.mean(dims, keepdim=True)
    return (apart * apart).sum(dims) / (count - correction)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *steps: Any) -> Tensor:
    """A convolution of what has zeros around it."""
    stride, padding, dilation, turned, *others = steps
    if turned or not any(padding):
        return NotImplemented
    around = [size for size in reversed(padding) for _ in range(2)]
    padded = ATEN.constant_pad_nd(x, around)
    return ATEN.convolution(padded, weight, bias, stride, [0] * len(padding), dilation, turned, *others)


def _convolution_backward(
    slopes: Tensor, x: Tensor, weight: Tensor, _: Any, *steps: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The derivatives of a convolution by its input and its kernel, which are convolutions."""
    stride, padding, dilation, turned, more, groups, asked = steps
    kernel = weight.shape[2:]
    if turned or groups != 1 or {*stride, *dilation} != {1} or any(p >= k for p, k in zip(padding, kernel)):
        return NotImplemented
    found: list[Tensor | None] = [None, None, None]
    if asked[0]:
        around = [k - 1 - p for p, k in zip(padding, kernel)]
        wide = ATEN.constant_pad_nd(slopes, [size for size in reversed(around) for _ in range(2)])
        found[0] = ATEN.convolution(wide, weight, None, stride, [k - 1 for k in kernel], dilation, True, more, 1)
    if asked[1]:
        wide = ATEN.constant_pad_nd(x, [size for size in reversed(padding) for _ in range(2)])
        tasks = wide.transpose(0, 1), slopes.transpose(0, 1)
        found[1] = ATEN.convolution(*tasks, None, stride, [0] * len(kernel), dilation, False, more, 1).transpose(0, 1)
    if asked[2]:
        found[2] = slopes.sum([0, *range(2, slopes.ndim)])
    return found[0], found[1], found[2]


def _max_pool(
    x: Tensor,
    kernel: list[int],
    stride: list[int] | None = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil: bool = False,
) -> tuple[Tensor, Tensor]:
    """The largest number of each window, and where it is, as the first of them, or the last that is none (NaN)."""
    if not _is_apart(x, kernel, stride, padding, dilation, ceil):
        return NotImplemented
    (height, width), (tall, wide) = kernel, (size // step for size, step in zip(x.shape[2:], kernel))
    best, at = None, None
    for i in range(height):
        for j in range(width):
            one = x[:, :, i : height * tall : height, j : width * wide : width]
            here = _places(x, kernel, tall, wide) + (i * x.shape[3] + j)
            if best is None or at is None:
                best, at = one, here.expand(one.shape)
            else:
                better = (one > best) | (one != one)
                best, at = torch.where(better, one, best), torch.where(better, here, at)
    return best, at  # pyrefly: ignore


def _max_pool_backward(
    slopes: Tensor, x: Tensor, kernel: list[int], stride: list[int], padding: Any, dilation: Any, ceil: bool, at: Tensor
) -> Tensor:
    """What the slopes of the largest numbers are for all: each goes to where that number was."""
    if not _is_apart(x, kernel, stride, padding, dilation, ceil):
        return NotImplemented
    (height, width), (tall, wide) = kernel, slopes.shape[2:]
    inside = torch.arange(height)[:, None, None] * x.shape[3] + torch.arange(width)
    places = (_places(x, kernel, tall, wide)[:, None, :, None] + inside)[..., None]
    # with the channels last, as images mostly lie in memory
    at, slopes = (one.permute(0, 2, 3, 1)[:, :, None, :, None] for one in (at, slopes))
    found = torch.where(at == places, slopes, 0.0).reshape(len(x), height * tall, width * wide, -1).permute(0, 3, 1, 2)
    left = x.shape[2] - height * tall, x.shape[3] - width * wide
    return ATEN.constant_pad_nd(found, [0, left[1], 0, left[0]]) if any(left) else found


def _places(x: Tensor, kernel: list[int], tall: int, wide: int) -> Tensor:
    """Return where in an image each window begins."""
    return torch.arange(tall)[:, None] * (kernel[0] * x.shape[3]) + torch.arange(wide) * kernel[1]


def _is_apart(x: Tensor, kernel: list[int], stride: Any, padding: Any, dilation: Any, ceil: bool) -> bool:
    """Whether the windows of images are beside each other."""
    plain = all({*([one] if isinstance(one, int) else one)} == {value} for one, value in ((padding, 0), (dilation, 1)))
    return x.ndim == 4 and len(kernel) == 2 and [*(stride or kernel)] == [*kernel] and plain and not ceil


_PARTS = {op: parts for op, parts in decomposition_table.items() if op not in {*KNOWN, *_MADE}}
_PARTS |= {
    torch.ops.prims.var.default: _variance,
    ATEN.convolution.default: _convolution,
    ATEN.convolution_backward.default: _convolution_backward,
    ATEN.max_pool2d_with_indices.default: _max_pool,
    ATEN.max_pool2d_with_indices_backward.default: _max_pool_backward,
}


def in_parts(record: fx.GraphModule) -> None:
    """Put their parts in the places of operations that kernels do not compute, where they compute all of these."""
    made: dict[Any, fx.GraphModule | None] = {}
    record.graph.eliminate_dead_code()
    for node in [*record.graph.nodes]:
        if node.op != "call_function" or node.target not in _PARTS or can_be(node):
            continue
        key = node.target, _described(node)
        if key not in made:
            made[key] = _parts(node)
        parts = made[key]
        if parts is not None:
            _replace(record.graph, node, parts)
    _once(record.graph)
    record.graph.eliminate_dead_code()


def _once(graph: fx.Graph) -> None:
    """Compute once what parts of several operations have in common."""
    seen: dict[Any, fx.Node] = {}
    for node in [*graph.nodes]:
        if can_be(node):
            key = node.target, str(node.args), str(node.kwargs), node.meta["val"].stride()
            there = seen.setdefault(key, node)
            if there is not node:
                node.replace_all_uses_with(there)
                graph.erase_node(node)


def _described(node: fx.Node) -> str:
    """Return all that parts go by: what is given, how it lies in memory, and what of it is the same."""
    names = {one: _Text(f"{place}: {_of(one.meta.get('val'))}") for place, one in enumerate(node.all_input_nodes)}
    return str(fx.map_arg((node.args, node.kwargs), names.__getitem__))


class _Text(str):
    __repr__ = str.__str__


def _of(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{value.dtype} {[*value.shape]} {value.stride()} {value.storage_offset()}"


def _parts(node: fx.Node) -> fx.GraphModule | None:
    """Return the parts of an operation as a function of the tensors that it is given, if kernels compute them all."""
    given = node.all_input_nodes
    values: list[Any] = [one.meta.get("val") for one in given]
    if not all(isinstance(value, Tensor) and value.device.type == "cpu" for value in values):
        return None

    def whole(*tensors: Tensor) -> Any:
        there = dict(zip(given, tensors))
        args, kwargs = fx.map_arg((node.args, node.kwargs), there.__getitem__)
        call: Callable[..., Any] = node.target  # pyrefly: ignore
        return call(*args, **kwargs)

    inputs = [_like(one) for one in values]
    try:
        parts = make_fx(whole, decomposition_table=_PARTS, tracing_mode="fake")(*inputs)  # pyrefly: ignore
    except Exception:  # of some, PyTorch's parts refuse some inputs
        return None
    calls = [one for one in parts.graph.nodes if one.op not in ("placeholder", "output")]
    return parts if all(one.target in _MADE or can_be(one) for one in calls) else None


def _like(value: Tensor) -> Tensor:
    """Return a tensor that lies in memory as another one, where that begins, too."""
    last = sum((size - 1) * step for size, step in zip(value.shape, value.stride()))
    numbers = torch.empty(value.storage_offset() + last + 1, dtype=value.dtype)
    return numbers.as_strided(value.shape, value.stride(), value.storage_offset())


def _replace(graph: fx.Graph, node: fx.Node, parts: fx.GraphModule) -> None:
    there = dict(zip((one for one in parts.graph.nodes if one.op == "placeholder"), node.all_input_nodes))
    ends: Any = None
    with graph.inserting_before(node):
        for one in parts.graph.nodes:
            if one.op == "output":
                ends = fx.map_arg(one.args[0], there.__getitem__)
            elif one.op != "placeholder":
                there[one] = graph.node_copy(one, there.__getitem__)
    for old, new in (
        [(node, ends)] if isinstance(ends, fx.Node) else [(user, ends[user.args[1]]) for user in node.users]
    ):
        with graph.inserting_before(node):
            old.replace_all_uses_with(_laid_out(graph, old, new))
        graph.erase_node(old)
    if not isinstance(ends, fx.Node):
        graph.erase_node(node)


def _laid_out(graph: fx.Graph, old: fx.Node, new: fx.Node) -> fx.Node:
    """Return a node in the place of another one: what views of it there are goes by how it lies in memory."""
    value = old.meta["val"]
    if new.meta["val"].stride() == value.stride():
        return new
    copied = graph.call_function(ATEN.clone.default, (new,))
    copied.meta["val"] = value
    return copied
