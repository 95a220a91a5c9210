"""Changing layers of a copy."""

import torch
from torch import nn

from headstart.forward.surgery import followed, replaced


def linear(path, layer):
    return nn.Identity() if isinstance(layer, nn.Linear) else None


def test_the_module_itself_stays_as_it_is():
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    changed = replaced(module, linear)
    assert isinstance(module[0], nn.Linear) and isinstance(changed[0], nn.Identity)
    with torch.no_grad():
        followed(module, lambda path, layer: nn.Tanh() if path == "0" else None)[0].layer.weight.zero_()
    assert not module[0].weight.eq(0).all()


def test_a_layer_in_two_places_is_replaced_once():
    shared = nn.Linear(2, 2)
    changed = replaced(nn.Sequential(shared, nn.Sequential(shared)), linear)
    assert changed[0] is changed[1][0]


def test_the_top_can_be_replaced():
    assert isinstance(replaced(nn.Linear(2, 2), linear), nn.Identity)


def test_layers_inside_attention_are_left_alone():
    module = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8), nn.Linear(4, 4))
    changed = replaced(module, linear)
    assert isinstance(changed[0].linear1, nn.Linear) and isinstance(changed[1], nn.Identity)


def test_what_follows_comes_behind_and_names_keep_their_beginning():
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    changed = followed(module, lambda path, layer: nn.Tanh() if isinstance(layer, nn.Linear) else None)
    assert [name for name, _ in changed.named_parameters()] == ["0.layer.weight", "0.layer.bias"]
    x = torch.randn(5, 2)
    assert torch.equal(changed(x), torch.relu(torch.tanh(module[0](x))))
