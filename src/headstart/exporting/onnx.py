"""A graph as an ONNX file, for onnxruntime in any language, a browser or a phone."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from headstart.errors import ConfigError
from headstart.exporting.graph import Graph, quiet
from headstart.exporting.program import program
from headstart.models.trunks.trunk import needs, told_by
from headstart.types import Params

#: The version of ONNX's operators.
OPSET = 18


def to_onnx(graph: Graph) -> dict[str, bytes]:
    """Return the file ``model.onnx``.

    Raises:
        ConfigError: the extra is not installed, or an operation that ONNX has none for.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        needs(package, "export")
    names = {"input_names": [one.name for one in graph.inputs], "output_names": list(graph.outputs)}
    try:
        with quiet():
            made = torch.onnx.export(program(graph), (), dynamo=True, opset_version=OPSET, verbose=False, **names)
            assert made is not None
            data = _plain(made.model_proto).SerializeToString()
    except Exception as error:  # of several packages
        raise ConfigError(
            f"ONNX has no operation for a part of this model ({told_by(error)}); export it --to torch or --to module"
        ) from error
    return {"model.onnx": data}


def _plain(model: Any) -> Any:
    """Leave out from which line of which file each operation comes."""
    for part in (model.graph, *model.functions):
        for node in part.node:
            del node.metadata_props[:]
            node.doc_string = ""
        for values in (part.value_info, *([part.initializer, part.input, part.output] if part is model.graph else [])):
            for value in values:
                del value.metadata_props[:]
    del model.graph.metadata_props[:]
    return model


def in_int8(data: bytes) -> bytes:
    """Return an ONNX file's bytes with products of 8-bit weights and activations."""
    quantization: Any = needs("onnxruntime.quantization", "export")
    with TemporaryDirectory() as folder, quiet():
        whole, small = Path(folder) / "whole.onnx", Path(folder) / "small.onnx"
        whole.write_bytes(data)
        quantization.quantize_dynamic(whole, small, weight_type=quantization.QuantType.QInt8)
        return small.read_bytes()


def answered(data: bytes, inputs: dict[str, torch.Tensor]) -> Params:
    """Return what onnxruntime makes of an ONNX file's bytes and inputs by name."""
    onnxruntime: Any = needs("onnxruntime", "export")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    return {name: torch.from_numpy(value) for name, value in zip(names, found)}
