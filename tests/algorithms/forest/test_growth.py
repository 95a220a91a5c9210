import sys

import numpy as np
import pytest
import torch

from headstart.algorithms.forest.growth import Options, grow, number, read
from headstart.data.curves.plateaus import plateaus
from headstart.data.rows import Rows, row_tasks
from headstart.errors import UsageError
from headstart.types import Batch

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
OPTIONS = Options("random_forest", 10, 4, 5, 1.0, 16)


def cancelling(tasks=40, rows=20):
    """Feature 0 parts each task's rows by a step whose sign differs by task; feature 1 has a weak common effect."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(tasks, rows, 3, generator=generator) - 1
    sign = torch.where(torch.arange(tasks) % 2 == 0, 1.0, -1.0)
    y = 2 * sign[:, None] * (x[..., 0] > 0.2) - sign[:, None] + 0.1 * (x[..., 1] > 0)
    return Batch(x, y.unsqueeze(-1), torch.ones(tasks, rows, dtype=torch.bool))


def root_features(grown):
    """Return the feature that each root splits at: the only bound of a node of depth 1."""
    first = [(depth == 1).nonzero()[0, 0] for depth in grown.depth]
    bounded = torch.stack([(grown.upper[t, n] < 1e30) | (grown.lower[t, n] > -1e30) for t, n in enumerate(first)])
    return bounded.int().argmax(-1)


def test_splits_whose_effects_cancel_out_between_tasks_are_found():
    rows = cancelling()
    assert (root_features(grow(rows, OPTIONS, seed=0)) == 0).all()
    blind = root_features(grow(rows, OPTIONS._replace(signs=0), seed=0))
    assert (blind != 0).any()


def test_leaf_values_are_the_pooled_forests():
    from sklearn.ensemble import RandomForestRegressor

    rows = cancelling()
    grown = grow(rows, OPTIONS._replace(signs=0), seed=3)
    x, y = rows.x.flatten(0, 1).numpy(), rows.y.flatten().double().numpy()
    forest = RandomForestRegressor(10, max_leaf_nodes=4, min_samples_leaf=5, random_state=3).fit(x, y)
    for tree, one in enumerate(forest.estimators_):
        expected = one.tree_.value[one.tree_.children_left < 0, 0, 0]
        np.testing.assert_allclose(grown.leaves[tree, : len(expected), 0].numpy(), expected)


def test_rows_that_are_not_there_do_not_count():
    rows = cancelling()
    nothing = torch.full((40, 2, 1), torch.nan)
    padded = Batch(
        torch.cat([rows.x, nothing.expand(-1, -1, 3)], 1),
        torch.cat([rows.y, nothing], 1),
        torch.cat([rows.mask, torch.zeros(40, 2, dtype=torch.bool)], 1),
    )
    for got, expected in zip(grow(padded, OPTIONS, seed=0), grow(rows, OPTIONS, seed=0)):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("kind", ["random_forest", "extra_trees"])
def test_growing_depends_on_the_seed_alone(kind):
    options = OPTIONS._replace(kind=kind, max_features=0.33)
    first, second, other = (grow(cancelling(), options, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert not torch.equal(first.lower, other.lower)


def test_all_rows_of_counted_tasks_are_read_and_256_tasks_of_those_without_end():
    rows = Rows(torch.randn(40, 3), torch.arange(40.0)[:, None], torch.arange(40) // 10, ("a", "b", "c", "d"))
    tasks = row_tasks(rows, {"train": (0, 1, 2), "test": (3,)}, support=4)
    found = read(tasks, number(tasks, None))
    assert found.y.flatten().sort().values.tolist() == list(range(30))
    assert number(tasks, 2) == 2 and number(tasks, 9) == 3
    assert number(plateaus(), None) == 256 and number(plateaus(), 1000) == 1000


def test_a_machine_without_scikit_learn_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(UsageError, match=r"scikit-learn, which is not installed; pip install headstart\[sklearn\]"):
        grow(cancelling(), OPTIONS, seed=0)
