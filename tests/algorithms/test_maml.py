import pytest
import torch
from torch import nn

import headstart
from headstart import maml, meta_gradient, rules
from headstart.algorithms.maml import alfa, head_of
from headstart.errors import UsageError
from headstart.testing import check_learner, random_episodes
from headstart.types import Batch, Episodes

RATE = 0.05


def linear():
    """Return a linear regression without bias, tasks for it, and the matrices of their losses.

    Task i's loss on n examples is ‖X w − y‖² / n, so its gradient is H w − b with H = 2 XᵀX / n, b = 2 Xᵀy / n.
    """
    module = nn.Linear(3, 1, bias=False).double()
    episodes = random_episodes((3,), outputs=1, regression=True, support=6, query=7)
    quadratics = [
        (2 * b.x.transpose(1, 2) @ b.x / b.x.shape[1], 2 * b.x.transpose(1, 2) @ b.y / b.x.shape[1]) for b in episodes
    ]
    return module, episodes, quadratics


def adapted_by_hand(w, h, b, steps):
    for _ in range(steps):
        w = w - RATE * (h @ w - b)
    return w


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_meta_gradient_of_a_linear_model_has_its_closed_form(steps):
    module, episodes, ((h, b), (hq, bq)) = linear()
    learner = headstart.maml(module, loss="mse", steps=steps, rate=RATE)
    meta = learner.init(None)
    w = meta.params["weight"].reshape(3, 1)
    adapted = adapted_by_hand(w, h, b, steps)
    jacobian = torch.linalg.matrix_power(torch.eye(3).double() - RATE * h, steps)
    expected = (jacobian @ (hq @ adapted - bq)).mean(0)
    gradient, info = headstart.meta_gradient(learner, meta, episodes)
    torch.testing.assert_close(gradient.params["weight"].reshape(3, 1), expected)
    losses = (episodes.query.x @ adapted - episodes.query.y).square().mean((1, 2))
    torch.testing.assert_close(info.query_loss, losses)


@pytest.mark.parametrize("steps", [1, 3])
def test_fomaml_lacks_the_second_order_term_and_nothing_else(steps):
    module, episodes, ((h, b), (hq, bq)) = linear()
    learner = headstart.fomaml(module, loss="mse", steps=steps, rate=RATE)
    meta = learner.init(None)
    adapted = adapted_by_hand(meta.params["weight"].reshape(3, 1), h, b, steps)
    query_slope = hq @ adapted - bq
    gradient = headstart.meta_gradient(learner, meta, episodes)[0].params["weight"].reshape(3, 1)
    torch.testing.assert_close(gradient, query_slope.mean(0))
    exact = headstart.maml(module, loss="mse", steps=steps, rate=RATE)
    second = headstart.meta_gradient(exact, meta, episodes)[0].params["weight"].reshape(3, 1)
    missing = (torch.linalg.matrix_power(torch.eye(3).double() - RATE * h, steps) - torch.eye(3)) @ query_slope
    torch.testing.assert_close(second - gradient, missing.mean(0))
    assert exact.exact and not learner.exact


def test_the_gradient_of_a_learned_rate_has_its_closed_form():
    module, episodes, ((h, b), (hq, bq)) = linear()
    learner = headstart.maml(module, loss="mse", steps=1, rule=rules.scale(RATE, learn=True))
    meta = learner.init(None)
    w = meta.params["weight"].reshape(3, 1)
    slope = h @ w - b
    expected = -(slope.transpose(1, 2) @ (hq @ (w - RATE * slope) - bq)).mean()
    gradient, _ = headstart.meta_gradient(learner, meta, episodes)
    torch.testing.assert_close(gradient.structure["rate"], expected)


def test_meta_sgd_learns_one_rate_a_weight_by_its_closed_form():
    module, episodes, ((h, b), (hq, bq)) = linear()
    learner = headstart.meta_sgd(module, loss="mse", steps=1)
    meta = learner.init(torch.Generator().manual_seed(1))
    alpha = meta.structure["rate.weight"].reshape(3, 1)
    assert ((alpha >= 0.005) & (alpha < 0.1)).all() and len(alpha.unique()) == 3
    w = meta.params["weight"].reshape(3, 1)
    slope = h @ w - b
    query_slope = hq @ (w - alpha * slope) - bq
    gradient, _ = headstart.meta_gradient(learner, meta, episodes)
    torch.testing.assert_close(gradient.structure["rate.weight"].reshape(3, 1), -(slope * query_slope).mean(0))
    jacobian = torch.eye(3).double() - alpha * h
    expected = (jacobian.transpose(1, 2) @ query_slope).mean(0)
    torch.testing.assert_close(gradient.params["weight"].reshape(3, 1), expected)


def test_the_model_aware_loss_with_one_fixed_rate_is_the_model_agnostic_one():
    module, episodes, _ = linear()
    how = {"loss": "mse", "steps": 2, "taskmap": "vmap"}  # "auto" may choose otherwise for the other
    agnostic = headstart.maml(module, **how, rate=RATE)
    aware = headstart.maml(module, **how, rule=rules.scale(RATE, learn=True))
    results = [headstart.meta_gradient(one, one.init(None), episodes)[0].params["weight"] for one in (agnostic, aware)]
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert agnostic.init(None).structure == {} and aware.init(None).structure.keys() == {"rate"}


def net():
    return headstart.mlp(2, 3, hidden=(4,)).double()


def test_anil_moves_the_head_only_and_boil_the_body_only():
    episodes = random_episodes((2,))
    moved = {}
    for method in (headstart.anil, headstart.boil):
        learner = method(net(), steps=2, rate=0.1)
        meta = learner.init(None)
        adapted, _ = learner.adapt(meta, episodes.support)
        moved[method] = {k for k, v in adapted.params.items() if not torch.equal(v, meta.params[k].expand_as(v))}
        assert moved[method] == adapted.params.keys(), "what does not move is not stored for every task"
        gradient = headstart.meta_gradient(learner, meta, episodes)[0].params
        assert all(value.any() for value in gradient.values()), "the outer loop learns all of it"
    assert moved[headstart.anil] == {"head.weight", "head.bias"}
    assert moved[headstart.boil] == {"hidden1.weight", "hidden1.bias"}


def test_the_head_can_be_named():
    learner = headstart.anil(net(), head="hidden1", steps=1)
    adapted, _ = learner.adapt(learner.init(None), random_episodes((2,)).support)
    assert adapted.params.keys() == {"hidden1.weight", "hidden1.bias"}


def test_the_head_is_the_last_layer_with_weights_unless_one_is_called_head():
    assert head_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Flatten())) == "2"
    named = nn.ModuleDict({"head": nn.Linear(2, 2), "tail": nn.Linear(2, 2)})
    assert head_of(named) == "head"
    frozen = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    frozen[2].requires_grad_(False)
    assert head_of(frozen) == "1"
    frozen[0].requires_grad_(False)
    assert head_of(frozen) == head_of(nn.Sequential(nn.Flatten(), nn.Linear(2, 2))) == "1"
    with pytest.raises(UsageError, match="Linear has no head apart from its body"):
        headstart.anil(nn.Linear(2, 2))


def test_a_loss_of_your_own_and_a_rule_that_moves_nothing():
    def loss(outputs, batch):
        return (outputs - batch.y).abs().mean((1, 2))

    module, episodes, _ = linear()
    learner = headstart.maml(module, loss=loss, steps=1, rate=RATE)
    _, info = headstart.meta_loss(learner, learner.init(None), episodes)
    before = (module(episodes.support.x) - episodes.support.y).abs().mean((1, 2)).detach()
    torch.testing.assert_close(info.support_loss, before[None])
    with pytest.raises(UsageError, match="leaves nothing to move"):
        headstart.maml(net(), rule=rules.exclude("*"))


def test_adaptation_lowers_the_support_loss():
    learner = headstart.maml(net(), steps=30, rate=0.5)
    _, info = learner.adapt(learner.init(None), random_episodes((2,)).support)
    assert (info.support_loss[-1] < 0.7 * info.support_loss[0]).all()


def test_prediction_draws_other_dropout_masks_than_any_inner_step():
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(200, 2)).double()
    learner = headstart.maml(module, steps=0)
    support = Batch(torch.ones(2, 3, 200).double(), torch.zeros(2, 3).long(), None, torch.tensor([4, 4]))
    adapted, _ = learner.adapt(learner.init(None), support)
    out = learner.predict(adapted, support.x)
    assert torch.equal(out[0], out[1]), "equal seeds draw equal masks"
    one_step = headstart.functional(module)
    first, _ = one_step.apply(one_step.params, {}, support.x, seed=support.seed, draw=0)
    assert not torch.equal(first, out)


def linear_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def test_it_starts_as_maml_and_learns_all_of_its_part_of_m(generator):
    episodes = random_episodes((3,))
    ours, plain = (
        alfa(linear_net(), rate=0.1, steps=3, taskmap="vmap"),
        maml(linear_net(), rate=0.1, steps=3, taskmap="vmap"),
    )
    meta = ours.init(generator)
    theirs = plain.init(None)
    torch.testing.assert_close(
        ours.adapt(meta, episodes.support)[0].params, plain.adapt(theirs, episodes.support)[0].params
    )
    torch.testing.assert_close(
        meta_gradient(ours, meta, episodes)[0].params, meta_gradient(plain, theirs, episodes)[0].params
    )
    assert {k for k in ours.shown(meta)} == {k for k in meta.structure if "rate" in k or "decay" in k}
    # a step along the gradient opens the way to the hidden layer, behind weights that start at zero
    structure = {k: meta.structure[k] - 0.1 * g for k, g in meta_gradient(ours, meta, episodes)[0].structure.items()}
    gradient = meta_gradient(ours, meta._replace(structure=structure), episodes)[0].structure
    assert all(bool(g.any()) for g in gradient.values())


def machine(features=3, ways=3):
    torch.manual_seed(0)
    return nn.Linear(features, ways).double()


def test_the_contract_of_a_learner():
    module, episodes = machine(), random_episodes((3,))
    check_learner(
        lambda taskmap: headstart.maml(module, loss="squared_hinge", steps=3, rate=0.1, taskmap=taskmap),
        episodes,
        module=module,
    )


def test_adaptation_separates_the_classes_of_a_task():
    support, _ = random_episodes((30,), support=9)
    learner = headstart.maml(machine(30), loss="squared_hinge", steps=200, rate=0.02)
    adapted, info = learner.adapt(learner.init(None), support)
    scores = learner.predict(adapted, support.x)
    assert (info.support_loss.diff(dim=0) < 0).all()
    assert torch.equal(scores.argmax(-1), support.y)
    signs = 2 * nn.functional.one_hot(support.y, 3) - 1
    assert (signs * scores > 0.5).all()


def test_meta_training_finds_a_start_from_which_few_steps_do():
    """Classes lie at the same places in all tasks, up to a turn of the labels."""
    generator = torch.Generator().manual_seed(1)
    centres = 2 * torch.randn(3, 4, generator=generator, dtype=torch.float64)

    def sample():
        y = torch.stack([torch.arange(9) % 3 for _ in range(8)])
        turn = torch.randint(0, 2, (8, 1), generator=generator)
        x = centres[y] + 0.3 * torch.randn(8, 9, 4, generator=generator, dtype=torch.float64)
        labels = torch.where(y < 2, (y + turn) % 2, y)
        return Episodes(Batch(x[:, :3], labels[:, :3]), Batch(x[:, 3:], labels[:, 3:]))

    learner = headstart.maml(machine(4), loss="squared_hinge", steps=2, rate=0.1)
    meta = learner.init(None)
    optimizer = torch.optim.Adam([value.requires_grad_() for value in meta.params.values()], 0.03)
    losses = []
    for _ in range(80):
        loss, _ = headstart.meta_loss(learner, meta, sample())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
