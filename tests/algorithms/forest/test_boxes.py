import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.algorithms.forest.boxes import FAR, Boxes, boxes_of, inside, memberships, shared, unbounded

ensemble = pytest.importorskip("sklearn.ensemble", reason="scikit-learn is not installed")


def fitted(kind, x, y, leaves, seed=0):
    make = getattr(ensemble, kind)
    return make(n_estimators=4, max_leaf_nodes=leaves, random_state=seed).fit(x, y)


def tensors(forest, leaves):
    nodes = [boxes_of(one.tree_, leaves) for one in forest.estimators_]
    return Boxes(*(torch.from_numpy(np.stack([getattr(n, part) for n in nodes])) for part in ("lower", "upper"))), nodes


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(
        ["RandomForestRegressor", "ExtraTreesRegressor", "RandomForestClassifier", "ExtraTreesClassifier"]
    ),
    leaves=st.integers(2, 12),
    decimals=st.sampled_from([0, 1, 8]),
    double=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_membership_is_that_of_scikit_learn(kind, leaves, decimals, double, seed):
    """Rows on the thresholds themselves, and next to them, included."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(60, 3)).round(decimals)
    forest = fitted(kind, x, generator.integers(0, 3, 60), leaves, seed)
    boxes, nodes = tensors(forest, leaves)
    thresholds = np.concatenate([one.tree_.threshold[one.tree_.feature >= 0] for one in forest.estimators_])
    near = np.concatenate([np.nextafter(np.float32(thresholds), np.float32(way)) for way in (-np.inf, np.inf)])
    new = generator.choice(np.concatenate([thresholds, near.astype(float), x.ravel()]), size=(200, 3))
    new = new if double else new.astype(np.float32)
    held = inside(boxes if not double else Boxes(*(bound.double() for bound in boxes)), torch.from_numpy(new))
    assert held.shape == (200, 4, 2 * leaves - 1)
    assert (held[..., :leaves].sum(-1) == 1).all()
    reached = forest.apply(new.astype(np.float32))
    for tree, (one, found) in enumerate(zip(forest.estimators_, nodes)):
        places = found.places[reached[:, tree]]
        assert torch.equal(held[:, tree, :leaves].int().argmax(-1), torch.from_numpy(places))
        path = one.decision_path(new.astype(np.float32)).toarray().astype(bool)
        assert np.array_equal(held[:, tree].numpy()[:, found.places], path)
        assert np.array_equal(path.sum(1) - 1, found.depth[places])


def test_what_is_left_over_is_empty():
    x = np.arange(6.0)[:, None]
    forest = ensemble.ExtraTreesRegressor(n_estimators=4, max_depth=1).fit(x, x[:, 0])
    boxes, nodes = tensors(forest, 5)
    empty = np.setdiff1d(np.arange(9), nodes[0].places)
    assert len(empty) == 6
    assert not inside(boxes, torch.tensor([[-FAR], [0.0], [FAR]]))[:, 0, empty].any()
    assert all(bound.isfinite().all() for bound in boxes)


def test_a_tree_that_has_not_grown_is_one_leaf():
    held = inside(unbounded(2, 3, 4, torch.float64), torch.randn(5, 4, dtype=torch.float64))
    assert held[..., 0].all() and not held[..., 1:].any()


def test_the_mean_of_leaf_values_is_the_forests_prediction():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(80, 2)).astype(np.float32), generator.normal(size=(80, 2))
    forest = fitted("RandomForestRegressor", x, y, 6)
    boxes, nodes = tensors(forest, 6)
    values = np.zeros((4, 11, 2))
    for tree, (one, found) in enumerate(zip(forest.estimators_, nodes)):
        values[tree, found.places] = one.tree_.value[:, :, 0]
    held = memberships(Boxes(*(bound.double() for bound in boxes)), torch.from_numpy(x)[None])
    got = shared(torch.from_numpy(values[:, :6]), held)[0]
    np.testing.assert_allclose(got.numpy(), forest.predict(x), rtol=1e-12)
