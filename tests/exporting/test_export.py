"""What is exported gives headstart's own answers, without headstart."""

import csv
import io
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from headstart.cli.app import run as command
from headstart.data.images.folder import read_image
from headstart.errors import ConfigError, FileError, UnknownNameError, UsageError
from headstart.exporting.export import export
from headstart.exporting.onnx import answered
from headstart.training.adapt import adapt
from headstart.training.adapted import open_adapted
from headstart.training.predictions import predict
from tests.exporting.conftest import pigs

Made = Callable[..., Path]


def _icons(folder: Path, count: int | None = None) -> tuple[list[Path], Tensor]:
    """Return files of images, and what an exported model takes of them, by what preparation.json says."""
    paths = sorted((folder.parent / "icons").rglob("*.png"))[:count]
    return paths, torch.stack([read_image(path, 28, 1, "crop") for path in paths])


def _values(path: Path, told: dict[str, Any]) -> Tensor:
    """Return rows of a CSV file as preparation.json says that a model takes them."""
    rows = []
    for line in csv.DictReader(path.read_text().splitlines()):
        row = []
        for column in told["columns"]:
            text = line[column["column"]]
            if text == "":
                row.append(math.nan)
            elif column["kind"] == "category":
                row.append(column["categories"].index(text) if text in column["categories"] else -1)
            elif column["kind"] == "date":
                row.append((date.fromisoformat(text) - date(1970, 1, 1)).days)
            else:
                row.append(float(text))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def _probabilities(rows: list[dict[str, Any]], labels: list[str]) -> Tensor:
    return torch.tensor([[row["probabilities"][label] for label in labels] for row in rows])


def test_onnx_of_images_gives_what_predict_says_of_files_and_a_card(an_adapted: Made) -> None:
    folder = an_adapted("maml", "images")
    files = export(folder, "onnx")
    told, readme = json.loads(files["preparation.json"]), files["README.md"].decode()
    assert told["inputs"] == [{"name": "images", "type": "uint8", "shape": ["number of images", 1, 28, 28]}]
    assert told["images"]["fit"] == "crop" and "ImageOps.fit" in told["images"]["by"]
    for count in (None, 1):
        paths, images = _icons(folder, count)
        rows = predict(open_adapted(folder, device="cpu"), paths)
        found = answered(files["model.onnx"], {"images": images})["probabilities"]
        assert (found - _probabilities(rows, told["labels"])).abs().max() < 1e-5
    for part in ("3-way 3-shot", "MIT (", "| Seed | 0 |", "headstart train icons --method maml", "--to onnx"):
        assert part in readme


def test_onnx_of_a_table_standardises_rows_and_gives_intervals(an_adapted: Made, tmp_path: Path) -> None:
    folder = an_adapted("gaussian_process", "numbers")
    files = export(folder, "onnx", task="p10")
    told = json.loads(files["preparation.json"])
    table = pigs(tmp_path / "rows.csv", 14, 11, name="")
    rows = predict(open_adapted(folder, device="cpu"), table, task="p10")
    found = answered(files["model.onnx"], {"values": _values(table, told["values"])})
    for name in ("prediction", "low", "high"):
        expected = torch.tensor([float(row[name]) for row in rows], dtype=torch.float64)
        assert (found[name] - expected).abs().max() < 1e-5 * expected.std()
    assert "conformal by task" in files["README.md"].decode()


def test_onnx_of_texts_gives_what_predict_says_of_any_number(tmp_path: Path) -> None:
    mail = {"card": ["where is my card", "my card is lost"], "refund": ["my money back", "i want a refund"]}
    table = tmp_path / "mail.csv"
    table.write_text("text,label\n" + "".join(f"{text},{label}\n" for label in mail for text in mail[label]))
    adapted = adapt("ngrams", table, tmp_path / "mail", device="cpu")
    files = export(adapted, "onnx")
    told = json.loads(files["preparation.json"])
    texts = ["a new card please", "refund me", "?"]
    rows = predict(adapted, texts)
    given = torch.zeros(len(texts), told["bytes"]["length"], dtype=torch.int64)
    for place, text in enumerate(texts):
        given[place, : len(text)] = torch.tensor(list(text.lower().encode()), dtype=torch.int64)
    for count in (len(texts), 1):
        found = answered(files["model.onnx"], {"bytes": given[:count]})["probabilities"]
        assert (found - _probabilities(rows[:count], told["labels"])).abs().max() < 1e-5


def test_8_bit_products_are_smaller_and_their_cost_is_told(an_adapted: Made) -> None:
    folder = an_adapted("prototypes", "images")
    small = export(folder, "onnx", int8=True)
    assert b"onnx.quantize" in small["model.onnx"]
    _, images = _icons(folder)
    found = answered(small["model.onnx"], {"images": images})
    assert (found["probabilities"].sum(1) + found["unknown"] - 1).abs().max() < 1e-5
    assert "on the 9 images that it was learned from:" in small["README.md"].decode()


_ALONE = """
import sys
class Refused:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("headstart", "onnx", "onnxruntime"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refused())
sys.path.insert(0, sys.argv[1])
import torch
from load import load
from safetensors.torch import load_file, save_file
with torch.no_grad():
    save_file({"found": load()(load_file(sys.argv[2])["images"])[0]}, sys.argv[3])
assert not any(name.startswith("headstart") for name in sys.modules)
"""


def test_a_module_is_loaded_where_there_is_no_headstart(an_adapted: Made, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = an_adapted("maml", "images")
    assert command(["export", str(folder), "--to", "module", "--out", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out" / "load.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 20
    paths, images = _icons(folder)
    save_file({"images": images}, tmp_path / "given")
    words = [str(tmp_path / name) for name in ("out", "given", "found")]
    subprocess.run([sys.executable, "-c", _ALONE, *words], check=True, timeout=120, cwd=tmp_path)
    rows = predict(open_adapted(folder, device="cpu"), paths)
    labels = json.loads((tmp_path / "out" / "preparation.json").read_text())["labels"]
    assert (load_file(tmp_path / "found")["found"] - _probabilities(rows, labels)).abs().max() < 1e-5


def test_weights_of_a_module_are_the_network_s_own_as_adapted(an_adapted: Made) -> None:
    from safetensors.torch import load

    folder = an_adapted("maml", "images")
    weights = load(export(folder, "module")["model.safetensors"])
    (task,) = open_adapted(folder, device="cpu").tasks
    moved = {name: value[0] for name, value in task.adapted.params.items() if name.startswith("block")}
    assert moved and all(torch.equal(weights[name].flatten(), value.flatten()) for name, value in moved.items())


def test_a_program_runs_for_any_number_of_rows(an_adapted: Made, tmp_path: Path) -> None:
    folder = an_adapted("ridge", "classes")
    files = export(folder, "torch", task="p9")
    told = json.loads(files["preparation.json"])
    program: Any = torch.export.load(io.BytesIO(files["model.pt2"])).module()
    table = pigs(tmp_path / "rows.csv", 12, 10, name="")
    rows = predict(open_adapted(folder, device="cpu"), table, task="p9")
    values = _values(table, told["values"])
    for count in (len(values), 1):
        found, *_ = program(values[:count])
        assert (found - _probabilities(rows[:count], told["labels"])).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("method", "kind", "free"),
    [("prototypes", "images", True), ("ridge", "numbers", False), ("meta_sgd", "classes", True)],
)
def test_a_learner_adapts_inside_its_graph(a_run: Made, method: str, kind: str, free: bool) -> None:
    files = export(a_run(method, kind), "torch", learner=True)
    told = json.loads(files["preparation.json"])
    learner: Any = torch.export.load(io.BytesIO(files["model.pt2"])).module()
    assert isinstance(told["inputs"][0]["shape"][0], str) == free
    generator = torch.Generator().manual_seed(0)
    if kind == "images":  # each class has a mark of its own, which queries have, too
        marks = torch.randint(0, 256, (3, 1, 28, 28), generator=generator, dtype=torch.uint8)
        y = torch.tensor([2, 0, 1, 1, 0, 2, 2])
        found, *_ = learner(marks[y], y, marks)
        assert found.shape == (3, 3) and found.argmax(1).tolist() == [0, 1, 2]
    # `export` itself has compared it with headstart's own adapt and predict
    assert "On unseen test tasks" in files["README.md"].decode()


def test_a_learner_as_onnx_has_the_inner_gradients_in_it(a_run: Made) -> None:
    files = export(a_run("anil", "classes"), "onnx", learner=True)
    values = torch.tensor([[0.0, 0.0, 18262.0], [7.0, 1.0, 18280.0], [1.0, 0.0, 18263.0]], dtype=torch.float64)
    names = {"support_values": values[:2], "support_labels": torch.tensor([0, 1]), "query_values": values}
    found = answered(files["model.onnx"], names)["probabilities"]
    other = answered(files["model.onnx"], {**names, "support_labels": torch.tensor([1, 0])})["probabilities"]
    assert found.shape == (3, 2) and (found - other).abs().max() > 1e-3  # other labels, other answers


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node here")
def test_node_gives_the_same(an_adapted: Made, tmp_path: Path) -> None:
    folder = an_adapted("maml", "images")
    (tmp_path / "model.onnx").write_bytes(export(folder, "onnx")["model.onnx"])
    _, images = _icons(folder)
    (tmp_path / "images.bin").write_bytes(images.numpy().tobytes())
    script = Path(__file__).parents[2] / "tools" / "run_onnx.mjs"
    words = ["node", str(script), "model.onnx", f"images:uint8:{','.join(map(str, images.shape))}:images.bin"]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    if ran.returncode == 3:
        pytest.skip(ran.stderr.strip())
    assert ran.returncode == 0, ran.stderr
    expected = answered((tmp_path / "model.onnx").read_bytes(), {"images": images})["probabilities"]
    found = torch.tensor(json.loads(ran.stdout)["probabilities"]["data"]).view(expected.shape)
    assert (found - expected).abs().max() < 1e-5


def test_what_has_no_graph_is_refused_by_name(an_adapted: Made, a_run: Made) -> None:
    with pytest.raises(ConfigError, match="boosted_trees does not predict by a graph.*predict by headstart"):
        export(an_adapted("boosted_trees", "numbers", trees=5, steps=None, tasks_per_step=None), "module", task="p9")
    with pytest.raises(ConfigError, match="svm does not learn by a graph"):
        export(a_run("svm", "classes"), "torch", learner=True)


def test_what_does_not_go_together_is_refused(an_adapted: Made, a_run: Made, tmp_path: Path) -> None:
    many, one, run = an_adapted("ridge", "classes"), an_adapted("maml", "images"), a_run("maml", "images")
    for error, words, of, options in (
        (UsageError, "take --task: 'p10', 'p9'", many, {}),
        (UnknownNameError, "did you mean 'p9'", many, {"task": "p99"}),
        (UsageError, "int8 is for onnx", one, {"int8": True}),
        (UsageError, "ways and shots are for a learner", one, {"ways": 3}),
        (UsageError, "exported from a run's folder", one, {"learner": True}),
        (UsageError, "int8 and task", run, {"learner": True, "task": "p9"}),
        (ConfigError, "trained for 3 classes", run, {"learner": True, "ways": 4}),
        (UsageError, "shots must be from 1 to 1000, got 0", run, {"learner": True, "shots": 0}),
        (FileError, "is a run; adapt it", run, {}),
        (FileError, "holds no adapted model", tmp_path / "none", {}),
        (UnknownNameError, "format", one, {"to": "tflite"}),
    ):
        with pytest.raises(error, match=words):
            export(of, **{"to": "module", **options})


def test_the_command_writes_nothing_where_it_cannot(an_adapted: Made, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    folder = str(an_adapted("maml", "images"))
    for out, words in ((tmp_path / "there", "is not empty"), (tmp_path / "new", "unknown task")):
        assert command(["export", folder, "--to", "module", "--task", "x", "--out", str(out)]) == 2
        assert words in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine"] and not (tmp_path / "new").exists()
