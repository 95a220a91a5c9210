"""A record as compiled programs: one for each stretch between loops of inner steps, for a step, and its derivative.

``torch.compile`` refuses what is differentiated from outside, so the record, with every derivative in it, is compiled.
It is worth it where operations are small and steps many: compiling takes seconds for a small network and minutes for a
convolutional one (it is kept on disk between runs).
"""

import warnings
from collections.abc import Sequence

import torch
import torch._functorch.config
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module

from headstart.engine.loops import Steps
from headstart.engine.record import Run, replayed
from headstart.engine.tracing import without_notes

#: What PyTorch itself was built for and found here needs no trial by the compiler, which takes seconds.
_VECTORS = True if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else None
#: Fewer operations take less time as they are than calling a program of them.
FEW = 12


def compiled(record: fx.GraphModule) -> Run:
    """Return the record with its operations compiled, all but its loops, whose steps are records of their own."""
    loops = [node for node in record.graph.nodes if isinstance(getattr(node.target, "__self__", None), Steps)]
    if not loops:
        return _program(record)
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
            setattr(whole, name, _Called(_program(child)))
    run: Run = without_notes(whole).forward
    return run


class _Called(nn.Module):
    """A function as a part of a record."""

    def __init__(self, function: Run) -> None:
        super().__init__()
        self.forward = function


def _like(value: Tensor) -> Tensor:
    """Return a tensor laid out like one without values, or, where its numbers share memory, one after the other."""
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride()))
    dense = last == value.numel() - 1 and all(stride or size == 1 for size, stride in zip(value.shape, value.stride()))
    zeros = torch.zeros(value.shape, dtype=value.dtype, device=value.device)
    return (
        torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device).zero_()
        if dense
        else zeros
    )


def _laid_out(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    if tensor.stride() == strides:
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _program(record: fx.GraphModule) -> Run:
    """Return a record without loops as a program."""
    nodes = [node for node in record.graph.nodes if node.op == "call_function"]
    if sum(not getattr(node.target, "is_view", False) for node in nodes) < FEW:
        return replayed(record)
    from torch._inductor import compile as compile_record  # takes seconds, which nobody else should wait

    inputs = [_like(node.meta["val"]) for node in record.graph.nodes if node.op == "placeholder"]
    alone = any(isinstance(node.args[0], fx.Node) for node in record.graph.nodes if node.op == "output")
    for node in without_notes(record).graph.nodes:
        if node.target is torch.ops.aten.view.default:  # the compiler lays out tensors in its own way
            node.target = torch.ops.aten.reshape.default
    record.recompile()
    options = {"cpp_wrapper": inputs[0].device.type == "cpu", "cpp.vec_isa_ok": _VECTORS}
    # what is computed twice in the record is so to save memory
    with warnings.catch_warnings(), torch._functorch.config.patch(cse=False):
        warnings.simplefilter("ignore")  # the compiler's own
        program: Run = compile_record(record, [*inputs], options=options)
    strides = [tensor.stride() for tensor in inputs]

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        found = program(*map(_laid_out, tensors, strides))
        return found[0] if alone else found

    return run
