"""Do something real with what an extra brings: ``python tools/smoke.py EXTRA``; it fails where that does not work.

One function an extra, by its name. `tools/smoke_extras.sh` calls each in an environment that has nothing else. Networks
are tiny, their weights random: nothing is downloaded.
"""

import base64
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import headstart
from headstart.models.trunks.trunk import features_of, open_trunk

ROOT = Path(__file__).parents[1]
WORDS = "[PAD] [UNK] [CLS] [SEP] where is my card the money back i want a refund".split()
_FEW = {"evaluate_tasks": 2, "test_tasks": 3, "threads": 1}
COLOURS = ["blue", "green", "red"]
#: An ONNX file that averages each channel, of onnx.helper: images (n, 3, 8, 8) to (n, 3, 1, 1).
MEANS = (
    "CAk6XAoZCgF4EgF5IhFHbG9iYWxBdmVyYWdlUG9vbBIDbmV0WhwKAXgSFwoVCAESEQoDEgFuCgIIAwoCCAgKAggIYhwKAXkSFwoVCAESEQoDEgFu"
    "CgIIAwoCCAEKAggBQgQKABAR"
)


def patients(path: Path) -> dict[str, list[float]]:
    """Write a table of 16 patients with a line each, and return its columns."""
    random = np.random.default_rng(0)
    patient = np.repeat(np.arange(16), 6)
    day = np.tile(np.arange(6.0), 16)
    value = random.normal(size=16)[patient] + random.normal(size=16)[patient] * day + random.normal(size=96) / 10
    columns = {"patient": patient.tolist(), "day": day.tolist(), "value": value.tolist()}
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([columns, *zip(*columns.values())])
    return columns


def fits(method: str, path: Path, **options: object) -> float:
    """Train a method on a table, and return its root mean squared error."""
    tasks = {"name": str(path), "task_column": "patient", "target": "value", "order": "first", "shots": 3}
    tree = {"tasks": tasks, "method": {"name": method, **options}, "run": {"evaluate_tasks": 4}}
    found = headstart.train(tree, path.with_name(method)).score
    assert found is not None and found.errors is not None
    return found.errors.rmse


def learns(network: str, examples: Path, asked: Any) -> list[str]:
    """Learn a few examples by a pretrained network, and return what others are taken for."""
    model = headstart.adapt(network, examples, examples.with_name(f"of-{network.partition(':')[0].rpartition('/')[2]}"))
    return [row["prediction"] for row in headstart.predict(model, asked)]


def colours(folder: Path, suffix: str = ".png") -> list[Image.Image]:
    """Write three classes of four images, and return one image of each."""
    shown = ((9, 9, 200), (9, 200, 9), (200, 9, 9))
    for name, colour in zip(COLOURS, shown):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            shade = tuple(part + 10 * number for part in colour)
            Image.new("RGB", (40, 30), shade).save(folder / name / f"{number}{suffix}")
    return [Image.new("RGB", (50, 50), colour) for colour in shown]


def tabular(place: Path) -> None:
    """A table in a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    path = place / "patients.parquet"
    pyarrow.parquet.write_table(pyarrow.table(patients(path)), path)
    assert fits("gaussian_process", path) < 1


def sklearn(place: Path) -> None:
    """Scikit-learn's face."""
    from headstart.integrations.sklearn import FewShotRegressor

    random = np.random.default_rng(0)
    slope, dose = random.normal(size=(20, 1)), random.uniform(-1, 1, size=(20, 8))
    regressor = FewShotRegressor(support=4, random_state=0)
    regressor.fit(dose.reshape(-1, 1), (slope * dose).ravel(), groups=np.repeat(np.arange(20), 8))
    x = np.linspace(-1, 1, 9).reshape(-1, 1)
    assert regressor.adapt(x[::4], 2 * x[::4, 0]).score(x, 2 * x[:, 0]) > 0.9


def search(place: Path) -> None:
    """Hyper-parameters of an estimator."""
    path = place / "patients.csv"
    patients(path)
    assert fits("search", path, trials=3) < 10


def baselines(place: Path) -> None:
    """A linear mixed-effects model."""
    path = place / "patients.csv"
    patients(path)
    assert fits("mixed_effects", path) < 1


def text(place: Path) -> None:
    """A transformer in a folder."""
    import tokenizers
    import transformers

    folder = place / "bert"
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    ids = {word: number for number, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, "[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    few = place / "few.csv"
    few.write_text("text,label\nwhere is my card,card\nmy card is where,card\ni want the money back,refund\n")
    assert learns(f"hf:{folder}", few, ["my card where", "the money back"]) == ["card", "refund"]


def vision(place: Path) -> None:
    """Networks of timm and of torchvision, with random weights where theirs would be."""
    import timm
    import torchvision
    from safetensors.torch import save_file

    asked, name = colours(place / "photos"), "mobilenetv3_small_050.lamb_in1k"
    hub = place / "hf" / "hub" / f"models--timm--{name}"
    snapshot = hub / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    for folder in (snapshot, hub / "refs"):
        folder.mkdir(parents=True)
    (hub / "refs" / "main").write_text(snapshot.name)
    network = timm.create_model(name)
    save_file(network.state_dict(), snapshot / "model.safetensors")
    network.reset_classifier(0)
    agrees(f"timm:{name}", network)
    learns(f"timm:{name}", place / "photos", asked)

    name = "mobilenet_v3_small"
    network, checkpoints = torchvision.models.get_model(name), place / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    torch.save(network.state_dict(), checkpoints / weights.url.rpartition("/")[2])
    network.classifier[-1] = torch.nn.Identity()
    agrees(f"torchvision:{name}", network)
    learns(f"torchvision:{name}", place / "photos", asked)
    torchvision.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)


def agrees(source: str, network: torch.nn.Module) -> None:
    """See that a door gives the features of the network itself, of images as it wants them."""
    trunk = open_trunk(source)
    told = trunk.told
    images = torch.randint(0, 256, (2, 3, told["size"], told["size"]), dtype=torch.uint8)
    mean, std = (torch.tensor(told[part]).view(3, 1, 1) for part in ("mean", "std"))
    assert 0.4 < mean.mean() < 0.5 and 0.2 < std.mean() < 0.3, told  # ImageNet's, of values in [0, 1]
    with torch.no_grad():
        torch.testing.assert_close(features_of(trunk, images), network.eval()((images / 255 - mean) / std).flatten(1))


def onnx(place: Path) -> None:
    """A network in an ONNX file."""
    (place / "net.onnx").write_bytes(base64.b64decode(MEANS))
    told = {"size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (place / "preprocessor_config.json").write_text(json.dumps(told))
    assert learns(f"onnx:{place / 'net.onnx'}", place / "photos", colours(place / "photos")) == COLOURS


def export(place: Path) -> None:
    """What was adapted as an ONNX file, which onnxruntime gives the same answers by; `headstart.export` compares."""
    (place / "points.csv").write_text("x,y\n0,0\n1,0.8\n2,0.9\n")
    headstart.train({"tasks": "sinusoid", "outer": {"steps": 2}, "run": _FEW}, place / "run")
    headstart.adapt(place / "run", place / "points.csv", place / "adapted")
    files = headstart.export(place / "adapted", "onnx")
    assert set(files) == {"model.onnx", "preparation.json", "README.md"} and len(files["model.onnx"]) > 1000


def icons(place: Path) -> None:
    """A drawing of an icon."""
    sys.path.insert(0, str(ROOT))
    from tools.icon_images import document, render

    assert render(document("<path d='M2 2h20v20H2z'/>", 0, 0, 24, 24)) is not None


def heic(place: Path) -> None:
    """Images of telephones."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    asked = colours(place / "photos", ".heic")
    (place / "net.py").write_text(
        "import headstart\nfrom torch import nn\n"
        "def means():\n    return headstart.of_images(nn.AvgPool2d(8), size=8, mean=(0, 0, 0), std=(1, 1, 1))\n"
    )
    assert learns(f"{place / 'net.py'}:means", place / "photos", asked) == COLOURS


def keras(place: Path) -> None:
    """A Keras model on TensorFlow: meta-trained, kept, and adapted to a new line."""
    import keras

    from headstart.integrations.keras import MetaModel

    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    slope, x = random.normal(size=(40, 1, 1)), random.uniform(-1, 1, size=(40, 8, 1))
    episodes = (x[:, :4], (slope * x)[:, :4]), (x[:, 4:], (slope * x)[:, 4:])
    model = MetaModel(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]), method="maml", steps=3, rate=0.5)
    model.compile("adam", loss="mse")
    model.fit(episodes, epochs=2, verbose=0)
    model.save(place / "model.keras")
    model = keras.saving.load_model(place / "model.keras")
    points = np.linspace(-1, 1, 5).reshape(-1, 1)
    adapted = model.adapt(points, 2 * points, steps=30)
    assert np.abs(adapted.predict(points, verbose=0) - 2 * points).max() < 0.1


def track(place: Path) -> None:
    """A run whose numbers all three trackers hold."""
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from headstart.training.track import TRACKERS

    run = place / "run"
    headstart.train({"tasks": "sinusoid", "outer": {"steps": 3}, "run": {**_FEW, "track": list(TRACKERS)}}, run)
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert [one.step for one in board.Scalars("loss")] == [1, 2, 3]
    client = MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    told = client.search_runs([client.get_experiment_by_name("headstart").experiment_id])[0]
    assert [one.step for one in client.get_metric_history(told.info.run_id, "loss")] == [1, 2, 3]
    assert [*(run / "wandb").glob("offline-run-*/*.wandb")]


def serve(place: Path) -> None:
    """The demo: taught and asked over HTTP."""
    words = [sys.executable, "-m", "headstart", "demo", "--no-browser"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stdout is not None
            client = headstart.Client(demo.stdout.readline().split()[4])
            colours(place / "photos")
            task = client.adapt(None, place / "photos")
            assert list(task.labels) == COLOURS and len(client.predict(task, place / "photos" / "red")) == 4
            client.close()
        finally:
            demo.terminate()


def teaches(place: Path, *words: str) -> None:
    """Start a service of texts with options, teach it, and ask it."""
    command = [sys.executable, "-m", "headstart", "serve", "ngrams", "--port", "0", "--drain", "0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            client = headstart.Client(service.stdout.readline().split()[2])
            task = client.adapt("ngrams", {"card": ["where is my card", "my card"], "money": ["my money", "a refund"]})
            assert [row["prediction"] for row in client.predict(task, ["the card", "the money"])] == ["card", "money"]
            client.delete(task)
            client.close()
        finally:
            service.terminate()


def postgres(place: Path) -> None:
    """A service that keeps its tasks in PostgreSQL; where no server can be started, a refusal that says so."""
    sys.path.insert(0, str(ROOT))
    from tools import postgres as server

    if server.lacking() is None:
        with server.running() as own:
            teaches(place, "--store", own.empty())
    else:
        words = [sys.executable, "-m", "headstart", "tokens", "list", "--store", "postgresql://a:hidden@127.0.0.1:9/b"]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 1 and "cannot be reached" in done.stderr and "hidden" not in done.stderr


def blobs(place: Path) -> None:
    """A service that keeps tensors in a folder."""
    teaches(place, "--store", str(place / "tasks.db"), "--blobs", (place / "blobs").as_uri())
    assert (place / "blobs").is_dir() and not [path for path in (place / "blobs").rglob("*") if path.is_file()]


def ray(place: Path) -> None:
    """A service under Ray; where no database can be started, its refusal of a file."""
    sys.path.insert(0, str(ROOT))
    from tools import postgres as server

    if server.lacking() is None:
        with server.running() as own:
            teaches(place, "--ray", "--store", own.empty())
    else:
        words = [sys.executable, "-m", "headstart", "serve", "ngrams", "--ray"]
        assert "PostgreSQL" in subprocess.run(words, capture_output=True, text=True).stderr


def slurm(place: Path) -> None:
    """Runs as jobs, of this machine."""
    from headstart.training.slurm import slurm as jobs
    from headstart.training.sweep import sweep

    tree = {"tasks": "sinusoid", "outer": {"steps": 2}, "run": _FEW}
    found = sweep(tree, ["maml"], place / "sweep", seeds=2, launch=jobs("local", timeout_min=5))
    assert not found.failed and list(found.settings[0].runs) == [0, 1]


def dev(place: Path) -> None:
    """What development needs: each extra in it, and its tools."""
    for extra in (tabular, search, baselines, text, onnx, export, serve, postgres, blobs):
        (place / extra.__name__).mkdir()
        extra(place / extra.__name__)
    for words in (["ruff", "check"], ["pytest", "-q", "-p", "no:cacheprovider", "tests/test_public.py"]):
        subprocess.run([sys.executable, "-m", *words], cwd=ROOT, check=True)


EXTRAS: dict[str, Callable[[Path], None]] = {
    each.__name__: each
    for each in (
        tabular,
        sklearn,
        search,
        baselines,
        text,
        vision,
        onnx,
        export,
        serve,
        postgres,
        blobs,
        ray,
        keras,
        track,
        slurm,
        dev,
        icons,
        heic,
    )
}

if __name__ == "__main__":
    where = Path(tempfile.mkdtemp())
    os.environ |= {"HEADSTART_CACHE": f"{where}/own", "HF_HOME": f"{where}/hf", "TORCH_HOME": f"{where}/torch"}
    torch.manual_seed(0)
    EXTRAS[sys.argv[1]](where)
