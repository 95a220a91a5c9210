"""A pretrained network as the model of a run: what a configuration becomes, and the way to predictions."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from headstart.cli import app
from headstart.data.kind import find_kind
from headstart.errors import ConfigError
from headstart.training.build import make_tasks
from headstart.training.compare import configs_of
from headstart.training.config import command, normal, resolve

NETWORK = """
import headstart, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.letters = nn.Embedding(128, 8)
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    def forward(self, ids):
        return self.blocks((self.letters(ids) * (ids != 0)[..., None]).sum(-2))

def texts():
    torch.manual_seed(0)

    def tokenize(texts):
        ids = [list(text.lower().encode("ascii", "ignore"))[:40] for text in texts]
        return torch.tensor([row + [0] * (max(map(len, ids)) - len(row)) for row in ids])

    return headstart.of_texts(Net(), tokenize, pad=0)

def images():
    torch.manual_seed(0)
    return headstart.of_images(nn.AvgPool2d(7), size=14, mean=(0.5,) * 3, std=(0.5,) * 3)
"""
SMALL = "--ways 2 --steps 2 --tasks-per-step 2 --evaluate-tasks 2 --test-tasks 4".split()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    words = "card refund limit exchange balance address phone pin cheque loan".split()
    rows = [f"{before} my {word},{word}" for word in words for before in ("about", "lost", "where is", "new")]
    (tmp_path / "intents.csv").write_text("\n".join(["text,label", *rows]))
    (tmp_path / "few.csv").write_text("text,label\nzzz zz,sleep\nzz zzz zz,sleep\naaa,scream\naa aaaa,scream\n")
    return tmp_path


def headstart(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code, (out, error) = app.run(words), capsys.readouterr()
    assert code == 0, error
    return out


def test_a_frozen_network_is_what_the_tasks_go_through(place):
    config = resolve({"tasks": "intents.csv", "model": "net.py:texts"})
    assert config.option("tasks.encoder") == f"{place}/net.py:texts"
    assert config.model is not None and config.model.name == "projection"
    assert config.method.name == "prototypes" and config.option("method.distance") == "cosine"
    assert resolve(config.tree()) == config
    again = command(config).split()
    assert f"--encoder {place}/net.py:texts" in " ".join(again) and "--model" not in again


@pytest.mark.parametrize("given", ["model", "encoder", "encoded"])
def test_of_a_tuned_one_they_are_its_inputs(place, given):
    tree = {"tasks": {"name": "intents.csv", "encoder": "net.py:texts"}, "model": {"tuned": "last"}}
    if given == "model":
        tree = {"tasks": "intents.csv", "model": {"name": "net.py:texts", "tuned": "last"}}
    elif given == "encoded":
        tree["tasks"] |= {"encoded": "inputs"}
        tree["model"] = {"tuned": "last", "name": "trunk"}
    config = resolve(tree)
    assert config.option("tasks.encoded") == "inputs"
    assert config.option("model.source") == config.option("tasks.encoder") == f"{place}/net.py:texts"
    assert config.model is not None and config.model.name == "trunk" and resolve(config.tree()) == config


def test_two_networks_are_refused(place):
    with pytest.raises(ConfigError, match="give one of them"):
        normal({"tasks": {"name": "intents.csv", "encoder": "hf:other"}, "model": "net.py:texts"})


@pytest.mark.parametrize("more", [[], ["--tuned", "low_rank", "--rank", "2"]], ids=["frozen", "tuned"])
def test_from_texts_to_predictions(place, capsys, more):
    headstart(capsys, "train", "intents.csv", "--model", "net.py:texts", *more, *SMALL, "--out", "run")
    names = {name for path in (place / "run").rglob("*.safetensors") for name in load_file(path)}
    assert any(name.endswith("up") for name in names) == bool(more)
    assert not any("letters" in name or ".layer." in name for name in names)  # what is frozen is in no file
    headstart(capsys, "adapt", "run", "few.csv", "--out", "mine")
    (place / "asked.csv").write_text("text\nzzzz\naaaa\n")
    rows = json.loads(headstart(capsys, "predict", "mine", "asked.csv", "--json"))
    assert [row["prediction"] for row in rows] == ["sleep", "scream"]
    # texts of other lengths are put beside those that were learned
    (place / "more.csv").write_text("text,label\nlong long long longer texts,long\n")
    (place / "all.csv").write_text((place / "few.csv").read_text() + "long long long longer texts,long\n")
    headstart(capsys, "adapt", "mine", "more.csv", "--out", "added")
    headstart(capsys, "adapt", "run", "all.csv", "--out", "whole")
    added, whole = (json.loads(headstart(capsys, "predict", one, "asked.csv", "--json")) for one in ("added", "whole"))
    for one, other in zip(added, whole, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    (place / "net.py").write_text(NETWORK + "\nimport os; os.remove('intents.csv')\n")
    assert app.run(["predict", "mine", "asked.csv"]) != 0
    assert "is not what it was when the run was made" in capsys.readouterr().err
    assert (place / "intents.csv").exists()  # the other file was not run


def test_images_of_a_built_in_family(place):
    config = resolve({"tasks": {"name": "icons", "encoder": "net.py:images"}})
    kept = find_kind("images").preparation(make_tasks(config, torch.device("cpu")))
    assert kept is not None and kept["encoder"]["shape"] == (3,) and kept["input_shape"] == [1, 28, 28]


def test_methods_are_compared_on_features(place):
    parts = normal({"tasks": "intents.csv", "model": "net.py:texts"})
    configs = configs_of(parts, ("prototypes", "ridge", "nearest"))
    assert {config.option("tasks.encoder") for config in configs.values()} == {f"{place}/net.py:texts"}
    assert configs["nearest"].model is None and configs["ridge"].option("model.name") == "projection"


@pytest.mark.parametrize(
    ("target", "more"),
    [(False, ["--tuned", "low_rank", "--rank", "2"]), (True, [])],
    ids=["classes, tuned", "numbers, frozen"],
)
def test_texts_of_many_tasks(place, capsys, more, target):
    shops = [(shop, f"{'my ' * n}{word}") for shop in range(6) for n in range(4) for word in ("card", "loan")]
    rows = [f"s{shop},{text},{text.count('my') + len(text) / 100 if target else text[-4:]}" for shop, text in shops]
    (place / "shops.csv").write_text("\n".join(["shop,text,label", *rows]))
    (place / "few.csv").write_text("\n".join(["text,label", *(row.partition(",")[2] for row in rows[:6])]))
    words = "--task-column shop --shots 2 --steps 2 --tasks-per-step 2 --evaluate-tasks 2 --test-tasks 2".split()
    words += ["--target", "label"] if target else []
    headstart(capsys, "train", "text", "--data", "shops.csv", "--model", "net.py:texts", *more, *words, "--out", "run")
    headstart(capsys, "adapt", "run", "few.csv", "--out", "mine")
    rows = json.loads(headstart(capsys, "predict", "mine", "few.csv", "--json"))
    assert json.loads((place / "run" / "config.json").read_text())["method"]["name"] == (
        "alpaca" if target else "prototypes"
    )
    assert len(rows) == 6 and (rows[0].keys() >= {"low", "high"} if target else rows[0]["prediction"] == "card")


def test_texts_in_a_table_become_its_features(place, capsys):
    rows = [f"s{row % 6},{row % 5},{'my ' * (row % 7)}card number {row},{row % 7}" for row in range(72)]
    (place / "visits.csv").write_text("\n".join(["shop,hours,note,score", *rows]))
    words = "--task-column shop --target score --shots 3 --method ridge --model identity --text-numbers 3".split()
    small = "--steps 2 --tasks-per-step 2 --evaluate-tasks 2 --test-tasks 2".split()
    headstart(capsys, "train", "visits.csv", *words, *small, "--text-encoder", "net.py:texts", "--out", "run")
    told = json.loads((place / "run" / "preparation.json").read_text())["preparation"]["features"]
    assert told[1]["network"]["source"] == f"{place}/net.py:texts" and told[1]["numbers"] == 3
    assert "3 numbers (features of" in (place / "run" / "README.md").read_text()
    headstart(capsys, "adapt", "run", "visits.csv", "--out", "mine")
    kept = set((place / "cache" / "features").iterdir())
    assert len(json.loads(headstart(capsys, "predict", "mine", "visits.csv", "--json"))) == 72
    assert kept == set((place / "cache" / "features").iterdir()), "what is predicted must not stay"
    (place / "net.py").write_text(NETWORK + "\n# changed\n")
    assert app.run(["predict", "mine", "visits.csv"]) != 0
    assert "is not what it was when the run was made" in capsys.readouterr().err
    assert app.run(["train", "visits.csv", *words, "--text-encoder", "net.py:images"]) != 0
    assert "takes images" in capsys.readouterr().err
