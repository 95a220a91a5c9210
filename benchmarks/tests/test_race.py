"""Contenders in processes of their own, in turn: the protocol, the check of answers, the rounds."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peers.case import Case, arrays
from benchmarks.peers.environment import Environment
from benchmarks.peers.process import PeerError, Worker, available_cores, completed
from benchmarks.peers.race import Contender, Race, Stable, compared, difference, figure_of, race, read
from benchmarks.plan import Plan

RIGHT = {"large": np.full(100, 10.0), "small": np.full(4, 2.0), "none": np.zeros(3)}


def test_the_worst_tensor_counts_not_all_together() -> None:
    assert difference({**RIGHT, "small": np.full(4, 2.2)}, RIGHT) == pytest.approx(0.1)
    assert difference({**RIGHT, "large": np.full(100, 10.01)}, RIGHT) == pytest.approx(0.001)


def test_what_is_zero_is_held_against_a_share_of_the_whole() -> None:
    found = difference({**RIGHT, "none": np.full(3, 1e-6)}, RIGHT)
    assert found == pytest.approx(np.sqrt(3) * 1e-6 / (0.01 * np.sqrt(100 * 100 + 16)))


def test_other_parts_shapes_and_numbers_are_refused() -> None:
    for answer, told in (
        ({"large": RIGHT["large"]}, "other parts: none, small"),
        ({**RIGHT, "small": np.full((2, 2), 2.0)}, r"a small of shape \(2, 2\)"),
        ({**RIGHT, "small": np.full(4, np.nan)}, "another one"),
        ({**RIGHT, "large": RIGHT["large"] * 1.01}, "1.0e-02 from it"),
    ):
        with pytest.raises(PeerError, match=told):
            compared(answer, RIGHT, 1e-4)
    assert compared(RIGHT, RIGHT, 1e-8) == 0


def test_nothing_is_not_an_answer(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="nothing to compare with"):
        difference({}, {})
    with pytest.raises(PeerError, match="no answer"):
        read(tmp_path / "none.npz")


LOOP = "benchmarks.peers.libraries:loop"
SINE = Case("sine", "mlp", 2, 3, 3, 1, 0.1)._asdict()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(LOOP) as found:
        yield found


def test_steps_are_timed_one_by_one_and_memory_is_told(worker: Worker) -> None:
    assert worker.ask({"do": "prepare", "case": SINE})["seconds"] > 0
    seconds = worker.ask({"do": "run", "steps": 3})["seconds"]
    assert len(seconds) == 3 and all(0 < each < 60 for each in seconds)
    memory = worker.ask({"do": "memory"})
    assert 10e6 < memory["now"] <= memory["peak"] * 1.01


def test_what_fails_is_told_and_the_process_goes_on(worker: Worker) -> None:
    with pytest.raises(PeerError, match="TypeError"):
        worker.ask({"do": "prepare", "case": {"colour": "blue"}})
    with pytest.raises(PeerError, match="nothing is prepared"):
        worker.ask({"do": "run", "steps": 1})
    assert worker.ask({"do": "prepare", "case": SINE})


def test_a_process_that_ends_is_told_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fatal.py").write_text(
        "import os, sys\ndef prepare(values):\n    print('no memory', file=sys.stderr, flush=True)\n    os._exit(9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker("fatal:prepare") as fatal:
        with pytest.raises(PeerError, match="exit code 9.*no memory"):
            fatal.ask({"do": "prepare", "case": {}})
        assert not fatal.alive


def test_no_answer_in_time_ends_the_process() -> None:
    with Worker(LOOP) as slow:
        with pytest.raises(PeerError, match="no answer within 0 s"):
            slow.ask({"do": "prepare", "case": SINE}, seconds=0.0)
        assert not slow.alive
        with pytest.raises(PeerError, match="ended"):
            slow.ask({"do": "memory"})


def test_arrays_are_a_function_of_seed_and_number_alone() -> None:
    case = Case("images", "conv4", 3, support=5, query=10, steps=1, rate=0.1, ways=5, size=16)
    whole, last = arrays(case), arrays(case._replace(tasks=1, first=2))
    assert all((whole[name][2:] == last[name]).all() for name in whole)
    assert whole["support_x"].shape == (3, 5, 1, 16, 16) and whole["support_x"].dtype == "float32"
    assert sorted(whole["support_y"][0]) == [0, 1, 2, 3, 4] and whole["query_y"].shape == (3, 10)
    other = arrays(case._replace(seed=1))
    assert (other["support_x"] != whole["support_x"]).any()
    assert (whole["support_x"][0] != whole["support_x"][1]).any()


def test_a_worker_meets_the_others_before_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meeting.py").write_text(
        "import numpy as np\nfrom benchmarks.peers.prepared import Prepared\n"
        "def prepare(values):\n    did = []\n"
        "    return Prepared(lambda: did.append(1), lambda: {'did': np.array(did)}, meet=lambda: did.append(0))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker("meeting:prepare") as meeting:
        meeting.ask({"do": "prepare", "case": {}})
        meeting.ask({"do": "run", "steps": 2})
        meeting.ask({"do": "answer", "answer": str(tmp_path / "did.npz")})
    assert np.load(tmp_path / "did.npz")["did"].tolist() == [0, 1, 0, 1]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system holds no process to cores")
def test_cores_are_the_first_ones_those_that_are_named_or_all() -> None:
    every = available_cores()
    for cores, expected in ((None, every[:1]), ((), every), (every[-1:], every[-1:])):
        with Worker(LOOP, threads=1, cores=cores) as held:
            assert sorted(os.sched_getaffinity(held.number)) == expected


def test_prints_of_a_contender_do_not_reach_the_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noisy.py").write_text(
        "import os\nfrom benchmarks.peers.prepared import Prepared\n"
        "def prepare(values):\n    print('loud')\n    os.write(1, b'louder')\n"
        "    return Prepared(lambda: print('and again'))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    case: Mapping[str, Any] = {}
    with Worker("noisy:prepare") as noisy:
        noisy.ask({"do": "prepare", "case": case})
        assert len(noisy.ask({"do": "run", "steps": 2})["seconds"]) == 2
        assert "loud" in noisy.said()


CHILD = "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"


posix = pytest.mark.skipif(os.name != "posix", reason="needs process groups")


def gone(number: int) -> bool:
    """Whether a process has ended, or is about to be forgotten by whoever took it over."""
    for _ in range(200):
        try:
            if Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
            os.kill(number, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


@posix
def test_what_a_late_command_has_started_ends_with_it(tmp_path: Path) -> None:
    told = tmp_path / "child"
    code = f"{CHILD}open({str(told)!r}, 'w').write(str(child.pid))\nchild.wait()"
    with pytest.raises(subprocess.TimeoutExpired):
        completed([sys.executable, "-c", code], 2.5)
    assert gone(int(told.read_text()))


@posix
def test_what_a_worker_has_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parent.py").write_text(
        f"{CHILD}from benchmarks.peers.prepared import Prepared\n"
        "def prepare(values):\n    return Prepared(lambda: None, note=str(child.pid))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker("parent:prepare") as worker:
        number = int(worker.ask({"do": "prepare", "case": {}})["note"])
        assert not Path(f"/proc/{number}/stat").exists() or os.getsid(number) != os.getsid(0)
    assert gone(number)


MADE_UP = """
import os
import numpy as np
from benchmarks.peers.prepared import Prepared

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


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plan]:
    folder = tmp_path_factory.mktemp("made_up")
    (folder / "made_up.py").write_text(MADE_UP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("MADE_UP_LOG", str(folder / "log"))
        yield Plan(Environment(Path(sys.executable), {"there": "1"}, {"refused": "pip failed"}), threads=1)


@pytest.fixture(scope="module")
def stable(plan: Plan) -> Iterator[Stable]:
    """Contenders whose processes, which take seconds to start, serve several tests."""
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


def test_a_check_is_done_once_for_cases_of_the_same_mathematics(plan: Plan) -> None:
    log = Path(os.environ["MADE_UP_LOG"])
    log.unlink(missing_ok=True)
    with Stable(plan, CONTENDERS, reference=Contender("reference", "made_up:right")) as stable:
        for tasks in (4, 8):
            assert not race(stable, of("counting", case={**CASE, "tasks": tasks, "name": str(tasks)})).failed
        assert log.read_text().split() == ["float64", "float32", "float32"]
        race(stable, of("counting", small={"size": 32}))
        assert log.read_text().split()[3:] == ["float64", "float32"]


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


def test_a_figure_is_made_of_the_rounds_medians() -> None:
    figure = figure_of("case", "who", [[0.001, 0.002, 0.003], [0.004], [0.009, 0.010]])
    assert figure.rounds == pytest.approx((2.0, 4.0, 9.5)) and figure.runs == 6
    assert (figure.low, figure.value, figure.high) == pytest.approx((3.0, 4.0, 6.75))
