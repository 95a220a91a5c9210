"""The suites of speed, with quick stand-ins for their cases: nothing here depends on how long anything takes."""

from pathlib import Path

import pytest

from headstart.bench import speed, speed_cases, two_processes
from headstart.bench.figures import Figure, Report, Target
from headstart.bench.peers.case import Case
from headstart.bench.peers.rounds import Race, Result
from headstart.bench.plan import Plan
from headstart.bench.speed_cases import LOOP, OURS, one_thread
from headstart.errors import UsageError

SMALL = Case("small", "mlp", 2, 3, 3, 1, 0.1)
TARGET = Target("small, against the loop", "small", OURS, LOOP, 1.0, "times faster")


def test_a_suite_times_its_cases_and_keeps_the_targets_of_those(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Race("small", SMALL._asdict(), (LOOP, OURS, "learn2learn"), rounds=1)
    monkeypatch.setattr(speed, "races", lambda with_peers: [small, small._replace(name="other")])
    monkeypatch.setattr(speed, "targets", lambda: (TARGET, TARGET._replace(case="other")))
    said: list[str] = []
    kept: list[Report] = []
    report = speed.run(Plan(cases=("small",), threads=1, note=said.append, keep=kept.append))
    assert {(figure.case, figure.contender, figure.unit) for figure in report.figures} == {
        ("small", LOOP, "ms"),
        ("small", OURS, "ms"),
    }
    assert report.targets == (TARGET,) and report.failed["learn2learn"].startswith("left out") and kept == [report]
    assert said == ["case 1/1: small"] and {"torch", "processor", "threads of each contender"} <= set(report.machine)


def test_targets_come_first_and_growth_is_left_out_when_it_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Race("grown", SMALL._asdict(), (LOOP,), rounds=1, growth=True)
    monkeypatch.setattr(speed, "races", lambda with_peers: [small, small._replace(name="first", growth=False)])
    monkeypatch.setattr(speed, "two_processes", lambda plan: Result([], {"two": "left out here"}))
    monkeypatch.setattr(speed, "race", lambda stable, given, until: Result([], {given.name: "run"}))
    report = speed.run(Plan(threads=1))
    assert report.failed == {"first": "run", "two": "left out here", "grown": "run"}
    assert list(report.failed) == ["first", "two", "grown"]
    report = speed.run(Plan(threads=1, seconds=1e-9))
    assert report.failed == {"first": "run", "two": "left out here", "grown": "there was no time left for it"}


def test_a_library_is_held_against_at_its_best_number_of_threads() -> None:
    target = TARGET._replace(theirs="higher")
    alone = Figure("small", one_thread("higher"), 3.0, 3, 3, 9, "ms")
    for value, theirs in ((2.0, "higher"), (4.0, one_thread("higher"))):
        figures = [alone, Figure("small", "higher", value, value, value, 9, "ms"), alone._replace(case="other")]
        found = speed.against_best(target, figures)
        assert found.theirs == theirs and found.name.startswith(target.name)
    assert speed.against_best(target, []) == target


def test_the_cases_with_targets_have_at_least_four_rounds() -> None:
    for each in speed_cases.races():
        wanted = any(target.case == each.name for target in speed_cases.targets())
        assert not wanted or (each.least >= 4 and not each.growth), each.name


def test_a_case_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="no case answers to 'cosine'"):
        speed.run(Plan(cases=("cosine",)))


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    if len(two_processes.available_cores()) < 2:
        pytest.skip("needs two cores to hold processes to")
    monkeypatch.setattr(two_processes, "conv4", lambda *given: SMALL)


@pytest.mark.usefixtures("two_cores")
def test_two_processes_share_the_tasks_and_their_gradients() -> None:
    found = two_processes.two_processes(Plan(repeats=2))
    assert not found.failed
    assert [each.contender for each in found.figures] == [
        two_processes.ONE,
        two_processes.HALVES,
        two_processes.TWO,
    ]
    assert all(len(each.rounds) == 2 and each.value > 0 for each in found.figures)


@pytest.mark.usefixtures("two_cores")
def test_two_processes_that_do_not_exchange_gradients_are_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alone.py").write_text(
        "from headstart.bench.peers.contenders import shared\n"
        "shared._mean = lambda own: own\n"
        "whole, in_halves, part = shared.whole, shared.in_halves, shared.part\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(two_processes, "_FILES", "alone")
    found = two_processes.two_processes(Plan(repeats=1))
    assert found.figures == [] and "another one" in found.failed[two_processes.TWO]


def test_one_core_is_not_enough_for_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores in ([], [0]):
        monkeypatch.setattr(two_processes, "available_cores", lambda cores=cores: cores)
        assert "two cores" in two_processes.two_processes(Plan()).failed[two_processes.TWO]
