"""The examples in docstrings run, and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import headstart


def needs_tensorflow(name):
    """Those are looked at in an environment of their own, by `make test-keras`."""
    return name.startswith("headstart.integrations.keras")


# to look for modules in a package is to import it
FOUND = pkgutil.walk_packages(headstart.__path__, "headstart.", onerror=lambda name: None)
MODULES = [m.name for m in FOUND if not m.name.endswith("__main__") and not needs_tensorflow(m.name)]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    assert sum(len(t.examples) for name in MODULES for t in finder.find(importlib.import_module(name))) > 30
