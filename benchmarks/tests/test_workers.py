"""The benchmark of several processes: what it times, and how it counts a message."""

import math

import headstart
from benchmarks import workers
from benchmarks.workers import CASES, Case, measured, pictures


def test_a_case_is_timed_and_its_message_counted() -> None:
    net = headstart.conv4((1, 28, 28), ways=5, filters=2)
    case = Case(lambda: headstart.maml(net, steps=1), lambda: pictures(different=4), 6, 1, 2)
    found = measured(case)
    numbers = sum(one.numel() for one in net.parameters())
    assert found.bytes == 4 * (numbers + 6 + 3)
    assert 0 < found.step < math.inf and 0 <= found.message < found.step


def test_a_round_is_beside_one_process(monkeypatch) -> None:
    seconds = {1: 0.4, 2: 0.25}
    monkeypatch.setattr(workers, "in_processes", lambda name, count: workers.Measured(seconds[count], 0.001, 80))
    one, two = workers.rounds([next(iter(CASES))], [1, 2], 3)
    assert (one["times as fast"], two["times as fast"]) == (1.0, 1.6)
    assert (one["message, bytes"], two["message, bytes"]) == (0, 80)
