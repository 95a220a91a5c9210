"""Measures of predicted normal distributions, against numbers by hand and torch.distributions."""

import math

import pytest
import torch
from hypothesis import given, strategies as st
from torch.distributions import Normal

from headstart.errors import ShapeError, UsageError
from headstart.training.calibration import coverage, gaussian_nll, interval_width
from headstart.types import Batch, Gaussian


def drawn(*shape):
    generator = torch.Generator().manual_seed(0)
    mean, raw, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    return Gaussian(mean, raw.exp()), y


def test_the_likelihood_is_that_of_torch():
    distribution, y = drawn(3, 5, 2)
    expected = -Normal(distribution.mean, distribution.variance.sqrt()).log_prob(y).mean((1, 2))
    torch.testing.assert_close(gaussian_nll(distribution, Batch(y, y)), expected)


def test_masked_examples_count_nowhere_even_where_they_are_not_numbers():
    distribution, y = drawn(3, 5, 2)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 1, 0]]).bool()
    y = torch.where(mask[..., None], y, math.nan)
    batch = Batch(y, y, mask)
    found = [gaussian_nll(distribution, batch), coverage(distribution, batch), interval_width(distribution, mask=mask)]
    for task in range(3):
        own = Gaussian(*(part[task : task + 1, mask[task]] for part in distribution))
        alone = Batch(y[task : task + 1, mask[task]], y[task : task + 1, mask[task]])
        expected = [gaussian_nll(own, alone), coverage(own, alone), interval_width(own)]
        for values, one in zip(found, expected):
            torch.testing.assert_close(values[task : task + 1], one)


def test_coverage_counts_what_lies_inside():
    # 90 % of a normal distribution lie within 1.6449 standard deviations
    y = torch.tensor([[1.6, -1.6, 1.7, -1.7], [3.2, 3.4, -100.0, 0.0]]).unsqueeze(-1)
    distribution = Gaussian(torch.zeros(2, 4, 1), torch.tensor([1.0, 4.0]).view(2, 1, 1).expand(2, 4, 1))
    assert coverage(distribution, Batch(y, y)).tolist() == [0.5, 0.5]
    assert coverage(distribution, Batch(y, y), level=0.5).tolist() == [0.0, 0.25]
    assert interval_width(distribution).tolist() == pytest.approx([2 * 1.644854, 4 * 1.644854])


@given(st.floats(0.01, 0.99))
def test_the_right_distribution_covers_as_often_as_it_says(level):
    distribution, _ = drawn(1, 4000, 1)
    noise = torch.randn(1, 4000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = distribution.mean + distribution.variance.sqrt() * noise
    found = coverage(distribution, Batch(y, y), level).item()
    assert abs(found - level) < 4.5 * (level * (1 - level) / 4000) ** 0.5


def test_what_does_not_fit_is_refused():
    distribution, y = drawn(2, 3, 1)
    with pytest.raises(ShapeError, match=r"mean \(2, 3, 1\), variance \(2, 3, 1\) and y \(2, 3\)"):
        gaussian_nll(distribution, Batch(y, y[..., 0]))
    with pytest.raises(ShapeError, match="int64"):
        coverage(distribution, Batch(y, y.long()))
    for level in (0.0, 1.0, 90.0):
        with pytest.raises(UsageError, match="between 0 and 1"):
            interval_width(distribution, level)
