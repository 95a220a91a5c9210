"""The suites of speed, with quick stand-ins for their cases: nothing here depends on how long anything takes."""

import pytest

from headstart.bench import speed, two_processes
from headstart.bench.figures import Target
from headstart.bench.peers.case import Case
from headstart.bench.peers.rounds import Race
from headstart.bench.plan import Plan
from headstart.bench.speed_cases import LOOP, OURS
from headstart.errors import UsageError

SMALL = Case("small", "mlp", 2, 3, 3, 1, 0.1)
TARGET = Target("small, against the loop", "small", OURS, LOOP, 1.0, "times faster")


def test_a_suite_times_its_cases_and_keeps_the_targets_of_those(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Race("small", SMALL._asdict(), (LOOP, OURS, "learn2learn"), rounds=1)
    monkeypatch.setattr(speed, "races", lambda with_peers: [small, small._replace(name="other")])
    monkeypatch.setattr(speed, "targets", lambda: (TARGET, TARGET._replace(case="other")))
    said: list[str] = []
    report = speed.run(Plan(cases=("small",), threads=1, note=said.append))
    assert {(figure.case, figure.contender, figure.unit) for figure in report.figures} == {
        ("small", LOOP, "ms"),
        ("small", OURS, "ms"),
    }
    assert report.targets == (TARGET,) and report.failed == {"learn2learn": "left out on request"}
    assert said == ["case 1/1: small"] and {"torch", "processor", "threads of each contender"} <= set(report.machine)


def test_a_case_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="no case answers to 'cosine'"):
        speed.run(Plan(cases=("cosine",)))


def test_two_processes_have_half_of_the_tasks_each(monkeypatch: pytest.MonkeyPatch) -> None:
    if len(two_processes.available_cores()) < 2:
        assert "two cores" in two_processes.two_processes(Plan()).failed[two_processes.TWO]
        return
    monkeypatch.setattr(two_processes, "conv4", lambda *given: SMALL)
    found = two_processes.two_processes(Plan(repeats=2))
    assert [figure.contender for figure in found.figures] == [two_processes.ONE, two_processes.TWO]
    assert all(figure.runs == 2 and figure.value > 0 for figure in found.figures)
