"""Trainings under faults: a sound one ends with the same bytes, and one that forgets is found out."""

import json
import os

import pytest

from headstart.cli import app
from headstart.errors import ConfigError
from headstart.testing.faults import flip
from headstart.training.files import to_json, to_safetensors
from headstart.training.soak import compare, rows, soak, to_values
from tests.short import tree

SHORT = {"tasks": "sinusoid", "hidden": "4", "steps": 40, "save_every": 1, "evaluate_tasks": 2, "test_tasks": 2}

#: What processes do when they start: pictures, which take the most of a short run, are not drawn.
QUICK = """
from headstart.training import run

run.report = lambda *_: []
"""
#: A loop that forgets the optimiser's state when it goes on.
FORGETS = """
own = run.checkpoints.restore
run.checkpoints.restore = lambda state, saved: own(state, saved._replace(optimizer={}))
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Return what decides what processes of Python do when they start."""
    (tmp_path / "site").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    return (tmp_path / "site" / "sitecustomize.py").write_text


def test_a_training_under_faults_ends_with_the_same_bytes(tmp_path, site):
    site(QUICK)
    found = soak(tree(SHORT), tmp_path / "out", kills=1)
    assert found.holds, found
    assert found.kills == found.trainings == 1 and found.compared >= 9
    assert [start.code for start in found.starts] == [-9, 0] and found.starts[0].step > 0
    assert json.loads((tmp_path / "out" / "soak.json").read_text()) == json.loads(json.dumps(to_values(found)))
    assert rows(found) == [("SIGKILL", "after a step", "1", "0")] and found.first_new_step is not None
    with pytest.raises(ConfigError, match="is not empty"):
        soak(tree(SHORT), tmp_path / "out", kills=1)


def test_a_loop_that_forgets_is_found_out(tmp_path, site):
    site(QUICK + FORGETS)
    found = soak(tree(SHORT), tmp_path / "out", kills=1)
    assert not found.holds and not found.wrong
    told = {one.name: one.why for one in found.differences}
    assert "differs by up to" in told["disturbed-1/run/last.safetensors"]
    assert told["disturbed-1/run/metrics.jsonl"].startswith("line ")


def test_where_folders_differ_is_told(tmp_path):
    import torch

    for name in ("one", "other"):
        folder = tmp_path / name / "checkpoints"
        folder.mkdir(parents=True)
        weights = to_safetensors({"a": torch.zeros(2), "b": torch.ones(3)})
        (folder / "step-000000003.safetensors").write_bytes(weights)
        (folder / f"damaged-{name}-step-000000003.safetensors").write_bytes(name.encode())
        (tmp_path / name / "results.json").write_bytes(to_json({"mean": 1.0, "of": 3}))
        (tmp_path / name / "results.png").write_bytes(bytes(9))
        (tmp_path / name / f"damaged-{name}").mkdir()
        (tmp_path / name / f"damaged-{name}" / "last.safetensors").write_bytes(name.encode())
    assert compare(tmp_path / "one", tmp_path / "other") == ([], 3)
    (tmp_path / "other" / "checkpoints" / "step-000000002.safetensors").write_bytes(b"")
    assert compare(tmp_path / "one", tmp_path / "other") == ([], 3)  # of the step before a signal
    other = tmp_path / "other"
    (other / "results.json").write_bytes(to_json({"mean": 1.5, "of": 3}))
    flip(other / "results.png", 4)
    weights = to_safetensors({"a": torch.zeros(2), "b": torch.tensor([1.0, 1.5, 1.0])})
    (other / "checkpoints" / "step-000000003.safetensors").write_bytes(weights)
    (other / ".tmp-123456789abc-README.md").write_bytes(b"")
    told = {one.name: one.why for one in compare(tmp_path / "one", other)[0]}
    assert told == {
        ".tmp-123456789abc-README.md": "only in the disturbed run",
        "checkpoints/step-000000003.safetensors": "the tensor 'b' differs by up to 0.5",
        "results.json": "line 2: '  \"mean\": 1.0,', '  \"mean\": 1.5,'",
        "results.png": "byte 4 of 9",
    }


def test_the_command_reads_trains_options_and_says_what_is_wrong(tmp_path, capsys):
    assert app.run(["soak", "sinusoid", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("--kills", "--hangs", "--processes", "--inner-steps", "--save-every"))
    assert app.run(["soak", "sinusoid", "--kills", "0", "--out", str(tmp_path / "out")]) == 2
    assert "at least one kill" in capsys.readouterr().err
    assert app.run(["soak", "sinusoid", "--kils", "3"]) == 2
    assert not (tmp_path / "out").exists()
