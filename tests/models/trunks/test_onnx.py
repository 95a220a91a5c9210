"""Networks in ONNX files."""

import json
import shutil

import pytest
import torch

from headstart.errors import FileError, UsageError
from headstart.models.trunks.trunk import features_of, open_trunk

onnx = pytest.importorskip("onnx", reason="onnx, which makes the file, is not installed")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")


@pytest.fixture
def folder(bert, tmp_path):
    """Return a folder whose network gives each token a row of a table, as tokens (n, length, 2)."""
    for name in ("tokenizer.json", "config.json", "modules.json", "sentence_bert_config.json"):
        shutil.copy(bert / name, tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    table = torch.arange(40.0).view(20, 2).sin()
    ids = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["n", "length"])
    out = onnx.helper.make_tensor_value_info("tokens", onnx.TensorProto.FLOAT, ["n", "length", 2])
    rows = onnx.numpy_helper.from_array(table.numpy(), "table")
    node = onnx.helper.make_node("Gather", ["table", "input_ids"], ["tokens"])
    graph = onnx.helper.make_graph([node], "net", [ids], [out], [rows])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(tmp_path / "net.onnx"))
    return tmp_path, table


def test_its_tokens_are_pooled_as_the_files_beside_it_say(folder):
    place, table = folder
    trunk = open_trunk(f"onnx:{place / 'net.onnx'}")
    texts = ["my card", "where is the money ?"]
    expected = torch.stack([table[trunk.inputs([text])[0]].mean(0) for text in texts])
    torch.testing.assert_close(features_of(trunk, texts), torch.nn.functional.normalize(expected, dim=-1))


def test_it_is_frozen(folder):
    from headstart.algorithms.tuned import trunk

    with pytest.raises(UsageError, match="no weights that a gradient reaches"):
        trunk(5, source=f"onnx:{folder[0] / 'net.onnx'}")


def test_what_must_lie_beside_it(folder):
    place, _ = folder
    (place / "tokenizer.json").unlink()
    with pytest.raises(FileError, match="beside .*net.onnx is neither a tokenizer.json nor a preprocessor_config.json"):
        open_trunk(f"onnx:{place / 'net.onnx'}")
    shutil.copy(place / "config.json", place / "preprocessor_config.json")
    with pytest.raises(FileError, match="does not say of what size"):
        open_trunk(f"onnx:{place / 'net.onnx'}")
