"""The roofline: what is counted, and what is made of it; nothing here depends on how long anything takes."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import roofline
from benchmarks.peers.case import Case
from benchmarks.plan import Plan
from benchmarks.report import machine
from benchmarks.roofline import (
    ELEMENTWISE,
    KINDS,
    OUTSIDE,
    Floors,
    Traffic,
    floors,
    flops,
    grouped,
    kind,
    shares,
    tables_of,
    to_markdown,
    to_values,
    traffic,
    write_roofline,
)

SMALL = Case("small", "mlp", 2, 6, 6, 1, 0.1, ways=3, size=4, hidden=(5, 7))
BEST = Floors(1, 1e9, 1e8, 2e9, 1e10, 2e10, 1e-6)


def test_flops_of_a_second_derivative_of_products_are_counted() -> None:
    x, w = torch.ones(6, 4), torch.ones(5, 4, requires_grad=True)

    def second() -> None:
        (slope,) = torch.autograd.grad(F.linear(x, w).pow(3).sum(), w, create_graph=True)
        torch.autograd.grad(slope.pow(2).sum(), w)

    # out; its slope; then through slope = grad_outᵀ x back to grad_out, and through out back to w
    assert flops(second) == 4 * 2 * 6 * 5 * 4


def test_flops_of_a_second_derivative_of_convolutions_are_counted() -> None:
    x, w = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3, requires_grad=True)

    def second() -> None:
        (slope,) = torch.autograd.grad(F.conv2d(x, w, padding=1).pow(3).sum(), w, create_graph=True)
        torch.autograd.grad(slope.pow(2).sum(), w)

    # PyTorch also takes the derivative with respect to x, which nobody asked for
    assert flops(second) == 5 * 2 * 2 * 4 * 3 * 9 * 64


def test_traffic_is_read_and_written_once_and_views_are_free() -> None:
    x = torch.ones(10, 10)
    assert traffic(lambda: x.t()) == Traffic(0, 0)
    assert traffic(lambda: x + x) == Traffic(800, 1)
    assert traffic(lambda: torch.ones(1).expand(100) + x.view(-1)) == Traffic(4 + 4 + 400 + 400, 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("aten::bmm", "products and convolutions"),
        ("aten::convolution_backward", "products and convolutions"),
        ("aten::native_batch_norm_backward", "normalisation"),
        ("aten::max_pool2d_with_indices_backward", "pooling"),
        ("aten::tanh", ELEMENTWISE),
        ("aten::t", "views and bookkeeping"),
        ("aten::threshold_backward", ELEMENTWISE),
        ("aten::sum", ELEMENTWISE),
        ("aten::copy_", "moving and filling"),
        ("autograd::engine::evaluate_function: MulBackward0", OUTSIDE),
    ],
)
def test_the_kind_of_an_operation(name: str, expected: str) -> None:
    assert kind(name) == expected and expected in (*KINDS, ELEMENTWISE, OUTSIDE)


def test_shares_sum_to_one_the_largest_first() -> None:
    model, x = nn.Sequential(nn.Linear(50, 50), nn.ReLU()), torch.ones(20, 50)
    found = shares(lambda: model(x).sum().backward())
    assert sum(found.values()) == pytest.approx(1) and list(found.values()) == sorted(found.values(), reverse=True)
    assert {"products and convolutions", ELEMENTWISE} <= set(found)
    assert grouped([]) == {}


def test_a_row_counts_the_same_on_every_run_and_says_what_it_makes_of_it() -> None:
    first, again = (roofline.row(SMALL, BEST, repeats=2) for _ in range(2))
    assert (first.flops, first.moved) == (again.flops, again.moved) and first.runs == 2
    assert first.arithmetic == pytest.approx(first.flops / 2e9 * 1e3)
    assert first.at_own_size == pytest.approx(first.flops / 1e8 * 1e3)
    assert first.memory == pytest.approx(first.moved.bytes / 2e10 * 1e3)
    assert first.dispatch == pytest.approx(first.moved.operations * 1e-3)
    assert first.floor == max(first.arithmetic, first.memory, first.dispatch)
    assert first.eager > 0 and first.reached == pytest.approx(first.floor / first.measured)


def test_the_machine_is_measured_with_as_many_threads_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.roofline.LARGE", 64)
    monkeypatch.setattr("benchmarks.roofline._SECONDS", 0.001)
    before = torch.get_num_threads()
    found = floors(1)
    assert torch.get_num_threads() == before and found.threads == 1 and min(found[1:]) > 0
    assert found.rate_of(100) == found.cache and found.rate_of(1e9) == found.memory


def test_a_roofline_is_run_and_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(roofline, "CASES", (SMALL, SMALL._replace(name="other")))
    monkeypatch.setattr(roofline, "floors", lambda threads: BEST._replace(threads=threads))
    found = roofline.run(Plan(cases=("small",), repeats=1, threads=1))
    assert [row.case for row in found.rows] == ["small"] and [each.threads for each in found.floors] == [1]
    assert found.machine == machine(Plan(threads=1))
    values, page = write_roofline(tmp_path, found)
    assert json.loads(values.read_text()) == json.loads(json.dumps(to_values(found)))
    text = page.read_text()
    assert text == to_markdown(found)
    for row in (row for _, _, rows in tables_of(found) for row in rows):
        assert "| " + " | ".join(row) + " |" in text
