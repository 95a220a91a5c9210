"""A graph as a program of ``torch.export``, which PyTorch runs, compiles and lowers without Python's source."""

import io

import torch
from torch.export import Dim, ExportedProgram

from headstart.exporting.graph import Graph


def program(graph: Graph) -> ExportedProgram:
    """Return the program; the inputs' free axes are of any size."""
    shapes = tuple({axis: Dim.DYNAMIC for axis in one.free} for one in graph.inputs)
    return torch.export.export(graph.module, tuple(one.some for one in graph.inputs), dynamic_shapes=shapes)


def to_program(graph: Graph) -> dict[str, bytes]:
    """Return the file of a program, ``model.pt2``."""
    file = io.BytesIO()
    torch.export.save(program(graph), file)
    return {"model.pt2": file.getvalue()}
