"""Classifiers that read a task's queries together."""

import pytest
import torch

import headstart
from headstart import registry
from headstart.algorithms.transduction import propagated
from headstart.core.objective import predicted
from headstart.testing import random_episodes
from headstart.types import Batch

NAMES = ("label_propagation", "bd_cspn")


def test_the_row_says_what_the_learner_does():
    for row in registry.METHODS:
        if row.classes == "any" and row.model == "embedding":
            given = {"ways": 3, "features": 3} if row.name in NAMES or row.name == "relation_networks" else {"ways": 3}
            learner = registry.load("method", row.name)(torch.nn.Linear(3, 3), **given)
            assert learner.transductive == row.transductive == (row.name in NAMES), row.name


def test_propagation_is_the_solution_of_its_equation():
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randn(2, 9, 4, generator=generator, dtype=torch.float64)
    start = torch.eye(9, 3, dtype=torch.float64).expand(2, 9, 3)
    found = propagated(nodes, start, torch.ones(2, 9, dtype=torch.bool), 4, 0.9, 0.5)
    for task in range(2):
        squares = torch.cdist(nodes[task], nodes[task]).square().fill_diagonal_(torch.inf)
        values, places = squares.topk(4, largest=False)
        near = torch.zeros(9, 9, dtype=torch.bool).scatter(1, places, True)
        weights = torch.where(near | near.T, torch.exp(-squares / (2 * 0.25 * values.mean())), 0)
        roots = weights.sum(1).rsqrt()
        expected = 0.1 * torch.linalg.solve(torch.eye(9) - 0.9 * roots[:, None] * weights * roots, start[task])
        torch.testing.assert_close(found[task], expected)


@pytest.mark.parametrize("name", NAMES)
def test_other_queries_change_an_answer_and_masked_ones_do_not(name):
    support, query = random_episodes((3,), support=6, query=7)
    learner = getattr(headstart, name)(inputs=3)
    adapted, _ = learner.adapt(learner.init(None), support)
    some, every = learner.predict(adapted, query.x[:, :4]), learner.predict(adapted, query.x)
    assert not torch.allclose(some, every[:, :4])
    mask = torch.arange(7).expand(3, 7) < 4
    x = query.x.masked_fill(~mask.unsqueeze(-1), torch.nan)
    torch.testing.assert_close(predicted(learner, adapted, x, mask)[:, :4], some)


@pytest.mark.parametrize("name", NAMES)
def test_one_query_of_one_example_a_class_is_answered(name):
    learner = getattr(headstart, name)(inputs=2)
    support = Batch(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.tensor([[0, 1]]))
    adapted, _ = learner.adapt(learner.init(None), support)
    assert learner.predict(adapted, torch.tensor([[[0.1, 1.0]]])).isfinite().all()


def test_a_shift_between_support_and_queries_is_taken_back():
    centres = torch.tensor([[1.0, 0.2, 0.0], [0.2, 1.0, 0.0], [0.6, 0.6, 0.5]])
    generator = torch.Generator().manual_seed(0)
    x = centres.repeat(30, 1) + 0.05 * torch.randn(90, 3, generator=generator) + torch.tensor([0.8, -0.3, 0.0])
    y, support = torch.arange(3).repeat(30), Batch(centres.unsqueeze(0), torch.arange(3).unsqueeze(0))

    def right(learner):
        adapted, _ = learner.adapt(learner.init(None), support)
        return float((learner.predict(adapted, x.unsqueeze(0))[0].argmax(-1) == y).double().mean())

    plain, shifted = right(headstart.prototypes(distance="cosine")), right(headstart.bd_cspn(inputs=3))
    assert shifted > 0.95 and plain < 0.5
