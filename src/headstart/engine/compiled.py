"""A record as compiled programs: one for a step of each loop, one for its derivative, and for long stretches between.

``torch.compile`` refuses what is differentiated from outside, so the record, with every derivative in it, is compiled.
It is worth it where operations are small and steps many: compiling takes seconds for a small network and minutes for a
convolutional one (it is kept on disk between runs).
"""

import warnings
from collections.abc import Sequence

import torch
import torch._functorch.config
from torch import Tensor, fx

from headstart.engine.record import FEW, Run, between, replayed
from headstart.engine.tracing import without_notes

#: What is run once an outer step is worth a program from such a share of the operations that its loops take.
SHARE = 1 / 12

#: The compiler's options for a CPU, where reading and translating C++ is most of its work.
_QUICK = {
    "cpp_wrapper": True,
    # what PyTorch itself was built for and found here needs no trial by the compiler, which takes seconds
    "cpp.vec_isa_ok": True if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else None,
    # to make it takes as long as it saves four programs, and there are two, of a step and its derivative
    "cpp_cache_precompile_headers": False,
    # `_laid_out` sees to it
    "size_asserts": False,
    # half a second, for patterns that records of derivatives do not have
    "use_joint_graph_passes": False,
}


def compiled(record: fx.GraphModule) -> Run:
    """Return the record with its operations compiled, all but its loops, whose steps are records of their own."""
    return between(record, lambda part, taken: _program(part, SHARE * taken))


def _like(value: Tensor) -> Tensor:
    """Return a tensor laid out like one, or, where its numbers share memory or leave gaps, one after the other."""
    last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride()))
    dense = last == value.numel() - 1 and all(stride or size == 1 for size, stride in zip(value.shape, value.stride()))
    return value if dense else value.contiguous()


def _laid_out(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    if tensor.stride() == strides:
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _program(record: fx.GraphModule, least: float) -> Run:
    """Return a record without loops as a program, if it has so many operations."""
    if sum(node.op == "call_function" for node in record.graph.nodes) < max(FEW, least):
        return replayed(record)
    from torch._inductor import compile as compile_record  # takes seconds, which nobody else should wait

    # without values, as they were recorded: only for those does the compiler look on the disk for what it has made
    inputs = [_like(node.meta["val"]) for node in record.graph.nodes if node.op == "placeholder"]
    alone = any(isinstance(node.args[0], fx.Node) for node in record.graph.nodes if node.op == "output")
    for node in without_notes(record).graph.nodes:
        if node.target is torch.ops.aten.view.default:  # the compiler lays out tensors in its own way
            node.target = torch.ops.aten.reshape.default
    record.recompile()
    options = {**_QUICK, "cpp.threads": torch.get_num_threads()} if inputs[0].device.type == "cpu" else {}
    # what is computed twice in the record is so to save memory
    with warnings.catch_warnings(), torch._functorch.config.patch(cse=False):
        warnings.simplefilter("ignore")  # the compiler's own
        program: Run = compile_record(record, [*inputs], options=options)
    strides = [tensor.stride() for tensor in inputs]

    def run(*tensors: Tensor) -> Sequence[Tensor]:
        found = program(*map(_laid_out, tensors, strides))
        return found[0] if alone else found

    return run
