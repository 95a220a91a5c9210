import pytest
import torch
from torch import nn

import headstart
from headstart.algorithms.heads.ridge import ridge
from headstart.errors import ShapeError, UnknownNameError, UsageError
from headstart.testing import check_learner, random_episodes
from headstart.types import Batch, Episodes


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def net(features=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, features))


def outputs(learner, support, x):
    return learner.predict(learner.adapt(learner.init(None), support)[0], x)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("support", [3, 9])
def test_the_contract_of_a_learner_with_fewer_and_with_more_examples_than_features(loss, support):
    module = net()
    episodes = random_episodes((3,), support=support, regression=loss == "mse", outputs=2)
    check_learner(lambda taskmap: ridge(module, loss=loss, taskmap=taskmap), episodes, module=module, order=True)
    check_learner(ridge(loss=loss), episodes, order=True)
    check_learner(ridge(loss=loss, intercept=loss != "mse"), episodes)


@pytest.mark.parametrize("intercept", [True, False])
def test_it_is_scikit_learns_ridge(intercept):
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(1)
    for number in range(50):
        examples, features = (int(torch.randint(1, 40, (), generator=generator)) for _ in range(2))
        x, query = (torch.randn(1, n, features, generator=generator) + 1 for n in (examples, 20))
        y = torch.randn(1, examples, 2, generator=generator) + 3
        penalty = 10 ** (4 * float(torch.rand((), generator=generator)) - 2)
        model = linear_model.Ridge(alpha=penalty, fit_intercept=intercept).fit(x[0].numpy(), y[0].numpy())
        expected = torch.as_tensor(model.predict(query[0].numpy())).view(1, 20, 2)
        ours = outputs(ridge(loss="mse", regularisation=penalty, intercept=intercept), Batch(x, y), query)
        torch.testing.assert_close(ours, expected, msg=lambda text, number=number: f"problem {number}: {text}")


def test_classes_are_one_hot_targets_whose_outputs_are_scaled():
    """The paper's equation: W = (XᵀX + λI)⁻¹XᵀY, logits α XW + β."""
    module, (support, query) = net(), random_episodes((3,), support=7)
    logits = outputs(ridge(module, regularisation=0.7, scale=5.0), support, query.x)
    for task in range(3):
        features, targets = module(support.x[task]), nn.functional.one_hot(support.y[task]).double()
        weights = torch.linalg.solve(features.T @ features + 0.7 * torch.eye(4), features.T @ targets)
        torch.testing.assert_close(logits[task], 5 * module(query.x[task]) @ weights)


def test_what_is_shared_is_learned():
    learner = ridge(net(), regularisation=2.0, scale=3.0)
    meta = learner.init(None)
    assert set(meta.structure) == {"log_regularisation", "log_scale", "bias"}
    shown = {name: value.item() for name, value in learner.shown(meta).items()}
    assert shown == pytest.approx({"regularisation": 2.0, "scale": 3.0, "bias": 0.0})
    assert set(ridge(net(), loss="mse").init(None).structure) == {"log_regularisation"}
    gradient, _ = headstart.meta_gradient(learner, meta, random_episodes((3,)))
    assert gradient.structure["log_regularisation"] != 0 and gradient.structure["log_scale"] != 0


@pytest.mark.parametrize("shape", [(), (1,), (2,), (2, 3)])
def test_targets_of_any_shape(shape):
    x, y = torch.randn(2, 5, 3), torch.randn(2, 5, *shape)
    learner = ridge(loss="mse")
    out = outputs(learner, Batch(x, y), torch.randn(2, 4, 3))
    assert out.shape == (2, 4, *shape)
    flat = outputs(learner, Batch(x, y.reshape(2, 5, -1)), x)
    torch.testing.assert_close(outputs(learner, Batch(x, y), x).reshape(2, 5, -1), flat)


def test_one_example_predicts_itself_everywhere():
    x, y = torch.randn(2, 1, 3), torch.randn(2, 1, 1)
    torch.testing.assert_close(outputs(ridge(loss="mse"), Batch(x, y), torch.randn(2, 4, 3)), y.expand(2, 4, 1))


def test_single_precision_stays_single():
    torch.set_default_dtype(torch.float32)
    support, query = (batch._replace(x=batch.x.float()) for batch in random_episodes((3,)))
    learner = ridge(net())
    gradient, info = headstart.meta_gradient(learner, learner.init(None), Episodes(support, query))
    assert {value.dtype for part in gradient for value in part.values()} == {torch.float32}
    assert info.query_loss.dtype == torch.float32


def test_what_does_not_fit_is_refused():
    (support, _), targets = random_episodes((3,)), random_episodes((3,), regression=True)[0]
    with pytest.raises(ShapeError, match="needs integer labels"):
        outputs(ridge(net()), targets, support.x)
    with pytest.raises(ShapeError, match="needs floating targets"):
        outputs(ridge(net(), loss="mse"), support, support.x)
    with pytest.raises(UnknownNameError, match="unknown loss 'mes'; did you mean 'mse'"):
        ridge(loss="mes")
    with pytest.raises(UsageError, match="above 0, got regularisation 0"):
        ridge(regularisation=0)


@pytest.mark.parametrize("width", [4, 40])
def test_a_penalty_below_rounding_is_the_least_that_counts(width):
    """Rows that repeat have one prediction, the mean of their targets, however small the penalty is."""
    generator = torch.Generator().manual_seed(0)
    x = 1e6 * torch.randn(2, 5, width, generator=generator)
    y = torch.randn(2, 10, 1, generator=generator)
    if width < 5:
        x = torch.cat([x, x @ torch.randn(width, 3, generator=generator)], -1)
        y = (x[..., :1] / 1e6).repeat(1, 2, 1)
    support = Batch(x.repeat(1, 2, 1), y)
    module = nn.Linear(x.shape[-1], x.shape[-1], bias=False)
    nn.init.eye_(module.weight)
    learner = ridge(module, loss="mse", regularisation=1e-9)
    expected = (y[:, :5] + y[:, 5:]) / 2
    # as near as numbers of 1e6, squared, allow
    torch.testing.assert_close(outputs(learner, support, x), expected, atol=1e-2, rtol=0)
    gradient, _ = headstart.meta_gradient(learner, learner.init(None), Episodes(support, Batch(x, expected)))
    assert all(value.isfinite().all() for part in gradient for value in part.values())
