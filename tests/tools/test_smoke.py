"""Every extra has a program that tries it; those whose packages are here run, others in tools/smoke_extras.sh."""

import importlib
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def extras(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("smoke").EXTRAS


def test_every_extra_is_tried(extras):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) == set(project["optional-dependencies"])


@pytest.mark.parametrize(
    ("extra", "package"),
    [
        ("onnx", "onnxruntime"),
        ("serve", "fastapi"),
        ("postgres", "psycopg"),
        ("blobs", "obstore"),
        ("heic", "pillow_heif"),
        ("icons", "resvg_py"),
    ],
)
def test_what_is_here_works(extras, extra, package, tmp_path, monkeypatch):
    if find_spec(package) is None:
        pytest.skip(f"the extra {extra} is not installed")
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    extras[extra](tmp_path)
