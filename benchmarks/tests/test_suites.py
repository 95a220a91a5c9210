"""The suites of speed and of compiled steps, on stand-ins for their cases: nothing depends on how long they take."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compile as suite, speed
from benchmarks.figures import Figure, Report, Target
from benchmarks.peers import ours
from benchmarks.peers.case import Case
from benchmarks.peers.environment import Environment
from benchmarks.peers.process import PeerError
from benchmarks.peers.race import EXACT, Race, Result, Stable, difference
from benchmarks.plan import Plan
from benchmarks.speed import COMPILED, LOOP, OURS, REPLAYED, one_thread

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
    for each in speed.races():
        wanted = any(target.case == each.name for target in speed.targets())
        assert not wanted or (each.least >= 4 and not each.growth), each.name


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    if len(speed.available_cores()) < 2:
        pytest.skip("needs two cores to hold processes to")
    monkeypatch.setattr(speed, "conv4", lambda *given: SMALL)


@pytest.mark.usefixtures("two_cores")
def test_two_processes_share_the_tasks_and_their_gradients() -> None:
    found = speed.two_processes(Plan(repeats=2))
    assert not found.failed
    assert [each.contender for each in found.figures] == [
        speed.ONE,
        speed.HALVES,
        speed.TWO,
    ]
    assert all(len(each.rounds) == 2 and each.value > 0 for each in found.figures)


@pytest.mark.usefixtures("two_cores")
def test_two_processes_that_do_not_exchange_gradients_are_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alone.py").write_text(
        "import numpy as np\nfrom benchmarks.peers.prepared import Prepared\n"
        "def whole(values):\n    first, tasks = values['first'], values['tasks']\n"
        "    mean = np.arange(first, first + tasks).mean()\n"
        "    return Prepared(lambda: None, lambda: {'w': np.full(3, mean)})\n"
        "in_halves = part = whole\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(speed, "_OURS", "alone")
    found = speed.two_processes(Plan(repeats=1))
    assert found.figures == [] and "another one" in found.failed[speed.TWO]


def test_the_gradients_of_two_halves_of_the_tasks_differ() -> None:
    whole, half = (ours.whole(case._asdict()).answer for case in (SMALL, SMALL._replace(tasks=1)))
    assert whole is not None and half is not None and difference(half(), whole()) > EXACT


def test_one_core_is_not_enough_for_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores in ([], [0]):
        monkeypatch.setattr(speed, "available_cores", lambda cores=cores: cores)
        assert "two cores" in speed.two_processes(Plan()).failed[speed.TWO]


PLACES: list[Mapping[str, str]] = []


def figures(given: Race) -> list[Figure]:
    medians = {REPLAYED: 10.0, COMPILED: 2.0, "learn2learn": 80.0, "JAX": 11.0}
    return [Figure(given.name, n, v, v, v, 9, "ms", "noted") for n, v in medians.items() if n in given.contenders]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Plan:
    PLACES.clear()

    def first(plan: Plan, given: Race, contender: Any, place: Mapping[str, str]) -> Figure:
        PLACES.append(place)
        seconds = 2.0 if contender.name == REPLAYED else 6.0
        return Figure(f"{given.name}, until the first step is done", contender.name, seconds, seconds, seconds, 1, "s")

    def race(stable: Stable, given: Race, until: float) -> Result:
        return Result(figures(given), {})

    monkeypatch.setattr(suite, "_first", first)
    monkeypatch.setattr(suite, "race", race)
    environment = Environment(Path("python"), {"jax": "1", "learn2learn": "1"}, {})
    return Plan(environment, threads=1)


def test_it_is_told_after_how_many_steps_compiling_pays(quick: Plan) -> None:
    report = suite.run(quick._replace(cases=("sine T=1",)))
    firsts = {each.contender: each for each in report.figures if each.unit == "s"}
    assert firsts[COMPILED].note == "repaid after 500 steps against replaying"
    assert firsts["JAX"].note == "never repaid against replaying"
    assert next(each for each in report.figures if (each.contender, each.unit) == (COMPILED, "ms")).note == ""
    assert [target.theirs for target in report.targets] == ["learn2learn", "JAX"]


def test_every_case_compiles_with_nothing_cached(quick: Plan) -> None:
    kept: list[Report] = []
    report = suite.run(quick._replace(keep=kept.append))
    assert len(kept) == 3 and kept[-1] == report
    assert len({place["HEADSTART_CACHE"] for place in PLACES}) == 3
    assert all(place["TMPDIR"] == place["HEADSTART_CACHE"] for place in PLACES)
    assert all(place["JAX_ENABLE_COMPILATION_CACHE"] == "false" for place in PLACES)


def test_what_cannot_be_compiled_is_not_raced(quick: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(plan: Plan, given: Race, contender: Any, place: Mapping[str, str]) -> Figure:
        raise PeerError("no compiler here")

    monkeypatch.setattr(suite, "_first", fails)
    report = suite.run(quick._replace(cases=("sine T=1",)))
    assert report.failed == {f"{name}: sine T=1": "no compiler here" for name in (REPLAYED, COMPILED, "JAX")}
    assert {each.contender for each in report.figures} == {"learn2learn"}


def test_the_first_step_is_timed_in_a_process_of_its_own() -> None:
    given = suite.races()[0]
    case = {**given.case, "tasks": 2, "support": 3, "query": 3}
    ours = next(each for each in suite.CONTENDERS if each.name == OURS)
    found = suite._first(Plan(threads=1), given._replace(case=case), ours, {})
    assert (found.unit, found.runs, found.contender) == ("s", 1, OURS) and found.value > 0
    assert found.case == "sine T=1, until the first step is done"
