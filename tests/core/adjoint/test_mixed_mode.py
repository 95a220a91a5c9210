import logging

import pytest
import torch
from torch import nn

import headstart
from headstart import Checkpointed, Unrolled, rules
from headstart.core.adjoint import MixedMode, mixed_mode
from headstart.errors import ShapeError, UsageError
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
    wrong = rows._replace(episodes=random_episodes((9,)))
    with pytest.raises(ShapeError, match="cannot take a task's inputs"):
        wrong.gradient(MixedMode())
    assert not caplog.records


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
