"""The memory suite, on stand-ins for its cases: nothing here depends on how much anything takes, or how long."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from benchmarks import memory
from benchmarks.figures import Figure
from benchmarks.memory import (
    COMPARED,
    CONTENDERS,
    DOUBLE,
    LIMIT,
    LONG,
    LOOP,
    PEER,
    ROOT,
    UNROLLED,
    Cell,
    Measured,
    Outcome,
    add,
    doubles,
    of_memory,
    of_time,
    steps,
)
from benchmarks.peers import inner_loops
from benchmarks.peers.case import Case
from benchmarks.peers.prepared import Arrays, Prepared
from benchmarks.peers.process import PeerError, Worker
from benchmarks.peers.race import Contender, Result, Stable, difference
from benchmarks.plan import Plan

SMALL = Case("small", "mlp", 2, 6, 6, 4, 0.1, ways=3, size=4, hidden=(5, 7), dtype="float64")
SINGLE = SMALL._replace(dtype="float32")
OWN = ("unrolled", "every_state", "square_root", "on_disk", "loop_checkpointed")
RIGHT = Measured(10**6, 10**7, 0.5, {"w": np.ones(3)})


def _answer(prepared: Prepared) -> Arrays:
    assert prepared.answer is not None
    return prepared.answer()


@pytest.mark.parametrize("name", OWN)
def test_every_way_of_going_back_has_the_gradient_of_the_loop(name: str) -> None:
    expected = _answer(inner_loops.loop(SMALL._asdict()))
    answer = _answer(getattr(inner_loops, name)(SMALL._asdict()))
    assert difference(answer, expected) < 1e-12 and np.linalg.norm(expected["head.weight"]) > 0


def test_a_file_in_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/disk xfs rw 0 0\n"
    assert [inner_loops.kind_of(f, mounts) for f in ("/home", "/tmp/x", "/tmp/disk/x", "/tmpx")] == [
        "ext4",
        "tmpfs",
        "xfs",
        "ext4",
    ]
    for kind, told in (("tmpfs", True), ("ext4", False)):
        monkeypatch.setattr(inner_loops, "_mounts", lambda kind=kind: f"any / {kind} rw 0 0")
        assert bool(inner_loops.on_disk(SMALL._asdict()).note) == told


def test_contenders_and_targets_are_there() -> None:
    every = memory.cells()
    known = {contender.name for contender in CONTENDERS}
    assert {name for cell in every for name in (*cell.contenders, *cell.timed)} <= known
    held = {(of_memory(c.case.name), n) for c in every for n in c.contenders}
    held |= {(of_time(c.case.name), n) for c in every for n in c.timed}
    for target in memory.targets():
        assert (target.case, target.ours) in held
        assert target.theirs == LIMIT or (target.against or target.case, target.theirs) in held


def test_a_suite_tells_memory_time_and_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    small = SMALL._replace(dtype="float32", support=200, size=20)
    monkeypatch.setattr(memory, "cells", lambda with_peers: [Cell(small, (UNROLLED, PEER), (UNROLLED, PEER), 1)])
    kept: list[int] = []
    report = memory.run(Plan(threads=1, keep=lambda report: kept.append(len(report.figures))))
    assert report.targets == () and kept[-1] == len(report.figures) and len(kept) == 2
    assert report.failed[PEER].startswith("left out")
    there = {(each.case, each.contender, each.unit) for each in report.figures}
    if "clear_refs" in str(report.failed) or "peak" in str(report.failed):
        assert there == set()  # this system does not tell
        return
    assert there == {
        (of_memory("small"), UNROLLED, "MB"),
        (of_time("small"), UNROLLED, "ms"),
    }
    noted = next(each for each in report.figures if each.contender == UNROLLED and each.unit == "MB").note
    assert "from the loop's in float32" in noted and "with what was there before" in noted


@pytest.mark.parametrize(
    ("replies", "told"),
    [
        ({"forget peak": {"done": False}}, "cannot start the peak"),
        ({"memory": {"now": 0, "peak": 0}}, "cannot be told: 0 bytes"),
        ({"memory": {"now": 500, "peak": 500}}, "cannot be told: 500 bytes"),
    ],
)
def test_no_memory_is_no_figure(replies: Mapping[str, Any], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = {"prepare": {"note": ""}, "run": {"seconds": [0.1]}, "forget peak": {"done": True}, "drop": {}}

    class Told:
        def __init__(self, *given: object, **options: object) -> None: ...

        def ask(self, request: Mapping[str, Any], seconds: float = 0.0) -> Any:
            return {**usual, **replies}[request["do"]]

        def __enter__(self) -> "Told":
            return self

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(memory, "Worker", Told)
    with pytest.raises(PeerError, match=told):
        memory.measure(Plan(), "any:thing", SMALL)


def outcomes(cell: Cell, **changed: Outcome) -> dict[tuple[Case, str], Outcome]:
    """All that is measured for a cell, right but for what is named as ``single_NAME`` or ``double_NAME``."""
    jobs = [(cell.case, name) for name in (LOOP, *cell.contenders)] + doubles([cell])
    short = {LOOP: "loop", UNROLLED: "ours", LONG: "long", ROOT: "root"}
    return {
        (case, name): changed.get(f"{'double' if case.dtype == 'float64' else 'single'}_{short.get(name, name)}", RIGHT)
        for case, name in jobs
    }


WRONG = RIGHT._replace(answer={"w": np.ones(3) + 1e-2})
NEARLY = RIGHT._replace(answer={"w": np.ones(3) + 1e-6})


@pytest.mark.parametrize(
    ("cell", "name", "changed", "told"),
    [
        (Cell(SINGLE, (UNROLLED,), ()), UNROLLED, {"single_ours": WRONG}, "another one"),
        (Cell(SINGLE, (UNROLLED,), ()), UNROLLED, {"single_ours": "killed"}, "killed"),
        (Cell(SINGLE, (UNROLLED,), ()), UNROLLED, {"single_loop": "no memory"}, "PyTorch loop failed: no memory"),
        (Cell(DOUBLE, (ROOT,), ()), ROOT, {"double_root": NEARLY}, "another one"),
        (Cell(DOUBLE, (ROOT,), ()), ROOT, {"double_root": "killed"}, "float64: .* failed: killed"),
        (Cell(DOUBLE, (ROOT,), ()), ROOT, {"double_loop": "killed"}, "float64: PyTorch loop failed: killed"),
        (Cell(COMPARED, (LONG,), ()), LONG, {"double_long": "killed"}, "failed: killed"),
        (Cell(steps(1000), (LONG,), (), compared=False), LONG, {"double_long": NEARLY}, "another one"),
        (Cell(steps(1000), (LONG,), (), compared=False), LONG, {"double_long": "killed"}, "failed: killed"),
        (Cell(steps(1000), (ROOT,), (), compared=False), ROOT, {}, "nothing says that its gradient is right"),
    ],
)
def test_what_is_wrong_or_cannot_be_compared_has_no_figure(
    cell: Cell, name: str, changed: dict[str, Outcome], told: str
) -> None:
    result = Result([], {})
    add(result, cell, name, outcomes(cell))
    if "nothing says" not in told:
        assert result.figures and not result.failed, "right as long as nothing is changed"
    result = Result([], {})
    add(result, cell, name, outcomes(cell, **changed))
    assert result.figures == []
    (why,) = result.failed.values()
    assert re.search(told, why), why


def test_whoever_has_no_memory_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(memory, "race", lambda stable, given, until: asked.append(given.contenders) or Result([], {}))
    cell = Cell(SMALL, (UNROLLED, ROOT, PEER), (UNROLLED, ROOT, PEER))
    failed = {f"{ROOT}: {of_memory(SMALL.name)}": "another one", PEER: "not installed", f"{UNROLLED}: else": "no"}
    memory._timed(Stable(Plan(), CONTENDERS), cell, failed, float("inf"))
    assert asked == [(UNROLLED,)]
    late = memory._timed(Stable(Plan(), CONTENDERS), cell, {}, 0.0)
    assert late.failed == {of_time(SMALL.name): "there was no time left for it"} and len(asked) == 1


def test_the_longest_loop_is_timed_where_its_memory_is_measured() -> None:
    result, cell = Result([], {}), Cell(steps(1000), (LONG,), (), compared=False)
    add(result, cell, LONG, outcomes(cell))
    assert [(each.case, each.value) for each in result.figures] == [
        (of_memory(steps(1000).name), 1.0),
        (of_time(steps(1000).name), 500.0),
    ]
    assert "in float64 at T=100" in result.figures[0].note


def test_long_loops_are_told_beside_short_ones_and_unrolled_ones() -> None:
    figures = [
        Figure(of_memory(steps(count).name), name, value, value, value, 1, "MB")
        for count, name, value in ((10, UNROLLED, 30.0), (100, UNROLLED, 210.0), (1, LONG, 10.0), (100, LONG, 14.0))
    ]
    figures.append(Figure(of_memory(steps(1000).name), LONG, 1.0, 1.0, 1.0, 1, "MB", "so"))
    noted = memory._noted(figures)
    assert noted[-1].note == "so; unrolled, by the line through T=10 and T=100: 2010 MB (not run)"
    assert "1.40 times its own with T=1" in noted[3].note
    assert memory._noted(figures[1:2] + figures[4:])[-1].note == "so"


def test_float64_is_asked_of_all_at_10_steps_and_of_those_of_the_targets_at_100() -> None:
    found = doubles([Cell(COMPARED, (UNROLLED, ROOT), ()), Cell(DOUBLE, (ROOT,), ()), Cell(SMALL, (ROOT,), ())])
    assert all(case.dtype == "float64" for case, _ in found)
    assert {(case.steps, name) for case, name in found} == {
        *((100, name) for name in (LOOP, UNROLLED, LONG)),
        *((10, name) for name in (LOOP, ROOT)),
    }
    longest = doubles([Cell(steps(1000), (LONG,), (), compared=False)])
    assert (COMPARED._replace(dtype="float64"), LONG) in longest


def test_a_contender_that_cannot_be_started_has_no_figure() -> None:
    with Stable(Plan(threads=1), [Contender(LOOP, "no_such:loop"), Contender(UNROLLED, "no_such:ours")]) as stable:
        found = memory.peaks(Plan(threads=1), stable, [Cell(SMALL, (UNROLLED,), ())])
    assert found.figures == [] and set(found.failed) == {f"{UNROLLED}: {of_memory('small')}"}


def test_an_interrupt_ends_what_is_being_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Worker] = []

    def interrupted(self: Worker, request: Mapping[str, Any], seconds: float = 0.0) -> Any:
        asked.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Worker, "ask", interrupted)
    with Stable(Plan(threads=1), CONTENDERS) as stable, pytest.raises(KeyboardInterrupt):
        memory.peaks(Plan(threads=1), stable, [Cell(SMALL, (UNROLLED, ROOT), ())])
    assert asked and not any(worker.alive for worker in asked) and not memory._RUNNING
