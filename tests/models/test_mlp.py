import pytest
import torch
from torch import nn

from headstart import mlp
from headstart.errors import UsageError


def test_layers_and_their_names():
    model = mlp(3, 2, hidden=(5, 4))
    assert [name for name, _ in model.named_children()] == ["hidden1", "relu1", "hidden2", "relu2", "head"]
    assert {name: tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")} == {
        "hidden1.weight": (5, 3),
        "hidden2.weight": (4, 5),
        "head.weight": (2, 4),
    }


def test_the_sine_network_of_the_paper_has_its_1761_weights():
    assert sum(p.numel() for p in mlp(1, 1).parameters()) == 1 * 40 + 40 + 40 * 40 + 40 + 40 + 1


def test_inputs_of_several_axes_are_flattened_and_an_embedding_has_no_head():
    model = mlp((1, 4, 4), None, hidden=(7,))
    assert model(torch.randn(3, 1, 4, 4)).shape == (3, 7)
    assert isinstance(model[0], nn.Flatten) and not hasattr(model, "head")


def test_no_hidden_layers_is_a_linear_model():
    assert [name for name, _ in mlp(4, 2, hidden=()).named_children()] == ["head"]


@pytest.mark.parametrize(("inputs", "outputs", "hidden"), [(0, 1, ()), (1, 0, ()), (1, 1, (4, 0)), ((3, 0), 1, ())])
def test_widths_must_be_positive(inputs, outputs, hidden):
    with pytest.raises(UsageError, match="mlp needs positive widths"):
        mlp(inputs, outputs, hidden=hidden)
