import pytest
import torch
from hypothesis import given, strategies as st

from headstart.core.counting import Counted, to_bytes, to_text
from headstart.errors import UsageError


def test_what_is_made_counts_for_as_long_as_it_lives():
    before = torch.zeros(10**6)
    with Counted() as live:
        kept = torch.zeros(100)
        gone = torch.zeros(200)
        assert live.now == 1200
        view = kept.view(10, 10)
        before += 1  # in place
        del gone
        assert live.now == 400
        del kept
        assert live.now == 400  # the view lives
        del view
    assert (live.now, live.peak) == (0, 1200)


def test_what_autograd_saves_lives_with_its_graph():
    x = torch.zeros(100, dtype=torch.float64, requires_grad=True)
    with Counted() as live:
        total = x.sin().cos().sum()
        assert live.now == 808  # sin x for the backward pass of the cosine, and the total
        total.backward()
        assert live.now == 808  # the gradient in place of what was saved


def test_tensors_under_vmap_count_in_full():
    with Counted() as live:
        out = torch.func.vmap(lambda row: row * 2)(torch.zeros(5, 100))
    assert live.now == out.nbytes == 2000 and live.peak == 4000


def counted(function):
    with Counted() as found:
        function()
    return found


def test_views_do_not_count_and_work_in_place_does():
    x = torch.ones(2, 3)
    found = counted(lambda: (x.mT.reshape(3, 2)[:, :1].expand(3, 4).unsqueeze(0) * 2).add_(1))
    # in place an operation gives no tensor of its own, and is work still
    assert found.operations >= 2 and found.elements % 12 == 0 and found.elements >= 24


def test_backward_passes_inside_count_and_the_count_is_the_same_on_every_run():
    def step(size):
        w = torch.ones(size, size, requires_grad=True)
        return lambda: torch.autograd.grad((w @ w).tanh().sum(), w)

    small, again, large = counted(step(4)), counted(step(4)), counted(step(40))
    assert (small.operations, small.elements) == (again.operations, again.elements)
    assert small.operations == large.operations > 6 and large.size > 50 * small.size


def test_several_outputs_count_together_and_nothing_is_no_work():
    found = counted(lambda: torch.sort(torch.zeros(7)))
    assert (found.operations, found.elements) == (2, 7 + 14)
    assert counted(lambda: None).size == 0


def test_tensors_without_a_memory_of_one_piece_count_as_operations():
    found = counted(lambda: torch.ones(3, 3).to_sparse() * 2)
    assert found.operations > 1


@pytest.mark.parametrize(
    "memory, expected",
    [
        (1, 1),
        (123456, 123456),
        ("7", 7),
        ("7 B", 7),
        ("2KB", 2000),
        ("2KiB", 2048),
        (" 500 mb ", 500 * 10**6),
        ("1.5GiB", 3 * 2**29),
        ("2gb", 2 * 10**9),
        ("1 TiB", 2**40),
        ("1TB", 10**12),
    ],
)
def test_amounts_are_read(memory, expected):
    assert to_bytes(memory) == expected


@pytest.mark.parametrize(
    "memory",
    [0, -5, "0 MB", "-1 GB", "", "GB", "1 gigabyte", "1,5 GB", "1e9", "much", None, "0.4", 0.4, "0.0009 KB"],
)
def test_what_is_no_amount_is_refused(memory):
    with pytest.raises(UsageError, match="memory must be a number of bytes from 1 up, or a text such as '2GiB'"):
        to_bytes(memory)


@pytest.mark.parametrize(
    "size, expected",
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (3 * 2**19, "1.5 MiB"),
        (2**30, "1 GiB"),
        (2**43, "8192 GiB"),
    ],
)
def test_amounts_are_written(size, expected):
    assert to_text(size) == expected


@given(st.integers(1, 10**15))
def test_what_is_written_can_be_read(size):
    assert abs(to_bytes(to_text(size)) - size) <= 0.01 * size
