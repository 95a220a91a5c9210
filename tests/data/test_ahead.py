import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headstart.data.ahead import drawn_ahead

LAST = 2**63 - 1


def counted(words=1):
    """Return a draw of two tensors a task, what is drawn ahead of it, and the numbers that were asked of the draw."""
    asked = []

    def draw(split, numbers):
        asked.append((split, list(numbers)))
        values = torch.tensor(list(numbers), dtype=torch.int64)
        return values[:, None] * len(split) + torch.arange(3), values % 7

    return draw, drawn_ahead(draw, words), asked


def same(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


runs = st.tuples(st.integers(0, 700), st.integers(0, 600)).map(lambda pair: list(range(pair[0], sum(pair))))
scattered = st.lists(st.integers(0, LAST), max_size=6)


@given(st.lists(st.tuples(st.sampled_from(["train", "test"]), runs | scattered), max_size=8), st.integers(1, 2**18))
def test_it_returns_what_the_draw_does_whatever_the_order(requests, words):
    draw, ahead, _ = counted(words)
    for split, numbers in requests:
        assert same(ahead(split, numbers), draw(split, numbers))


def test_following_numbers_are_drawn_once_a_block():
    _, ahead, asked = counted()
    for first in range(0, 512, 32):
        ahead("train", list(range(first, first + 32)))
    assert [(split, numbers[0], len(numbers)) for split, numbers in asked] == [("train", 0, 256), ("train", 256, 256)]


def test_other_splits_in_between_do_not_draw_it_again():
    _, ahead, asked = counted()
    for first in range(0, 256, 64):
        ahead("train", list(range(first, first + 64)))
        ahead("validation", list(range(64)))
    assert len(asked) == 2


@pytest.mark.parametrize("numbers", [[5, 9], [4, 3], [3, 3], list(range(256)), [-1, 0], [2**63], []])
def test_other_requests_are_drawn_as_they_are(numbers):
    asked = []
    ahead = drawn_ahead(lambda split, numbers: asked.append(numbers) or (), 1)
    ahead("train", numbers)
    assert asked == [numbers]


def test_the_last_numbers_stay_in_range():
    draw, ahead, asked = counted()
    assert same(ahead("train", [LAST - 2, LAST - 1]), draw("train", [LAST - 2, LAST - 1]))
    assert asked[0][1][-1] == LAST and len(asked[0][1]) == 256
    assert same(ahead("train", [LAST - 1, LAST]), draw("train", [LAST - 1, LAST]))


def test_large_tasks_are_drawn_in_small_blocks():
    _, ahead, asked = counted(words=2**15)
    ahead("train", [6])
    assert asked == [("train", [4, 5, 6, 7])]
    _, ahead, asked = counted(words=2**18)
    ahead("train", [6])
    assert asked == [("train", [6])]


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.int64, np.uint64, torch.tensor])
def test_integers_of_other_kinds_are_task_numbers(kind):
    draw, ahead, _ = counted()
    assert same(ahead("train", [kind(5), kind(6)]), draw("train", [5, 6]))


def test_numpys_last_numbers_stay_in_range():
    draw, ahead, _ = counted()
    assert same(ahead("train", [np.int64(LAST - 2), np.int64(LAST - 1)]), draw("train", [LAST - 2, LAST - 1]))
