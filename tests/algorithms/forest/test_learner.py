import pytest
import torch

import headstart
from headstart.algorithms.forest.growth import number, read
from headstart.algorithms.forest.learner import forest
from headstart.core.objective import meta_loss
from headstart.data.curves.plateaus import plateaus
from headstart.data.rows import Rows, row_tasks
from headstart.errors import ShapeError, UnknownNameError, UsageError
from headstart.testing import check_learner, random_episodes
from headstart.training.evaluate import evaluate
from headstart.training.loop import fit, start
from headstart.types import Batch, Meta, Tasks

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
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


def test_a_forest_that_has_not_grown_keeps_the_contract_too():
    learner = forest(inputs=3, outputs=2, **SMALL)
    learner = learner._replace(init=lambda generator: double(forest(inputs=3, outputs=2, **SMALL).init(generator)))
    check_learner(learner, random_episodes((3,), outputs=2, regression=True))


def test_tasks_of_different_sizes_are_what_they_are_alone():
    learner, meta = prepared()
    support, query = random_episodes((3,), outputs=2, regression=True, support=6)
    mask = torch.arange(6) < torch.tensor([6, 3, 1])[:, None]
    together = learner.distribution(learner.adapt(meta, support._replace(mask=mask))[0], query.x)
    for task, count in enumerate((6, 3, 1)):
        alone = Batch(support.x[task : task + 1, :count], support.y[task : task + 1, :count])
        found = learner.distribution(learner.adapt(meta, alone)[0], query.x[task : task + 1])
        for got, expected in zip(together, found):
            torch.testing.assert_close(got[task], expected[0])


def strength(meta, log_ratio):
    return meta._replace(
        structure={**meta.structure, "log_ratio": torch.full_like(meta.structure["log_ratio"], log_ratio)}
    )


@pytest.mark.parametrize("grown_by", ["random_forest", "extra_trees"])
def test_shrunk_all_the_way_it_is_scikit_learns_forest(grown_by):
    from sklearn import ensemble

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
    from sklearn.ensemble import RandomForestRegressor

    tasks = plateaus(features=4, relevant=2, queries=15)
    learner = forest(inputs=4, trees=20, leaves=12, tasks_read=100)
    meta = learner.prepare(learner.init(None), tasks, 0)
    before = evaluate(learner, meta, tasks, episodes=60)
    rows = read(tasks, 100)
    options = {"n_estimators": 20, "random_state": 0, "n_jobs": 1}
    pooled = RandomForestRegressor(min_samples_leaf=20, **options).fit(rows.x.flatten(0, 1), rows.y.flatten())
    support, query = tasks.sample("test", range(60))
    errors = {"alone": [], "pooled": []}
    for task in range(60):
        x, y, new, truth = (part[task].numpy() for part in (support.x, support.y[..., 0], query.x, query.y[..., 0]))
        alone = RandomForestRegressor(min_samples_leaf=2, **options).fit(x, y)
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
    with pytest.raises(ShapeError, match="this forest is of 3 features"):
        learner.adapt(meta, support._replace(x=support.x[..., :2]))
    with pytest.raises(ShapeError, match="regresses 2 target values"):
        learner.adapt(meta, support._replace(y=support.y[..., :1]))
    learner, meta = prepared(regression=False, outputs=3)
    labels = random_episodes((3,), outputs=3).support
    with pytest.raises(ShapeError, match="labels are .* and integers"):
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
        ({"signs": -1}, UsageError, "signs at least 0"),
        ({"max_features": 0}, UsageError, "max_features must be a share"),
        ({"tasks_read": 0}, UsageError, "tasks_read must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        forest(inputs=2, **options)
