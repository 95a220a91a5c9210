"""The public names, and what importing them costs."""

import subprocess
import sys
from importlib import import_module

import pytest

import headstart
from headstart import registry


@pytest.mark.parametrize("name", headstart.__all__)
def test_every_public_name_resolves(name):
    assert getattr(headstart, name) is not None
    assert name in dir(headstart)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'headstart' has no attribute 'mmal'"):
        _ = headstart.mmal


def test_every_registered_method_and_model_is_public():
    names = {row.name for what in ("method", "model") for row in registry._ROWS[what]}
    assert names <= set(headstart.__all__), f"add to src/headstart/__init__.pyi: {names - set(headstart.__all__)}"


def loaded_after(statement):
    code = f"import sys; {statement}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_importing_headstart_imports_nothing_else():
    assert not loaded_after("import headstart") & {
        "torch",
        "numpy",
        "pydantic",
        "cyclopts",
        "rich",
        "matplotlib",
        "yaml",
    }


def test_making_a_learner_imports_nothing_optional():
    loaded = loaded_after("import headstart; headstart.maml; headstart.testing; headstart.rules")
    assert "torch" in loaded
    assert not loaded & {"pydantic", "cyclopts", "matplotlib", "PIL"}


@pytest.mark.parametrize("row", [row for kind in ("method", "task", "model") for row in registry.rows(kind)])
def test_every_registered_thing_is_there(row):
    module, attribute = row.target.split(":")
    assert callable(getattr(import_module(module), attribute))


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(headstart.errors.UnknownNameError, match="unknown method 'mamal'; did you mean 'maml'"):
        registry.find("method", "mamal")
