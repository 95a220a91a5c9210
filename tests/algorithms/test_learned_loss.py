import pytest
import torch
from torch import Generator, nn

import headstart
from headstart.algorithms.learned_loss import learned_loss
from headstart.core import losses
from headstart.errors import ShapeError, UnknownNameError, UsageError
from headstart.testing import check_learner, random_episodes
from headstart.types import Batch, Episodes


def net(outputs=3):
    return headstart.mlp(2, outputs, hidden=(4,)).double()


EPISODES = {"cross_entropy": random_episodes((2,)), "mse": random_episodes((2,), outputs=2, regression=True)}
SIZE = {"cross_entropy": 3, "mse": 2}


def disturbed(learner, by=0.3):
    """Return the learner with M away from where it starts, where a last layer of zeros hides what lies before it."""

    def init(generator=None):
        meta = learner.init(generator)
        drawn = Generator().manual_seed(3)
        structure = {
            name: value + by * torch.randn(value.shape, generator=drawn, dtype=torch.float64)
            for name, value in meta.structure.items()
        }
        return meta._replace(structure=structure)

    return learner._replace(init=init)


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("loss", EPISODES)
def test_the_contract_holds(loss, alone):
    module = net(SIZE[loss])
    inner = learned_loss(SIZE[loss], base=None if alone else loss, hidden=(5, 4))
    check_learner(
        lambda taskmap: disturbed(
            headstart.maml(module, loss=loss, steps=2, rate=0.3, inner_loss=inner, taskmap=taskmap)
        ),
        EPISODES[loss],
        module=module,
        order=True,
    )


@pytest.mark.parametrize("loss", EPISODES)
def test_it_starts_as_the_base(loss):
    module = net(SIZE[loss])
    plain = headstart.maml(module, loss=loss, steps=3, rate=0.1)
    learned = headstart.maml(module, loss=loss, steps=3, rate=0.1, inner_loss=learned_loss(SIZE[loss], base=loss))
    results = [one.adapt(one.init(Generator().manual_seed(0)), EPISODES[loss].support) for one in (plain, learned)]
    torch.testing.assert_close(results[0][0].params, results[1][0].params)
    torch.testing.assert_close(results[0][1].support_loss, results[1][1].support_loss)


def test_the_gradient_of_m_is_exact_at_the_start_and_not_zero():
    module = net()
    learner = headstart.maml(module, steps=1, rate=0.3, inner_loss=learned_loss(3, base="cross_entropy", hidden=(5,)))
    check_learner(learner, EPISODES["cross_entropy"], module=module)
    meta = learner.init(Generator().manual_seed(0))
    gradient = headstart.meta_gradient(learner, meta, EPISODES["cross_entropy"])[0].structure
    assert gradient["loss.1.weight"].abs().max() > 1e-4


def test_the_loss_is_the_mean_of_a_network_on_outputs_and_targets():
    inner = learned_loss(3, hidden=(5, 4), name="phi")
    m = inner.structure({"w": torch.zeros(2).double()}, Generator().manual_seed(0))
    m = {name: value + 0.1 for name, value in m.items()}
    assert list(m) == ["phi.0.weight", "phi.0.bias", "phi.1.weight", "phi.1.bias", "phi.2.weight"]
    network = nn.Sequential(
        nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1, bias=False), nn.Softplus()
    ).double()
    network.load_state_dict({key: m[f"phi.{int(key[0]) // 2}.{key[2:]}"] for key in network.state_dict()})
    outputs, y = torch.randn(2, 4, 3).double(), torch.tensor([[0, 1, 2, 0], [1, 1, 0, 2]])
    target = nn.functional.one_hot(y, 3).double()
    expected = network(torch.cat([outputs, target], -1)).squeeze(-1)
    torch.testing.assert_close(inner.loss(m, outputs, Batch(outputs, y), 0), expected.mean(1))
    mask = torch.tensor([[True, True, False, False], [False, True, True, True]])
    masked = inner.loss(m, outputs, Batch(outputs, y, mask), 0)
    torch.testing.assert_close(masked, torch.stack([expected[0, :2].mean(), expected[1, 1:].mean()]))
    real = inner.loss(m, outputs, Batch(outputs, target), 0)
    torch.testing.assert_close(real, expected.mean(1))


def test_real_targets_of_several_axes_and_of_none():
    m = {"w": torch.zeros(2)}
    inner = learned_loss(6, base=losses.mse)
    outputs = torch.randn(2, 4, 3, 2)
    assert inner.loss(inner.structure(m, None), outputs, Batch(outputs, outputs + 1), 0).shape == (2,)
    flat, values = learned_loss(1), outputs[..., 0, 0]
    assert flat.loss(flat.structure(m, None), values, Batch(outputs, values), 0).shape == (2,)


def test_initial_values_depend_on_the_generator_alone_and_have_the_models_type():
    inner = learned_loss(2)
    first, second, third = (
        inner.structure({"w": torch.zeros(1).double()}, Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["loss.0.weight"], third["loss.0.weight"])
    assert {value.dtype for value in first.values()} == {torch.float64}
    limit = (6 / (40 + 40)) ** 0.5
    assert 0.9 * limit < first["loss.1.weight"].abs().max() <= limit


def test_bad_sizes_and_targets_are_refused():
    with pytest.raises(UsageError, match="positive sizes, got outputs 0"):
        learned_loss(0)
    with pytest.raises(UsageError, match="positive sizes"):
        learned_loss(1, hidden=())
    with pytest.raises(UnknownNameError, match="cross_entropy"):
        learned_loss(1, base="cross_entopy")
    inner = learned_loss(4, hidden=(3,))
    learner = headstart.maml(net(), steps=1, inner_loss=inner)
    with pytest.raises(ShapeError, match="made for 4 output values"):
        learner.adapt(learner.init(None), EPISODES["cross_entropy"].support)
    m = inner.structure({"w": torch.zeros(1)}, None)
    outputs = torch.zeros(1, 2, 4)
    with pytest.raises(ShapeError, match="labels go from 0 to 4"):
        inner.loss(m, outputs, Batch(outputs, torch.tensor([[0, 4]])), 0)
    with pytest.raises(ShapeError, match="got outputs"):
        inner.loss(m, outputs, Batch(outputs, torch.zeros(1, 2)), 0)


def with_outliers(seed, tasks):
    """Return linear regressions in which two of ten support targets are far off."""
    drawn = Generator().manual_seed(seed)
    weight, x = torch.randn(tasks, 2, 1, generator=drawn), torch.randn(tasks, 20, 2, generator=drawn)
    far = 8 * torch.randn(tasks, 10, 1, generator=drawn) * (torch.arange(10) % 5 == 0)[None, :, None]
    y = x @ weight
    return Episodes(Batch(x[:, :10], y[:, :10] + far), Batch(x[:, 10:], y[:, 10:]))


def test_a_loss_is_learned_that_is_not_misled_by_outliers():
    """Only φ is trained, so what gets better is the loss that adaptation lowers."""
    module = nn.Linear(2, 1)
    plain = headstart.maml(module, loss="mse", steps=3, rate=0.1)
    learner = headstart.maml(
        module, loss="mse", steps=3, rate=0.1, inner_loss=learned_loss(1, hidden=(20, 20)), taskmap="vmap"
    )
    meta = learner.init(Generator().manual_seed(0))
    optimizer = torch.optim.Adam(meta.structure.values(), lr=0.01)
    for step in range(80):
        gradient, _ = headstart.meta_gradient(learner, meta, with_outliers(step, 40))
        for name, value in meta.structure.items():
            value.grad = gradient.structure[name]
        optimizer.step()
    test = with_outliers(1000, 200)
    with torch.no_grad():
        by_squares, _ = headstart.meta_loss(plain, plain.init(None), test)
        learned, _ = headstart.meta_loss(learner, meta, test)
    assert learned < 0.5 * by_squares
