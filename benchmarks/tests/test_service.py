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


def test_litserve_answers_as_the_service_by_hand_does() -> None:
    pytest.importorskip("litserve", reason="litserve is not installed: pip install litserve")
    from benchmarks.peers import service_by_hand, service_by_litserve

    api = service_by_litserve.FewShot(max_batch_size=8)
    api.setup("cpu")
    lessons = [service.examples(task) for task in range(2)]
    ids = [service_by_hand.create(one)["id"] for one in lessons]
    made = api.predict([{"path": "", **one} for one in lessons])
    asked = [{"inputs": [{"image": service.drawing(kind, 7)} for kind in range(1 + task)]} for task in range(2)]
    found = api.predict([{"path": f"/{one['id']}/predict", **body} for one, body in zip(made, asked)])
    for own, body, answers in zip(ids, asked, found, strict=True):
        for row, same in zip(answers["predictions"], service_by_hand.predict(own, body)["predictions"], strict=True):
            assert row["prediction"] == same["prediction"]
            assert row["probabilities"] == pytest.approx(same["probabilities"], abs=1e-5)


def test_five_kinds_of_drawings_differ() -> None:
    assert len({service.drawing(kind, seed) for kind in range(5) for seed in range(9)}) > 30
