"""Networks of transformers, read by what lies in their folder."""

import json
import os
import shutil

import pytest
import torch

from headstart.data.encoder import Encoder
from headstart.data.text.read import CutTextWarning
from headstart.errors import FileError
from headstart.models.trunks.trunk import features_of, module_of, open_trunk

TEXTS = ["where is my card ?", "Refund", "please i want my money back , the card is lost and lost and lost"]


def copy_of(bert, tmp_path, **changed):
    """Return a copy of the folder with other contents of some of its files; ``None`` takes one away."""
    folder = shutil.copytree(bert, tmp_path / "other")
    for name, contents in changed.items():
        path = folder / name.replace("__", "/")
        path = next(path.parent.glob(f"{path.name}.*"))
        path.unlink() if contents is None else path.write_text(json.dumps(contents))
    return folder


def test_features_are_the_mean_of_the_tokens_scaled_to_length_1(bert):
    transformers = pytest.importorskip("transformers")
    trunk = open_trunk(f"hf:{bert}")
    model = transformers.BertModel.from_pretrained(bert, add_pooling_layer=False).eval()
    ids = trunk.inputs(TEXTS[:1])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(ids).last_hidden_state.mean(1), dim=-1)
    torch.testing.assert_close(features_of(trunk, TEXTS)[:1], expected, rtol=1e-5, atol=1e-6)
    assert trunk.told["pooling"] == "mean" and trunk.told["normalised"] and trunk.told["length"] == 10


def test_texts_are_cut_where_the_folder_says_and_padded_to_the_longest(bert):
    ids = open_trunk(f"hf:{bert}").inputs(TEXTS)
    assert ids.shape == (3, 10)
    assert ids[1].tolist() == [2, 16, 3] + [0] * 7


def test_texts_that_are_cut_are_counted(bert):
    trunk = open_trunk(f"hf:{bert}")
    assert trunk.cut(["card", "card " * 8, "card " * 9, "c" * 100, "lost " * 100]) == 2
    like = Encoder(trunk.source, trunk.sha256, "features", (8,), {})
    with pytest.warns(CutTextWarning, match="1 of 2 texts is longer than the 10 tokens that hf:.* reads"):
        like(["card", "card " * 9])


def test_of_an_enormous_text_enough_is_read(bert, monkeypatch):
    texts = ["card lost " * 100, "where" + " " * 100 + "is my card", "c" * 100, "my card " * 5, "card"]
    read = []
    for letters in (2, 10**6):
        monkeypatch.setattr("headstart.models.trunks.folder._LETTERS", letters)
        trunk = open_trunk(f"hf:{bert}")
        read.append((trunk.inputs(texts).tolist(), trunk.cut(texts)))
    assert read[0] == read[1] and read[0][1] == 2


def test_a_text_does_not_depend_on_which_are_beside_it(bert):
    trunk = open_trunk(f"hf:{bert}")
    together = features_of(trunk, TEXTS)
    alone = torch.cat([features_of(trunk, [text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ["cls_token", "max_tokens", "mean_sqrt_len_tokens"])
def test_other_poolings(bert, tmp_path, how):
    folder = copy_of(bert, tmp_path, **{"1_Pooling__config": {f"pooling_mode_{how}": True}, "modules": [
        {"path": "", "type": "Transformer"}, {"path": "1_Pooling", "type": "Pooling"}]})  # fmt: skip
    trunk = open_trunk(f"hf:{folder}")
    with torch.no_grad():
        tokens = module_of(trunk).model(trunk.inputs(TEXTS[:1])).last_hidden_state[0]
    expected = {"cls_token": tokens[0], "max_tokens": tokens.amax(0), "mean_sqrt_len_tokens": tokens.sum(0) / 7**0.5}
    torch.testing.assert_close(features_of(trunk, TEXTS)[0], expected[how], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tokenizer": None}, "has no tokenizer.json, without which no text can be read"),
        ({"model": None}, "has no weights as .*safetensors: they are missing"),
        ({"config": None}, "has no config.json"),
        ({"1_Pooling__config": {"pooling_mode_weightedmean_tokens": True}}, "pools by weightedmean_tokens; read is"),
        ({"modules": [{"path": "", "type": "x" * (17 << 20)}]}, "modules.json has .* bytes; expected at most"),
        ({"config": []}, "files beside hf:.* do not say what they should"),
        ({"modules": [{}]}, "files beside hf:.* do not say what they should: KeyError: 'type'"),
        ({"sentence_bert_config": {"max_seq_length": -1}}, "no file says how many tokens"),
        ({"modules": [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]}, "has a part .*Dense"),
    ],
)  # fmt: skip
def test_what_a_folder_must_have(bert, tmp_path, changed, words):
    with pytest.raises(FileError, match=words):
        open_trunk(f"hf:{copy_of(bert, tmp_path, **changed)}")


def test_files_that_would_never_end_are_refused(bert, tmp_path):
    folder = copy_of(bert, tmp_path)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "num_hidden_layers": 2**32}))
    with pytest.raises(FileError, match="num_hidden_layers 4294967296; its weights are .* tensors"):
        module_of(open_trunk(f"hf:{folder}"))
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(FileError, match="config.json is not JSON"):
        open_trunk(f"hf:{folder}")
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(FileError):
            open_trunk(f"hf:{folder}")
        (folder / name).unlink()
        shutil.copy(bert / name, folder / name)


def test_a_pooling_in_any_folder_is_part_of_what_the_network_is(bert, tmp_path):
    kinds = {"": "Transformer", "9_Pool": "Pooling"}
    folder = copy_of(bert, tmp_path, modules=[{"path": path, "type": kind} for path, kind in kinds.items()])
    (folder / "1_Pooling").rename(folder / "9_Pool")
    before = open_trunk(f"hf:{folder}").sha256
    (folder / "adapted").mkdir()  # what is made beside it is no part of it
    (folder / "adapted" / "config.json").write_text("{}")
    assert open_trunk(f"hf:{folder}").sha256 == before
    (folder / "9_Pool" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(FileError, match="is not what it was"):
        open_trunk(f"hf:{folder}", sha256=before)


def test_no_more_tokens_than_there_are_positions(bert, tmp_path):
    trunk = open_trunk(f"hf:{copy_of(bert, tmp_path, sentence_bert_config={'max_seq_length': 100})}")
    assert features_of(trunk, ["card " * 50]).shape == (1, 8) and trunk.told["length"] == 20


def test_weights_that_are_missing_are_refused_not_drawn(bert, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copy_of(bert, tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layer.1" in name)
    save_file(
        {key: value for key, value in weights.items() if key != name}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(FileError, match="would be random numbers"):
        module_of(open_trunk(f"hf:{folder}"))


def test_a_name_that_is_not_here_is_an_error_at_once():
    pytest.importorskip("huggingface_hub", reason="the extra `text` is not installed")
    with pytest.raises(FileError, match="nothing is downloaded. Get its files where there is a network"):
        open_trunk("hf:nobody/no-such-network")
    with pytest.raises(FileError, match="there is no folder /nowhere/net; bring the network back"):
        open_trunk("hf:/nowhere/net")


def test_another_network_in_its_place_is_refused(bert, tmp_path):
    folder = copy_of(bert, tmp_path, sentence_bert_config={"max_seq_length": 5})
    with pytest.raises(FileError, match="is not what it was when the run was made"):
        open_trunk(f"hf:{folder}", sha256=open_trunk(f"hf:{bert}").sha256)


def test_images_are_made_what_their_own_file_says(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra `text` is not installed")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    told = {
        "size": {"height": 16, "width": 16},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.2, 0.1],
        "resample": 3,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    trunk = open_trunk(f"hf:{tmp_path}")
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    mean, std = (torch.tensor(told[f"image_{name}"]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = model((images / 255 - mean) / std).last_hidden_state[:, 0]
    torch.testing.assert_close(features_of(trunk, images), expected, rtol=1e-4, atol=1e-5)
    assert trunk.inputs(torch.zeros(2, 1, 40, 30, dtype=torch.uint8)).shape == (2, 3, 16, 16)


def test_adapters_over_it_keep_the_contract_on_padded_texts(bert):
    from headstart import prototypes
    from headstart.algorithms.tuned import trunk
    from headstart.testing import check_learner
    from headstart.types import Batch, Episodes

    net = trunk(10, source=f"hf:{bert}", rank=2, blocks=1).double()
    for name, value in net.named_parameters():
        if name.endswith("up"):  # else the gradient of what stands before it is nothing
            torch.nn.init.normal_(value, std=0.3, generator=torch.Generator().manual_seed(1))
    ids = open_trunk(f"hf:{bert}").inputs(TEXTS + [" ".join(text.split()[::-1]) for text in TEXTS] + ["card", "lost ?"])
    x, y = ids.view(2, 4, 10), torch.tensor([[0, 0, 1, 1]]).expand(2, -1)
    check_learner(lambda how: prototypes(net, ways=2, taskmap=how), Episodes(Batch(x, y), Batch(x.flip(1), y.flip(1))))
