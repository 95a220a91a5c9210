import math

import pytest
import torch

from headstart.algorithms import kernels
from headstart.algorithms.kernels import Kernel
from headstart.errors import UsageError

MADE = {
    "rbf": kernels.rbf(3, scale=1.3, length=0.7),
    "one length": kernels.rbf(),
    "matern 1/2": kernels.matern(3, smoothness=0.5),
    "matern 3/2": kernels.matern(3, smoothness=1.5),
    "matern 5/2": kernels.matern(smoothness=2.5, length=2.0),
    "linear": kernels.linear(scale=0.5),
    "effects": kernels.effects(3, intercept=0.8, slopes=0.4),
    "spectral": kernels.spectral(3),
    "sum": kernels.total({"line": kernels.effects(3), "rest": kernels.matern(3)}),
}


def started(kernel: Kernel):
    """Parameters away from where they start."""
    generator = torch.Generator().manual_seed(3)
    params = kernel.start(generator, torch.float64)
    return {
        name: value + 0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in params.items()
    }


def inputs(n: int = 6, features: int = 3, seed: int = 0):
    return torch.randn(2, n, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", MADE)
def test_matrices_are_covariances_with_the_diagonal_that_is_told(name):
    kernel, x = MADE[name], inputs()
    params = started(kernel)
    matrix = kernel.matrix(params, x, x)
    torch.testing.assert_close(matrix, matrix.transpose(1, 2))
    torch.testing.assert_close(matrix.diagonal(dim1=1, dim2=2), kernel.diagonal(params, x))
    assert torch.linalg.eigvalsh(matrix).min() > -1e-10


@pytest.mark.parametrize("name", MADE)
def test_a_pair_is_worth_the_same_alone_as_in_a_matrix(name):
    kernel, left, right = MADE[name], inputs(4), inputs(5, seed=1)
    params = started(kernel)
    matrix = kernel.matrix(params, left, right)
    assert matrix.shape == (2, 4, 5)
    torch.testing.assert_close(matrix[:, 2:3, 4:5], kernel.matrix(params, left[:, 2:3], right[:, 4:5]))


@pytest.mark.parametrize("name", MADE)
def test_derivatives_are_right_even_where_inputs_coincide(name):
    kernel, x = MADE[name], inputs(4)
    x[:, 1] = x[:, 0]
    if name == "matern 1/2":  # has a kink there
        x = inputs(4)
    params = started(kernel)
    names = list(params)

    def matrix(x, *values):
        return kernel.matrix(dict(zip(names, values)), x, x)

    leaves = [value.requires_grad_() for value in (x, *params.values())]
    assert torch.autograd.gradcheck(matrix, leaves)


def test_values_by_hand():
    x, y = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 1.0]]])
    square = (2 / 0.5) ** 2 + (1 / 0.5) ** 2
    r = math.sqrt(square)
    expected = {
        kernels.rbf(2, scale=2.0, length=0.5): 4 * math.exp(-square / 2),
        kernels.matern(2, smoothness=0.5, length=0.5): math.exp(-r),
        kernels.matern(2, smoothness=1.5, length=0.5): (1 + math.sqrt(3) * r) * math.exp(-math.sqrt(3) * r),
        kernels.matern(2, length=0.5): (1 + math.sqrt(5) * r + 5 * square / 3) * math.exp(-math.sqrt(5) * r),
        kernels.linear(scale=0.5, offset=2.0): 0.25 * 5 + 4,
        kernels.effects(2, intercept=2.0, slopes=0.5): 4 + 0.25 * 5,
    }
    for kernel, value in expected.items():
        got = kernel.matrix(kernel.start(None, torch.float32), x, y)
        torch.testing.assert_close(got, torch.full((1, 1, 1), value))


def test_each_feature_has_a_length_of_its_own():
    kernel = kernels.rbf(2)
    params = kernel.start(None, torch.float64)
    params["log_length"] = torch.tensor([0.0, 20.0], dtype=torch.float64)
    x = torch.tensor([[[0.0, 0.0], [0.0, 5.0], [1.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(kernel.matrix(params, x, x)[0, 0, 1].item(), 1.0)
    torch.testing.assert_close(kernel.matrix(params, x, x)[0, 0, 2].item(), math.exp(-0.5))


def test_effects_have_any_covariance():
    kernel = kernels.effects(1)
    factor = torch.tensor([[0.5, 0.0], [-0.6, 0.2]], dtype=torch.float64)
    params = {"log_diagonal": factor.diagonal().log(), "lower": factor[1, :1] / factor[1, 1]}
    x = inputs(5, features=1)
    design = torch.cat([torch.ones_like(x), x], -1)
    torch.testing.assert_close(kernel.matrix(params, x, x), design @ (factor @ factor.T) @ design.transpose(1, 2))


def test_many_features_give_the_distances_of_few():
    x, y = inputs(6, features=40), inputs(5, features=40, seed=1)
    torch.testing.assert_close(kernels.squared_distances(x, y), torch.cdist(x, y).square())
    assert (kernels.squared_distances(x, x) >= 0).all()


def test_the_spectral_kernel_oscillates_at_its_frequency():
    kernel = kernels.spectral(1, mixtures=1)
    params = kernel.start(None, torch.float64)
    params["log_frequency"] = torch.full((1, 1), math.log(0.5), dtype=torch.float64)
    params["log_spread"] = torch.full((1, 1), -20.0, dtype=torch.float64)
    x = torch.tensor([[[0.0], [1.0], [2.0]]], dtype=torch.float64)
    got = kernel.matrix(params, x, x)[0, 0]
    torch.testing.assert_close(got, torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))


def test_the_spectral_kernel_draws_its_frequencies():
    kernel = kernels.spectral(2)
    first, again, other = (kernel.start(torch.Generator().manual_seed(s), torch.float32) for s in (0, 0, 1))
    assert torch.equal(first["log_frequency"], again["log_frequency"])
    assert not torch.equal(first["log_frequency"], other["log_frequency"])
    torch.testing.assert_close(kernel.diagonal(first, torch.zeros(1, 1, 2)), torch.ones(1, 1))


def test_unknown_smoothness_is_refused():
    with pytest.raises(UsageError, match=r"smoothness must be one of 0.5, 1.5, 2.5, got 2"):
        kernels.matern(smoothness=2)
