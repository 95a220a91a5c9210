"""What all heads do with a class that a support set lacks."""

import inspect

import pytest
import torch

from headstart import registry
from headstart.core.objective import meta_gradient
from headstart.data.rows import Rows, row_tasks
from headstart.errors import UsageError
from headstart.testing import check_learner, random_episodes
from headstart.training.evaluate import evaluate
from headstart.training.loop import fit, start
from headstart.types import Batch, Episodes, Tasks

HEADS = [row.name for row in registry.METHODS if row.classes == "any"]


#: Those that keep a row for each example that any of the tasks beside it has.
KEEPING = ("matching_networks", "label_propagation", "bd_cspn")


def made(name: str, ways: int = 3, shared: bool = True, inputs: int = 2):
    factory = registry.load("method", name)
    given = {"inputs": inputs} if "inputs" in inspect.signature(factory).parameters else {}
    return factory(None, ways=ways, shared_classes=shared, **given)


def lacking() -> Episodes:
    """Three tasks: one with all three classes in its support set, one with two, one without any row."""
    support, query = random_episodes((2,), support=6, query=5)
    y = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 2, 2, 0, 2, 2], [0, 0, 0, 0, 0, 0]])
    mask = torch.tensor([[True] * 6, [True] * 6, [False] * 6])
    return Episodes(Batch(support.x, y, mask), query)


def rows_of(shops: int, days: int, weights: list[float], seed: int = 0) -> Tasks:
    """Classes drawn by each shop's own shares (Dirichlet), which the feature says nothing of."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch._standard_gamma(torch.tensor(weights).expand(shops, -1).contiguous(), generator=generator)
    y = torch.multinomial(shares, days, replacement=True, generator=generator).flatten()
    x = torch.randn(shops * days, 1, generator=generator)
    rows = Rows(x, y, torch.arange(shops).repeat_interleave(days), tuple(map(str, range(shops))))
    half = shops // 2
    splits = {"train": range(half), "validation": range(half, half + 4), "test": range(half + 4, shops)}
    return row_tasks(rows, splits, support=1, order="first", classes=len(weights))


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", ["maml", *HEADS])
def test_coin_flips_are_right_half_of_the_time(name):
    # with later rows of classes that no first row is of left out, it was 100 %
    tasks = rows_of(400, 8, [50.0, 50.0])
    module = torch.nn.Linear(1, 2) if name == "maml" else None
    learner = registry.load("method", name)(module, loss="cross_entropy") if name == "maml" else made(name, 2, inputs=1)
    score = evaluate(learner, start(learner, tasks=tasks).meta, tasks)
    assert tasks.sample("test", range(4)).query.y.shape == (4, 7)
    assert score.episodes == 196 and abs(score.mean - 0.5) < 0.04


@pytest.mark.parametrize("name", HEADS)
def test_a_class_that_the_support_lacks_is_as_likely_as_in_training(name):
    learner, (support, query) = made(name), lacking()
    meta = learner.init(None)
    prior, concentration = torch.tensor([0.2, 0.3, 0.5]).double(), 4.0
    told = {"log_prior": prior.log() + 7, "log_concentration": torch.tensor(concentration).double().log()}
    meta = meta._replace(structure={**meta.structure, **told})
    found = learner.predict(learner.adapt(meta, support)[0], query.x).softmax(-1)
    plain = made(name, shared=False)
    own = plain.predict(plain.adapt(meta, support)[0], query.x).softmax(-1)
    torch.testing.assert_close(found[0], own[0])
    missing = concentration * 0.3 / (concentration + 6)
    torch.testing.assert_close(found[1], own[1] * (1 - missing) + torch.tensor([0, missing, 0]).to(own))
    torch.testing.assert_close(found[2], prior.expand(5, 3).to(found))
    assert not own[1][:, 1].any() and own[2].isfinite().all()


@pytest.mark.parametrize("name", [name for name in HEADS if name not in ("nearest", *KEEPING)])
def test_the_contract_is_kept_with_classes_lacking(name):
    support, query = lacking()
    check_learner(made(name), Episodes(support, query), masks=False)


@pytest.mark.parametrize("name", KEEPING)
def test_a_task_of_fewer_examples_is_predicted_as_it_is_alone(name):
    learner, (support, query) = made(name), lacking()
    meta = learner.init(None)
    together = learner.predict(learner.adapt(meta, support)[0], query.x)
    for task in range(3):
        rows = slice(task, task + 1)
        alone = Batch(support.x[rows], support.y[rows], support.mask[rows])
        found = learner.predict(learner.adapt(meta, alone)[0], query.x[rows])
        torch.testing.assert_close(found, together[rows])


def test_the_prior_is_that_of_the_training_tasks():
    tasks = rows_of(4000, 9, [3.0, 1.5, 0.5])
    shown = (learner := made("nearest")).shown(start(learner, tasks=tasks).meta)
    torch.testing.assert_close(shown["prior"], torch.tensor([0.6, 0.3, 0.1]), atol=0.02, rtol=0)
    assert shown["concentration"] == pytest.approx(5, rel=0.2)


def test_where_every_class_is_in_the_support_set_none_is_expected_beside_them():
    rows = Rows(torch.randn(600, 1), torch.arange(600) % 3, torch.arange(600) // 10, tuple(map(str, range(60))))
    tasks = row_tasks(rows, {"train": range(50), "validation": (50, 51), "test": range(52, 60)}, support=2)
    assert made("nearest").prepare(made("nearest").init(None), tasks, 0).structure["log_concentration"].exp() < 1e-5


def test_training_with_classes_lacking_is_finite_and_learns():
    tasks, learner = rows_of(80, 9, [3.0, 1.5, 0.5]), made("ridge")
    state = start(learner, tasks=tasks)
    *_, last = fit(learner, tasks, state=state, steps=5, tasks_per_step=8)
    assert 0 < last.loss < 1.2
    gradient, _ = meta_gradient(learner, state.meta, tasks.sample("train", range(8)))
    assert gradient.structure["log_prior"].any()


def test_shared_classes_must_be_counted():
    with pytest.raises(UsageError, match="shared_classes needs ways="):
        made("ridge", ways=None)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["prototypes", "ridge"])
def test_the_mode_of_meta_training_can_be_chosen(name, training):
    module = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Dropout(0.5))
    learner = registry.load("method", name)(module, ways=3, training=training)
    episodes = random_episodes((2,), support=6, query=5)
    seeds = torch.arange(len(episodes.support.y))
    told, plain = (
        learner.predict(learner.adapt(learner.init(None), episodes.support._replace(seed=seed))[0], episodes.query.x)
        for seed in (seeds, None)
    )
    assert torch.equal(told, plain) != training


class Averaged(torch.nn.Module):
    """A bag by an operation that has second derivatives."""

    def __init__(self, bag: torch.nn.EmbeddingBag):
        super().__init__()
        self.weight = bag.weight

    def forward(self, x):
        return self.weight[x].mean(1)


@pytest.mark.parametrize("name", ["prototypes", "ridge"])
def test_the_network_needs_no_second_derivative(name):
    bag = torch.nn.EmbeddingBag(9, 4)
    support, query = random_episodes((2,), support=6, query=5)
    ids = [(100 * batch.x).long() % 9 for batch in (support, query)]
    episodes = Episodes(support._replace(x=ids[0]), query._replace(x=ids[1]))
    found = []
    for module in (bag, Averaged(bag)):
        learner = registry.load("method", name)(module, ways=3, taskmap="loop")
        found.append(meta_gradient(learner, learner.init(None), episodes)[0].params["weight"])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
