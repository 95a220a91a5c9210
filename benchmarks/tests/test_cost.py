"""The benchmark of costs: what it counts, and what it writes."""

import json

import pytest
import torch

import headstart
from benchmarks import cost
from headstart.types import Info, Meta


def test_one_suite_is_measured_and_written(tmp_path, capsys):
    cost.main(["--suite", "sine-1", "--methods", "anil,nearest,proto_maml", "--repeats", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "cost.json").read_text())
    measured = found["suites"]["sine-1"]
    maml, anil = measured["rows"]
    assert (maml["method"], anil["method"]) == ("maml", "anil")
    assert maml["end"]["time"] == maml["end"]["memory"] == 1
    # the head alone moves, so far less is kept for the backward pass
    assert 0.05 < anil["end"]["memory"] < 0.7 and anil["end"]["time"] > 0
    assert set(measured["left_out"]) == {"nearest", "proto_maml"}
    assert found["versions"]["torch"] == torch.__version__ and "--suite sine-1" not in found["device"]
    text = (tmp_path / "cost.md").read_text()
    assert "| `anil` | 1761 | 0 |" in text and "Left out: `nearest` takes no inner steps" in text
    assert "| `anil` | 1761 | 0 |" in capsys.readouterr().out


def test_memory_is_counted_at_its_peak():
    def gradient(learner, meta, episodes):
        first, second = torch.zeros(1000), torch.zeros(500)
        del first
        third = torch.zeros(200)
        return Meta({"w": second}, {"m": third}), Info(torch.zeros(0))

    case = cost.make("maml", cost.SUITES["sine-1"])
    learner = case.learner._replace(gradient=gradient)
    assert cost.peak_bytes(learner, case) == 4 * 1500
    assert cost.peak_bytes(case.learner, case) == cost.peak_bytes(case.learner, case) > 100_000


def test_the_course_of_a_method_that_changes_is_walked():
    suite = cost.SUITES["sine-5"]._replace(module=lambda: headstart.mlp(1, 1, hidden=(4,)))
    case = cost.make("maml_plus_plus", suite)
    course = case.course()
    assert sum(share for _, share in course) == pytest.approx(1)
    # first order for a third, the multi-step loss for a tenth
    assert sum(share for learner, share in course if not learner.exact) == pytest.approx(1 / 3)
    assert sum(share for learner, share in course if learner.objective) == pytest.approx(1 / 10)
    assert len(course) == 3
    ((end, mean),) = cost.timed([case], 1)["maml_plus_plus"]
    assert end > 0 and mean > 0 and end != mean
    assert len(cost.make("maml", suite).course()) == 1


def test_an_unknown_method_is_refused(tmp_path):
    with pytest.raises(headstart.errors.UnknownNameError, match="mmal"):
        cost.main(["--methods", "mmal", "--out", str(tmp_path)])
