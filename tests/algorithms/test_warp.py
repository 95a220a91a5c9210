from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call

import headstart
from headstart import Checkpointed, FirstOrder, Unrolled, rules
from headstart.algorithms.warp import mt_net, t_net, warp_grad
from headstart.core.parameters import Structural
from headstart.data.curves.sinusoid import sinusoid
from headstart.errors import UnknownNameError, UsageError
from headstart.testing import check_learner, random_episodes
from headstart.training.loop import fit
from headstart.types import Episodes, Meta

RATE = 0.1


def net():
    return headstart.mlp(2, 3, hidden=(4, 5)).double()


def images():
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).double()


MODELS = {"mlp": (net, (2,)), "convolutions": (images, (1, 4, 4))}
METHODS = {
    "t_net": t_net,
    # without a seed its gates are 1/2 at the start
    "mt_net": lambda module, rate, **options: mt_net(module, rate=2 * rate, **options),
    "warp_grad": warp_grad,
    "warp_grad, meta": lambda module, **options: warp_grad(module, objective="meta", **options),
}


def stirred(meta, scale=0.2):
    """Return a meta value whose structure has left its start."""
    generator = torch.Generator().manual_seed(5)
    noise = {k: torch.randn(v.shape, generator=generator, dtype=v.dtype) for k, v in meta.structure.items()}
    return Meta(meta.params, {k: v + scale * noise[k] for k, v in meta.structure.items()})


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_before_the_first_outer_step_they_adapt_as_maml(method, model, steps):
    make, shape = MODELS[model]
    module, episodes = make(), random_episodes(shape)
    outputs = []
    for maker in (METHODS[method], headstart.maml):
        learner = maker(module, steps=3, rate=RATE, taskmap="vmap")
        adapted, _ = learner.adapt(learner.init(None), episodes.support, steps=steps)
        outputs.append(learner.predict(adapted, episodes.query.x))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("method", METHODS)
def test_no_inner_step_moves_the_warps_and_the_outer_loop_learns_them(method):
    learner = METHODS[method](net(), steps=2, rate=RATE)
    meta, episodes = learner.init(None), random_episodes((2,))
    adapted, _ = learner.adapt(meta, episodes.support)
    layers = {"hidden1", "hidden2"} if "warp_grad" in method else {"hidden1", "hidden2", "head"}
    masks = {f"mask.{layer}.layer" for layer in layers} if method == "mt_net" else set()
    assert meta.structure.keys() == {f"{layer}.after.layer.weight" for layer in layers} | masks
    assert adapted.params.keys() == meta.params.keys()
    gradient, _ = headstart.meta_gradient(learner, meta, episodes)
    assert all(value.any() for part in gradient for value in part.values())


@pytest.mark.parametrize("hard", [False, True])
def test_mt_net_keeps_the_contract_with_drawn_gates(hard):
    module, episodes = net(), random_episodes((2,))
    episodes = Episodes(*(batch._replace(seed=7 + torch.arange(3)) for batch in episodes))

    def learner(taskmap):
        made = mt_net(module, steps=3, rate=RATE, hard=hard, temperature=0.7, taskmap=taskmap)
        return made._replace(init=lambda generator: stirred(made.init(generator)))

    check_learner(learner, episodes, module=module, directions=2, order=True)
    assert learner("vmap").exact is not hard


def test_where_a_hard_gate_is_shut_the_unit_stays_and_else_it_moves_as_in_a_t_net():
    module, episodes = net(), random_episodes((2,))
    support = episodes.support._replace(seed=torch.arange(3))
    adapted = {}
    for name, learner in {"t": t_net(module, steps=1), "mt": mt_net(module, steps=1, hard=True)}.items():
        meta = learner.init(None)
        adapted[name] = learner.adapt(meta, support)[0].params
    shut = 0
    for layer in ("hidden1", "hidden2", "head"):
        weight, bias = (f"{layer}.layer.{name}" for name in ("weight", "bias"))
        gate = adapted["mt"][bias] != meta.params[bias]
        shut += int((~gate).sum())
        for name in (weight, bias):
            wide = gate.view(*gate.shape, *(1,) * (adapted["t"][name].ndim - 2))
            torch.testing.assert_close(adapted["mt"][name], torch.where(wide, adapted["t"][name], meta.params[name]))
    assert 0 < shut < 3 * (4 + 5 + 3)


def test_a_step_of_a_t_net_is_a_gradient_step_of_the_product_in_the_metric_t_t_transposed():
    module, episodes = nn.Linear(3, 2).double(), random_episodes((3,), outputs=2, regression=True)
    learner = t_net(module, loss="mse", steps=1, rate=RATE)
    meta = stirred(learner.init(None))
    t = meta.structure["after.layer.weight"]
    adapted, _ = learner.adapt(meta, episodes.support)
    for task in range(3):
        x, y = episodes.support.x[task], episodes.support.y[task]
        weight, bias = (t @ meta.params[f"layer.{name}"] for name in ("weight", "bias"))
        error = x @ weight.T + bias - y
        slope = 2 / y.numel() * error.T
        torch.testing.assert_close(t @ adapted.params["layer.weight"][task], weight - RATE * t @ t.T @ slope @ x)
        torch.testing.assert_close(t @ adapted.params["layer.bias"][task], bias - RATE * t @ t.T @ slope.sum(1))


def test_behind_a_convolution_t_is_a_matrix_over_the_channels():
    layer = nn.Conv2d(2, 3, 3, stride=2).double()
    learner = t_net(layer, loss=lambda outputs, batch: outputs.square().mean((1, 2, 3, 4)), steps=0)
    meta = stirred(learner.init(None))
    x = torch.randn(1, 2, 2, 5, 5, dtype=torch.float64)
    adapted, _ = learner.adapt(meta, headstart.Batch(x, torch.zeros(1, 2, dtype=torch.int64)))
    t = meta.structure["after.layer.weight"]
    assert t.shape == (3, 3, 1, 1)
    expected = torch.einsum("oc,nchw->nohw", t[:, :, 0, 0], layer(x[0]))
    torch.testing.assert_close(learner.predict(adapted, x)[0], expected)


class Warped(nn.Module):
    """Two layers with a nonlinear warp between them that was not put there by the method."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(2, 4)
        self.warp = Structural(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.warp(self.hidden(x)))


def by_hand(module, meta, episodes, second_order):
    """Return the trajectory objective's gradient, one task after another, with nothing but torch.autograd."""
    phi = {k: v.detach().requires_grad_() for k, v in meta.structure.items()}

    def loss(theta, batch, task):
        outputs = functional_call(module, {**theta, **phi}, (batch.x[task],))
        return nn.functional.cross_entropy(outputs, batch.y[task])

    total, tasks, steps = torch.zeros(()).double(), episodes.query.y.shape[0], 3
    for task in range(tasks):
        theta = {k: v.detach() for k, v in meta.params.items()}
        for _ in range(steps):
            theta = {k: v.requires_grad_() for k, v in theta.items()}
            grads = torch.autograd.grad(loss(theta, episodes.support, task), list(theta.values()), create_graph=True)
            grads = grads if second_order else [g.detach() for g in grads]
            reached = {k: v.detach() - RATE * g for (k, v), g in zip(theta.items(), grads)}
            total = total + loss(reached, episodes.query, task) / (steps * tasks)
            theta = {k: v.detach() for k, v in reached.items()}
    return dict(zip(phi, torch.autograd.grad(total, list(phi.values()))))


@pytest.mark.parametrize(
    "adjoint", [Unrolled(), Checkpointed(every=2), FirstOrder()], ids=["all", "some", "first order"]
)
def test_the_warps_descend_the_trajectory_objective_and_the_weights_that_of_maml(adjoint):
    module, episodes = Warped().double(), random_episodes((2,))
    learner = warp_grad(module, steps=3, rate=RATE, adjoint=adjoint)
    meta = learner.init(None)
    gradient, info = headstart.meta_gradient(learner, meta, episodes)
    torch.testing.assert_close(gradient.structure, by_hand(module, meta, episodes, adjoint.exact))
    plain = headstart.maml(module, steps=3, rate=RATE, adjoint=adjoint)
    expected, expected_info = headstart.meta_gradient(plain, meta, episodes)
    torch.testing.assert_close(gradient.params, expected.params)
    torch.testing.assert_close(info.query_loss, expected_info.query_loss)
    through_all_steps = expected.structure["warp.layer.0.weight"]
    assert not torch.allclose(gradient.structure["warp.layer.0.weight"], through_all_steps, rtol=1e-3)


def test_what_the_rule_does_not_move_descends_the_loss_of_maml_alone():
    module, episodes = Warped().double(), random_episodes((2,))
    rule = rules.chain(rules.only("head"), rules.scale(RATE))
    gradients = []
    for method in (warp_grad, headstart.maml):
        learner = method(module, steps=2, rule=rule)
        gradients.append(headstart.meta_gradient(learner, learner.init(None), episodes)[0].params)
    assert gradients[0]["hidden.weight"].any()
    torch.testing.assert_close(*gradients)


def test_for_one_step_the_trajectory_objective_is_the_meta_loss():
    module, episodes = net(), random_episodes((2,))
    gradients = []
    for objective in ("trajectory", "meta"):
        learner = warp_grad(module, steps=1, rate=RATE, objective=objective)
        gradients.append(headstart.meta_gradient(learner, stirred(learner.init(None)), episodes)[0])
    torch.testing.assert_close(*gradients)


def test_a_penalty_counts_once():
    learner = warp_grad(net(), steps=2, rate=RATE)
    meta, episodes = stirred(learner.init(None)), random_episodes((2,))
    paid = learner._replace(penalty=lambda meta: sum(v.square().sum() for v in meta.structure.values()))
    free, dear = (headstart.meta_gradient(one, meta, episodes)[0] for one in (learner, paid))
    torch.testing.assert_close(dear.params, free.params)
    torch.testing.assert_close(dear.structure, {k: free.structure[k] + 2 * v for k, v in meta.structure.items()})


def test_warps_go_where_they_are_asked_for_and_not_where_they_are_already():
    assert warp_grad(net(), warps="hidden2").init(None).structure.keys() == {"hidden2.after.layer.weight"}
    assert len(warp_grad(net(), warps=nn.Linear).init(None).structure) == 3
    conv = warp_grad(headstart.conv4((1, 16, 16), 3, filters=4)).init(None).structure
    assert {name: tuple(value.shape) for name, value in conv.items()} == {
        f"block{index}.conv.after.layer.weight": (4, 4, 3, 3) for index in range(1, 5)
    }
    assert warp_grad(Warped()).init(None).structure.keys() == {"warp.layer.0.weight", "warp.layer.0.bias"}
    assert "hidden.after.layer.weight" in warp_grad(Warped(), warps="hidden").init(None).structure
    assert t_net(Warped()).init(None).structure.keys() == {
        *("warp.layer.0.weight", "warp.layer.0.bias"),
        *("hidden.after.layer.weight", "head.after.layer.weight"),
    }


def test_frozen_layers_and_sealed_ones_are_left_alone():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    module[0].requires_grad_(False)
    assert t_net(module).init(None).structure.keys() == {"1.after.layer.weight", "2.after.layer.weight"}
    encoder = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Linear(4, 3))
    assert t_net(encoder).init(None).structure.keys() == {"1.after.layer.weight"}


def test_making_them_draws_nothing_and_follows_the_type():
    module = net()
    before = torch.get_rng_state()
    learner = warp_grad(module)
    assert torch.equal(torch.get_rng_state(), before)
    assert {value.dtype for value in learner.init(None).structure.values()} == {torch.float64}


@pytest.mark.parametrize("method", METHODS)
def test_meta_training_on_sines_learns_with_them(method):
    tasks, optimizer = sinusoid(shots=10), partial(torch.optim.Adam, lr=3e-3)
    unseen = tasks.sample("validation", range(100))
    learner = METHODS[method](headstart.mlp(1, 1, hidden=(16, 16)), loss="mse", steps=2, rate=0.02, taskmap="vmap")
    start = learner.init(None)
    *_, last = fit(learner, tasks, steps=150, tasks_per_step=6, optimizer=optimizer)
    before, after = (headstart.meta_loss(learner, meta, unseen)[0].item() for meta in (start, last.state.meta))
    assert after < 0.8 * before
    trained = last.state.meta.structure
    assert all((trained[name] - value).abs().max() > 1e-3 for name, value in start.structure.items())


def test_errors_say_what_was_looked_for_and_what_there_is():
    with pytest.raises(UnknownNameError, match="warps= must.* linear .*'hiden1'; nearest: hidden1.*head.bias"):
        warp_grad(net(), warps="hiden1")
    with pytest.raises(UnknownNameError, match="no parameter belongs to a Conv2d. There are parameters of: Linear"):
        warp_grad(net(), warps=nn.Conv2d)
    with pytest.raises(UnknownNameError, match="unknown objective 'metta'; did you mean 'meta'"):
        warp_grad(net(), objective="metta")
    with pytest.raises(UsageError, match="take steps=1 or more"):
        warp_grad(net(), steps=0)
    recurrent = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(9, 3))
    with pytest.raises(UsageError, match="no linear or convolution.*before its head '2'.*Embedding, Flatten, Linear"):
        warp_grad(recurrent)
    with pytest.raises(UsageError, match="Linear has no linear or convolution layer before a head"):
        warp_grad(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="Embedding has no linear or convolution layer with trainable weights to"):
        t_net(nn.Embedding(5, 3))
