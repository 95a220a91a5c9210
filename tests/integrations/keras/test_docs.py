"""The page "TensorFlow and Keras" tells the truth: its programs run one after the other, and print what they say."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed here; `make test-keras` has it")

import headstart.integrations.keras as package
from headstart.registry import keras_methods

PAGE = (Path(__file__).parents[3] / "docs" / "keras.md").read_text()


def test_the_programs_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "__main__"}
    programs = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    for program in programs:
        exec(compile(program, "keras.md", "exec"), space)
        printed = capsys.readouterr().out
        for line in re.findall(r"^#: (.*)$", program, re.M):
            assert line in printed.splitlines(), line
    assert len(programs) >= 6 and (tmp_path / "adapted.keras").exists()


def test_the_page_names_every_method():
    assert {name for name in keras_methods() if f"`{name}`" in PAGE} == set(keras_methods())


MODULES = [package.__name__, *(m.name for m in pkgutil.iter_modules(package.__path__, f"{package.__name__}."))]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of(name):
    assert doctest.testmod(importlib.import_module(name), optionflags=doctest.IGNORE_EXCEPTION_DETAIL).failed == 0
