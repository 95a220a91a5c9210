import pytest
import torch
from torch import nn

import headstart
from headstart.algorithms.film import Channels, film, layers_to_modulate, reachable
from headstart.errors import UnknownNameError, UsageError


def test_zeros_leave_the_outputs_as_they_are():
    x = torch.randn(3, 4, 5, 5)
    assert torch.equal(film(x, torch.zeros(4), torch.zeros(4), axis=1), x)


@pytest.mark.parametrize(("shape", "axis"), [((6, 4), -1), ((6, 4), 1), ((6, 3, 4), -1), ((6, 4, 3, 2), 1)])
def test_every_channel_has_its_own_scale_and_shift(shape, axis):
    x, scale, shift = torch.randn(shape), torch.randn(4), torch.randn(4)
    out = film(x, scale, shift, axis)
    for channel in range(4):
        expected = x.select(axis, channel) * (1 + scale[channel]) + shift[channel]
        assert torch.allclose(out.select(axis, channel), expected)


def test_hidden_layers_are_modulated_and_the_head_is_not():
    assert layers_to_modulate(headstart.mlp(1, 2, hidden=(7, 8))) == {
        "hidden1": Channels(7, -1),
        "hidden2": Channels(8, -1),
    }


@pytest.mark.parametrize("norm", ["batch", "instance", "layer", "group"])
def test_a_normalisation_is_modulated_in_place_of_the_convolution_before_it(norm):
    chosen = layers_to_modulate(headstart.conv4((1, 28, 28), 5, filters=8, norm=norm))
    assert chosen == {f"block{k}.norm": Channels(8, 1) for k in (1, 2, 3, 4)}


def test_without_normalisation_the_convolutions_are_modulated():
    chosen = layers_to_modulate(headstart.conv4((1, 28, 28), 5, filters=8, norm="none"))
    assert list(chosen) == [f"block{k}.conv" for k in (1, 2, 3, 4)]


def test_layers_are_chosen_by_name_type_and_predicate():
    net = headstart.conv4((1, 28, 28), 5, filters=8)
    assert list(layers_to_modulate(net, "block3.norm")) == ["block3.norm"]
    assert len(layers_to_modulate(net, nn.Conv2d)) == 4
    assert list(layers_to_modulate(net, lambda leaf: leaf.shape == (5,))) == ["head"]
    with pytest.raises(UnknownNameError, match=r"block3\.norm"):
        layers_to_modulate(net, "block3.nrom")


def test_a_module_without_hidden_layers_is_refused():
    with pytest.raises(UsageError, match="has 1 linear or convolution layers"):
        layers_to_modulate(nn.Linear(3, 2))


def test_layers_inside_attention_cannot_be_reached():
    net = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Linear(4, 4), nn.Linear(4, 3))
    assert [path for path, layer in reachable(net).items() if isinstance(layer, nn.Linear)] == ["1", "2"]
    assert list(reachable(net[0])) == [""]
