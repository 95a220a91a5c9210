"""Contenders in turn, with contenders that are made up."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from headstart.bench.peers.contender import Contender
from headstart.bench.peers.environment import Environment
from headstart.bench.peers.rounds import Race, figure_of, race
from headstart.bench.peers.stable import Stable
from headstart.bench.plan import Plan

MADE_UP = """
import os
import numpy as np
from headstart.bench.peers.prepared import Prepared

def right(values):
    return Prepared(lambda: None, lambda: {"w": np.ones(3)}, "as it is")

def near(values):
    return Prepared(lambda: None, lambda: {"w": np.ones(3) + (1e-9 if values["dtype"] == "float64" else 1e-3)})

def wrong(values):
    return Prepared(lambda: None, lambda: {"w": np.ones(3) + 1e-6})

def counting(values):
    with open(os.environ["MADE_UP_LOG"], "a") as file:
        file.write(values["dtype"] + chr(10))
    return Prepared(lambda: None, lambda: {"w": np.ones(3)})

def breaks(values):
    steps = []
    def step():
        steps.append(1)
        if len(steps) > 2:
            raise ArithmeticError("tired")
    return Prepared(step, lambda: {"w": np.ones(3)})

def dies(values):
    return Prepared(lambda: os._exit(3), lambda: {"w": np.ones(3)})

def silent(values):
    return Prepared(lambda: None)
"""
PACKAGES = {"absent": "absent", "refused": "refused", "counting": "there"}
NAMES = ("right", "near", "wrong", "breaks", "dies", "silent", "counting", "absent", "refused")
CONTENDERS = [Contender(name, f"made_up:{name}", PACKAGES.get(name, "")) for name in NAMES]
CASE = {"tasks": 4, "dtype": "float32"}


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    (tmp_path / "made_up.py").write_text(MADE_UP)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MADE_UP_LOG", str(tmp_path / "log"))
    return Plan(Environment(Path(sys.executable), {"there": "1"}, {"refused": "pip failed"}), threads=1)


@pytest.fixture
def stable(plan: Plan) -> Iterator[Stable]:
    with Stable(plan, CONTENDERS, reference=Contender("reference", "made_up:right")) as found:
        yield found


def of(*names: str, **options: Any) -> Race:
    case: Mapping[str, Any] = options.pop("case", CASE)
    return Race("made up", case, names, **{"rounds": 3, **options})


def test_whoever_answers_otherwise_or_breaks_is_named_and_left_out(stable: Stable) -> None:
    found = race(stable, of("right", "wrong", "breaks", "dies", "silent", "absent", "refused"))
    (figure,) = found.figures
    assert figure.contender == "right" and figure.note == "as it is" and figure.unit == "ms"
    assert figure.low <= figure.value <= figure.high and len(figure.rounds) == 3 <= figure.runs
    assert "1.0e-06 from it" in found.failed["wrong: made up"] and "1e-08" in found.failed["wrong: made up"]
    assert "tired" in found.failed["breaks: made up"] and "exit code 3" in found.failed["dies: made up"]
    assert "no answer to compare" in found.failed["silent: made up"]
    assert found.failed["absent"] == "not installed" and found.failed["refused"] == "pip failed"


def test_what_is_timed_is_compared_in_its_own_precision(stable: Stable) -> None:
    found = race(stable, of("near"))
    assert "1.0e-03 from it" in found.failed["near: made up"]
    (figure,) = race(stable, of("near", close=0.05)).figures
    assert figure.note == "1e-03 from the loop's answer in float32"


def test_without_the_reference_nothing_is_timed(plan: Plan) -> None:
    for gone in ("made_up:no_such", "no_such_module:prepare"):
        with Stable(plan, CONTENDERS, reference=Contender("reference", gone)) as stable:
            found = race(stable, of("right", "near"))
        assert found.figures == [] and set(found.failed) == {"right: made up", "near: made up"}
        assert all("reference, which it would be compared with, failed" in why for why in found.failed.values())


def test_a_check_is_done_once_for_cases_of_the_same_mathematics(stable: Stable, tmp_path: Path) -> None:
    for tasks in (4, 8):
        assert not race(stable, of("counting", case={**CASE, "tasks": tasks, "name": str(tasks)})).failed
    assert (tmp_path / "log").read_text().split() == ["float64", "float32", "float32"]
    race(stable, of("counting", small={"size": 32}))
    assert (tmp_path / "log").read_text().split()[3:] == ["float64", "float32"]


def test_a_failed_check_is_remembered(stable: Stable) -> None:
    first, again = (race(stable, of("wrong")).failed for _ in range(2))
    assert first == again and "wrong: made up" in first


def test_where_peers_do_not_warm_up_theirs_is_not_compared_at_full_size(stable: Stable) -> None:
    case = {**CASE, "dtype": "float32"}
    assert [each.contender for each in race(stable, of("counting", case=case, warm=False)).figures] == ["counting"]
    assert "near: made up" in race(stable, of("near", warm=False)).failed, "ours is, always"


def test_a_race_that_was_checked_elsewhere_asks_for_no_answers(stable: Stable) -> None:
    found = race(stable, of("wrong", "silent", checked=False))
    assert {each.contender for each in found.figures} == {"wrong", "silent"} and not found.failed


def test_when_the_time_is_up_the_least_rounds_are_left(stable: Stable) -> None:
    for least in (2, 4):
        found = race(stable, of("right", rounds=50, least=least), until=0.0)
        assert len(found.figures[0].rounds) == least


def test_a_process_that_has_died_is_started_anew(stable: Stable) -> None:
    race(stable, of("dies"))
    gone = stable.workers["dies"]
    assert not gone.alive
    assert stable.worker("dies") is not gone and stable.worker("dies").alive and gone.said() == "it was ended"


def test_a_figure_is_made_of_the_rounds_medians() -> None:
    figure = figure_of("case", "who", [[0.001, 0.002, 0.003], [0.004], [0.009, 0.010]])
    assert figure.rounds == pytest.approx((2.0, 4.0, 9.5)) and figure.runs == 6
    assert (figure.low, figure.value, figure.high) == pytest.approx((3.0, 4.0, 6.75))
