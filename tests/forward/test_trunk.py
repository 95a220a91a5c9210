from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.func import functional_call

from headstart import conv4
from headstart.core.parameters import Context, Stepped, Structural
from headstart.errors import UnknownNameError
from headstart.forward.functional import functional
from headstart.forward.trunk import split

WIDTH = 4


class Scaled(nn.Module):
    """A layer of somebody's own."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x * self.inside(x).tanh()


class Counted(Stepped):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return x * self.weight * (1 + self.step)


class Named(nn.Sequential):
    """A sequence that runs as all do."""

    def __init__(self):
        super().__init__(OrderedDict(first=nn.Linear(WIDTH, WIDTH), second=nn.Linear(WIDTH, WIDTH)))


class Residual(nn.Sequential):
    """A sequence with a forward of its own."""

    def forward(self, x):
        return x + super().forward(x)


#: Layers, and whether they give the same at every pass.
LAYERS = {
    "linear": (lambda: nn.Linear(WIDTH, WIDTH), True),
    "norm": (lambda: nn.LayerNorm(WIDTH), True),
    "batch norm": (lambda: nn.BatchNorm1d(WIDTH), True),
    "tanh": (nn.Tanh, True),
    "own": (Scaled, True),
    "residual": (lambda: Residual(nn.Linear(WIDTH, WIDTH), nn.Tanh()), True),
    "named": (Named, True),
    "empty": (nn.Sequential, True),
    "structural": (lambda: Structural(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())), True),
    "stepped": (Counted, False),
    "dropout": (lambda: nn.Dropout(0.5), False),
    "rrelu": (nn.RReLU, False),
    "own, dropout inside": (lambda: Residual(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5)), False),
}

TREES = st.recursive(st.sampled_from(sorted(LAYERS)), lambda inner: st.lists(inner, max_size=4), max_leaves=10)


def made(tree, units):
    """Return the module of a nested list, and note its layers, in order, with their paths."""

    def make(tree, path):
        if isinstance(tree, list):
            return nn.Sequential(
                OrderedDict((f"part{i}", make(child, [*path, f"part{i}"])) for i, child in enumerate(tree))
            )
        layer = LAYERS[tree][0]()
        if tree == "named":
            units.extend((".".join([*path, name]), True) for name in ("first", "second"))
        elif tree != "empty":
            units.append((".".join(path), LAYERS[tree][1]))
        return layer

    return make(tree, [])


def tensors(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@settings(max_examples=150, deadline=None)
@given(st.lists(TREES, max_size=5), st.data())
def test_the_two_parts_do_what_the_whole_does_with_the_same_tensors(tree, data):
    units: list[tuple[str, bool]] = []
    module = made(tree, units).eval()
    names = sorted(name for name, _ in module.named_parameters())
    moving = set(data.draw(st.lists(st.sampled_from(names), unique=True, max_size=3))) if names else set()
    parts = split(module, moving)

    def is_still(unit):
        path, still = unit
        return still and not any(name.startswith(f"{path}.") for name in moving)

    expected = next((i for i, unit in enumerate(units) if not is_still(unit)), len(units))
    weighted = [path for path, _ in units[:expected] if any(True for _ in module.get_submodule(path).parameters())]
    assert (parts is None) == (not weighted)
    if parts is None:
        return
    trunk, rest = parts
    # as long as it can be, with each layer at its old path
    for index, (path, _) in enumerate(units):
        holder, other = (trunk, rest) if index < expected else (rest, trunk)
        assert holder.get_submodule(path) is module.get_submodule(path)
        with pytest.raises(AttributeError):
            other.get_submodule(path)
    assert {**tensors(trunk), **tensors(rest)}.keys() == tensors(module).keys()
    assert not tensors(trunk).keys() & (tensors(rest).keys() | moving)
    assert all(value is tensors(module)[name] for part in parts for name, value in tensors(part).items())
    x = torch.randn(3, WIDTH)
    assert torch.equal(rest(trunk(x)), module(x))
    other = {name: torch.rand_like(value) for name, value in tensors(module).items() if value.is_floating_point()}

    def call(part, x):
        return functional_call(part, {name: v for name, v in other.items() if name in tensors(part)}, (x,))

    assert torch.equal(call(rest, call(trunk, x)), call(module, x))


def test_the_parts_are_functions_of_tasks_like_the_whole():
    model = conv4((1, 16, 16), 5, filters=4).double()
    trunk, rest = split(model, {"block3.conv.weight", "head.bias"})
    whole, first, second = functional(model), functional(trunk), functional(rest)
    assert {**first.leaves, **second.leaves} == whole.leaves
    x = torch.randn(2, 3, 1, 16, 16, dtype=torch.float64)
    own = {name: value + torch.randn(2, *value.shape) for name, value in second.params.items()}
    features = first.apply(first.params, {}, x)[0]
    parts, at_once = second.apply(own, {}, features)[0], whole.apply({**whole.params, **own}, {}, x)[0]
    # float64 convolutions sum in an order that depends on where in memory their numbers happen to begin
    torch.testing.assert_close(parts, at_once, rtol=1e-12, atol=1e-12)


def test_buffers_that_change_end_the_trunk():
    model = conv4((1, 16, 16), 5, filters=4)
    trunk, _ = split(model, {"block1.norm.running_mean", "head.bias"})
    assert list(trunk.state_dict()) == ["block1.conv.weight", "block1.conv.bias"]


def test_a_tied_tensor_moves_under_both_its_names():
    first, second, last = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
    last.weight = first.weight
    model = nn.Sequential(OrderedDict(first=first, second=second, last=last))
    for name in ("first.weight", "last.weight"):
        assert split(model, {name}) is None


def test_what_is_tied_stays_on_one_side():
    shared = nn.Linear(WIDTH, WIDTH)
    model = nn.Sequential(
        OrderedDict(own=nn.Linear(WIDTH, WIDTH), once=shared, other=nn.Linear(WIDTH, WIDTH), again=shared)
    )
    model.append(nn.Linear(WIDTH, 2))
    assert list(dict(split(model, {"4.bias"})[0].named_children())) == ["own", "once", "other"]
    assert len(split(model, {"4.bias"})[0]) == 4
    trunk, rest = split(model, {"other.bias"})
    assert list(trunk.state_dict()) == ["own.weight", "own.bias"]
    assert {name for name, _ in rest.named_parameters()} == {
        *("once.weight", "once.bias", "other.weight", "other.bias", "4.weight", "4.bias")
    }
    x = torch.randn(3, WIDTH)
    assert torch.equal(rest(trunk(x)), model(x))


def test_layers_used_twice_may_be_on_both_sides_where_they_have_no_tensors():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), relu, nn.Linear(WIDTH, WIDTH), relu)
    trunk, rest = split(model, {"2.bias"})
    assert [name for part in (trunk, rest) for name in part._modules] == ["0", "1", "2", "3"]


def linear():
    return nn.Linear(WIDTH, WIDTH)


@pytest.mark.parametrize(
    "layer",
    [
        nn.AlphaDropout(0.5),
        nn.RReLU(),
        nn.FractionalMaxPool2d(2, output_size=2),
        nn.MultiheadAttention(WIDTH, 2, dropout=0.1),
        nn.TransformerEncoderLayer(WIDTH, 2, 8),
        nn.LSTM(WIDTH, WIDTH, num_layers=2, dropout=0.1),
        nn.LazyLinear(WIDTH),
        Counted(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_that_changes_from_pass_to_pass_ends_the_trunk(layer):
    moving = {"3.bias"}
    model = nn.Sequential(linear(), layer, linear(), linear())
    assert list(split(model, moving)[0]._modules) == ["0"]
    assert split(nn.Sequential(layer, linear(), linear(), linear()), moving) is None


@pytest.mark.parametrize(
    "layer",
    [nn.Dropout(0.0), nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0), nn.LSTM(WIDTH, WIDTH)],
    ids=lambda layer: type(layer).__name__,
)
def test_without_dropout_the_same_layers_are_still(layer):
    model = nn.Sequential(linear(), layer, linear())
    assert list(split(model, {"2.bias"})[0]._modules) == ["0", "1"]


def test_a_dropout_layer_of_probability_0_before_one_that_drops_ends_the_trunk():
    model = nn.Sequential(linear(), nn.Dropout(0.0), linear(), linear(), nn.Dropout(0.5))
    trunk, rest = split(model, {"3.bias"})
    assert list(trunk._modules) == ["0"]
    seed, x = torch.arange(2), torch.randn(2, 3, WIDTH)
    whole, second = functional(model), functional(rest)
    features = functional(trunk).apply(functional(trunk).params, {}, x)[0]
    expected = whole.apply(whole.params, {}, x, seed=seed)[0]
    assert expected.eq(0).any()
    found = second.apply(second.params, {}, features, seed=seed)[0]
    assert torch.equal(found.eq(0), expected.eq(0))
    torch.testing.assert_close(found, expected)


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class ContextSequence(Context, nn.Sequential):
    def forward(self, x):
        return nn.Sequential.forward(self, x)


def hooked(register):
    model = nn.Sequential(linear(), linear())
    getattr(model, register)(lambda *args: None)
    return model


def with_own_parameter():
    model = nn.Sequential(linear(), linear())
    model.register_parameter("extra", nn.Parameter(torch.zeros(1)))
    return model


def patched():
    model = nn.Sequential(linear(), linear())
    model.forward = lambda x: x
    return model


NOT_PLAIN = {
    "one layer": lambda: nn.ModuleDict({"0": linear(), "1": linear()}),
    "own forward": lambda: Doubled(linear(), linear()),
    "context": lambda: ContextSequence(linear(), linear()),
    "forward hook": lambda: hooked("register_forward_hook"),
    "hook before": lambda: hooked("register_forward_pre_hook"),
    "backward hook": lambda: hooked("register_full_backward_hook"),
    "hook before backward": lambda: hooked("register_full_backward_pre_hook"),
    "own parameter": with_own_parameter,
    "patched forward": patched,
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_only_plain_sequences_are_cut(kind):
    module = NOT_PLAIN[kind]()
    assert split(module, {"1.bias"}) is None
    if kind != "one layer":
        # inside another one it is a layer like any other, moved as a whole
        model = nn.Sequential(linear(), module, linear())
        assert list(split(model, {"1.1.bias"})[0]._modules) == ["0"]
        assert list(split(model, {"2.bias"})[0]._modules) == ["0", "1"]


def test_names_that_are_not_there_are_refused():
    with pytest.raises(UnknownNameError, match="unknown tensor 'heads.bias'; did you mean 'head.bias'"):
        split(conv4((1, 16, 16), 5, filters=4), {"heads.bias"})
