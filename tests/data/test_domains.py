"""Tasks of several sources: each task is of one, drawn by weight in training, in turn where it is judged."""

from collections import Counter

import pytest
import torch

from headstart.data.curves.curves import curves
from headstart.data.curves.sinusoid import sinusoid
from headstart.data.domains import mixed
from headstart.data.fewshot import class_store, few_shot
from headstart.errors import ShapeError, UsageError
from headstart.testing import check_tasks


def family(offset, seed=0, classes=6, **options):
    generator = torch.Generator().manual_seed(offset)
    made = {f"{offset}-{n}": offset + torch.rand(6, 3, generator=generator) for n in range(3 * classes)}
    names = sorted(made)
    parts = zip(("train", "validation", "test"), (names[::3], names[1::3], names[2::3]))
    stores = {split: class_store({name: made[name] for name in own}) for split, own in parts}
    return few_shot("some", stores, seed=seed, **{"ways": 3, "shots": 2, "queries": 3, **options})


def both(seed=0, weights=None, **options):
    return mixed(
        "both", {"a": family(0, seed, **options), "b": family(10, seed, **options)}, weights=weights, seed=seed
    )


@pytest.mark.parametrize("options", [{}, {"shots": (1, 3)}])
def test_the_contract_is_kept(options):
    check_tasks(lambda seed: both(seed, **options))


def test_training_tasks_are_drawn_by_weight_and_are_the_sources_own():
    tasks, own = both(weights=(3, 1)), {"a": family(0), "b": family(10)}
    found = Counter(tasks.domain("train", number) for number in range(600))
    assert abs(found["a"] - 450) < 45
    episodes = tasks.sample("train", range(8))
    for number in range(8):
        one = own[tasks.domain("train", number)]
        alone = one.sample("train", [number])
        assert torch.equal(episodes.support.x[number], alone.support.x[0])
        assert torch.equal(episodes.query.x[number], alone.query.x[0])
        names = one.names("train", number)
        assert tasks.names("train", number) == tuple(f"{tasks.domain('train', number)}/{name}" for name in names)
    assert {both(weights=(0, 1)).domain("train", number) for number in range(50)} == {"b"}


@pytest.mark.parametrize("split", ["validation", "test"])
def test_judged_tasks_take_turns_and_are_the_first_of_each_source(split):
    tasks = both(weights=(9, 1))
    assert [tasks.domain(split, number) for number in range(4)] == ["a", "b", "a", "b"]
    query = tasks.sample(split, range(4)).query.x
    assert torch.equal(query[0::2], family(0).sample(split, [0, 1]).query.x)
    assert torch.equal(query[1::2], family(10).sample(split, [0, 1]).query.x)


def test_tasks_of_other_sizes_are_padded_alike_whatever_is_beside_them():
    tasks = mixed("both", {"a": sinusoid(shots=5), "b": curves(shots=9)})
    check_tasks(tasks)
    support = tasks.sample("test", [0, 1]).support
    assert support.mask.sum(1).tolist() == [5, 9]
    assert torch.equal(support.x[0, :5], sinusoid(shots=5).sample("test", [0]).support.x[0])


@pytest.mark.parametrize("weights", [(1,), (1, 2, 3), (0, 0), (1, -1), (1, float("inf"))])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(UsageError, match="expected 2 numbers of 0 or more, one for each of a, b"):
        both(weights=weights)


def test_sources_that_are_not_alike_are_refused():
    with pytest.raises(ShapeError, match="a has ways or targets: 3, and b 4"):
        mixed("both", {"a": family(0), "b": family(10, ways=4)})
    with pytest.raises(ShapeError, match="a has tasks classification, and b regression"):
        mixed("both", {"a": family(0), "b": sinusoid()})
    with pytest.raises(UsageError, match="no source"):
        mixed("none", {})
