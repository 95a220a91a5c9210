"""The meta-gradient as one compiled program.

What is compiled is the record of the whole computation (`engine.record`): ``torch.compile`` refuses what is
differentiated from outside. It is worth it where operations are small and steps many: compiling takes seconds for a
small network and minutes for a convolutional one (it is kept on disk between runs).
"""

import logging
import warnings

import torch
import torch._functorch.config
import torch._inductor
from torch import Tensor, fx

from headstart.engine.record import Run, Way
from headstart.engine.tracing import without_notes


def _inductor(record: fx.GraphModule, tensors: list[Tensor]) -> Run:
    for node in without_notes(record).graph.nodes:
        if node.target is torch.ops.aten.view.default:  # the compiler lays out tensors in its own way
            node.target = torch.ops.aten.reshape.default
    record.recompile()
    options = {"cpp_wrapper": tensors[0].device.type == "cpu"}
    # what is computed twice in the record is so to save memory
    with warnings.catch_warnings(), torch._functorch.config.patch(cse=False):
        warnings.simplefilter("ignore")  # the compiler's own
        run: Run = torch._inductor.compile(record, list(tensors), options=options)
        run(*tensors)  # compiles what is left to the first call
    return run


COMPILED = Way("compiled", _inductor, after=0, most=20_000, same=False, level=logging.WARNING)
