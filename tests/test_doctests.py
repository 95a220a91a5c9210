"""The examples in docstrings run, and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import headstart

MODULES = [m.name for m in pkgutil.walk_packages(headstart.__path__, "headstart.") if not m.name.endswith("__main__")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    assert sum(len(t.examples) for name in MODULES for t in finder.find(importlib.import_module(name))) > 30
