import math

import pytest
import torch

from headstart.data.curves.curves import KINDS, curves

#: The mean of y² without noise, E[y²], in closed form.
SQUARES = {
    "sine": (4.9**2 / 12 + 2.55**2) / 2,
    "line": 3 * 25 / 3 + 3,
    "quadratic": (0.15**3 - 0.02**3) / (3 * 0.13) * (125 + 6 * 25 / 3 * 3 + 81 / 5) + 3,
}


def points(tasks, split="train", numbers=range(3000)):
    """Return x and y of support and query together, each ``(B, n)``."""
    support, query = tasks.sample(split, numbers)
    return torch.cat((support.x, query.x), 1)[..., 0], torch.cat((support.y, query.y), 1)[..., 0]


def powers(x, degree):
    return torch.stack([x**power for power in range(degree + 1)], -1)


def fitted(x, y, degree):
    """Return the polynomial of a degree nearest to each task's points, and how far off it is at most."""
    basis = powers(x, degree)
    found = torch.linalg.lstsq(basis, y[..., None]).solution
    return found[..., 0], ((basis @ found)[..., 0] - y).abs().amax(1)


@pytest.mark.parametrize("kind", KINDS)
def test_answering_0_costs_what_the_closed_form_says(kind):
    tasks = curves(kinds=(kind,), dtype=torch.float64)
    for batch in tasks.sample("test", range(40_000)):
        losses = batch.y.square().mean((1, 2))
        error = losses.std().item() / len(losses) ** 0.5
        assert error < 0.02 * SQUARES[kind]
        assert abs(losses.mean().item() - (SQUARES[kind] + 0.3**2)) < 4 * error


def test_the_documented_costs_are_the_closed_forms():
    assert [round(SQUARES[kind], 3) for kind in KINDS] == [4.252, 28, 5.514]
    assert round(sum(SQUARES.values()) / 3, 3) == 12.589


def test_0_is_the_best_answer_that_does_not_depend_on_the_support_set():
    for kind in KINDS:
        x, y = points(curves(kinds=(kind,), dtype=torch.float64), numbers=range(40_000))
        place = ((x + 5) * 0.8).long().flatten()  # eight bins of x
        values, counts = y.flatten(), place.bincount()
        means = torch.zeros(8, dtype=torch.float64).index_add(0, place, values) / counts
        squares = torch.zeros(8, dtype=torch.float64).index_add(0, place, values**2) / counts
        # points of one task go together: count tasks, not points
        assert (means.abs() < 4 * (squares / 40_000).sqrt()).all(), kind


def test_lines_are_lines_with_parameters_in_range():
    found, off = fitted(*points(curves(kinds=("line",), noise=0, dtype=torch.float64)), 1)
    b, a = found.T
    assert off.max() < 1e-9
    for values in (a, b):
        assert -3 <= values.min() < -2.97 and 2.97 < values.max() <= 3
        assert abs(values.mean()) < 4 * (3 / 3000) ** 0.5


def test_quadratics_have_either_sign_and_parameters_in_range():
    found, off = fitted(*points(curves(kinds=("quadratic",), noise=0, dtype=torch.float64)), 2)
    constant, linear, a = found.T
    assert off.max() < 1e-9
    center = -linear / (2 * a)
    offset = constant - a * center**2
    assert 0.02 - 1e-9 <= a.abs().min() < 0.021 and 0.149 < a.abs().max() <= 0.15
    assert abs(a.abs().mean() - 0.085) < 4 * 0.13 / (12 * 3000) ** 0.5
    assert abs((a > 0).double().mean() - 0.5) < 4 * 0.5 / 3000**0.5
    for values in (center, offset):
        assert -3 - 1e-6 <= values.min() < -2.97 and 2.97 < values.max() <= 3 + 1e-6
    # the three are independent
    correlations = torch.corrcoef(torch.stack((a, center, offset))) - torch.eye(3)
    assert correlations.abs().max() < 4 / 3000**0.5


def test_sines_are_sines_with_parameters_in_range():
    x, y = points(curves(kinds=("sine",), noise=0, dtype=torch.float64), numbers=range(200))
    grid = torch.linspace(0.5, 2, 1501, dtype=torch.float64)
    basis = torch.stack((torch.sin(grid[:, None, None] * x), torch.cos(grid[:, None, None] * x)), -1)
    found = torch.linalg.lstsq(basis, y[..., None].expand(len(grid), -1, -1, -1)).solution
    off = ((basis @ found)[..., 0] - y).abs().amax(-1)
    best = off.argmin(0)
    frequency = grid[best]
    sine, cosine = found[best, range(200), :, 0].T
    # half a step of the grid away from the frequency moves no point by more than A |x| / 2000
    assert (off.amin(0) < 5 * 5 / 2000).all()
    assert frequency.min() < 0.55 and frequency.max() > 1.97
    assert abs(frequency.mean() - 1.25) < 4 * 1.5 / (12 * 200) ** 0.5
    amplitude = torch.hypot(sine, cosine)
    assert 0.1 - 0.01 < amplitude.min() < 0.3 and 4.8 < amplitude.max() < 5.01
    phase = torch.atan2(cosine, sine) % (2 * math.pi)
    quarters = (phase / (math.pi / 2)).long().bincount(minlength=4)
    assert (quarters - 50).abs().max() < 4.5 * (200 * 3 / 16) ** 0.5


def test_every_kind_has_an_equal_part_and_tasks_are_those_of_their_kind_alone():
    mixed = points(curves(noise=0))[1]
    alone = torch.stack([points(curves(noise=0, kinds=(kind,)))[1] for kind in KINDS])
    belongs = (alone == mixed).all(-1)
    assert (belongs.sum(0) == 1).all()
    assert (belongs.sum(1) - 1000).abs().max() < 4.5 * (3000 * 2 / 9) ** 0.5
    two = points(curves(noise=0, kinds=("line", "quadratic")))[1]
    assert abs((two == alone[1]).all(-1).sum() - 1500) < 4.5 * 750**0.5


@pytest.mark.parametrize("noise", [0.3, 2.0])
def test_the_noise_is_gaussian_and_independent(noise):
    x, y = points(curves(noise=noise, dtype=torch.float64))
    quiet_x, quiet_y = points(curves(noise=0, dtype=torch.float64))
    assert torch.equal(x, quiet_x)
    residual = (y - quiet_y) / noise
    count = residual.numel()
    assert abs(residual.mean()) < 4 / count**0.5
    assert abs(residual.var() - 1) < 4 * (2 / count) ** 0.5
    assert abs(residual.pow(3).mean()) < 4 * (15 / count) ** 0.5
    assert abs(residual.pow(4).mean() - 3) < 4 * (96 / count) ** 0.5
    # no point's noise tells of another's, or of x; 20 points, so 190 pairs and 20
    correlations = torch.corrcoef(residual.T) - torch.eye(20)
    assert correlations.abs().max() < 5 / 3000**0.5
    assert abs(torch.corrcoef(torch.stack((residual.flatten(), x.flatten())))[0, 1]) < 4 / count**0.5
