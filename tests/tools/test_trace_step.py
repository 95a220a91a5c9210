"""The way of the data is short."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def trace_step(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    return importlib.import_module("trace_step")


@pytest.mark.parametrize(("name", "files", "switches"), [("sine", 15, 120), ("conv4", 18, 800)])
def test_an_outer_step_goes_through_few_files(trace_step, name, files, switches):
    step = getattr(trace_step, name)()
    step()
    found = trace_step.trace(step)
    assert "core/inner.py" in found and len(set(found)) <= files
    assert sum(one != other for one, other in zip(found, found[1:])) <= switches
