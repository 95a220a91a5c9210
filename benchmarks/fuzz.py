"""Read thousands of spoilt files of every kind that headstart reads: ``python -m benchmarks.fuzz --files 10000``.

Each is made from a good one by a draw of its own number (`benchmarks.mutations`), and read as a user's is. What may
come of it is an answer, or an error of `headstart.errors`. Anything else is a failure, told with the number by which
``--kinds KIND --first NUMBER --files 1`` does it again: another exception, a warning that is not headstart's own, more
than a bounded memory, no end, a program that ran, a file written elsewhere, a process that died.
"""

import argparse
import contextlib
import csv
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import mutations
from headstart.cli.output import print_json, print_table
from headstart.errors import FileError, HeadstartError
from headstart.training.files import MANIFEST, fingerprint, manifest, sealed, to_json, to_safetensors

#: Bytes that reading one small file may take, and seconds.
MEMORY, SECONDS = 1 << 30, 60.0
_RUN = {"seed": 1, "evaluate_tasks": 2, "test_tasks": 2, "save_every": 1, "device": "cpu"}
_OUTER = {"steps": 2, "tasks_per_step": 2}


class Kind(NamedTuple):
    """A kind of file."""

    make: Callable[[Path], None]
    """Write good ones to a new folder."""
    read: Callable[[Path], object]
    """Read them, as users do."""
    files: tuple[str, ...] = ("*",)
    """Which of them are spoilt, as patterns of paths."""
    share: float = 1.0
    """How many there are of it, beside the others."""


class Outcome(NamedTuple):
    """What came of a spoilt file."""

    kind: str
    number: int
    file: str
    way: str
    became: str
    """``answer``, the name of an error of headstart's, or ``FAILURE: …``."""
    details: str = ""

    @property
    def failed(self) -> bool:
        """Whether it is none of what may come of it."""
        return self.became.startswith("FAILURE")


def _train(place: Path, tasks: dict[str, Any], method: str, inner: int | None = None, **model: Any) -> None:
    from headstart.training.run import train

    own = {"name": method} if inner is None else {"name": method, "steps": inner}
    train({"tasks": tasks, "method": own, "outer": _OUTER, "run": _RUN, **({"model": model} if model else {})}, place)


def _run(place: Path) -> None:
    _train(place, {"name": "sinusoid"}, "maml", 1, name="mlp", hidden="4")


def _open(place: Path) -> None:
    from headstart.training.metrics import read_lines
    from headstart.training.report.report import report
    from headstart.training.run import open_run, test

    job, checkpoint = open_run(place)
    test(job, checkpoint.best.meta, episodes=2)
    read_lines(place)
    if _spoilt(place)[0].name in ("results.json", "metrics.jsonl", "structure.json"):  # it takes a second
        report(place, job, checkpoint.best.meta)


def _resume(place: Path) -> None:
    from headstart.training.config import resolve
    from headstart.training.run import train

    tree = json.loads((place.parent / "tree.json").read_text())
    tree["outer"]["steps"] = 3
    train(resolve(tree), place, tested=False)


def _chosen(place: Path) -> None:
    _csv(place)
    _choose(place)


def _choose(place: Path) -> None:
    from headstart.training.choose import train

    table = {"name": "table.csv", "task_column": "task", "target": "y", "shots": 3, "queries": 3}
    with contextlib.chdir(place):
        train({"tasks": table, "outer": _OUTER, "run": _RUN}, "run")


def _rows(tasks: int = 9, rows: int = 9) -> list[list[object]]:
    draw = random.Random(0)
    found: list[list[object]] = [["task", "a", "b", "c", "y"]]
    for task in range(tasks):
        for row in range(rows):
            colour = draw.choice(("red", "green", "blue"))
            found.append([f"t{task}", row, round(draw.gauss(0, 1), 3), colour, round(task + row * 0.5, 3)])
    return found


def _csv(place: Path) -> None:
    with (place / "table.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(_rows())


def _tables(place: Path) -> None:
    import gzip

    import pyarrow
    import pyarrow.parquet

    _csv(place)
    text = (place / "table.csv").read_text()
    (place / "table.tsv").write_text(text.replace(",", "\t"))
    with gzip.open(place / "zipped.csv", "wb") as file:
        file.write(text.encode())
    header, *rows = _rows()
    columns = {name: [row[at] for row in rows] for at, name in enumerate(map(str, header))}
    pyarrow.parquet.write_table(pyarrow.table(columns), place / "table.parquet")


def _tasks(place: Path, name: str, **options: Any) -> None:
    from headstart.training.build import build
    from headstart.training.config import resolve

    job = build(resolve({"tasks": {"name": str(place / name), **options}, "method": {"name": "nearest"}, "run": _RUN}))
    job.tasks.sample("train", range(2))


def _read_tables(place: Path) -> None:
    from headstart.training.build import build
    from headstart.training.config import resolve

    for path in _spoilt(place):
        table = {"name": str(path), "task_column": "task", "target": "y", "shots": 3, "queries": 3}
        job = build(resolve({"tasks": table, "method": {"name": "pooled"}, "run": _RUN}))
        job.tasks.sample("train", range(2))


def _spoilt(place: Path) -> list[Path]:
    """Return the file of several that was spoilt."""
    return [place / (place.parent / "spoilt.txt").read_text()]


def _texts(place: Path) -> None:
    draw = random.Random(1)
    words = "card money refund lost pin transfer fee cash late new where when how stop".split()
    rows = [(" ".join(draw.choices(words, k=5)) + f" {number}", f"label {number % 12}") for number in range(96)]
    with (place / "texts.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("text", "label"), *rows])
    (place / "texts.jsonl").write_text("".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in rows))
    for number, (text, label) in enumerate(rows):
        (place / "folder" / label).mkdir(parents=True, exist_ok=True)
        (place / "folder" / label / f"{number}.txt").write_text(text)


def _read_texts(place: Path) -> None:
    for path in _spoilt(place):
        name = "folder" if "folder" in path.parts else path.name
        _tasks(place, name, ways=2, shots=2, queries=2)


def _image(draw: random.Random, size: int = 9) -> Any:
    from PIL import Image

    return Image.fromarray(np.frombuffer(draw.randbytes(size * size * 3), np.uint8).reshape(size, size, 3))


#: By their endings, so that there is one of each.
_FORMATS = (".png", ".jpg", ".gif", ".bmp", ".tif", ".webp")


def _images(place: Path, classes: int = 12) -> None:
    draw = random.Random(2)
    for number in range(classes):
        folder = place / "photos" / f"class {number}"
        folder.mkdir(parents=True)
        for suffix in _FORMATS:
            _image(draw).save(folder / f"{number}{suffix}")


def _read_images(place: Path) -> None:
    _tasks(place, "photos", ways=2, shots=2, queries=2, image_size=8)


def _zip(place: Path) -> None:
    _images(place)
    shutil.make_archive(str(place / "photos"), "zip", place / "photos")
    shutil.rmtree(place / "photos")


def _lists(place: Path) -> None:
    _images(place)
    (place / "photos").rename(place / "data")
    folders = sorted(path.name for path in (place / "data").iterdir())
    (place / "set" / "splits" / "bertinetto").mkdir(parents=True)
    (place / "data").rename(place / "set" / "data")
    for name, own in (("train", folders[:6]), ("val", folders[6:9]), ("test", folders[9:])):
        (place / "set" / "splits" / "bertinetto" / f"{name}.txt").write_text("\n".join(own))
    images = sorted((place / "set" / "data").rglob("*.png")) + sorted((place / "set" / "data").rglob("*.jpg"))
    rows = [(str(path.relative_to(place)), path.parent.name) for path in images]
    with (place / "listed.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("filename", "label"), *rows])


def _read_lists(place: Path) -> None:
    for path in _spoilt(place):
        _tasks(place, "set" if "set" in path.parts else path.name, ways=2, shots=1, queries=1, image_size=8)


def _omniglot(place: Path) -> None:
    import zipfile

    from PIL import Image

    draw = random.Random(3)
    for name in ("images_background.zip", "images_evaluation.zip"):
        with zipfile.ZipFile(place / name, "w") as file:
            for character in range(2):
                for drawer in range(20):
                    image = Image.frombytes("L", (105, 105), bytes(draw.choices((0, 255), k=105 * 105))).convert("1")
                    with tempfile.SpooledTemporaryFile() as buffer:
                        image.save(buffer, "PNG")
                        buffer.seek(0)
                        path = f"{name[:-4]}/Alphabet {name[7]}/character{character}/{drawer:04d}.png"
                        file.writestr(path, buffer.read())
    _read_omniglot(place)  # which keeps its cache beside


def _read_omniglot(place: Path) -> None:
    from headstart.data.images import omniglot

    own = omniglot.ZIPS
    omniglot.ZIPS = dict.fromkeys(own, 2)
    try:
        omniglot.read_omniglot(place)
    finally:
        omniglot.ZIPS = own


def _intents(place: Path) -> None:
    from headstart.data.text.clinc150 import DOMAINS

    names = [name for own in DOMAINS.values() for name in own]
    rows = {part: [[f"{part} {name} {number}", name] for name in names for number in range(2)] for part in _PARTS}
    others = {f"oos_{part}": [[f"nothing {part}", "oos"]] for part in _PARTS}
    (place / "data_full.json").write_text(json.dumps(rows | others))


_PARTS = ("train", "val", "test")


def _read_intents(place: Path) -> None:
    from headstart.data.text.clinc150 import read_clinc150

    read_clinc150(place)


def _adapted(place: Path, sources: dict[str, Callable[[Path], None]] | None = None) -> None:
    """Adapt runs on curves, images, texts and a table to a new task."""
    from headstart.training.adapt import adapt

    work = place / "work"
    work.mkdir()
    _csv(work), _texts(work), _images(work)
    _train(place / "work" / "curves", {"name": "curves"}, "maml", 1, name="mlp", hidden="4")
    few = {"ways": 2, "shots": 2, "queries": 2}
    _train(
        work / "images",
        {"name": str(work / "photos"), "image_size": 8, **few},
        "prototypes",
        name="conv4",
        filters=2,
    )
    _train(work / "texts", {"name": str(work / "texts.csv"), **few}, "prototypes")
    table = {"name": str(work / "table.csv"), "task_column": "task", "target": "y", "shots": 3, "queries": 3}
    _train(work / "table", table, "maml", 1, name="mlp", hidden="4")
    (work / "points.csv").write_text("x,y\n0,1\n0.5,2\n1,3\n")
    for name in ("class 0", "class 1"):
        shutil.copytree(work / "photos" / name, work / "two" / name)
    two = [row for row in csv.reader((work / "texts.csv").open()) if row[1] in ("label", "label 0", "label 1")]
    csv.writer((work / "two.csv").open("w")).writerows(two)
    for name, source in (("curves", "points.csv"), ("images", "two"), ("texts", "two.csv"), ("table", "table.csv")):
        adapt(str(work / name), work / source, out=place / name)
    shutil.rmtree(work)


def _read_adapted(place: Path) -> None:
    """Predict with the one that was spoilt, and add to it."""
    from headstart.training.adapt import adapt
    from headstart.training.adapted import open_adapted
    from headstart.training.predictions import predict

    (path,) = _spoilt(place)
    folder = place / path.relative_to(place).parts[0]
    new = place / "new"
    new.mkdir()
    _csv(new), _texts(new), _images(new, 2)
    (new / "points.csv").write_text("x,y\n0,1\n0.5,2\n1,3\n")
    given = {"curves": "points.csv", "images": "photos", "texts": "texts.csv", "table": "table.csv"}[folder.name]
    try:
        predict(open_adapted(folder), [str(new / given)])
    finally:
        adapt(str(folder), new / given, out=new / "more")


def _sklearn(place: Path) -> None:
    from headstart.integrations.sklearn import FewShotClassifier, FewShotRegressor

    draw = np.random.default_rng(0)
    x, groups = draw.normal(size=(48, 2)), np.arange(48) % 6
    FewShotRegressor(steps=2, random_state=0).fit(x, x[:, 0] * groups, groups=groups).save(place / "regressor")
    labels = np.where(x[:, 0] > 0, "yes", "no")
    FewShotClassifier(steps=2, random_state=0, support=2).fit(x, labels, groups=groups).save(place / "classifier")


def _read_sklearn(place: Path) -> None:
    from headstart.integrations.sklearn import FewShotClassifier, FewShotRegressor

    (path,) = _spoilt(place)
    own = FewShotRegressor if "regressor" in path.parts else FewShotClassifier
    own.load(path.parent).predict(np.zeros((2, 2)))


_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"where is my card ? the money back i want please a refund lost".split()]


def _bert(place: Path) -> None:
    """A transformer as sentence-transformers saves one, with adapters of peft's beside it, and the same as ONNX."""
    import onnx
    import transformers
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = place / "bert"
    config = transformers.BertConfig(
        vocab_size=len(_WORDS), hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=20,
    )  # fmt: skip
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(_WORDS)}, "[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    words.save(str(folder / "tokenizer.json"))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 10, "do_lower_case": false}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}'
    )
    (place / "adapters").mkdir()
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["query"], "layers_to_transform": [1]}
    (place / "adapters" / "adapter_config.json").write_text(json.dumps(told))
    name = "base_model.model.encoder.layer.1.attention.self.query"
    weights = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}
    save_file(weights, place / "adapters" / "adapter_model.safetensors")
    shutil.copytree(folder, place / "onnx")
    (place / "onnx" / "model.safetensors").unlink()
    ids = onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["n", "length"])
    out = onnx.helper.make_tensor_value_info("tokens", onnx.TensorProto.FLOAT, ["n", "length", 2])
    rows = onnx.numpy_helper.from_array(torch.arange(40.0).view(20, 2).sin().numpy(), "table")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gather", ["table", "input_ids"], ["tokens"])], "net", [ids], [out], [rows]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(place / "onnx" / "net.onnx"))


def _read_bert(place: Path) -> None:
    from headstart.algorithms.tuned import trunk
    from headstart.models.trunks.trunk import features_of, open_trunk

    (path,) = _spoilt(place)
    if "onnx" in path.parts:
        features_of(open_trunk(f"onnx:{place / 'onnx' / 'net.onnx'}"), ["where is my card", "money"])
    elif "adapters" in path.parts:
        trunk(5, source=f"hf:{place / 'bert'}", tuned=place / "adapters")
    else:
        features_of(open_trunk(f"hf:{place / 'bert'}"), ["where is my card", "money"])


def _resnet(place: Path) -> None:
    import transformers

    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    transformers.ResNetModel(config).save_pretrained(place)
    seen = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    (place / "preprocessor_config.json").write_text(json.dumps(seen))


def _read_resnet(place: Path) -> None:
    from headstart.models.trunks.trunk import features_of, open_trunk

    features_of(open_trunk(f"hf:{place}"), torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


def _weights(place: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(3), "b": torch.ones(2, 2)}}, place / "weights.bin")


def _convert(place: Path) -> None:
    from headstart.models.trunks.convert import to_safetensors

    to_safetensors(place / "weights.bin", place / "out.safetensors")


_CONFIG = """tasks:
  name: icons
  ways: 5
  shots: 1
method:
  name: maml
  steps: 2
model:
  name: conv4
  filters: 8
outer:
  steps: 10
"""


def _configs(place: Path) -> None:
    import yaml

    tree = yaml.safe_load(_CONFIG)
    (place / "options.yaml").write_text(_CONFIG)
    (place / "options.json").write_text(json.dumps(tree))
    parts = (f"[{part}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in own.items()) for part, own in tree.items())
    (place / "options.toml").write_text("\n".join(parts))


def _read_configs(place: Path) -> None:
    from headstart.training.config import read_config_file, resolve

    for path in _spoilt(place):
        resolve(read_config_file(path), str(path))


def _tensors(place: Path) -> None:
    values = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(4, dtype=torch.int64), "c": torch.ones(2).bfloat16()}
    (place / "some.safetensors").write_bytes(to_safetensors(values))


def _read_tensors(place: Path) -> None:
    from headstart.training.files import from_safetensors, read

    from_safetensors(read(place / "some.safetensors"), "some.safetensors")


_NET = """import torch
from headstart.models.trunks.trunk import of_images

def images():
    torch.manual_seed(0)
    return of_images(torch.nn.Flatten(), size=2, mean=(0, 0, 0), std=(1, 1, 1))
"""


def _features(place: Path) -> None:
    with _cache(place):
        _read_features(place)


@contextlib.contextmanager
def _cache(place: Path) -> Iterator[None]:
    own = os.environ.get("HEADSTART_CACHE")
    os.environ["HEADSTART_CACHE"] = str(place)
    try:
        yield
    finally:
        os.environ.pop("HEADSTART_CACHE")
        if own is not None:
            os.environ["HEADSTART_CACHE"] = own


def _read_features(place: Path) -> None:
    """Features, and decoded images, as they are kept in the cache."""
    from headstart.data import encoder
    from headstart.data.images import decoded
    from headstart.models.trunks.trunk import open_trunk

    (place.parent / "net.py").write_text(_NET)
    made = open_trunk(f"{place.parent / 'net.py'}:images")
    images = torch.arange(48, dtype=torch.uint8).view(4, 3, 2, 2)
    most = decoded.MOST_IN_MEMORY
    decoded.MOST_IN_MEMORY = 0
    (place.parent / "one.raw").write_bytes(b"one")
    try:
        with _cache(place):
            assert encoder.features(made, [images]).shape == (4, 12)
            decoded.decoded([place.parent / "one.raw"], (3, 2, 2), "as it is", lambda paths: [images[0]])
    finally:
        decoded.MOST_IN_MEMORY = most


def _search(place: Path) -> None:
    _read_search(place)


def _read_search(place: Path) -> None:
    from headstart.algorithms.search import Choice, Uniform, best_of

    best_of(lambda values: (values["x"] - 0.3) ** 2, {"x": Uniform(0.0, 1.0), "k": Choice("a", "b")}, 3, 0, place)


def _matrix(place: Path) -> None:
    _read_matrix(place)


def _read_matrix(place: Path) -> None:
    from headstart.training.matrix import matrix

    sources = [{"name": "icons", "ways": 2, "shots": 1, "queries": 1}]
    options = {"model": {"name": "conv4", "filters": 2}, "outer": _OUTER, "run": _RUN}
    matrix(options, sources, None, ["prototypes"], place / "table")


_TOLD = ("config.json", "preparation.json", "results.json", "metrics.jsonl")

KINDS: dict[str, Kind] = {
    "tensors": Kind(_tensors, _read_tensors, share=6),
    "configurations": Kind(_configs, _read_configs, share=3),
    "runs": Kind(_run, _open, (*_TOLD, "checkpoints/step-000000002.safetensors"), share=1.5),
    "runs resumed": Kind(_run, _resume, (*_TOLD, "checkpoints/*"), share=1.5),
    "choices": Kind(_chosen, _choose, ("run/choice.json", "run/results.json"), share=0.1),
    "adapted": Kind(_adapted, _read_adapted, ("*.json", "*.safetensors"), share=1),
    "estimators": Kind(_sklearn, _read_sklearn, share=4),
    "tables": Kind(_tables, _read_tables, share=4),
    "texts": Kind(_texts, _read_texts, ("*.csv", "*.jsonl", "folder/label 0/0.txt"), share=2),
    "intents": Kind(_intents, _read_intents, share=1),
    "images": Kind(_images, _read_images, ("photos/class 0/*",), share=3),
    "zips of images": Kind(_zip, partial(_tasks, name="photos.zip", ways=2, shots=2, queries=2, image_size=8), share=2),
    "lists of images": Kind(_lists, _read_lists, ("*.csv", "*.txt"), share=1),
    "omniglot": Kind(_omniglot, _read_omniglot, share=1.5),
    "caches": Kind(_features, _read_features, share=3),
    "networks for texts": Kind(_bert, _read_bert, share=3),
    "networks for images": Kind(_resnet, _read_resnet, share=3),
    "pickled weights": Kind(_weights, _convert, share=1),
    "searches": Kind(_search, _read_search, share=1),
    "matrices": Kind(_matrix, _read_matrix, ("*/judged.json",), share=0.1),
}


def examples(name: str, work: Path) -> Path:
    """Make the good files of a kind, once, and return their folder."""
    place, now = work / "good" / name, work / "now" / "files"  # where they will be read, too: some tell their own paths
    if not place.exists():
        shutil.rmtree(now.parent, ignore_errors=True)
        now.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            KINDS[name].make(now)
        shutil.copytree(now, place)
    return place


def spoil(place: Path, kind: Kind, draw: random.Random) -> tuple[str, str]:
    """Spoil one of the files, and say which and how; mostly, manifests and digests are made to fit again."""
    name = draw.choice(_files(place, kind))
    path = place / name
    if draw.random() < 0.03:
        way = mutations.misplaced(path, draw)
    else:
        way, data = mutations.mutated(name, path.read_bytes(), draw)
        path.write_bytes(data)
        if path.name != MANIFEST and draw.random() < 0.8:
            _sign(path)
    return name, way


def _files(place: Path, kind: Kind) -> list[str]:
    """Return the names of a kind's files."""
    names = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
    return [name for name in names if any(fnmatch(name, pattern) for pattern in kind.files)]


def _lay(name: str, good: Path, work: Path, spoilt: str) -> None:
    """Lay a kind's good files where they are read, and beside them what else reading takes."""
    shutil.rmtree(work / "now", ignore_errors=True)
    shutil.copytree(good, work / "now" / "files")
    (work / "now" / "spoilt.txt").write_text(spoilt)
    if name == "runs resumed":
        shutil.copy(good / "config.json", work / "now" / "tree.json")


def _sign(path: Path) -> None:
    """Have the manifest beside a file, and its digest of itself where it has one, fit what is there now."""
    if path.name == "preparation.json":
        with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError):
            told = json.loads(path.read_bytes())
            told.pop("sha256", None)
            path.write_bytes(to_json({**told, "sha256": fingerprint(to_json(told))["sha256"]}))
    if path.suffix == ".safetensors":
        with contextlib.suppress(FileError):  # it is none of those that are sealed
            path.write_bytes(sealed(path.read_bytes(), path.name))
    beside = path.with_name(MANIFEST)
    if beside.is_file():
        told = json.loads(beside.read_bytes())
        beside.write_bytes(manifest({name: (path.parent / name).read_bytes() for name in told["files"]}))


def attempt(name: str, number: int, good: Path, work: Path) -> Outcome:
    """Read one spoilt file, in this process."""
    kind, draw = KINDS[name], random.Random(f"{name} {number}")
    place = work / "now" / "files"
    _lay(name, good, work, "")
    file, way = spoil(place, kind, draw)
    (place.parent / "spoilt.txt").write_text(file)
    became, details = "answer", ""
    mutations.mark().unlink(missing_ok=True)
    _WRITTEN.clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            kind.read(place)
        except HeadstartError as error:
            became = type(error).__name__
            if not str(error).strip():
                became = "FAILURE: no message"
        except MemoryError:
            became, details = "FAILURE: memory", traceback.format_exc()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            became, details = f"FAILURE: {type(error).__name__}", traceback.format_exc()
    strange = [
        one for one in told if one.category is not UserWarning and not one.category.__module__.startswith("headstart")
    ]
    if mutations.mark().exists() or mutations.mark().name in str(_WRITTEN):
        became, details = "FAILURE: payload", str(_WRITTEN)
    elif escaped := [path for path in _WRITTEN if not path.startswith(str(work))]:
        became, details = "FAILURE: written elsewhere", str(escaped[:3])
    elif strange and not became.startswith("FAILURE"):
        became, details = f"FAILURE: {strange[0].category.__name__}", f"{strange[0].filename}: {strange[0].message}"
    return Outcome(name, number, file, way, became, details)


#: What was opened to write since the last file was read.
_WRITTEN: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if (
        event == "open"
        and isinstance(arguments[0], (str, bytes, os.PathLike))
        and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    ):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not path.startswith("/dev/"):
            _WRITTEN.append(path)
    elif event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"):
        _WRITTEN.append(f"{mutations.MARK} {event} {arguments}")


def _child(name: str, numbers: Sequence[int], good: Path, work: Path, pipe: int) -> None:
    """Read spoilt files one after another, within a bounded memory, and tell of each."""
    os.fsync = lambda file: None  # no crash is to be outlived here
    from matplotlib.figure import Figure

    Figure.savefig = lambda self, file, **_: file.write(b"\x89PNG")
    sys.stderr = open(os.devnull, "w")
    # before memory is bounded all is imported, and good files are seen to be read
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _lay(name, good, work, next(name for name in _files(good, KINDS[name])))
        KINDS[name].read(work / "now" / "files")
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY, resource.RLIM_INFINITY))
    sys.addaudithook(_watch)
    for number in numbers:
        os.write(pipe, f"{number}\n".encode())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = attempt(name, number, good, work)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(pipe, (json.dumps([*found, grown]) + "\n").encode())


def fuzz(name: str, numbers: Sequence[int], work: Path, note: Callable[[str], None]) -> tuple[list[Outcome], int]:
    """Read so many spoilt files of a kind, in processes that may die or hang, and return the most kB one took."""
    good, found, most = examples(name, work), list[Outcome](), 0
    left = list(numbers)
    while left:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setsid()
                os.close(reader)
                _child(name, left, good, work, writer)
                code = 0
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(code)
        os.close(writer)
        buffer, now, hung = b"", None, False
        while True:
            ready, _, _ = select.select([reader], [], [], SECONDS if now is not None else 10 * SECONDS)
            part = os.read(reader, 1 << 20) if ready else b""
            if not part:
                hung = not ready
                break
            buffer += part
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                told = json.loads(line)
                if isinstance(told, int):
                    now = told
                else:
                    *values, grown = told
                    found.append(Outcome(*values))
                    most = max(most, grown)
                    left.remove(found[-1].number)
                    if found[-1].failed:
                        note(f"{name} {found[-1].number}: {found[-1].became} ({found[-1].file}, {found[-1].way})")
        os.close(reader)
        if hung:
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if left and (hung or status):
            number = left[0] if now not in left else now
            why = f"no end in {SECONDS:.0f} s" if hung else f"the process died ({os.waitstatus_to_exitcode(status)})"
            note(f"{name} {number}: {why}")
            found.append(Outcome(name, number, "", "", f"FAILURE: {why}"))
            left.remove(number)
    return found, most


def main(words: Sequence[str] | None = None) -> int:
    """Run, print a table by kind and the failures, and return 1 where there is one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=str(__doc__).partition(":")[0] + ".")
    parser.add_argument("--files", type=int, default=10_000, help="how many, over all kinds; default: 10,000")
    parser.add_argument("--first", type=int, default=0, help="the number of the first; default: 0")
    parser.add_argument("--kinds", default=",".join(KINDS), help="joined by commas; default: all")
    parser.add_argument("--json", action="store_true", help="print all outcomes as JSON")
    given = parser.parse_args(words)
    names = [name.strip() for name in given.kinds.split(",")]
    for name in names:
        if name not in KINDS:
            parser.error(f"unknown kind {name!r}; known: {', '.join(KINDS)}")
    torch.set_num_threads(1)
    total, rows, outcomes = sum(KINDS[name].share for name in names), [], list[Outcome]()
    note = partial(print, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="headstart-fuzz-") as place:
        work = Path(place).resolve()
        for name, folder in (("TMPDIR", "tmp"), ("HEADSTART_CACHE", "cache")):
            (work / folder).mkdir()
            os.environ[name] = str(work / folder)
        tempfile.tempdir = str(work / "tmp")
        for name in names:
            count, began = max(1, round(given.files * KINDS[name].share / total)), time.monotonic()
            found, most = fuzz(name, range(given.first, given.first + count), work, note)
            outcomes += found
            became = Counter("failures" if one.failed else one.became for one in found)
            errors = ", ".join(f"{kind} {n}" for kind, n in became.most_common() if kind not in ("answer", "failures"))
            seconds = time.monotonic() - began
            rows.append(
                (
                    name,
                    f"{len(found)}",
                    f"{became['answer']}",
                    errors,
                    f"{became['failures']}",
                    f"{most / 1024:.0f} MB",
                    f"{seconds:.0f} s",
                )
            )
            note(f"{name}: {len(found)} files in {seconds:.0f} s, {became['failures']} failures")
    failures = [one for one in outcomes if one.failed]
    if given.json:
        print_json({"files": len(outcomes), "failures": [one._asdict() for one in failures], "rows": rows})
        return bool(failures)
    for one in failures:
        print(f"{one.kind} {one.number}: {one.became} ({one.file}, {one.way})\n{one.details}")
    print_table(
        f"{len(outcomes)} spoilt files",
        ("kind", "files", "answers", "errors", "failures", "most memory", "time"),
        rows,
        left=1,
    )
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
