"""A graph as a plain module of PyTorch: its program as text, and its weights."""

import textwrap

from headstart.exporting.graph import Graph
from headstart.training.files import to_safetensors

_HEAD = '''"""A model as PyTorch's own operations; load.py beside it shows how it is loaded. Nothing else is needed."""

import torch
from torch import device, inf, nan, nn


class Model(nn.Module):
    """``model({inputs})`` gives ({outputs})."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in weights.items():
            *path, last = name.split(".")
            module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]
            if value.is_floating_point():
                module.register_parameter(last, nn.Parameter(value))
            else:
                module.register_buffer(last, value)

'''

_LOAD = '''"""Load the model beside this file, and call it: needs torch and safetensors."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from model import Model


def load() -> Model:
    return Model(load_file(Path(__file__).with_name("model.safetensors"))).eval()


if __name__ == "__main__":
    examples = ({examples},)
    with torch.no_grad():
        print(load()(*examples))
'''


def to_module(graph: Graph) -> dict[str, bytes]:
    """Return the files of a plain module: ``model.py``, ``model.safetensors`` and ``load.py``."""
    code = graph.module.graph.python_code("self", verbose=False)
    body = code.src[code.src.index("def forward") :].rstrip() + "\n"
    inputs, outputs = ", ".join(one.name for one in graph.inputs), ", ".join(graph.outputs)
    text = _HEAD.replace("{inputs}", inputs).replace("{outputs}", outputs) + textwrap.indent(body, "    ")
    examples = ", ".join(f"torch.zeros({list(one.some.shape)}, dtype={one.some.dtype})" for one in graph.inputs)
    return {
        "model.py": text.encode(),
        "model.safetensors": to_safetensors(graph.weights),
        "load.py": _LOAD.replace("{examples}", examples).encode(),
    }
