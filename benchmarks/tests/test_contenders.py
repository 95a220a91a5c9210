"""Every contender computes the same: headstart, the loop, and whatever peers are installed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.peers.case import Case, outer_optimizer
from benchmarks.peers.environment import Environment, existing
from benchmarks.peers.process import PeerError, Worker
from benchmarks.peers.race import CLOSE, EXACT, LOOSE, Contender, difference
from benchmarks.speed import COMPILED, CONTENDERS, LOOP, OURS, REPLAYED, UNRECORDED, one_thread
from headstart.algorithms.maml import maml
from headstart.training.loop import start

# rates that float32 can hold, in which one peer keeps them
SINE = Case("sine", "mlp", 3, support=4, query=5, steps=2, rate=0.0625)
CONV = Case("conv4", "conv4", 2, support=5, query=10, steps=1, rate=0.125, ways=5, size=16, filters=4)
ANIL = CONV._replace(name="anil", what="anil")
ADAPTERS = Case("adapters", "transformer", 2, 5, 5, 1, 0.125, ways=5, size=6, what="adapters")
ADAPT = CONV._replace(name="adapt", tasks=1, what="adapt")
CASES = {
    LOOP: (),
    OURS: (SINE, CONV, ADAPT),
    REPLAYED: (SINE, CONV, ANIL, ADAPTERS),
    UNRECORDED: (SINE,),
    COMPILED: (SINE, CONV, ANIL, ADAPTERS),
    "learn2learn": (SINE, CONV, ANIL),
    "iteryne": (SINE, CONV, ANIL),
    "higher": (SINE, CONV),
    "TorchOpt": (SINE, CONV),
    "parallel-metalearn": (SINE, CONV, ANIL),
    "JAX": (SINE, SINE._replace(name="sine, long", steps=12)),
}


PEERS = [each for each in CONTENDERS if each.package and not each.threads]


@pytest.fixture(scope="module")
def environment() -> Environment:
    found = existing()
    if found is None:
        pytest.skip("no environment of peers: `python -m benchmarks speed` builds it, HEADSTART_PEERS names its folder")
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
        for dtype, tolerance in (("float64", EXACT), ("float32", CLOSE if case.model == "mlp" else LOOSE)):
            if dtype == "float32" and case not in (SINE, CONV):
                continue
            given = case._replace(dtype=dtype)
            expected = answer(loop, given, folder)
            found = answer(worker, given, folder)
            assert set(found) == set(expected)
            assert any(np.abs(value).max() > 1e-3 for value in expected.values())
            assert difference(found, expected) < tolerance, (case.name, dtype)
            assert len(worker.ask({"do": "run", "steps": 2})["seconds"]) == 2


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (OURS, "compiled, as from the first step of a long run"),
        (REPLAYED, "replayed, as after the first steps of a run"),
        (UNRECORDED, ""),
        (COMPILED, None),
    ],
)
def test_headstart_agrees_with_the_loop_and_says_whether_it_is_replayed(
    name: str, told: str | None, loop: Worker, tmp_path: Path
) -> None:
    with Worker(next(each.target for each in CONTENDERS if each.name == name)) as worker:
        assert_agrees(worker, loop, name, tmp_path)
        if told is not None:
            note = worker.ask({"do": "prepare", "case": SINE._asdict()})["note"]
            assert note.startswith(told) and bool(note) == bool(told)


@pytest.mark.parametrize(("name", "told"), [(REPLAYED, "not replayed"), (COMPILED, "not compiled")])
def test_headstart_fails_where_it_is_not_what_its_name_says(
    name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(
        "from benchmarks.peers import ours\n"
        "from headstart.engine import accelerate\n"
        "def refuse(record):\n    raise NotImplementedError('no compiler here')\n"
        "def broken(way):\n    return way._replace(translate=refuse)\n"
        "accelerate.COMPILED = broken(accelerate.COMPILED)\n"
        "accelerate.REPLAYED = broken(accelerate.REPLAYED)\n"
        "prepare_replayed, prepare_compiled = ours.prepare_replayed, ours.prepare_compiled\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    function = next(each.target for each in CONTENDERS if each.name == name).split(":")[1]
    with Worker(f"broken:{function}") as worker, pytest.raises(PeerError, match=f"{told}.*no compiler here"):
        worker.ask({"do": "prepare", "case": SINE._asdict()})


def test_every_contenders_outer_optimiser_is_that_of_fit() -> None:
    ours = outer_optimizer([torch.zeros(2, requires_grad=True)])
    fits = start(maml(torch.nn.Linear(1, 1), loss="mse", steps=1)).optimizer
    assert fits is not None and type(ours) is type(fits) and ours.defaults == fits.defaults


@pytest.mark.parametrize("contender", PEERS, ids=lambda each: each.name)
def test_a_peer_agrees_with_the_loop(
    contender: Contender, environment: Environment, loop: Worker, tmp_path: Path
) -> None:
    if contender.package not in environment.versions:
        pytest.skip(f"{contender.package} is not installed: {environment.failed.get(contender.package)}")
    with Worker(contender.target, python=environment.python) as worker:
        assert_agrees(worker, loop, contender.name, tmp_path)


def test_every_contender_is_checked() -> None:
    same = {one_thread(name) for name in CASES}
    assert set(CASES) == {each.name for each in CONTENDERS} - same
