import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import headstart
from headstart.algorithms.forest import (
    FAR,
    Boxes,
    Options,
    boxes_of,
    forest,
    grow,
    inside,
    memberships,
    number,
    posterior,
    read,
    shared,
    strengths,
    unbounded,
)
from headstart.core.objective import meta_loss
from headstart.data.curves.plateaus import plateaus
from headstart.data.rows import Rows, row_tasks
from headstart.errors import ShapeError, UnknownNameError, UsageError
from headstart.testing import check_learner, random_episodes
from headstart.training.evaluate import evaluate
from headstart.training.loop import fit, start
from headstart.types import Batch, Meta, Tasks

ensemble = pytest.importorskip("sklearn.ensemble", reason="scikit-learn is not installed")
SMALL = {"trees": 4, "leaves": 4, "max_features": 1.0}


def double(meta):
    return Meta(*({name: value.double() for name, value in part.items()} for part in meta))


def random_tasks(regression, outputs, inputs=3):
    """Return tasks of random numbers, in which class k has a mean of its own."""

    def sample(split, numbers):
        found = [
            random_episodes((inputs,), outputs=outputs, tasks=1, support=8, query=9, regression=regression, seed=number)
            for number in numbers
        ]
        return headstart.Episodes(
            *(
                Batch(*(torch.cat([getattr(e[part], name) for e in found]) for name in ("x", "y")), None, None)
                for part in (0, 1)
            )
        )

    return Tasks("random", sample, "regression" if regression else "classification", (inputs,), outputs, {})


def prepared(regression=True, outputs=2, **options):
    """Return a learner in float64 whose `init` gives what it read off the training tasks."""
    learner = forest(inputs=3, outputs=outputs, loss="mse" if regression else "cross_entropy", **{**SMALL, **options})
    meta = learner.prepare(double(learner.init(None)), random_tasks(regression, outputs), 0)

    def init(generator=None):
        return Meta(*({name: value.clone() for name, value in part.items()} for part in meta))

    return learner._replace(init=init), meta


@pytest.mark.parametrize("outputs", [1, 2])
def test_regression_keeps_the_contract(outputs):
    learner, _ = prepared(outputs=outputs)
    check_learner(learner, random_episodes((3,), outputs=outputs, regression=True), order=True)


@pytest.mark.parametrize("support", [1, 7])
def test_classification_keeps_the_contract(support):
    learner, _ = prepared(regression=False, outputs=3)
    check_learner(learner, random_episodes((3,), outputs=3, support=support), order=True)


def strength(meta, log_ratio):
    return meta._replace(
        structure={**meta.structure, "log_ratio": torch.full_like(meta.structure["log_ratio"], log_ratio)}
    )


@pytest.mark.parametrize("grown_by", ["random_forest", "extra_trees"])
def test_shrunk_all_the_way_it_is_scikit_learns_forest(grown_by):
    learner, meta = prepared(outputs=1, signs=0, grown_by=grown_by)
    tasks = random_tasks(True, 1)
    rows = read(tasks, number(tasks, None))
    kind = {"random_forest": "RandomForestRegressor", "extra_trees": "ExtraTreesRegressor"}[grown_by]
    pooled = getattr(ensemble, kind)(4, max_leaf_nodes=4, min_samples_leaf=5, random_state=0)
    pooled.fit(rows.x.flatten(0, 1).numpy(), rows.y.flatten().numpy())
    support, query = tasks.sample("test", range(1000, 1003))
    got = learner.predict(learner.adapt(strength(meta, -80.0), support)[0], query.x)
    expected = torch.from_numpy(pooled.predict(query.x.flatten(0, 1).numpy())).view(3, 9, 1)
    torch.testing.assert_close(got, expected)


def test_not_shrunk_at_all_it_goes_through_the_support_rows():
    """Where trees tell them apart."""
    learner, meta = prepared(trees=20, leaves=16, grown_by="extra_trees")
    support = random_episodes((3,), outputs=2, regression=True, support=4).support
    corners = torch.tensor([[-2.0, -2, -2], [2, 2, -2], [2, -2, 2], [-2, 2, 2]], dtype=torch.float64)
    support = support._replace(x=corners.expand(3, 4, 3))
    got = learner.predict(learner.adapt(strength(meta, 20.0), support)[0], support.x)
    torch.testing.assert_close(got, support.y, rtol=1e-4, atol=1e-4)


def test_the_prediction_is_the_mean_of_the_joint_normal_distribution_and_the_loss_its_density():
    learner, meta = prepared(outputs=1)
    episodes = random_episodes((3,), outputs=1, regression=True)
    found = learner.distribution(learner.adapt(meta, episodes.support)[0], episodes.query.x)
    structure = meta.structure
    x = torch.cat([episodes.support.x, episodes.query.x], 1)
    held = (x[:, :, None, None] > structure["lower"]) & (x[:, :, None, None] <= structure["upper"])
    held = held.all(-1).double()
    mean = torch.einsum("bntl,tlo->bno", held[..., :4], meta.params["leaves"]) / 4
    kernel = torch.einsum("bntl,bmtl,tl->bnm", held, held, structure["log_ratio"].exp()) / 4
    noise = structure["log_noise"].exp()
    covariance = noise * (kernel + torch.eye(9, dtype=torch.float64))
    gain = covariance[:, 4:, :4] @ torch.linalg.inv(covariance[:, :4, :4])
    expected = mean[:, 4:] + gain @ (episodes.support.y - mean[:, :4])
    variance = (covariance[:, 4:, 4:] - gain @ covariance[:, :4, 4:]).diagonal(dim1=1, dim2=2).unsqueeze(-1)
    torch.testing.assert_close(found.mean, expected)
    torch.testing.assert_close(found.variance, variance)
    density = torch.distributions.Normal(expected, variance.sqrt()).log_prob(episodes.query.y)
    torch.testing.assert_close(meta_loss(learner, meta, episodes)[0], -density.mean())
    info = meta_loss(learner, meta, episodes)[1]
    torch.testing.assert_close(info.query_loss, (expected - episodes.query.y).square().mean((1, 2)))


@pytest.mark.parametrize(("regression", "outputs"), [(True, 2), (False, 3)])
def test_what_is_read_off_depends_on_the_seed_alone_and_looks_like_the_start(regression, outputs):
    learner = forest(inputs=3, outputs=outputs, loss="mse" if regression else "cross_entropy", **SMALL)
    tasks = random_tasks(regression, outputs)
    before = learner.init(None)
    first, second, other = (learner.prepare(learner.init(None), tasks, seed) for seed in (0, 0, 1))
    for part in range(2):
        assert {k: (v.shape, v.dtype) for k, v in first[part].items()} == {
            k: (v.shape, v.dtype) for k, v in before[part].items()
        }
        assert all(torch.equal(value, second[part][name]) for name, value in first[part].items())
        assert all(value.isfinite().all() for value in first[part].values())
    assert not torch.equal(first.structure["lower"], other.structure["lower"])


def test_it_learns_ten_rows_better_than_forests_of_the_task_alone_and_of_all_rows():
    """And outer steps make it better."""
    tasks = plateaus(features=4, relevant=2, queries=15)
    learner = forest(inputs=4, trees=20, leaves=12, tasks_read=100)
    meta = learner.prepare(learner.init(None), tasks, 0)
    before = evaluate(learner, meta, tasks, episodes=60)
    rows = read(tasks, 100)
    options = {"n_estimators": 20, "random_state": 0, "n_jobs": 1}
    pooled = ensemble.RandomForestRegressor(min_samples_leaf=20, **options).fit(rows.x.flatten(0, 1), rows.y.flatten())
    support, query = tasks.sample("test", range(60))
    errors = {"alone": [], "pooled": []}
    for task in range(60):
        x, y, new, truth = (part[task].numpy() for part in (support.x, support.y[..., 0], query.x, query.y[..., 0]))
        alone = ensemble.RandomForestRegressor(min_samples_leaf=2, **options).fit(x, y)
        for name, model in (("alone", alone), ("pooled", pooled)):
            errors[name].append(((model.predict(new) - truth) ** 2).mean())
    assert all(before.mean < 0.75 * sum(found) / 60 for found in errors.values())
    state = start(learner, meta=meta, optimizer=lambda tensors: torch.optim.Adam(tensors, lr=0.01))
    for record in fit(learner, tasks, steps=30, state=state):
        last = record
    assert evaluate(learner, last.state.meta, tasks, episodes=60).mean < before.mean
    assert torch.equal(last.state.meta.structure["lower"], meta.structure["lower"])


def test_it_classifies_tables():
    """Which cell is which class is each task's own; where the cells are, all tasks share."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(60 * 30, 3, generator=generator)
    task = torch.arange(60).repeat_interleave(30)
    cell = 2 * (x[:, 0] > 0.5).long() + (x[:, 1] > 0.4).long()
    classes = torch.stack([torch.randperm(4, generator=generator) % 2 for _ in range(60)])
    rows = Rows(x, classes[task, cell], task, tuple(map(str, range(60))))
    tasks = row_tasks(rows, {"train": range(40), "test": range(40, 60)}, support=4)
    learner = forest(inputs=3, outputs=2, loss="cross_entropy", trees=20, leaves=6)
    meta = learner.prepare(learner.init(None), tasks, 0)
    assert evaluate(learner, meta, tasks, episodes=20).mean > 0.85
    assert set(learner.shown(meta)) == {"ratio", "scale"}


def test_strengths_are_shown_in_the_units_in_which_they_act():
    learner, meta = prepared()
    shown = learner.shown(meta)
    assert set(shown) == {"ratio", "noise"}
    torch.testing.assert_close(shown["noise"], meta.structure["log_noise"].exp())


def test_what_does_not_fit_is_refused():
    learner, meta = prepared()
    support = random_episodes((3,), outputs=2, regression=True).support
    with pytest.raises(ShapeError, match=r"of 3 numbers; got"):
        learner.adapt(meta, support._replace(x=support.x[..., :2]))
    with pytest.raises(ShapeError, match=r"targets \(tasks, rows, 2\)"):
        learner.adapt(meta, support._replace(y=support.y[..., :1]))
    learner, meta = prepared(regression=False, outputs=3)
    labels = random_episodes((3,), outputs=3).support
    with pytest.raises(ShapeError, match=r"\(tasks, rows\) and integers"):
        learner.adapt(meta, labels._replace(y=labels.y.double()))
    with pytest.raises(ShapeError, match="labels must be 0 to 2"):
        learner.adapt(meta, labels._replace(y=labels.y + 1))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"loss": "mae"}, UnknownNameError, "unknown loss 'mae'"),
        ({"grown_by": "forest"}, UnknownNameError, "unknown kind of forest"),
        ({"trees": 0}, UsageError, "trees must be at least 1, got 0"),
        ({"leaves": 1}, UsageError, "leaves must be at least 2"),
        ({"signs": -1}, UsageError, "signs must be at least 0"),
        ({"max_features": 0}, UsageError, "max_features must be a share"),
        ({"tasks_read": 0}, UsageError, "tasks_read must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        forest(inputs=2, **options)


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
    rows = cancelling()
    grown = grow(rows, OPTIONS._replace(signs=0), seed=3)
    x, y = rows.x.flatten(0, 1).numpy(), rows.y.flatten().double().numpy()
    forest = ensemble.RandomForestRegressor(10, max_leaf_nodes=4, min_samples_leaf=5, random_state=3).fit(x, y)
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
    with pytest.raises(UsageError, match=r"scikit-learn is not installed.*pip install headstart\[sklearn\]"):
        grow(cancelling(), OPTIONS, seed=0)


def drawn(tasks=3, rows=5, nodes=4, outputs=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    held = (torch.rand(tasks, rows, nodes, generator=generator) > 0.5).double()
    return held, torch.randn(tasks, rows, outputs, generator=generator, dtype=torch.float64), generator


def test_the_posterior_is_that_of_the_joint_normal_distribution():
    held, residual, _ = drawn()
    ratio = torch.tensor([0.1, 1.0, 2.0, 5.0], dtype=torch.float64)
    found = posterior(held, residual, ratio)
    for task in range(3):
        precision = held[task].T @ held[task] + torch.diag(1 / ratio)
        covariance = torch.linalg.inv(precision)
        torch.testing.assert_close(found.mean[task], covariance @ held[task].T @ residual[task])
        left = ratio * (1 - found.explained[task].square().sum(0))
        torch.testing.assert_close(left, covariance.diagonal())


def test_strengths_are_found_again():
    """Many tasks drawn with known variances."""
    generator = torch.Generator().manual_seed(1)
    held = torch.nn.functional.one_hot(torch.randint(3, (600, 12), generator=generator), 3).double()
    held = torch.cat([torch.ones(600, 12, 1, dtype=torch.float64), held], 2)
    variances = torch.tensor([2.0, 0.05, 0.5, 3.0], dtype=torch.float64)
    u = torch.randn(600, 4, 1, generator=generator, dtype=torch.float64) * variances.sqrt().unsqueeze(-1)
    y = held @ u + 0.5 * torch.randn(600, 12, 1, generator=generator, dtype=torch.float64)
    there = torch.ones(600, 12, dtype=torch.bool)
    level = torch.tensor([0, 1, 1, 1])
    found = strengths(held, y, there, level, rounds=40, pseudo=0.0)
    torch.testing.assert_close(found.noise, torch.tensor([0.25], dtype=torch.float64), rtol=0.05, atol=0)
    torch.testing.assert_close(found.ratio * found.noise, variances, rtol=0.25, atol=0.02)
    # joined by level, nodes of one level are alike
    joined = strengths(held, y, there, level, rounds=40, pseudo=1e9).ratio[1:]
    torch.testing.assert_close(joined, joined.mean().expand(3), rtol=1e-4, atol=0)
    assert (joined * 0.25).mean().item() == pytest.approx(variances[1:].mean().item(), rel=0.25)


def test_strengths_do_not_see_rows_that_are_not_there():
    held, residual, _ = drawn(tasks=20, rows=6)
    there = torch.ones(20, 6, dtype=torch.bool)
    more = torch.cat([there, torch.zeros(20, 3, dtype=torch.bool)], 1)
    padded = [torch.cat([part, torch.zeros(20, 3, part.shape[2], dtype=torch.float64)], 1) for part in (held, residual)]
    level = torch.tensor([0, 1, 1, 2])
    for got, expected in zip(strengths(*padded, more, level), strengths(held, residual, there, level)):
        torch.testing.assert_close(got, expected)


def test_targets_without_variation_give_finite_strengths():
    held, residual, _ = drawn()
    found = strengths(held, torch.zeros_like(residual), torch.ones(3, 5, dtype=torch.bool), torch.zeros(4).long())
    assert all(part.isfinite().all() and (part > 0).all() for part in found)
