import math

import pytest
import torch
from torch import nn

from headstart.algorithms.gaussian import mean_functions
from headstart.data.rows import Rows, row_tasks

X = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))


def values(mean, params):
    return mean.values(params, X, {}, None, 0)[0]


def test_a_line_starts_as_zero_and_is_one():
    mean = mean_functions.linear(3, 2)
    params = mean.start(None, torch.float32)
    assert not values(mean, params).any()
    params = {"bias": torch.tensor([1.0, 2.0]), "linear": torch.arange(6.0).view(3, 2)}
    torch.testing.assert_close(values(mean, params), X @ params["linear"] + params["bias"])
    constant = mean_functions.constant(2)
    torch.testing.assert_close(values(constant, {"bias": params["bias"]}), params["bias"].expand(2, 5, 2))


def test_a_network_bends_the_line_once_its_head_has_weights():
    mean = mean_functions.network(3, 2, (4, 5))
    params = mean.start(torch.Generator().manual_seed(1), torch.float32)
    assert not values(mean, params).any()
    params["head"] = torch.ones(5, 2)
    hidden = X
    for layer in (1, 2):
        hidden = (hidden @ params[f"hidden{layer}.weight"] + params[f"hidden{layer}.bias"]).tanh()
    torch.testing.assert_close(values(mean, params), hidden.sum(-1, keepdim=True).expand(2, 5, 2))


def test_the_prior_of_a_network_is_normal_with_the_widths_that_are_told():
    mean = mean_functions.network(3, 1, (4,))
    params = {name: torch.zeros_like(value) for name, value in mean.start(None, torch.float64).items()}
    assert mean.cost(params) == 0

    def cost(name):
        return mean.cost(params | {name: torch.ones_like(params[name])}).item()

    assert cost("hidden1.weight") == pytest.approx(3 * 12 / 2)
    assert cost("hidden1.bias") == pytest.approx(4 / 2)
    assert cost("head") == pytest.approx(4 / 2 / mean_functions.HEAD**2)
    assert cost("bias") == cost("linear") == 0


def test_a_network_is_the_same_for_a_seed_and_for_none():
    mean = mean_functions.network(2, 1, (3,))
    starts = [mean.start(g, torch.float32) for g in (None, None, torch.Generator().manual_seed(4))]
    assert torch.equal(starts[0]["hidden1.weight"], starts[1]["hidden1.weight"])
    assert not torch.equal(starts[0]["hidden1.weight"], starts[2]["hidden1.weight"])


def test_a_module_is_added_to_the_line():
    module = nn.Linear(3, 2)
    mean = mean_functions.with_module(module, 3, 2)
    params = mean.start(None, torch.float32)
    torch.testing.assert_close(values(mean, params), module(X))
    params["bias"] = params["bias"] + 1
    torch.testing.assert_close(values(mean, params), module(X) + 1)


def test_pooling_is_least_squares_over_the_rows_that_are_there():
    """Tasks of different sizes are padded; the padding is no row."""
    generator = torch.Generator().manual_seed(0)
    task = torch.tensor([0] * 4 + [1] * 9 + [2] * 6)
    x = torch.randn(19, 2, generator=generator)
    y = 1 + x @ torch.tensor([[2.0], [-1.0]]) + 0.1 * torch.randn(19, 1, generator=generator)
    tasks = row_tasks(Rows(x, y, task, ("a", "b", "c")), {"train": (0, 1), "test": (2,)}, support=3)
    found = mean_functions.pooled(tasks, torch.float32)
    design = torch.cat([torch.ones(13, 1), x[:13]], 1)
    line = torch.linalg.lstsq(design, y[:13]).solution
    torch.testing.assert_close(found.weights, line, atol=1e-4, rtol=1e-4)
    assert found.values == 13 and found.tasks == 2
    rest = (y[:13] - design @ line).square().mean()
    assert found.residual.item() == pytest.approx(math.sqrt(rest), rel=1e-3)


def test_pooling_copes_with_constant_features():
    x = torch.ones(8, 2)
    tasks = row_tasks(
        Rows(x, torch.arange(8.0)[:, None], torch.arange(8) // 4, ("a", "b")), {"train": (0, 1)}, support=1
    )
    found = mean_functions.pooled(tasks, torch.float32)
    assert found.weights.isfinite().all()
    assert found.weights.sum().item() == pytest.approx(3.5, rel=1e-3)
