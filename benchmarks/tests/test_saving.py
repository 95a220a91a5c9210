"""The benchmark of saving: which steps it times, and what it makes of them."""

import json

import pytest

from benchmarks import saving
from benchmarks.saving import CASES, Case, rows, timed

SINE = next(iter(CASES.values())).tree


def test_the_steps_behind_a_checkpoint_are_timed_against_those_before_the_next(monkeypatch) -> None:
    taken, seen = saving.train, []

    def train(tree, place, **given):
        seen.append(tree)
        return taken({**tree, "model": {"name": "mlp", "hidden": [4]}}, place, **given)

    monkeypatch.setattr(saving, "train", train)
    found = timed(Case(SINE, 5, 3), 4)
    assert len(found) == 3 and all(before > 0 and after > 0 for before, after in found)
    assert seen[0]["outer"]["steps"] == 8 + 3 * 4 and seen[0]["run"]["save_every"] == 4


def test_a_row_tells_what_a_checkpoint_costs(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(saving, "timed", lambda case, every: [(0.052, 0.05), (0.054, 0.05)])
    (row,) = rows(list(CASES)[:1], 100)
    assert row["milliseconds a step"] == pytest.approx(1) and row["milliseconds a checkpoint"] == pytest.approx(3)
    assert row["more with saving, %"] == pytest.approx(3) and row["checkpoints"] == 2
    monkeypatch.setattr("sys.argv", ["saving", "--cases", next(iter(CASES)), "--out", str(tmp_path), "--json"])
    saving.main()
    told = json.loads((tmp_path / "saving.json").read_text())
    assert told == json.loads(capsys.readouterr().out) and told["rows"] == [row] and told["every"] == 100
    monkeypatch.setattr("sys.argv", ["saving", "--cases", "sine"])
    with pytest.raises(SystemExit):
        saving.main()
    assert "there is no case 'sine'" in capsys.readouterr().err
