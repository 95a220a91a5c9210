"""The suite of compiled steps, with stand-ins for what is compiled and timed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from headstart.bench import compile as suite
from headstart.bench.figures import Figure, Report
from headstart.bench.peers.environment import Environment
from headstart.bench.peers.process import PeerError
from headstart.bench.peers.rounds import Race, Result
from headstart.bench.peers.stable import Stable
from headstart.bench.plan import Plan
from headstart.bench.speed_cases import COMPILED, OURS
from headstart.errors import UsageError

PLACES: list[Mapping[str, str]] = []


def figures(given: Race) -> list[Figure]:
    medians = {OURS: 10.0, COMPILED: 2.0, "learn2learn": 80.0, "JAX": 11.0}
    return [Figure(given.name, n, v, v, v, 9, "ms", "noted") for n, v in medians.items() if n in given.contenders]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Plan:
    PLACES.clear()

    def first(plan: Plan, given: Race, contender: Any, place: Mapping[str, str]) -> Figure:
        PLACES.append(place)
        return Figure(f"{given.name}, until the first step is done", contender.name, 4.0, 4.0, 4.0, 1, "s")

    def race(stable: Stable, given: Race, until: float) -> Result:
        return Result(figures(given), {})

    monkeypatch.setattr(suite, "_first", first)
    monkeypatch.setattr(suite, "race", race)
    environment = Environment(Path("python"), {"jax": "1", "learn2learn": "1"}, {})
    return Plan(environment, threads=1)


def test_it_is_told_after_how_many_steps_compiling_pays(quick: Plan) -> None:
    report = suite.run(quick._replace(cases=("sine T=1",)))
    firsts = {each.contender: each for each in report.figures if each.unit == "s"}
    assert firsts[COMPILED].note == "repaid after 500 steps against eager headstart"
    assert firsts["JAX"].note == "never repaid against eager headstart"
    assert next(each for each in report.figures if (each.contender, each.unit) == (COMPILED, "ms")).note == ""
    assert [target.theirs for target in report.targets] == ["learn2learn", "JAX"]


def test_every_case_compiles_with_nothing_cached(quick: Plan) -> None:
    kept: list[Report] = []
    report = suite.run(quick._replace(keep=kept.append))
    assert len(kept) == 2 and kept[-1] == report
    assert len({place["TORCHINDUCTOR_CACHE_DIR"] for place in PLACES}) == 2
    assert all(place["TMPDIR"] == place["TORCHINDUCTOR_CACHE_DIR"] for place in PLACES)
    assert all(place["JAX_ENABLE_COMPILATION_CACHE"] == "false" for place in PLACES)


def test_what_cannot_be_compiled_is_not_raced(quick: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(plan: Plan, given: Race, contender: Any, place: Mapping[str, str]) -> Figure:
        raise PeerError("no compiler here")

    monkeypatch.setattr(suite, "_first", fails)
    report = suite.run(quick._replace(cases=("sine T=1",)))
    assert report.failed == {f"{name}: sine T=1": "no compiler here" for name in (COMPILED, "JAX")}
    assert {each.contender for each in report.figures} == {OURS, "learn2learn"}


def test_the_first_step_is_timed_in_a_process_of_its_own() -> None:
    given = suite.races()[0]
    case = {**given.case, "tasks": 2, "support": 3, "query": 3}
    ours = next(each for each in suite.CONTENDERS if each.name == OURS)
    found = suite._first(Plan(threads=1), given._replace(case=case), ours, {})
    assert (found.unit, found.runs, found.contender) == ("s", 1, OURS) and found.value > 0
    assert found.case == "sine T=1, until the first step is done"


def test_a_case_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="no case answers to 'conv4'"):
        suite.run(Plan(cases=("conv4",)))
