import math

import pytest
import torch

from headstart.data.curves.sinusoid import sinusoid


def mean_and_error(losses):
    """Return the mean over tasks, and its standard error."""
    return losses.mean().item(), losses.std().item() / len(losses) ** 0.5


@pytest.mark.parametrize(
    ("predict", "expected"),
    [(torch.zeros_like, 4.252), (lambda x: -1.623 * torch.cos(x), 3.006)],
    ids=["zero", "best that cannot adapt"],
)
def test_errors_of_fixed_predictors_have_their_closed_form(predict, expected):
    episodes = sinusoid(shots=10, queries=10, dtype=torch.float64).sample("test", range(40_000))
    for x, y, *_ in episodes:
        mean, error = mean_and_error((predict(x) - y).square().mean((1, 2)))
        assert error < 0.03
        assert abs(mean - expected) < 4 * error + 5e-4  # the closed form is given to three decimals


def test_the_closed_forms_follow_from_the_distributions():
    amplitude, steps = torch.linspace(0.1, 5, 401, dtype=torch.float64), 401
    phase = torch.linspace(0, math.pi, steps, dtype=torch.float64)
    x = torch.linspace(-5, 5, steps, dtype=torch.float64)
    wave = torch.sin(x[None] - phase[:, None])

    def mean(values, *axes):
        for axis, points in axes:
            values = torch.trapezoid(values, points, dim=axis) / (points[-1] - points[0])
        return values

    square = mean(amplitude**2, (0, amplitude)) * mean(wave**2, (1, x), (0, phase))
    best = mean(amplitude, (0, amplitude)) * mean(wave, (0, phase))
    assert square.item() == pytest.approx(4.252, abs=1e-3)
    assert torch.allclose(best, -1.623 * torch.cos(x), atol=1e-3)
    assert (square - mean(best**2, (0, x))).item() == pytest.approx(3.006, abs=1e-3)


def test_every_task_is_one_sine_in_range():
    support, query = sinusoid(dtype=torch.float64).sample("train", range(300))
    x, y = torch.cat((support.x, query.x), 1), torch.cat((support.y, query.y), 1)
    assert x.shape == y.shape == (300, 20, 1)
    assert x.min() >= -5 and x.max() < 5
    # y = a sin x + b cos x fits all points exactly, with amplitude and phase in range
    basis = torch.cat((torch.sin(x), torch.cos(x)), 2)
    fit = torch.linalg.lstsq(basis, y).solution
    assert torch.allclose(basis @ fit, y, atol=1e-9)
    amplitude = fit.norm(dim=1)
    phase = torch.atan2(-fit[:, 1], fit[:, 0])
    assert amplitude.min() >= 0.1 - 1e-6 and amplitude.max() <= 5
    assert phase.min() >= -1e-6 and phase.max() <= math.pi + 1e-6


def test_a_frequency_of_1_changes_no_bit():
    plain, given = (sinusoid(**options).sample("train", range(50)) for options in ({}, {"frequency": (1, 1)}))
    for batch, same in zip(plain, given):
        assert torch.equal(batch.x, same.x) and torch.equal(batch.y, same.y)
    # the first support point of the first three tasks, and so of every table and run made with them
    first = sinusoid(shots=1, queries=1, dtype=torch.float64).sample("train", range(3)).support
    assert first.x.flatten().tolist() == pytest.approx(
        [4.722412032044762, 2.909692887268979, -0.3095919538172449], abs=1e-12
    )
    assert first.y.flatten().tolist() == pytest.approx(
        [1.37138672481905, 1.0664105854821968, -0.15584724422210905], abs=1e-12
    )


LOW, HIGH = 0.8, 1.2


def best_that_cannot_adapt(x):
    """Return E[y | x] for frequencies from 0.8 to 1.2: 2.55 (2/pi) times the mean of cos w x over w."""
    middle, half = (HIGH + LOW) / 2, (HIGH - LOW) / 2
    return 2.55 * (2 / math.pi) * torch.cos(middle * x) * torch.sinc(half * x / math.pi)


@pytest.mark.parametrize(
    ("predict", "expected"),
    [(torch.zeros_like, 4.252), (best_that_cannot_adapt, 3.115)],
    ids=["zero", "best that cannot adapt"],
)
def test_errors_of_fixed_predictors_with_a_range_of_frequencies(predict, expected):
    for x, y, *_ in sinusoid(frequency=(LOW, HIGH), dtype=torch.float64).sample("test", range(40_000)):
        mean, error = mean_and_error((predict(x) - y).square().mean((1, 2)))
        assert error < 0.03
        assert abs(mean - expected) < 4 * error + 5e-4


def test_a_range_of_frequencies_keeps_amplitude_and_x_and_turns_the_sign_of_the_phase():
    tasks = {ends: sinusoid(frequency=ends, dtype=torch.float64) for ends in ((1, 1), (0.5, 0.5), (LOW, HIGH))}
    plain, slow, varied = (torch.cat(both, 1) for both in _xy(tasks.values()))
    x = plain[..., 0]
    assert torch.equal(x, slow[..., 0]) and torch.equal(x, varied[..., 0])
    amplitude, phase = _wave(x, plain[..., 1], torch.ones(100, 1))
    slow_amplitude, slow_phase = _wave(x, slow[..., 1], torch.full((100, 1), 0.5))
    assert torch.allclose(amplitude, slow_amplitude) and torch.allclose(phase, -slow_phase)
    assert 0 < slow_phase.min() and slow_phase.max() < math.pi
    # y = A sin(w x + p) fits all points of a task for one w in the range, and nothing but w is left to find
    grid = torch.linspace(LOW, HIGH, 4001, dtype=torch.float64)[:, None, None]
    off = amplitude[:, None] * torch.sin(grid * x + slow_phase[:, None]) - varied[..., 1]
    off, best = off.abs().amax(-1).min(0)
    assert off.max() < 5 * 5 * 1e-4  # A |x| times half a step of the grid, 0.5e-4, and as much again
    frequency = grid[best, 0, 0]
    assert frequency.min() < LOW + 0.02 and frequency.max() > HIGH - 0.02
    assert abs(frequency.mean() - 1) < 4 * (HIGH - LOW) / (12 * 100) ** 0.5


def _xy(families):
    for family in families:
        yield [torch.cat((batch.x, batch.y), -1) for batch in family.sample("train", range(100))]


def _wave(x, y, frequency):
    """Return A and q of y = A sin(w x + q), fitted to each task's points."""
    basis = torch.stack((torch.sin(frequency * x), torch.cos(frequency * x)), -1)
    sine, cosine = torch.linalg.lstsq(basis, y[..., None]).solution[..., 0].T
    return torch.hypot(sine, cosine), torch.atan2(cosine, sine)


def test_a_range_of_frequencies_is_said_of_the_tasks():
    assert sinusoid().details["frequency"] == (1, 1)
    details = sinusoid(frequency=(LOW, HIGH)).details
    assert details["frequency"] == (LOW, HIGH) and details["function"] == "A sin(w x + p)"
    assert "1707.09835" in details["source"]
