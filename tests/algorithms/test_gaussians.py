import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from headstart.algorithms import gaussians
from headstart.types import Gaussian


def case(tasks: int = 2, n: int = 6, outputs: int = 2, dtype: torch.dtype = torch.float64):
    """A covariance and values of every task."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(tasks, n, n, generator=generator, dtype=dtype)
    return root @ root.transpose(1, 2) + torch.eye(n, dtype=dtype), torch.randn(
        tasks, n, outputs, generator=generator, dtype=dtype
    )


MASK = torch.tensor([[True, False, True, True, False, True], [True] * 6])


def test_the_log_density_is_that_of_torch():
    matrix, values = case()
    factor = gaussians.cholesky(matrix)
    expected = sum(MultivariateNormal(torch.zeros(6).double(), matrix).log_prob(values[..., o]) for o in range(2))
    torch.testing.assert_close(gaussians.joint_loss(factor, values), -expected / 12)


def test_what_is_masked_has_no_part_in_the_density():
    matrix, values = case()
    values[0, 1] = torch.nan
    there = MASK[0]
    factor = gaussians.cholesky(matrix, MASK)
    short = gaussians.cholesky(matrix[:1, there][:, :, there])
    got = gaussians.joint_loss(factor, values, MASK)
    torch.testing.assert_close(got[:1], gaussians.joint_loss(short, values[:1, there]))
    torch.testing.assert_close(got[1:], gaussians.joint_loss(gaussians.cholesky(matrix[1:]), values[1:]))


def test_the_posterior_is_the_conditional_of_the_joint_distribution():
    matrix, values = case()
    factor = gaussians.cholesky(matrix[:, :4, :4])
    known = gaussians.condition(factor, values[:, :4], None)
    change, variance = gaussians.posterior(factor, known, matrix[:, 4:, :4], matrix.diagonal(dim1=1, dim2=2)[:, 4:])
    gain = matrix[:, 4:, :4] @ matrix[:, :4, :4].inverse()
    torch.testing.assert_close(change, gain @ values[:, :4])
    expected = matrix[:, 4:, 4:] - gain @ matrix[:, :4, 4:]
    torch.testing.assert_close(variance, expected.diagonal(dim1=1, dim2=2))


def test_masked_observations_teach_nothing():
    matrix, values = case(n=8)
    cross, variance = matrix[:, 6:, :6], matrix.diagonal(dim1=1, dim2=2)[:, 6:]
    factor = gaussians.cholesky(matrix[:, :6, :6], MASK)
    known = gaussians.condition(factor, values[:, :6].masked_fill(~MASK[..., None], torch.nan), MASK)
    got = gaussians.posterior(factor, known, cross.masked_fill(~MASK[:, None], 0), variance)
    there = MASK[0]
    factor = gaussians.cholesky(matrix[:1, :6, :6][:, there][:, :, there])
    short = gaussians.condition(factor, values[:1, :6][:, there], None)
    expected = gaussians.posterior(factor, short, cross[:1, :, there], variance[:1])
    for ours, theirs in zip(got, expected):
        torch.testing.assert_close(ours[:1], theirs)


def test_what_is_foreseen_is_the_mean_of_the_posterior():
    matrix, values = case()
    values = values.masked_fill(~MASK[..., None], torch.nan)
    matrix = torch.where(MASK.unsqueeze(1) & MASK.unsqueeze(2), matrix, 0)
    got = gaussians.foreseen(gaussians.cholesky(matrix, MASK), values, MASK, 4)
    factor = gaussians.cholesky(matrix[:, :4, :4], MASK[:, :4])
    known = gaussians.condition(factor, values[:, :4], MASK[:, :4])
    expected, _ = gaussians.posterior(factor, known, matrix[:, 4:, :4], matrix.diagonal(dim1=1, dim2=2)[:, 4:])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_matrices_are_factorised_and_leave_the_others_as_they_are(dtype):
    matrix, _ = case(dtype=dtype)
    alone = gaussians.cholesky(matrix[1:])
    matrix[0] = 3  # of rank 1
    factor = gaussians.cholesky(matrix)
    assert factor.isfinite().all()
    torch.testing.assert_close(factor[0] @ factor[0].T, matrix[0], atol=1e-2, rtol=0)
    assert torch.equal(factor[1:], alone)


def test_what_is_no_covariance_gives_nan_in_its_own_task():
    matrix, _ = case()
    matrix[0] = -matrix[0]
    factor = gaussians.cholesky(matrix)
    assert factor[0].isnan().all() and factor[1].isfinite().all()


def test_the_marginal_loss_is_the_mean_over_the_values_that_are_there():
    generator = torch.Generator().manual_seed(1)
    y, mean = torch.randn(2, 2, 6, 3, generator=generator, dtype=torch.float64)
    variance = torch.rand(2, 6, 3, generator=generator, dtype=torch.float64) + 0.1
    densities = -Normal(mean, variance.sqrt()).log_prob(y)
    got = gaussians.marginal_loss(Gaussian(mean, variance), y, MASK)
    torch.testing.assert_close(got, torch.stack([densities[0, MASK[0]].mean(), densities[1].mean()]))
    torch.testing.assert_close(gaussians.marginal_loss(Gaussian(mean, variance), y), densities.mean((1, 2)))


def test_a_task_without_an_example_has_no_loss():
    factor = gaussians.cholesky(case()[0], torch.zeros(2, 6, dtype=torch.bool))
    loss = gaussians.joint_loss(factor, case()[1], torch.zeros(2, 6, dtype=torch.bool))
    torch.testing.assert_close(loss, torch.zeros(2, dtype=torch.float64), atol=1e-6, rtol=0)


def test_one_standard_normal_value_by_hand():
    loss = gaussians.joint_loss(torch.ones(1, 1, 1), torch.zeros(1, 1, 1))
    assert loss.item() == pytest.approx(0.5 * math.log(2 * math.pi))


def test_what_is_added_to_the_diagonal_does_not_depend_on_padding():
    matrix = torch.full((1, 4, 4), 1e-10, dtype=torch.float64)  # singular, and small beside the 1 of padding
    mask = (torch.arange(12) < 4).unsqueeze(0)
    factor = gaussians.cholesky(torch.nn.functional.pad(matrix, (0, 8, 0, 8)), mask)
    torch.testing.assert_close(factor[:, :4, :4], gaussians.cholesky(matrix), rtol=1e-3, atol=0)
