"""Where pretrained networks come from, and what is refused."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from headstart.data.encoder import features
from headstart.errors import ConfigError, DataError, FileError, ShapeError, UsageError
from headstart.models.trunks.convert import to_safetensors
from headstart.models.trunks.source import absolute, is_source
from headstart.models.trunks.trunk import features_of, needs, of_images, of_texts, open_trunk

OWN = """
import torch, headstart
from torch import nn

def images():
    torch.manual_seed(0)
    return headstart.of_images(nn.Conv2d(3, 4, 3), size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

def bare():
    return nn.Linear(2, 3)

def broken():
    raise KeyError("weights")

def leaves():
    raise SystemExit(0)

def flipped():
    torch.manual_seed(0)
    turned = nn.Sequential(nn.Conv2d(3, 4, 3))
    turned[0].register_forward_hook(lambda *given: -given[2])
    return headstart.of_images(turned, size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

def unflipped():
    torch.manual_seed(0)
    return headstart.of_images(
        nn.Sequential(nn.Conv2d(3, 4, 3)), size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def test_a_function_of_your_own(own):
    trunk = open_trunk(f"{own}:images")
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    torch.manual_seed(0)
    with torch.no_grad():
        expected = nn.Conv2d(3, 4, 3)((images / 255 - 0.5) / 0.5).mean((2, 3))
    torch.testing.assert_close(features_of(trunk, images), expected)
    assert open_trunk(f"{own}:images").sha256 == trunk.sha256


def test_functions_of_one_file_are_different_networks_though_their_weights_are_the_same(own, tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    images = [torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)]
    plain, turned = (features(open_trunk(f"{own}:{name}"), images).clone() for name in ("unflipped", "flipped"))
    torch.testing.assert_close(turned, -plain)


def test_a_file_may_print_and_have_data_classes(tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nprint('loading')\n"
        "@dataclass\nclass Sizes:\n    width: int = 4\n" + OWN
    )
    open_trunk(f"{tmp_path / 'own.py'}:images")
    assert capsys.readouterr() == ("", "loading\n")  # the output is for answers


def test_a_file_that_has_changed_is_not_run(own, tmp_path):
    sha256 = open_trunk(f"{own}:images").sha256
    own.write_text(OWN + f"\nopen({str(tmp_path / 'was run')!r}, 'w')\n")
    with pytest.raises(FileError, match="is not what it was"):
        open_trunk(f"{own}:images", sha256=sha256)
    assert not (tmp_path / "was run").exists()


def test_a_service_opens_it_once(own):
    program = f"""
from headstart.models.trunks import trunk
source = {f"{own}:images"!r}
sha256 = trunk.open_trunk(source).sha256
trunk.keep_open()
kept = trunk.open_trunk(source, sha256=sha256)
open({str(own)!r}, "w").write("raise SystemExit(1)")
assert trunk.open_trunk(source, sha256=sha256) is kept and kept.build() is kept.build()
try:
    trunk.open_trunk(source, sha256="0" * 64)
except trunk.FileError:
    print("another one is refused")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "another one is refused\n", done.stderr


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("bare", ConfigError, "returns a Linear, which does not say what it takes; return headstart.of_images"),
        ("broken", ConfigError, "fails: KeyError: 'weights'"),
        ("missing", ConfigError, "fails: AttributeError"),
        ("leaves", ConfigError, "fails: SystemExit: 0"),
    ],
)
def test_what_a_function_of_your_own_must_return(own, name, error, words):
    with pytest.raises(error, match=words):
        open_trunk(f"{own}:{name}")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("conv4", "no pretrained network; expected one of hf:FOLDER, timm:NAME"),
        ("nowhere.py:make", "cannot read nowhere.py"),
        ("onnx:nowhere.onnx", "there is no such file"),
    ],
)
def test_what_is_not_there(source, words):
    with pytest.raises((ConfigError, FileError), match=words):
        open_trunk(source)


def test_sources_are_known_without_torch():
    code = "import sys, headstart.training.config; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    assert is_source("hf:x") and not is_source("py:x") and not is_source("hf:")


def test_files_are_named_by_their_absolute_paths(own, monkeypatch):
    monkeypatch.chdir(own.parent)
    assert absolute("own.py:images") == f"{own}:images"
    assert absolute("hf:.") == f"hf:{own.parent}"
    assert absolute("hf:some/name") == "hf:some/name"


def test_sizes_and_channels_that_do_not_fit():
    with pytest.raises(UsageError, match="three channels"):
        of_images(nn.Flatten(), size=8, mean=(0.5,), std=(0.5,))
    trunk = of_images(nn.Flatten(), size=2, mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(ShapeError, match="expected uint8 images"):
        trunk.inputs(torch.zeros(1, 3, 2, 2))


def test_features_that_are_no_numbers_are_refused(monkeypatch):
    trunk = of_texts(nn.Embedding(4, 2), lambda texts: torch.zeros(len(texts), 1, dtype=torch.int64), pad=0)
    from headstart.models.trunks import trunk as place

    class Nothing(nn.Module):
        def forward(self, ids):
            return torch.full((len(ids), 2), torch.nan)

    monkeypatch.setattr(place, "module_of", lambda trunk: Nothing())
    with pytest.raises(DataError, match="not finite"):
        features_of(trunk, ["a"])


def test_weights_are_converted_only_where_they_are_weights_alone(tmp_path):
    class Program:
        def __reduce__(self):
            return (print, ("was run",))

    torch.save({"state_dict": {"w": torch.arange(3.0)}}, tmp_path / "good.pth")
    torch.save({"w": Program()}, tmp_path / "bad.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert to_safetensors(tmp_path / "good.pth", tmp_path / "good.safetensors") == ["w"]
    with pytest.raises(FileError, match="cannot be read as weights alone"):
        to_safetensors(tmp_path / "bad.pth", tmp_path / "bad.safetensors")
    with pytest.raises(DataError, match="no dict of tensors"):
        to_safetensors(tmp_path / "list.pth", tmp_path / "list.safetensors")
    with pytest.raises(FileError, match="in the way"):
        to_safetensors(tmp_path / "good.pth", tmp_path / "good.safetensors")


def test_what_is_not_installed_or_fails_is_said_with_the_way_on(monkeypatch):
    def found(name):
        if name == "gone":
            raise ModuleNotFoundError("no", name="gone")
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("headstart.models.trunks.trunk.import_module", found)
    with pytest.raises(ConfigError, match=r"gone is not installed; `pip install headstart\[vision\]`"):
        needs("gone", "vision")
    with pytest.raises(ConfigError, match=r"timm fails: .*was not built for this PyTorch.*nms.*from one index"):
        needs("timm", "vision")
