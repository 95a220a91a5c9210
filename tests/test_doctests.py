"""The examples in docstrings run, and print what they say."""

import doctest
import importlib
import pkgutil
from importlib.util import find_spec

import pytest

import headstart

#: Keras' and Ray's are looked at in environments of their own; others need what may not be installed.
ELSEWHERE = ("headstart.integrations.keras", "headstart.serve.on_ray")
NEEDS = {"headstart.serve.postgres": "psycopg", "headstart.serve.blobs": "obstore"}


def is_here(name):
    return not name.startswith(ELSEWHERE) and find_spec(NEEDS.get(name, "headstart")) is not None


# to look for modules in a package is to import it
FOUND = pkgutil.walk_packages(headstart.__path__, "headstart.", onerror=lambda name: None)
MODULES = [m.name for m in FOUND if not m.name.endswith("__main__") and is_here(m.name)]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    assert sum(len(t.examples) for name in MODULES for t in finder.find(importlib.import_module(name))) > 30
