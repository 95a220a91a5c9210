"""Records of operations: for any number of examples, with what depends on weights alone computed once."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.exporting.graph import ByValuesError, Input, recorded
from headstart.types import Params

X = Input("x", torch.linspace(0, 1, 34).view(17, 2))


def test_what_weights_alone_make_is_kept_by_their_name_and_the_rest_recorded() -> None:
    weights = {"layer.weight": torch.tensor([[1.0, 2.0]]), "scale": torch.tensor(3.0), "idle": torch.ones(9)}

    def function(weights: Params, x: Tensor) -> dict[str, Tensor]:
        return {"y": x @ (weights["layer.weight"] * weights["scale"].exp()).mT, "n": x.sum(1)}

    graph = recorded(function, weights, [X])
    assert list(graph.weights) == ["layer.weight"] and graph.outputs == ("y", "n")
    for count in (17, 1, 5):
        for name, value in function(weights, X.some[:count]).items():
            assert torch.equal(graph(X.some[:count])[name], value)
    assert set(weights) == {"layer.weight", "scale", "idle"}


def test_gradients_inside_are_ordinary_operations() -> None:
    def function(weights: Params, x: Tensor) -> dict[str, Tensor]:
        with torch.enable_grad():
            start = weights["w"].detach().requires_grad_()
            loss = (x @ start).tanh().square().mean()
            (slope,) = torch.autograd.grad(loss, [start])
        return {"moved": start.detach() - slope}

    weights = {"w": torch.tensor([0.5, -1.0])}
    graph = recorded(function, weights, [X])
    assert all("autograd" not in str(node.target) for node in graph.module.graph.nodes)
    for count in (17, 3):
        torch.testing.assert_close(graph(X.some[:count])["moved"], function(weights, X.some[:count])["moved"])


@pytest.mark.parametrize("pad", [(1, 2), (2, -1), (0, 0, 1, 3), (-1, 4, -2, 1), (0, 1, 0, 0, 2, 0)])
@pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.bool])
def test_what_is_padded_may_be_of_any_number_of_examples(pad: tuple[int, ...], kind: torch.dtype) -> None:
    some = (torch.arange(17 * 3 * 4).view(17, 3, 4) % 5).to(kind)

    def function(weights: Params, x: Tensor) -> dict[str, Tensor]:
        return {"y": F.pad(x, pad, value=1), "sizes": torch.ones(x.shape[0], 2)}

    graph = recorded(function, {}, [Input("x", some)])
    for count in (17, 1, 5):
        for name, value in function({}, some[:count]).items():
            found = graph(some[:count])[name]
            assert found.dtype == value.dtype and torch.equal(found, value)


def test_names_that_a_module_has_already_are_changed() -> None:
    weights = {"buffers": torch.ones(2), "forward.weight": torch.ones(2)}
    graph = recorded(lambda w, x: {"y": x * w["buffers"] + w["forward.weight"]}, weights, [X])
    assert list(graph.weights) == ["buffers_", "forward_.weight"]


def test_what_goes_by_values_is_refused() -> None:
    with pytest.raises(ByValuesError):
        recorded(lambda w, x: {"y": x if bool(x.sum() > 3) else -x}, {}, [X])
    with pytest.raises(ByValuesError, match="draws random numbers"):
        recorded(lambda w, x: {"y": x + torch.rand(2, generator=torch.Generator().manual_seed(0))}, {}, [X])
    with pytest.raises(ByValuesError):
        recorded(lambda w, x: {"y": torch.from_numpy(x.numpy())}, {}, [X])
