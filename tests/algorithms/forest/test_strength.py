import pytest
import torch

from headstart.algorithms.forest.strength import posterior, strengths


def drawn(tasks=3, rows=5, nodes=4, outputs=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    held = (torch.rand(tasks, rows, nodes, generator=generator) > 0.5).double()
    return held, torch.randn(tasks, rows, outputs, generator=generator, dtype=torch.float64), generator


def test_the_posterior_is_that_of_the_joint_normal_distribution():
    held, residual, _ = drawn()
    ratio = torch.tensor([0.1, 1.0, 2.0, 5.0], dtype=torch.float64)
    found = posterior(held, residual, ratio)
    for task in range(3):
        precision = held[task].T @ held[task] + torch.diag(1 / ratio)
        covariance = torch.linalg.inv(precision)
        torch.testing.assert_close(found.mean[task], covariance @ held[task].T @ residual[task])
        left = ratio * (1 - found.explained[task].square().sum(0))
        torch.testing.assert_close(left, covariance.diagonal())


def test_strengths_are_found_again():
    """Many tasks drawn with known variances."""
    generator = torch.Generator().manual_seed(1)
    held = torch.nn.functional.one_hot(torch.randint(3, (600, 12), generator=generator), 3).double()
    held = torch.cat([torch.ones(600, 12, 1, dtype=torch.float64), held], 2)
    variances = torch.tensor([2.0, 0.05, 0.5, 3.0], dtype=torch.float64)
    u = torch.randn(600, 4, 1, generator=generator, dtype=torch.float64) * variances.sqrt().unsqueeze(-1)
    y = held @ u + 0.5 * torch.randn(600, 12, 1, generator=generator, dtype=torch.float64)
    there = torch.ones(600, 12, dtype=torch.bool)
    level = torch.tensor([0, 1, 1, 1])
    found = strengths(held, y, there, level, rounds=40, pseudo=0.0)
    torch.testing.assert_close(found.noise, torch.tensor([0.25], dtype=torch.float64), rtol=0.05, atol=0)
    torch.testing.assert_close(found.ratio * found.noise, variances, rtol=0.25, atol=0.02)
    # joined by level, nodes of one level are alike
    joined = strengths(held, y, there, level, rounds=40, pseudo=1e9).ratio[1:]
    torch.testing.assert_close(joined, joined.mean().expand(3), rtol=1e-4, atol=0)
    assert (joined * 0.25).mean().item() == pytest.approx(variances[1:].mean().item(), rel=0.25)


def test_rows_that_are_not_there_do_not_count():
    held, residual, _ = drawn(tasks=20, rows=6)
    there = torch.ones(20, 6, dtype=torch.bool)
    more = torch.cat([there, torch.zeros(20, 3, dtype=torch.bool)], 1)
    padded = [torch.cat([part, torch.zeros(20, 3, part.shape[2], dtype=torch.float64)], 1) for part in (held, residual)]
    level = torch.tensor([0, 1, 1, 2])
    for got, expected in zip(strengths(*padded, more, level), strengths(held, residual, there, level)):
        torch.testing.assert_close(got, expected)


def test_targets_without_variation_give_finite_strengths():
    held, residual, _ = drawn()
    found = strengths(held, torch.zeros_like(residual), torch.ones(3, 5, dtype=torch.bool), torch.zeros(4).long())
    assert all(part.isfinite().all() and (part > 0).all() for part in found)
