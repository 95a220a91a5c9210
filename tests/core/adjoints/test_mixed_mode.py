import logging

import pytest
import torch
from torch import nn

import headstart
from headstart import Checkpointed, Unrolled, rules
from headstart.core import losses
from headstart.core.adjoints import MixedMode, mixed_mode
from headstart.core.step import Given, Inner, Step
from headstart.errors import UsageError
from headstart.testing import random_episodes


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.block(x).mean(1))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.words(x.abs().mul(2).long().clamp(max=6))).mean(1))


def convolution(norm):
    layers = [nn.Conv2d(1, 4, 3, padding=1, bias=False), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3))


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)),
    "batch norm": (lambda: convolution(nn.BatchNorm2d(4)), (1, 4, 4)),
    "instance norm": (lambda: convolution(nn.InstanceNorm2d(4, affine=True)), (1, 4, 4)),
    "layer norm": (lambda: convolution(nn.LayerNorm((4, 4, 4))), (1, 4, 4)),
    "group norm": (lambda: convolution(nn.GroupNorm(2, 4)), (1, 4, 4)),
    "attention": (Attention, (5, 8)),
    "embedding": (Words, (4,)),
}
RULES = {
    "rates": rules.per_weight(),
    "momentum": rules.chain(rules.momentum(0.9, learn=True), rules.scale(0.1, learn=True)),
    "adam": rules.chain(rules.adam(), rules.scale(0.01, learn=True)),
    "clipped": rules.chain(rules.proximal(0.1, learn=True), rules.clip(norm=1.0), rules.scale(0.1)),
}


@pytest.fixture(autouse=True)
def warned_anew():
    mixed_mode._warn.cache_clear()


def gradient(name, adjoint, **options):
    """Return the meta-gradient as one vector."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    learner = headstart.maml(make().double(), steps=4, adjoint=adjoint, **options)
    seeds = {"seed": torch.arange(3) + 5}
    drawn = headstart.Episodes(*(batch._replace(**seeds) for batch in random_episodes(shape)))
    meta, _ = headstart.meta_gradient(learner, learner.init(torch.Generator().manual_seed(0)), drawn)
    return torch.cat([value.flatten() for part in meta for value in part.values()])


@pytest.mark.parametrize("taskmap", ["vmap", "loop"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MODELS)
def test_it_gives_the_derivative_of_the_unrolled_loop(name, rule, taskmap):
    options = {"rule": RULES[rule], "taskmap": taskmap}
    expected = gradient(name, Unrolled(), **options)
    torch.testing.assert_close(
        gradient(name, MixedMode(), **options), expected, rtol=0, atol=1e-11 * expected.abs().max().item()
    )


@pytest.mark.parametrize("taskmap", ["vmap", "loop", "auto"])
@pytest.mark.parametrize("every", [1, 3])
def test_statistics_of_the_task_are_differentiated_too(images, every, taskmap):
    known = "loop" if taskmap == "auto" else taskmap
    options = {"rule": RULES["momentum"], "buffers": "task"}
    expected, told = images.gradient(Unrolled(), taskmap=known, **options)
    got, info = images.gradient(MixedMode(every), taskmap=taskmap, **options)
    torch.testing.assert_close([got, info], [expected, told], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_hinge"])
def test_every_loss_of_classes_has_a_forward_mode_derivative(rows, caplog, loss):
    assert rows.gap(MixedMode(), Unrolled(), loss=loss, steps=3) < 1e-12
    assert not caplog.records


def test_so_has_the_squared_error(generator, caplog):
    x, y = (torch.randn(2, 5, size, generator=generator, dtype=torch.float64) for size in (4, 1))
    episodes = headstart.Episodes(headstart.Batch(x, y), headstart.Batch(x + 1, y))
    found = []
    for adjoint in (MixedMode(), Unrolled()):
        net = nn.Linear(4, 1).double()
        learner = headstart.maml(net, loss="mse", steps=3, rate=0.1, adjoint=adjoint)
        torch.manual_seed(0)
        meta = headstart.Meta({n: torch.ones_like(p) for n, p in net.named_parameters()}, {})
        found.append(headstart.meta_gradient(learner, meta, episodes)[0].params)
    torch.testing.assert_close(*found)
    assert not caplog.records


def test_an_operation_without_forward_mode_is_differentiated_otherwise_and_a_warning_says_so(caplog):
    options = {"rule": RULES["rates"], "taskmap": "vmap"}
    with caplog.at_level(logging.WARNING, logger="headstart"):
        twice = [gradient("group norm", MixedMode(1), **options) for _ in range(2)]
    torch.testing.assert_close(twice[0], gradient("group norm", Unrolled(), **options))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("MixedMode differentiates reverse over reverse here, since forward mode cannot: ")
    assert "native_group_norm_backward" in said[0]


def test_errors_of_the_model_are_its_own(rows, caplog):
    calls = []

    def loss(outputs, batch):
        calls.append(len(calls))
        if len(calls) == 5:  # after three steps and the query set: on the way back, without tangents
            raise RuntimeError("out of luck")
        return losses.cross_entropy(outputs, batch)

    with pytest.raises(RuntimeError, match="out of luck"):
        rows.gradient(MixedMode(), steps=3, loss=loss)
    assert len(calls) == 5 and not caplog.records


def stopped(outputs, batch):
    """A loss with a target that is to count as a constant."""
    with torch.no_grad():
        target = outputs.softmax(-1).square()
    return losses.cross_entropy(outputs, batch) + (outputs - target).square().mean((1, 2))


@pytest.mark.parametrize("memory", [None, 600_000])
@pytest.mark.parametrize("rate", [1e-4, 0.1])
def test_what_is_computed_without_gradients_is_a_constant(rows, caplog, rate, memory):
    # forward mode alone takes no notice of torch.no_grad()
    assert rows.gap(MixedMode(memory=memory), Unrolled(), loss=stopped, rate=rate) < 1e-12
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and said[0].endswith(
        "its derivative differs, as of values computed under torch.no_grad(), or in low precision"
    )


@pytest.mark.parametrize("rate", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("name", ["linear", "layer norm", "attention"])
def test_rounding_in_single_precision_is_no_other_derivative(name, rate, caplog):
    make, shape = MODELS[name]
    drawn = random_episodes(shape)
    drawn = headstart.Episodes(*(batch._replace(x=batch.x.float()) for batch in drawn))
    found = []
    for adjoint in (MixedMode(), Unrolled()):
        torch.manual_seed(0)
        learner = headstart.maml(make().float(), steps=4, rate=rate, adjoint=adjoint, taskmap="vmap")
        found.append(headstart.meta_gradient(learner, learner.init(None), drawn)[0])
    assert not caplog.records
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


def test_a_derivative_that_is_no_number_is_given_as_it_is(rows, caplog):
    def loss(outputs, batch):
        return losses.cross_entropy(outputs, batch) * torch.nan

    got = rows.gradient(MixedMode(), loss=loss)[0].params
    assert all(bool(value.isnan().all()) for value in got.values())
    assert not caplog.records


def partly(m, state, grads, params, number):
    """Move the biases in every other step only."""
    return {name: 0.1 * grad for name, grad in grads.items() if number % 2 == 0 or "weight" in name}, state


def test_a_rule_may_leave_parameters_out(rows, caplog):
    assert rows.gap(MixedMode(), Unrolled(), rule=rules.Rule(partly)) < 1e-12
    assert not caplog.records


def test_a_derivative_by_m_alone_needs_none_of_the_start(rows, caplog):
    found = []
    for adjoint in (MixedMode(), Unrolled()):
        options = {**rows.options, "rule": rules.scale(0.3, learn=True)}
        learner = headstart.maml(rows.module, adjoint=adjoint, **options)
        meta = learner.init(None)
        rate = meta.structure["rate"].requires_grad_()
        loss, _ = headstart.meta_loss(learner, meta, rows.episodes)
        found += torch.autograd.grad(loss, rate)
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)
    assert not caplog.records


def test_where_all_has_room_no_step_is_taken_again():
    taken = []

    def loss(given, params, buffers, number):
        taken.append(number)
        return (params["w"] * given.structure["m"]).sin().sum(1), buffers

    start = Inner({"w": torch.ones(2, 30, requires_grad=True)}, {}, {})
    given = Given({"m": torch.ones((), requires_grad=True)})
    MixedMode(memory="1MB")(Step(loss, rules.scale(0.1)), given, start, 9)[0].params["w"].sum().backward()
    assert [taken.count(number) for number in range(1, 9)] == [1] * 8  # the first one is measured


def test_it_takes_as_little_memory_as_it_is_given(rows, peak_bytes):
    least = None
    for room in range(100_000, 10**6, 50_000):
        try:
            peak = peak_bytes(lambda room=room: rows.gradient(MixedMode(memory=room), steps=9))
        except UsageError as error:
            assert "one inner step of these tasks needs" in str(error)
            continue
        least = least or room
        assert peak < room + 30_000  # the query loss and θ on top
        break
    assert least is not None and rows.gap(MixedMode(memory=least), Unrolled()) < 1e-12


def test_its_memory_does_not_grow_as_that_of_an_unrolled_loop(rows, peak_bytes):
    few, many = (peak_bytes(lambda steps=steps: rows.gradient(MixedMode(), steps=steps)) for steps in (3, 12))
    assert many < 1.2 * few


def test_what_is_wrong_with_its_options_is_said_in_its_name():
    with pytest.raises(UsageError, match=r"MixedMode\(every=...\) must be"):
        MixedMode(0)
    assert MixedMode(2) == MixedMode(2) != Checkpointed(2) and MixedMode().exact
