"""Curves from Gaussian processes: drawn from the process they say, and conditioned on it rightly."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from headstart.data.curves.gp_curves import KERNELS, gp_curves, true_distribution
from headstart.data.curves.sinusoid import sinusoid
from headstart.errors import ShapeError, UsageError
from headstart.types import Batch, Gaussian

#: The kernels written once more, in another way.
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "rbf": lambda d: torch.exp(-d.square() / (2 * 0.16)),
    "matern": lambda d: (1 + 5**0.5 * d / 0.4 + 5 * d**2 / (3 * 0.16)) * torch.exp(-(5**0.5) * d / 0.4),
    "periodic": lambda d: torch.exp(torch.cos(2 * math.pi * d) - 1),
}


def covariance(kernel: str, left: Tensor, right: Tensor) -> Tensor:
    return PLAIN[kernel]((left - right.transpose(-1, -2)).abs())


def log_density(distribution: Gaussian, y: Tensor) -> Tensor:
    return Normal(distribution.mean, distribution.variance.sqrt()).log_prob(y)


@pytest.mark.parametrize("kernel", KERNELS)
def test_curves_are_drawn_from_the_process(kernel: str) -> None:
    support, query = gp_curves(kernel=kernel, shots=4, queries=6, noise=0.2, dtype=torch.float64).sample(
        "train", range(4000)
    )
    x, y = (torch.cat(pair, 1) for pair in ((support.x, query.x), (support.y, query.y)))
    assert -2 <= x.min() < -1.999 and 1.999 < x.max() < 2 and abs(x.mean()) < 4 * (4 / 3 / x.numel()) ** 0.5
    gram = covariance(kernel, x, x) + 0.04 * torch.eye(10, dtype=torch.float64)
    white = torch.linalg.solve(torch.linalg.cholesky(gram), y)[..., 0]
    assert abs(white.mean()) < 4 / 40_000**0.5
    assert abs(white.square().mean() - 1) < 4 * (2 / 40_000) ** 0.5
    assert abs(white.pow(4).mean() - 3) < 4 * (96 / 40_000) ** 0.5
    assert (white.T.corrcoef() - torch.eye(10)).abs().max() < 4.5 / 4000**0.5


def test_supports_have_every_size_of_the_range_alike_and_zeros_where_nothing_is() -> None:
    support = gp_curves(shots=(3, 7), queries=1).sample("train", range(5000)).support
    assert support.mask is not None
    counts = support.mask.sum(1).bincount(minlength=9)
    assert counts[:3].sum() == counts[8:].sum() == 0
    assert (counts[3:8] - 1000).abs().max() < 4.5 * 800**0.5
    assert (support.mask.long().diff(dim=1) <= 0).all()
    assert (support.x[~support.mask] == 0).all() and (support.y[~support.mask] == 0).all()
    assert gp_curves(shots=5).sample("train", [0]).support.mask is None
    assert gp_curves(shots=(5, 5)).sample("train", [0]).support.x.shape == (1, 5, 1)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_true_distribution_chains_to_the_joint_density(kernel: str) -> None:
    tasks = gp_curves(kernel=kernel, shots=6, queries=1, noise=0.1, dtype=torch.float64)
    x, y = tasks.sample("test", range(5)).support[:2]
    chained = torch.zeros(5, dtype=torch.float64)
    for count in range(6):
        # padding that is there but masked, with numbers that would matter
        mask = (torch.arange(6) < count).expand(5, -1)
        known = Batch(torch.where(mask[..., None], x, 0.1), torch.where(mask[..., None], y, 9.0), mask)
        point = slice(count, count + 1)
        chained += log_density(true_distribution(tasks, known, x[:, point]), y[:, point])[:, 0, 0]
    gram = covariance(kernel, x, x) + 0.01 * torch.eye(6)
    joint = MultivariateNormal(torch.zeros(5, 6, dtype=torch.float64), gram).log_prob(y[..., 0])
    # the tasks have a variance of 1e-8 more than their noise
    torch.testing.assert_close(chained, joint, rtol=1e-5, atol=1e-4)


def test_the_true_distribution_is_calibrated_and_no_other_is_more_likely() -> None:
    tasks = gp_curves(dtype=torch.float64)
    support, query = tasks.sample("test", range(600))
    true = true_distribution(tasks, support, query.x)
    deviations = (query.y - true.mean) / true.variance.sqrt()
    by_task = (deviations.abs() < 1.6449).double().mean((1, 2))
    assert abs(by_task.mean() - 0.9) < 4 * by_task.std() / 600**0.5
    best = log_density(true, query.y).mean((1, 2))
    others = {
        "narrow": Gaussian(true.mean, 0.8 * true.variance),
        "wide": Gaussian(true.mean, 1.25 * true.variance),
        "shrunk": Gaussian(0.9 * true.mean, true.variance),
        "shorter": true_distribution(gp_curves(lengthscale=0.35), support, query.x),
        "longer": true_distribution(gp_curves(lengthscale=0.45), support, query.x),
    }
    for name, other in others.items():
        less = best - log_density(other, query.y).mean((1, 2))
        assert less.mean() > 3 * less.std() / 600**0.5, name


def test_without_noise_the_true_process_goes_through_its_points() -> None:
    tasks = gp_curves(shots=8, noise=0.0, dtype=torch.float64)
    support = tasks.sample("test", range(20)).support
    found = true_distribution(tasks, support, support.x)
    assert (found.mean - support.y).abs().max() < 1e-2 and found.variance.max() < 1e-6
    far = true_distribution(tasks, support, support.x + 100)
    torch.testing.assert_close(far, Gaussian(torch.zeros_like(far.mean), torch.ones_like(far.mean)), rtol=0, atol=1e-6)


def test_what_the_tasks_say_of_themselves() -> None:
    tasks = gp_curves(kernel="matern", shots=(3, 9), noise=0.5)
    told = tasks.details
    assert (told["kernel"], told["shots"], told["noise_variance"], told["lengthscale"]) == ("matern", (3, 9), 0.25, 0.4)
    support, query = tasks.sample("test", [0])
    assert true_distribution(tasks, support, query.x).variance.dtype == torch.float32


def test_what_is_not_known_is_refused() -> None:
    other = sinusoid(shots=5)
    support, query = other.sample("test", [0])
    with pytest.raises(UsageError, match="not of 'sinusoid'"):
        true_distribution(other, support, query.x)
    with pytest.raises(ShapeError, match=r"\(tasks, n, 1\)"):
        true_distribution(gp_curves(), support, query.x[..., 0])


def test_numbers_of_tasks_may_come_as_numpy() -> None:
    first, second = (gp_curves().sample("test", numbers).query.y for numbers in (np.arange(3), range(3)))
    assert torch.equal(first, second)
