"""The protocol, with the plain loop as the contender."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.bench.peers.case import Case, arrays
from headstart.bench.peers.process import PeerError, Worker, available_cores

LOOP = "headstart.bench.peers.contenders.loop:prepare"
CASE = Case("sine", "mlp", 2, 3, 3, 1, 0.1)._asdict()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(LOOP) as found:
        yield found


def test_steps_are_timed_one_by_one_and_memory_is_told(worker: Worker) -> None:
    assert worker.ask({"do": "prepare", "case": CASE})["seconds"] > 0
    seconds = worker.ask({"do": "run", "steps": 3})["seconds"]
    assert len(seconds) == 3 and all(0 < each < 60 for each in seconds)
    memory = worker.ask({"do": "memory"})
    assert 10e6 < memory["now"] <= memory["peak"] * 1.01


def test_what_fails_is_told_and_the_process_goes_on(worker: Worker) -> None:
    with pytest.raises(PeerError, match="TypeError"):
        worker.ask({"do": "prepare", "case": {"colour": "blue"}})
    with pytest.raises(PeerError, match="nothing is prepared"):
        worker.ask({"do": "run", "steps": 1})
    assert worker.ask({"do": "prepare", "case": CASE})


def test_a_process_that_ends_is_told_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fatal.py").write_text(
        "import os, sys\ndef prepare(values):\n    print('no memory', file=sys.stderr, flush=True)\n    os._exit(9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker("fatal:prepare") as fatal:
        with pytest.raises(PeerError, match="exit code 9.*no memory"):
            fatal.ask({"do": "prepare", "case": {}})
        assert not fatal.alive


def test_what_is_not_there_is_told_and_an_unknown_request_too() -> None:
    with Worker("headstart.bench.peers.no_such_module:prepare") as absent:
        with pytest.raises(PeerError, match="No module named"):
            absent.ask({"do": "prepare", "case": CASE})
        with pytest.raises(PeerError, match="KeyError"):
            absent.ask({"do": "dance"})
        assert absent.alive


def test_no_answer_in_time_ends_the_process() -> None:
    with Worker(LOOP) as slow:
        with pytest.raises(PeerError, match="no answer within 0 s"):
            slow.ask({"do": "prepare", "case": CASE}, seconds=0.0)
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
        "import numpy as np\nfrom headstart.bench.peers.prepared import Prepared\n"
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
        "import os\nfrom headstart.bench.peers.prepared import Prepared\n"
        "def prepare(values):\n    print('loud')\n    os.write(1, b'louder')\n"
        "    return Prepared(lambda: print('and again'))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    case: Mapping[str, Any] = {}
    with Worker("noisy:prepare") as noisy:
        noisy.ask({"do": "prepare", "case": case})
        assert len(noisy.ask({"do": "run", "steps": 2})["seconds"]) == 2
        assert "loud" in noisy.said()
