"""The benchmark of the service: what it measures is of a service that answers right."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from benchmarks import service


def test_tasks_are_there_when_it_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["service", "--only", "restart", "--tasks", "20", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    service.main()
    found = json.loads((tmp_path / "service.json").read_text())["restart"]
    assert found["tasks"] == found["asked"] == found["right"] == 20 and found["seconds"] > 0


def test_five_kinds_of_drawings_differ() -> None:
    assert len({service.drawing(kind, seed) for kind in range(5) for seed in range(9)}) > 30
