import pytest
import torch
from torch import nn

import headstart
from headstart import Checkpointed, FirstOrder, Unrolled, rules
from headstart.algorithms.adapters import LowRank, low_rank
from headstart.errors import UnknownNameError, UsageError
from headstart.testing import check_learner, random_episodes


def net():
    return headstart.mlp(6, 5, hidden=(8, 7)).double()


def images():
    layers = [nn.Conv2d(2, 6, 3, stride=2, padding=1, padding_mode="reflect"), nn.Tanh(), nn.Conv2d(6, 4, (2, 1))]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3)).double()


def adapters_move(rate=0.1):
    return rules.chain(rules.only(LowRank), rules.scale(rate))


@pytest.mark.parametrize(
    "adjoint", [Unrolled(), Checkpointed(every=2), FirstOrder()], ids=["all", "some", "first order"]
)
@pytest.mark.parametrize(("make", "shape"), [(net, (6,)), (images, (2, 4, 4))], ids=["mlp", "convolutions"])
def test_adapters_keep_the_contract(make, shape, adjoint):
    module = low_rank(make(), rank=2)
    check_learner(
        lambda taskmap: headstart.maml(module, rule=adapters_move(), steps=3, adjoint=adjoint, taskmap=taskmap),
        random_episodes(shape),
        module=module,
        directions=2,
        order=True,
    )


@pytest.mark.parametrize(("make", "shape"), [(net, (6,)), (images, (2, 4, 4))])
def test_at_first_the_copy_does_what_the_module_does(make, shape):
    module, x = make(), torch.randn(5, *shape, dtype=torch.float64)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    copy = low_rank(module)
    assert torch.equal(copy(x), module(x))
    assert module.state_dict().keys() == before.keys()
    assert not {p.data_ptr() for p in copy.parameters()} & {p.data_ptr() for p in module.parameters()}


def test_a_linear_layer_gets_the_product_added_to_its_weight():
    layer = nn.Linear(6, 5).double()
    adapted = low_rank(layer, rank=3, alpha=6)
    adapted.up.data.normal_()
    assert adapted.down.shape == (3, 6) and adapted.up.shape == (5, 3)
    x = torch.randn(4, 6, dtype=torch.float64)
    expected = nn.functional.linear(x, layer.weight + 2 * adapted.up @ adapted.down, layer.bias)
    assert torch.allclose(adapted(x), expected)


def test_a_convolution_gets_the_product_added_to_its_filters():
    layer = nn.Conv2d(3, 5, (3, 2), stride=2, padding=1, dilation=2, padding_mode="circular").double()
    adapted = low_rank(layer, rank=2)
    adapted.up.data.normal_()
    x, plain = torch.randn(4, 3, 9, 9, dtype=torch.float64), nn.Conv2d(3, 5, (3, 2), stride=2, padding=1, dilation=2)
    plain.padding_mode = "circular"
    plain._reversed_padding_repeated_twice = layer._reversed_padding_repeated_twice
    plain.double()
    plain.bias.data.copy_(layer.bias.data)
    plain.weight.data.copy_(layer.weight + (adapted.up @ adapted.down.flatten(1)).view_as(layer.weight))
    assert torch.allclose(adapted(x), plain(x))


def test_only_adapters_move():
    learner = headstart.maml(low_rank(net(), rank=2), rule=adapters_move(), steps=2)
    meta = learner.init(None)
    adapted, _ = learner.adapt(meta, random_episodes((6,), outputs=5).support)
    layers = ("hidden1", "hidden2", "head")
    assert adapted.params.keys() == {f"{name}.{part}" for name in layers for part in ("up", "down")}
    assert "hidden1.layer.weight" in meta.params


def test_layers_with_few_inputs_or_outputs_get_a_lower_rank():
    adapted = low_rank(headstart.mlp(1, 2, hidden=(8,)), rank=4)
    assert adapted.hidden1.down.shape == (1, 1) and adapted.head.down.shape == (2, 8)


def test_layers_are_chosen_by_name_type_and_predicate():
    def chosen(**options):
        return {name for name, layer in low_rank(images(), **options).named_modules() if isinstance(layer, LowRank)}

    assert chosen() == {"0", "2", "4"}
    assert chosen(what="4") == {"4"} == chosen(what=nn.Linear)
    assert chosen(what=lambda leaf: leaf.shape[0] == 6) == {"0"}
    with pytest.raises(UnknownNameError, match="no parameter matches 'heat'; nearest: head"):
        low_rank(net(), what="heat")


def test_a_layer_used_twice_has_one_adapter():
    shared = nn.Linear(4, 4)
    module = low_rank(nn.Sequential(shared, nn.Tanh(), shared))
    assert module[0] is module[2]


def test_the_generator_decides_the_draw():
    first, same, other = (low_rank(net(), generator=torch.Generator().manual_seed(k)).head.down for k in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_layers_inside_attention_are_left_alone_and_refused_where_asked_for():
    module = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), nn.Linear(4, 3))
    adapted = low_rank(module)
    assert [name for name, layer in adapted.named_modules() if isinstance(layer, LowRank)] == ["1"]
    for what in ("0", "0.linear1", "*.in_proj_weight"):
        with pytest.raises(UsageError, match="inside PyTorch's attention"):
            low_rank(module, what=what)
    with pytest.raises(UsageError, match="no linear or convolution layer"):
        low_rank(module[0])


def test_grouped_and_transposed_convolutions_are_left_alone():
    module = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 4, 1))
    assert [name for name, layer in low_rank(module).named_modules() if isinstance(layer, LowRank)] == ["2"]


def test_a_rank_below_one_is_refused():
    with pytest.raises(UsageError, match="at least 1, got 0"):
        low_rank(net(), rank=0)
