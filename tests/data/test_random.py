import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from headstart.core.philox import philox
from headstart.data.random import below, bits, distinct, streams, uniform
from headstart.errors import UnknownNameError, UsageError


def test_the_counter_is_lane_stream_task_and_the_key_seed_split():
    task = 5 + (7 << 32)
    lane_1 = bits(11, "validation", [task], stream=3, count=8)[0, 4:]
    expected = philox(np.array([1, 3, 5, 7], dtype=np.uint64), (11, 1))
    assert lane_1.tolist() == [int(word) for word in expected]


numbers = st.lists(st.integers(0, 2**63 - 1), max_size=6)


@given(numbers, st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_a_tasks_words_do_not_depend_on_its_batch_or_on_the_count(batch, seed, count):
    together = bits(seed, "train", batch, 2, count)
    assert together.shape == (len(batch), count)
    for number, row in zip(batch, together):
        alone = bits(seed, "train", [number], 2, count + 5)
        assert torch.equal(alone[0, :count], row)


def test_seed_split_number_and_stream_each_change_the_words():
    seen = {
        tuple(bits(seed, split, [number], stream, 4)[0].tolist())
        for seed in (0, 1, 2**32 - 1)
        for split in ("train", "validation", "test")
        for number in (0, 1, 2**32, 2**62)
        for stream in (0, 1)
    }
    assert len(seen) == 3 * 3 * 4 * 2


def test_uniform_has_the_moments_of_the_uniform_distribution():
    values = uniform(0, "train", range(500), 0, 200).flatten()
    assert values.dtype == torch.float64
    assert 0 <= values.min() and values.max() < 1
    deviation = (1 / 12 / len(values)) ** 0.5
    assert abs(values.mean() - 0.5) < 4 * deviation
    assert abs(values.var() - 1 / 12) < 4 * (1 / 180 / len(values)) ** 0.5
    neighbours = torch.corrcoef(torch.stack((values[:-1], values[1:])))[0, 1]
    assert abs(neighbours) < 4 / len(values) ** 0.5


def test_below_covers_its_range_evenly_up_to_the_ends():
    assert below(torch.tensor([0, 2**32 - 1]), 7).tolist() == [0, 6]
    assert below(torch.tensor([2**32 - 1]), 2**31).tolist() == [2**31 - 1]
    counts = below(bits(0, "train", range(100), 0, 100), 10).flatten().bincount(minlength=10)
    assert (counts - 1000).abs().max() < 4.5 * (10_000 * 0.1 * 0.9) ** 0.5


@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.data())
def test_distinct_never_repeats_and_stays_below_its_size(sizes, data):
    count = data.draw(st.integers(1, min(sizes)))
    seed = data.draw(st.integers(0, 2**32 - 1))
    drawn = distinct(bits(seed, "test", range(len(sizes)), 0, 2 * count), torch.tensor(sizes), count)
    assert drawn.shape == (len(sizes), count)
    for row, size in zip(drawn.tolist(), sizes):
        assert len(set(row)) == count
        assert 0 <= min(row) and max(row) < size


def test_distinct_draws_every_ordered_choice_equally_often():
    trials = 24_000
    drawn = distinct(bits(0, "train", range(trials), 0, 4), torch.full((trials,), 4), 2)
    counts = (drawn[:, 0] * 4 + drawn[:, 1]).bincount(minlength=16).view(4, 4)
    assert (counts.diagonal() == 0).all()
    off_diagonal = counts[~torch.eye(4, dtype=torch.bool)]
    assert (off_diagonal - 2000).abs().max() < 4.5 * (trials / 12 * 11 / 12) ** 0.5


def test_bad_arguments_are_named():
    with pytest.raises(UnknownNameError, match="unknown split 'tset'; did you mean 'test'"):
        bits(0, "tset", [0], 0, 1)
    with pytest.raises(UsageError, match=r"seed must be an integer from 0 to 2\*\*32 - 1, got -1"):
        bits(-1, "test", [0], 0, 1)
    with pytest.raises(UsageError, match="task numbers must be from 0"):
        bits(0, "test", [3, -2], 0, 1)
    with pytest.raises(UsageError, match="task numbers must be from 0"):
        bits(0, "test", [2**63], 0, 1)


@given(numbers, st.dictionaries(st.integers(0, 2**32 - 1), st.integers(0, 20), min_size=1, max_size=4))
def test_streams_computed_together_are_those_computed_alone(batch, counts):
    together = streams(3, "test", batch, counts)
    assert len(together) == len(counts)
    for words, (stream, count) in zip(together, counts.items()):
        assert torch.equal(words, bits(3, "test", batch, stream, count))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.data())
def test_distinct_is_floyds_algorithm_and_a_shuffle(sizes, data):
    count = data.draw(st.integers(1, min(sizes)))
    words = bits(data.draw(st.integers(0, 2**32 - 1)), "train", range(len(sizes)), 0, 2 * count)
    for size, row, drawn in zip(sizes, words.tolist(), distinct(words, torch.tensor(sizes), count).tolist()):
        chosen = []
        for newest, word in zip(range(size - count, size), row):
            value = word * (newest + 1) >> 32
            chosen.append(newest if value in chosen else value)
        assert drawn == [value for _, value in sorted(zip(row[count:], chosen), key=lambda pair: pair[0])]
