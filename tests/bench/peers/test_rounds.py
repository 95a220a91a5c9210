"""Contenders in turn, with contenders that are made up."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from headstart.bench.peers.environment import Environment
from headstart.bench.peers.rounds import Contender, Race, Stable, race
from headstart.bench.plan import Plan

MADE_UP = """
import time
import numpy as np
from headstart.bench.peers.prepared import Prepared

def right(values):
    return Prepared(lambda: time.sleep(0.001), lambda: {"w": np.ones(3)}, "as it is")

def slow(values):
    return Prepared(lambda: time.sleep(0.02), lambda: {"w": np.ones(3) + 1e-8})

def wrong(values):
    return Prepared(lambda: None, lambda: {"w": np.ones(3) + 1e-3})

def breaks(values):
    steps = []
    def step():
        steps.append(1)
        if len(steps) > 2:
            raise ArithmeticError("tired")
    return Prepared(step, lambda: {"w": np.ones(3)})
"""
NAMES = ("right", "slow", "wrong", "breaks", "absent", "refused")
CONTENDERS = [
    Contender(name, f"made_up:{name}", {"absent": "absent", "refused": "refused"}.get(name, "")) for name in NAMES
]


@pytest.fixture
def stable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stable]:
    import sys

    (tmp_path / "made_up.py").write_text(MADE_UP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    environment = Environment(tmp_path, Path(sys.executable), {}, {"refused": "pip failed"})
    with Stable(Plan(environment, threads=1), CONTENDERS) as found:
        yield found


def test_whoever_answers_otherwise_or_breaks_is_named_and_left_out(stable: Stable) -> None:
    found = race(stable, Race("made up", {"tasks": 4}, NAMES, rounds=3))
    values = {figure.contender: figure for figure in found.figures}
    assert set(values) == {"right", "slow"}
    assert 1 <= values["right"].value < values["slow"].value and values["slow"].value >= 20
    assert values["right"].low <= values["right"].value <= values["right"].high
    assert values["right"].runs > values["slow"].runs >= 3 and values["right"].note == "as it is"
    assert "1.0e-03 from it" in found.failed["wrong: made up"]
    assert "tired" in found.failed["breaks: made up"]
    assert found.failed["absent"] == "not installed" and found.failed["refused"] == "pip failed"
    assert set(found.preparing) >= {"right", "slow"}


def test_where_double_precision_takes_too_long_the_case_itself_is_compared(stable: Stable) -> None:
    for double, names in ((True, ["right"]), (False, ["right", "wrong"])):
        given = Race("made up", {"tasks": 1}, ("right", "wrong"), rounds=1, double=double)
        assert [figure.contender for figure in race(stable, given).figures] == names


def test_when_the_time_is_up_two_rounds_are_left(stable: Stable) -> None:
    found = race(stable, Race("made up", {"tasks": 2}, ("slow",), rounds=50), until=0.0)
    assert 2 <= found.figures[0].runs <= 30
