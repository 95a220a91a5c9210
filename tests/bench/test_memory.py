"""The memory suite, on stand-ins for its cases: nothing here depends on how much anything takes, or how long."""

import numpy as np
import pytest

from headstart.bench import memory, memory_cases, memory_contenders
from headstart.bench.chart import curve_groups
from headstart.bench.figures import Figure
from headstart.bench.memory_cases import CONTENDERS, LIMIT, LONG, PEER, ROOT, UNROLLED, Cell, of_memory, of_time, steps
from headstart.bench.peers.case import Case, module
from headstart.bench.peers.prepared import Arrays, Prepared
from headstart.bench.peers.rounds import difference
from headstart.bench.plan import Plan
from headstart.errors import UsageError

SMALL = Case("small", "mlp", 2, 6, 6, 4, 0.1, ways=3, size=4, hidden=(5, 7), dtype="float64")
OWN = ("unrolled", "every_state", "square_root", "within_16_mib", "within_768_mib", "mixed_mode", "loop_checkpointed")


def _answer(prepared: Prepared) -> Arrays:
    assert prepared.answer is not None
    return prepared.answer()


@pytest.mark.parametrize("name", OWN)
def test_every_way_of_going_back_has_the_gradient_of_the_loop(name: str) -> None:
    expected = _answer(memory_contenders.loop(SMALL._asdict()))
    answer = _answer(getattr(memory_contenders, name)(SMALL._asdict()))
    assert difference(answer, expected) < 1e-12 and np.linalg.norm(expected["head.weight"]) > 0


def test_a_step_leaves_its_answer() -> None:
    for make in (memory_contenders.unrolled, memory_contenders.loop_checkpointed, memory_contenders.loop):
        prepared = make(SMALL._asdict())
        prepared.step()
        answer = _answer(prepared)
        assert _answer(prepared) is answer and sorted(answer)[0] == "head.bias"


def test_every_contender_can_be_found() -> None:
    for contender in CONTENDERS:
        module, function = contender.target.split(":")
        assert module == memory_contenders.__name__ and callable(getattr(memory_contenders, function))


def test_contenders_and_targets_are_there() -> None:
    every = memory_cases.cells()
    known = {contender.name for contender in CONTENDERS}
    assert {name for cell in every for name in cell.contenders} <= known
    for target in memory_cases.targets():
        held = {(of_memory(c.case.name), n) for c in every for n in c.contenders} | {
            (of_time(c.case.name), n) for c in every for n in c.contenders
        }
        assert (target.case, target.ours) in held
        assert target.theirs == LIMIT or (target.against or target.case, target.theirs) in held


def test_growth_is_drawn_against_steps_tasks_parameters_and_examples() -> None:
    figures = [
        Figure(of(cell.case.name), UNROLLED, 1.0, 1.0, 1.0, 1, unit)
        for cell in memory_cases.cells()
        for of, unit in ((of_memory, "MB"), (of_time, "ms"))
    ]
    drawn = {(what, unit) for _, what, unit in curve_groups(figures)}
    assert drawn == {
        (what, unit) for what in ("inner steps T", "tasks", "parameters", "examples") for unit in ("MB", "ms")
    }


def test_the_number_of_parameters_is_the_models() -> None:
    for cell in memory_cases.cells():
        if "parameters" in cell.case.name:
            assert f"{sum(value.numel() for value in module(cell.case).parameters()):,} parameters" in cell.case.name


def test_a_suite_tells_memory_time_and_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    small = SMALL._replace(dtype="float32")
    monkeypatch.setattr(memory, "cells", lambda with_peers: [Cell(small, (UNROLLED, ROOT, PEER), 1)])
    report = memory.run(Plan(threads=1))
    assert {(each.case, each.contender, each.unit) for each in report.figures} == {
        (of(small.name), name, unit) for name in (UNROLLED, ROOT) for of, unit in ((of_memory, "MB"), (of_time, "ms"))
    }
    assert report.failed == {PEER: "left out on request"} and report.targets == ()
    noted = next(each for each in report.figures if each.contender == ROOT and each.unit == "MB").note
    assert "from the first contender's in float32" in noted and "with what was there before" in noted


def test_an_answer_of_its_own_is_left_out() -> None:
    case, name = steps(10), ROOT
    right, wrong = {"w": np.ones(3)}, {"w": np.ones(3) + 1e-3}
    first, other = (memory.Measured(10**6, 10**6, each) for each in (right, wrong))
    double = {(case._replace(dtype="float64"), UNROLLED): first}
    assert memory._figure(case, name, other, first, None, {})[1] == ""
    assert "in float64" in memory._figure(case, name, other, first, other, double)[1]
    far = memory.Measured(1, 1, {"w": -np.ones(3)})
    assert "another one" in memory._figure(case, name, far, first, None, {})[1]


def test_unrolling_1000_steps_is_told_by_the_line_through_10_and_100() -> None:
    figures = [
        Figure(of_memory(steps(count).name), UNROLLED, value, value, value, 1, "MB")
        for count, value in ((10, 30.0), (100, 210.0))
    ]
    figures.append(Figure(of_memory(steps(1000).name), "other", 1.0, 1.0, 1.0, 1, "MB", "so"))
    assert memory._noted(figures)[-1].note == "so; unrolled, by the line through T=10 and T=100: 2010 MB (not run)"
    assert memory._noted(figures[1:]) == figures[1:]


def test_float64_is_asked_of_the_schedule_of_the_targets() -> None:
    found = memory._doubles([Cell(steps(100), (UNROLLED, ROOT)), Cell(steps(50), (UNROLLED,))])
    assert {name for _, name in found} == {UNROLLED, LONG} and all(case.dtype == "float64" for case, _ in found)


def test_a_case_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="no case answers to 'sine'"):
        memory.run(Plan(cases=("sine",)))
