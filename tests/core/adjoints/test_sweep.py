import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import headstart
from headstart import Checkpointed, FirstOrder, Unrolled, rules
from headstart.core import losses, tree
from headstart.core.adjoints import Implicit, MixedMode
from headstart.core.adjoints.sweep import reverse
from headstart.core.rules.rule import Rule
from headstart.core.step import Given, Inner, Step
from headstart.core.unread import is_unread_later
from headstart.errors import DifferentiationError
from headstart.forward import over_tasks as layers
from headstart.testing import random_episodes

PULL = rules.chain(rules.proximal(0.5), rules.scale(0.1))
# as much memory as a sweep over the steps of ``noisy`` needs, and less than remembering all of them
LITTLE = [Checkpointed(memory=7_000), MixedMode(memory=11_000)]
SWEPT = [Checkpointed(), Checkpointed(1), MixedMode(), *LITTLE]


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
@pytest.mark.parametrize("adjoint", SWEPT, ids=str)
def test_steps_that_are_taken_again_draw_the_same_random_numbers(noisy, adjoint, taskmap):
    assert noisy.gap(adjoint, Unrolled(), taskmap=taskmap) < 1e-12


@pytest.mark.parametrize("adjoint", LITTLE, ids=str)
def test_what_memory_allows_is_a_sweep_here(noisy, adjoint):
    more = type(adjoint)(memory=16_000)

    def passes(one):
        calls = []

        def loss(outputs, batch):
            calls.append(1)
            return losses.cross_entropy(outputs, batch)

        noisy.gradient(one, loss=loss)
        return len(calls)

    assert passes(adjoint) >= passes(more) + 5


@pytest.mark.parametrize("adjoint", [*SWEPT, Implicit()], ids=str)
def test_the_generator_goes_on_as_if_no_step_had_been_taken_again(noisy, adjoint):
    noisy.gradient(Unrolled() if adjoint.exact else FirstOrder(), rule=PULL)
    expected = torch.get_rng_state()
    noisy.gradient(adjoint, rule=PULL)
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("adjoint", [Checkpointed(), MixedMode(), Implicit()], ids=str)
def test_a_derivative_of_the_derivative_is_refused(rows, adjoint):
    learner = headstart.maml(rows.module, adjoint=adjoint, **rows.options)
    meta = learner.init(None)
    leaves = [value.requires_grad_() for value in meta.params.values()]
    loss, _ = headstart.meta_loss(learner, meta, rows.episodes)
    with pytest.raises(DifferentiationError, match=r"first derivatives only.*adjoint=Unrolled\(\)"):
        torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)


@pytest.mark.parametrize("adjoint", [Checkpointed(), MixedMode(2), Implicit()], ids=str)
def test_a_graph_that_is_kept_gives_the_same_derivative_again(rows, adjoint):
    learner = headstart.maml(rows.module, adjoint=adjoint, rule=headstart.rules.proximal(0.1), steps=5)
    meta = learner.init(None)
    leaves = [value.requires_grad_() for value in meta.params.values()]
    loss, _ = headstart.meta_loss(learner, meta, rows.episodes)
    first, second = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert any(bool(slope.any()) for slope in first)


def counted(m, state, grads, params, number):
    """Steps by a rate that falls with a count that is no tensor."""
    return {name: 0.1 / (1 + state["count"]) * grad for name, grad in grads.items()}, {"count": state["count"] + 1}


def late(m, state, grads, params, number):
    """Momentum whose state is there from the first step on."""
    total = {name: grad + 0.5 * state[name] if state else grad for name, grad in grads.items()}
    return {name: 0.1 * value for name, value in total.items()}, total


STATES = {"a number": Rule(counted, lambda m, params, seed: {"count": 0}), "none at first": Rule(late)}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("adjoint", SWEPT, ids=str)
def test_a_rules_state_may_be_more_than_tensors(noisy, adjoint, name):
    assert noisy.gap(adjoint, Unrolled(), rule=STATES[name]) < 1e-12


@pytest.mark.parametrize("adjoint", [Unrolled(), Checkpointed(), Checkpointed(1), MixedMode(), Implicit()], ids=str)
def test_a_start_that_is_changed_before_the_derivative_is_taken_is_noticed(rows, adjoint):
    learner = headstart.maml(rows.module, adjoint=adjoint, **{**rows.options, "rule": PULL})
    meta = learner.init(None)
    leaves = [value.requires_grad_() for value in meta.params.values()]
    loss, _ = headstart.meta_loss(learner, meta, rows.episodes)
    with torch.no_grad():
        for value in leaves:
            value.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, leaves)


class Products(TorchDispatchMode):
    """Counts the products of matrices."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += name in ("mm", "addmm", "bmm", "baddbmm")
        return func(*args, **kwargs or {})


RULES = {
    "descent": (rules.scale(0.1), True),
    "momentum": (rules.chain(rules.momentum(0.5), rules.weight_decay(0.01, learn=True), rules.scale(0.1)), True),
    "a learned rate": (rules.scale(0.1, learn=True), False),
    "clipped": (rules.chain(rules.clip(norm=0.5), rules.scale(0.1)), False),
}


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("name", RULES)
def test_going_back_takes_no_products_for_gradients_that_the_rule_does_not_ask_for(name, tasks, monkeypatch):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(130, 128), nn.Tanh(), nn.Linear(128, 3)).double()
    episodes = random_episodes((130,), tasks=tasks)
    rule, spared = RULES[name]

    def gradient(adjoint):
        learner = headstart.maml(module, rule=rule, steps=3, adjoint=adjoint)
        with Products() as products:
            found = headstart.meta_gradient(learner, learner.init(torch.Generator().manual_seed(0)), episodes)[0]
        return found, products.count

    expected, _ = gradient(Unrolled())
    found, count = gradient(Checkpointed(1))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    monkeypatch.setattr(layers, "SPARED", 2**20)
    whole = gradient(Checkpointed(1))
    # one for the large layer in each step
    assert whole[1] - count == (3 if spared else 0)
    torch.testing.assert_close(whole[0], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layer", ["linear", "convolution"])
def test_a_loss_may_read_gradients_of_its_own(layer):
    generator = torch.Generator().manual_seed(0)
    module = nn.Linear(130, 128) if layer == "linear" else nn.Conv2d(2, 3, 3)
    x = torch.randn((1, 4, 130) if layer == "linear" else (1, 4, 2, 5, 5), generator=generator, dtype=torch.float64)
    shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
    start = {name: torch.randn((1, *shape), generator=generator).double() for name, shape in shapes.items()}

    chain = nn.Sequential(module)

    def outputs(params):
        return layers.over_tasks(chain, tree.prefixed("0", params), tree.prefixed("0", shapes), x)

    def steep(given, params, buffers, number):
        """How steep the outputs are in the weights."""
        seen.append(is_unread_later())
        out = outputs(params).sin()
        slopes = torch.autograd.grad(out.sum(), list(params.values()), create_graph=True)
        return torch.stack([slope.square().mean() for slope in slopes]).sum().view(1), buffers

    def steep_many_ways(given, params, buffers, number):
        seen.append(is_unread_later())
        out = outputs(params).sin()
        ways = torch.randn((2, *out.shape), generator=torch.Generator().manual_seed(1), dtype=out.dtype)
        slopes = torch.autograd.grad(out, list(params.values()), ways, is_grads_batched=True, create_graph=True)
        return torch.stack([slope.square().mean() for slope in slopes]).sum().view(1), buffers

    def again(given, params, buffers, number):
        seen.append(is_unread_later())
        keys = list(params)
        out = checkpoint(lambda *values: outputs(dict(zip(keys, values))), *params.values(), use_reentrant=False)
        return out.sin().sum().view(1), buffers

    def back(loss, **options):
        params = {name: value.clone().requires_grad_() for name, value in start.items()}
        inner = Inner(params, {}, {})
        ways = [torch.ones_like(value) for value in start.values()]
        return reverse(Step(loss, rules.scale(0.1), **options), Given({}), inner, 0, ways)[1]

    for loss in (steep, steep_many_ways, again):
        seen = []
        found, expected = back(loss, direct=True), back(loss)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        assert set(seen) == {True, False}


@pytest.mark.parametrize("adjoint", [Checkpointed(1), MixedMode()], ids=str)
def test_numbers_are_there_where_anomalies_are_looked_for(adjoint):
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 3)).double()
    episodes = random_episodes((2, 5, 5))

    def gradient(adjoint):
        learner = headstart.maml(module, rate=0.1, steps=2, adjoint=adjoint)
        return headstart.meta_gradient(learner, learner.init(None), episodes)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is slow
        with torch.autograd.detect_anomaly():
            found = gradient(adjoint)
    torch.testing.assert_close(found, gradient(Unrolled()), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
@pytest.mark.parametrize("kind", ["weight", "hook", "convolution"])
def test_weights_that_are_made_of_others_keep_their_derivatives(kind, taskmap):
    torch.manual_seed(0)
    if kind == "convolution":
        first = nn.Sequential(cubed(nn.Conv2d(2, 3, 3)), nn.Flatten(), nn.Tanh())
        module, shape = nn.Sequential(first, nn.Linear(27, 3)), (2, 5, 5)
    else:
        made = cubed if kind == "weight" else bent
        module, shape = nn.Sequential(made(nn.Linear(130, 128)), nn.Tanh(), nn.Linear(128, 3)), (130,)
    module, episodes = module.double(), random_episodes(shape)

    def gradient(adjoint):
        learner = headstart.maml(module, rate=0.1, steps=3, taskmap=taskmap, adjoint=adjoint)
        return headstart.meta_gradient(learner, learner.init(None), episodes)[0]

    torch.testing.assert_close(gradient(Checkpointed(1)), gradient(Unrolled()), rtol=1e-9, atol=1e-11)


class Cube(nn.Module):
    def forward(self, root):
        return root**3


def cubed(layer):
    nn.utils.parametrize.register_parametrization(layer, "weight", Cube())
    return layer


def bent(layer):
    """Let a layer compute with the cubes of its weights."""
    layer.register_parameter("root", nn.Parameter(layer.weight.detach().clone()))
    del layer.weight

    def cube(module, args):
        module.weight = module.root**3

    layer.register_forward_pre_hook(cube)
    return layer
