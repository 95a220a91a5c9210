"""Examples through a pretrained network: computed once, kept on disk, and the same for new tasks."""

import os

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from headstart import tasks
from headstart.cache import NotKeptWarning
from headstart.data import encoder
from headstart.data.encoder import Encoder, content, encoded, features, trimmed
from headstart.data.fewshot import class_store, few_shot
from headstart.errors import ConfigError, FileError
from headstart.models.trunks.trunk import Trunk, of_images, of_texts

CALLS: list[int] = []


class Counted(nn.Module):
    """Ids as the mean and the sum of their vectors; it counts the texts that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Embedding(256, 3, padding_idx=0)

    def forward(self, ids):
        CALLS.append(len(ids))
        found = self.vectors(ids) * (ids != 0).unsqueeze(-1)
        return torch.cat([found.sum(1), found.sum(1) / (ids != 0).sum(1, keepdim=True).clamp(min=1)], 1)


def in_bytes(texts):
    data = [list(text.encode())[:30] for text in texts]
    return torch.tensor([row + [0] * (max(map(len, data)) - len(row)) for row in data])


@pytest.fixture
def trunk(tmp_path, monkeypatch) -> Trunk:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    torch.manual_seed(0)
    module = Counted()
    found = of_texts(module, in_bytes, pad=0, source="here")
    monkeypatch.setattr(encoder, "features_of", lambda trunk, part: module(trunk.inputs(part)).detach())
    CALLS.clear()
    return found


def test_features_are_computed_once_and_read_from_the_disk(trunk, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "_CHUNK", 2)
    parts = [["one", "two", "three"], ["four"], ["five", "six"]]
    first = features(trunk, parts)
    assert CALLS == [2, 2, 2]
    (file,) = (tmp_path / "features").iterdir()
    torch.testing.assert_close(load_file(file)["features"], first)
    torch.testing.assert_close(features(trunk, parts), first, rtol=0, atol=0)
    assert sum(CALLS) == 6  # nothing was computed again
    features(trunk, [["one", "two", "three!"]])
    assert sum(CALLS) == 9
    torch.testing.assert_close(first[3:4], trunk.build()(in_bytes(["four"])).detach())


@pytest.mark.parametrize(
    ("sizes", "together"), [((1, 1, 1, 1, 1), [2, 2, 1]), ((3, 2, 1), [2, 1, 2, 1]), ((0, 2), [2])]
)
def test_examples_of_several_classes_go_together(sizes, together, monkeypatch):
    monkeypatch.setattr(encoder, "_CHUNK", 2)
    images = torch.arange(sum(sizes), dtype=torch.uint8).view(-1, 1, 1, 1).split(sizes)
    texts = [[str(int(one)) for one in part] for part in images]
    for parts in (images, texts):
        found = list(encoder._chunks(parts))
        assert [len(part) for part in found] == together
        assert [int(one) for part in found for one in part] == list(range(sum(sizes)))


def test_what_takes_long_says_how_far_it_is(trunk, monkeypatch, capsys):
    monkeypatch.setattr(encoder, "_CHUNK", 2)
    features(trunk, [["one", "two"], ["three"]])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(encoder, "_LINE_SECONDS", 0)
    features(trunk, [["one", "two"], ["four"]])
    assert capsys.readouterr().err == "texts through here: 2 of 3\ntexts through here: 3 of 3\n"


@pytest.mark.parametrize("damage", ["cut", "other", "none", "zeros"])
def test_a_file_that_is_not_whole_is_computed_again(trunk, tmp_path, damage):
    first = features(trunk, [["one", "two"]]).clone()
    (file,) = (tmp_path / "features").iterdir()
    if damage == "none":
        file.unlink()
    else:
        data = file.read_bytes()
        zeros = data[:-8] + bytes(8)  # as large as it was
        file.write_bytes({"cut": data[:-4], "other": b"something else", "zeros": zeros}[damage])
    torch.testing.assert_close(features(trunk, [["one", "two"]]), first, rtol=0, atol=0)


def test_what_stops_on_the_way_leaves_no_file(trunk, tmp_path, monkeypatch):
    def fails(trunk, part):
        raise KeyboardInterrupt

    monkeypatch.setattr(encoder, "features_of", fails)
    with pytest.raises(KeyboardInterrupt):
        features(trunk, [["one"]])
    assert list((tmp_path / "features").iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="a device that is no folder")
def test_where_the_folder_cannot_be_written_features_are_in_memory(trunk, monkeypatch):
    kept = features(trunk, [["one", "two"], ["three"]])
    monkeypatch.setenv("HEADSTART_CACHE", "/dev/null")
    with pytest.warns(NotKeptWarning, match="features cannot be kept in /dev/null/features .*HEADSTART_CACHE"):
        torch.testing.assert_close(features(trunk, [["one", "two"], ["three"]]), kept)


def test_contents_differ_where_texts_are_cut_elsewhere():
    assert content([["ab", "c"]]) != content([["a", "bc"]])
    assert content([["ab", "c"]]) == content([["ab"], ["c"]])
    assert content([torch.zeros(1, 4)]) != content([torch.zeros(2, 2)])


def test_stores_of_all_splits_share_one_tensor(trunk):
    classes = {"train": {"b": ["bee", "bat"], "a": ["ant"]}, "test": {"c": ["cat", "cow"]}}
    seen = encoded(trunk, "features", classes, "texts")
    module = trunk.build()
    for split, own in classes.items():
        examples, starts, sizes, names = seen.stores[split]
        for start, size, name in zip(starts, sizes, names):
            expected = module(in_bytes(own[name])).detach()
            torch.testing.assert_close(examples[start : start + size], expected)
    with pytest.raises(ConfigError, match="takes texts, but these tasks are of images"):
        encoded(trunk, "features", {"train": {"a": torch.zeros(1, 3, 2, 2, dtype=torch.uint8)}}, "images")


def test_ids_lose_the_places_that_no_text_reaches():
    assert trimmed(torch.tensor([[1, 0, 0, 0], [2, 3, 0, 0]]), 0).tolist() == [[1, 0], [2, 3]]
    assert trimmed(torch.zeros(2, 3, dtype=torch.int64), 0).shape == (2, 1)


def test_episodes_of_texts_are_the_networks_inputs_and_features(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "texts.csv"
    rows = [f"number {n} of class {name},{name}" for name in "abcdefghij" for n in range(4)]
    path.write_text("\n".join(["text,label", *rows]))
    own = tmp_path / "own.py"
    own.write_text(
        "import torch, headstart\nfrom torch import nn\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    body = nn.EmbeddingBag(256, 5, padding_idx=0)\n"
        "    def ids(texts):\n"
        "        data = [list(text.encode())[:30] for text in texts]\n"
        "        return torch.tensor([row + [0] * (max(map(len, data)) - len(row)) for row in data])\n"
        "    return headstart.of_texts(body, ids, pad=0)\n"
    )
    made = {
        how: tasks.text(path, encoder=f"{own}:make", encoded=how, ways=2, shots=1, queries=3)
        for how in ("features", "inputs")
    }
    support = {how: one.sample("train", [3, 4]).support.x for how, one in made.items()}
    assert support["features"].shape == (2, 2, 5) and support["inputs"].dtype == torch.int64
    torch.manual_seed(0)
    body = nn.EmbeddingBag(256, 5, padding_idx=0)
    torch.testing.assert_close(body(support["inputs"].flatten(0, 1)).view(2, 2, 5), support["features"])


def test_images_of_any_family_go_through_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    trunk = of_images(nn.AvgPool2d(4), size=4, mean=(0, 0, 0), std=(1, 1, 1))
    images = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8)
    stores = {"train": class_store({"a": images[:3], "b": images[3:]})}
    monkeypatch.setattr(encoder, "open_trunk", lambda source: trunk)
    monkeypatch.setattr(encoder, "features_of", lambda trunk, part: trunk.build()(trunk.inputs(part)))
    made = few_shot("own", stores, ways=2, shots=1, queries=2, encoder="hf:any")
    x = made.sample("train", [0]).support.x[0]
    known = (images.float().mean((1, 2, 3)) / 255).view(6, 1).expand(-1, 3)
    assert all(any(torch.allclose(row, one, atol=1e-5) for one in known) for row in x)
    assert made.details["image_shape"] == (1, 4, 4) and made.input_shape == (3,)


def test_what_a_run_keeps_is_checked():
    whole = {"source": "hf:x", "sha256": "0", "encoded": "features", "shape": [3], "told": {}}
    found = Encoder.read(whole, "here")
    assert found is not None and found.shape == (3,) and Encoder.read(None, "here") is None
    for name, value in (("shape", [0]), ("shape", "?"), ("encoded", "both"), ("told", 3)):
        with pytest.raises(FileError, match="here"):
            Encoder.read({**whole, name: value}, "here")
