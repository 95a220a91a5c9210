"""Sums in memory that processes share: what they are, and who is missed."""

import json
import multiprocessing
import os
import platform
import time

import pytest
import torch

from headstart.errors import ProcessError
from headstart.training import shared_memory
from headstart.training.shared_memory import LONGEST, meet

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create") or platform.machine() != "x86_64", reason="processes share no such memory here"
)


class Store(dict):
    """What the first process says, and the others read."""

    def set(self, name, value):
        self[name] = value


def each(size, work, first):
    """Let processes 1 … size − 1, forked, work with their memory, and return what ``first`` finds as process 0."""
    store, everyone = Store(), multiprocessing.get_context("fork").Barrier(size)
    memory = meet(store, 0, size)
    children = []
    for rank in range(1, size):
        if not (child := os.fork()):
            try:
                own = meet(store, rank, size)
                everyone.wait()
                os._exit(0 if work(own) else 1)
            finally:
                os._exit(2)
        children.append(child)
    everyone.wait()
    try:
        found = first(memory)
    finally:
        memory.close()
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return found, codes


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bfloat16])
def test_sums_turn_after_turn_are_the_same_in_all(size, largest, dtype):
    turns = 300

    def numbers(rank, turn):
        return (torch.arange(turn % 7 + 1) * (rank + 1) + turn % 16).to(dtype).unsqueeze(0)

    def whole(turn):
        all_of = torch.stack([numbers(rank, turn) for rank in range(size)])
        return all_of.amax(0) if largest else all_of.sum(0)

    def work(memory):
        right = True
        for turn in range(turns):
            if turn % 50 == memory.rank:
                time.sleep(0.004)  # one that comes late, whom others await asleep
            own = numbers(memory.rank, turn)
            memory.sum(own, largest, 20.0)
            right = right and torch.equal(own, whole(turn))
        return right

    found, codes = each(size, work, work)
    assert found and codes == [0] * (size - 1)


def test_a_sum_of_three_has_the_same_bits_in_all():
    draw = [torch.randn(1000, generator=torch.Generator().manual_seed(rank)) for rank in range(3)]
    wanted = draw[0] + draw[1] + draw[2]

    def work(memory):
        own = draw[memory.rank].clone()
        memory.sum(own, False, 20.0)
        return torch.equal(own, wanted)

    assert each(3, work, work) == (True, [0, 0])


@pytest.mark.parametrize("last", [False, True])
def test_a_process_that_ends_is_missed_unless_it_left_its_numbers(last):
    def work(memory):
        if last:
            memory.sum(torch.ones(2), False, 20.0)
        return True

    def first(memory):
        own = torch.ones(2)
        memory.sum(own, False, 20.0)
        return own.tolist()

    if last:
        assert each(2, work, first) == ([2.0, 2.0], [0])
        return
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="process 1 has ended"):
        each(2, work, first)
    assert time.monotonic() - began < 10


def test_a_process_that_stands_still_is_given_up():
    def work(memory):
        time.sleep(1.0)
        return True

    with pytest.raises(RuntimeError, match="process 1 has not come"):
        each(2, work, lambda memory: memory.sum(torch.ones(1), False, 0.2))


@pytest.mark.parametrize("other", ["size", "type", "largest"])
def test_processes_that_do_not_sum_the_same_are_all_told(other):
    def work(memory):
        memory.sum(torch.ones(2), False, 20.0)
        odd = memory.rank == 1
        own = torch.ones(3 if odd and other == "size" else 2, dtype=torch.int32 if odd and other == "type" else None)
        with pytest.raises(ProcessError, match="do not sum the same"):
            memory.sum(own, odd and other == "largest", 20.0)
        return True

    assert each(3, work, work) == (True, [0, 0])


def test_what_it_takes():
    memory = meet(Store(), 0, 1)
    assert memory.takes(torch.zeros(LONGEST // 4)) and not memory.takes(torch.zeros(LONGEST // 4 + 1))
    assert not memory.takes(torch.zeros(1, device="meta"))
    memory.close()


def test_a_file_of_somebody_else_is_not_taken_for_the_memory(tmp_path):
    store, path = Store(), tmp_path / "file"
    path.write_bytes(bytes(8 * LONGEST))
    memory = meet(store, 0, 2)
    where, _, name = json.loads(store["memory"])
    with path.open("r+b") as file:
        store["memory"] = json.dumps([where, f"/proc/{os.getpid()}/fd/{file.fileno()}", name])
        assert meet(store, 1, 2) is None
    memory.close()
    assert not any(path.read_bytes())


@pytest.mark.parametrize("elsewhere", ["machine", "processor", "gone"])
def test_processes_that_see_no_memory_in_common_have_none(elsewhere, monkeypatch):
    store = Store()
    if elsewhere == "processor":
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
        assert meet(store, 0, 2) is None
    else:
        memory = meet(store, 0, 2)
        if elsewhere == "machine":
            monkeypatch.setattr(shared_memory, "_here", lambda: "another machine")
        else:
            memory.close()
    assert meet(store, 1, 2) is None
