"""Tasks whose ways, shots and queries vary, as Meta-Dataset's do."""

import math
from collections import Counter

import pytest
import torch

from headstart.core.objective import predicted
from headstart.data.fewshot import class_store, few_shot
from headstart.data.meta_dataset import MOST_SUPPORT, draw_sizes, draw_ways
from headstart.data.random import uniform
from headstart.errors import ConfigError, UsageError
from headstart.registry import load, rows
from headstart.testing import check_tasks
from headstart.training.build import refuse_ways
from headstart.types import Batch


def store(sizes, features=4):
    """Classes of so many examples, each its class's number beside noise."""
    generator = torch.Generator().manual_seed(1)
    noise = {place: torch.randn(size, features, generator=generator) for place, size in enumerate(sizes)}
    return class_store({f"c{place:03d}": 0.1 * rows + place for place, rows in noise.items()})


def tasks(sizes=(30, 2, 7, 12, 40, 9, 3, 25), *, ways=6, shots=100, queries=10, seed=0):
    return few_shot(
        "t", {"test": store(sizes)}, ways=ways, shots=shots, queries=queries, seed=seed, sampler="meta_dataset"
    )


@pytest.mark.parametrize("images", [[30, 2, 7, 12, 40], [900, 1300, 1000, 2, 5], [2, 2, 2, 2, 2]])
def test_sizes_are_those_of_the_papers_formula(images):
    ways = torch.tensor([3, 5, 4, 5])
    sizes = draw_sizes(3, "train", range(4), 9, ways, torch.tensor([images] * 4), 100, 10)
    drawn = uniform(3, "train", range(4), 9, 6).tolist()
    for task, (count, (beta, *alphas)) in enumerate(zip(ways.tolist(), drawn)):
        own = images[:count]
        query = min(10, *(size // 2 for size in own))
        beta = 1 - beta  # on (0, 1]
        total = min(500, sum(math.ceil(beta * min(100, size - query)) for size in own))
        weights = [math.exp(math.log(0.5) + (math.log(2) - math.log(0.5)) * a) * n for a, n in zip(alphas, own)]
        shares = [weight / sum(weights) for weight in weights]
        expected = [min(math.floor(share * (total - count)) + 1, n - query) for share, n in zip(shares, own)]
        assert sizes.queries[task] == query
        assert sizes.shots[task].tolist() == expected + [0] * (5 - count)
        assert count <= sum(expected) <= MOST_SUPPORT


def test_ways_are_drawn_evenly_from_five_up():
    found = Counter(draw_ways(0, "train", range(4000), 3, 8).tolist())
    assert sorted(found) == [5, 6, 7, 8] and all(abs(count - 1000) < 150 for count in found.values())
    assert set(draw_ways(0, "train", range(9), 3, 4).tolist()) == {4}


def test_the_contract_is_kept():
    check_tasks(lambda seed: tasks(seed=seed), splits=["test"])


def test_support_and_query_sets_are_of_the_tasks_own_classes_and_sizes():
    family = tasks()
    support, query = family.sample("test", range(40))
    assert family.details["ways"] == (5, 6) and family.output_size == 6
    seen = set()
    for number in range(40):
        names = family.names("test", number)
        for batch in (support, query):
            there = batch.mask[number]
            labels, x = batch.y[number][there], batch.x[number][there]
            assert sorted(set(labels.tolist())) == list(range(len(names)))
            assert [f"c{round(float(row[0])):03d}" for row in x] == [names[label] for label in labels]
            assert not batch.x[number][~there].any()
        counts = query.y[number][query.mask[number]].bincount()
        assert len(set(counts.tolist())) == 1
        seen.add((len(names), int(support.mask[number].sum())))
    assert len(seen) > 20  # sizes vary


@pytest.mark.parametrize("row", [row for row in rows("method") if row.classes == "any"], ids=lambda row: row.name)
def test_methods_for_any_ways_learn_such_a_task_as_they_learn_it_alone(row):
    factory = load("method", row.name)
    options = {"buffers": "frozen"} if row.model == "embedding" else {}
    family, module = tasks(), torch.nn.Linear(4, 5)

    def answers(ways, support, query):
        learner = factory(module, ways=ways, **({"loss": "cross_entropy"} if row.name == "ridge" else {}), **options)
        adapted, _ = learner.adapt(learner.init(torch.Generator().manual_seed(0)), support)
        outputs = predicted(learner, adapted, query.x, query.mask)
        return outputs, learner.loss(outputs, query)

    support, query = family.sample("test", range(4))
    outputs, losses = answers(6, support, query)
    for number in range(4):
        alone = [
            Batch(one.x[number][one.mask[number]][None], one.y[number][one.mask[number]][None])
            for one in (support, query)
        ]
        ways = len(family.names("test", number))
        expected, loss = answers(ways, *alone)
        there = outputs[number][query.mask[number]]
        torch.testing.assert_close(there[:, :ways], expected[0], rtol=5e-4, atol=1e-4)
        assert (there[:, ways:] == -math.inf).all()  # classes that the task has not
        torch.testing.assert_close(losses[number], loss[0], rtol=1e-4, atol=1e-5)


def test_methods_for_one_number_of_ways_refuse_them():
    with pytest.raises(ConfigError, match=r"5 to 6 classes .*'maml' is made for one number.*prototypes, .*ridge"):
        refuse_ways(next(row for row in rows("method") if row.name == "maml"), tasks())


@pytest.mark.parametrize("options", [{"shots": 1}, {"shots": (1, 5)}, {"ways": 501}])
def test_sizes_that_mean_nothing_are_refused(options):
    with pytest.raises(UsageError, match="--ways 50 --shots 100 --queries 10"):
        tasks(**options)
