"""Every contender computes the same: headstart, the loop, and whatever peers are installed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headstart.bench.peers.case import Case
from headstart.bench.peers.environment import Environment, existing
from headstart.bench.peers.process import Worker
from headstart.bench.peers.rounds import Contender, difference
from headstart.bench.speed_cases import COMPILED, CONTENDERS, LOOP, OURS

# rates that float32 can hold, in which one peer keeps them
SINE = Case("sine", "mlp", 3, support=4, query=5, steps=2, rate=0.0625)
CONV = Case("conv4", "conv4", 2, support=5, query=10, steps=1, rate=0.125, ways=5, size=16, filters=4)
ANIL = CONV._replace(name="anil", what="anil")
ADAPTERS = Case("adapters", "transformer", 2, 5, 5, 2, 0.125, ways=5, size=6, what="adapters")
ADAPT = CONV._replace(name="adapt", tasks=1, what="adapt")

CASES = {
    LOOP: (),
    OURS: (SINE, CONV, ANIL, ADAPTERS, ADAPT),
    "learn2learn": (SINE, CONV, ANIL),
    "iteryne": (SINE, CONV, ANIL),
    "higher": (SINE, CONV),
    "TorchOpt": (SINE, CONV),
    "parallel-metalearn": (SINE, CONV, ANIL),
    "JAX": (SINE, CONV),
}
PEERS = [each for each in CONTENDERS if each.package]


@pytest.fixture(scope="module")
def environment() -> Environment:
    found = existing()
    if found is None:
        pytest.skip("no environment of peers: `headstart bench speed` builds it, HEADSTART_PEERS names its folder")
    return found


@pytest.fixture(scope="module")
def loop() -> Iterator[Worker]:
    with Worker(next(each.target for each in CONTENDERS if each.name == LOOP)) as worker:
        yield worker


def answer(worker: Worker, case: Case, folder: Path) -> dict[str, np.ndarray]:
    path = folder / "answer.npz"
    worker.ask({"do": "prepare", "case": case._asdict(), "answer": str(path)})
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def assert_agrees(worker: Worker, loop: Worker, contender: str, folder: Path) -> None:
    for case in CASES[contender]:
        for dtype, tolerance in (("float64", 1e-8), ("float32", 1e-4)):
            if dtype == "float32" and (case is not SINE or contender != OURS):
                continue
            case = case._replace(dtype=dtype)
            expected = answer(loop, case, folder)
            found = answer(worker, case, folder)
            assert set(found) == set(expected)
            assert any(np.abs(value).max() > 1e-3 for value in expected.values())
            assert difference(found, expected) < tolerance, (case.name, dtype)
            assert len(worker.ask({"do": "run", "steps": 2})["seconds"]) == 2


def test_headstart_agrees_with_the_loop(loop: Worker, tmp_path: Path) -> None:
    with Worker(next(each.target for each in CONTENDERS if each.name == OURS)) as worker:
        assert_agrees(worker, loop, OURS, tmp_path)


@pytest.mark.parametrize("contender", PEERS, ids=lambda each: each.name)
def test_a_peer_agrees_with_the_loop(
    contender: Contender, environment: Environment, loop: Worker, tmp_path: Path
) -> None:
    if contender.package not in environment.versions:
        pytest.skip(f"{contender.package} is not installed: {environment.failed.get(contender.package)}")
    with Worker(contender.target, python=environment.python) as worker:
        assert_agrees(worker, loop, contender.name, tmp_path)


def test_every_contender_is_checked() -> None:
    assert set(CASES) == {each.name for each in CONTENDERS} - {COMPILED}
