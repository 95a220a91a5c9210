"""Logistic regression that chooses its penalty and its temperature."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy, normalize, one_hot

from headstart.algorithms.heads.head import learner
from headstart.algorithms.heads.regularised import PENALTIES, chosen, regularised
from headstart.training.reliability import reliability
from headstart.types import Batch


def examples(each: int, noise: float, seed: int = 0, features: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Return examples around three centres, and their classes."""
    generator, y = torch.Generator().manual_seed(seed), torch.arange(3).repeat(each)
    centres = torch.eye(3, features, dtype=torch.float64)
    return centres[y] + noise * torch.randn(3 * each, features, dtype=torch.float64, generator=generator), y


def held_out(x: torch.Tensor, y: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scikit-learn's logits of held-out examples, each class's dealt out in turn to five parts."""
    part, logits = torch.arange(len(y)) // 3 % 5, torch.zeros(len(y), 3, dtype=torch.float64)  # classes come in turn
    for number in range(5):
        held = part == number
        model = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-8, max_iter=1000).fit(x[~held], y[~held])
        logits[held] = torch.tensor(model.decision_function(x[held]))
    return logits, y


# with another number of parts, the second and third choose another penalty
@pytest.mark.parametrize(("noise", "seed"), [(0.05, 0), (0.7, 1), (0.9, 0), (3.0, 0)])
def test_it_is_scikit_learns_at_the_penalty_and_temperature_of_held_out_examples(noise: float, seed: int) -> None:
    x, y = examples(6, noise, seed)
    unit = normalize(x, dim=-1)
    best = min(PENALTIES, key=lambda penalty: float(cross_entropy(*held_out(unit, y, penalty))))
    penalty, temperature = chosen(unit, one_hot(y).double())
    logits, _ = held_out(unit, y, best)
    told = minimize_scalar(lambda log: float(cross_entropy(logits / math.exp(log), y, reduction="sum")) + log**2 / 2)
    assert penalty == best and math.log(temperature) == pytest.approx(told.x, abs=0.06)
    made = learner(None, regularised(None))
    adapted, _ = made.adapt(made.init(None), Batch(x.unsqueeze(0), y.unsqueeze(0)))
    theirs = LogisticRegression(C=1 / best, fit_intercept=False, tol=1e-9, max_iter=1000).fit(unit, y)
    asked = examples(4, noise, seed=9)[0]
    expected = torch.tensor(theirs.decision_function(normalize(asked, dim=-1))) / temperature
    chances = made.predict(adapted, asked.unsqueeze(0))[0].softmax(-1)
    torch.testing.assert_close(chances, expected.softmax(-1), atol=1e-4, rtol=0)


def test_what_few_examples_say_of_their_own_makes_probabilities_of_others_right() -> None:
    made, rows = learner(None, regularised(None)), list[tuple[torch.Tensor, ...]]()
    for seed in range(15):
        x, y = examples(5, 0.12, seed, 200)
        adapted, _ = made.adapt(made.init(None), Batch(x.unsqueeze(0), y.unsqueeze(0)))
        asked, truth = examples(40, 0.12, 100 + seed, 200)
        logits = made.predict(adapted, asked.unsqueeze(0))[0]
        _, temperature = chosen(normalize(x, dim=-1), one_hot(y).double())
        rows.append((logits.softmax(-1), (logits * temperature).softmax(-1), truth))
    ours, plain, truth = (torch.cat(parts) for parts in zip(*rows))
    errors = [reliability(chances.amax(-1), chances.argmax(-1) == truth).ece for chances in (ours, plain)]
    assert errors[0] < errors[1] / 3 and errors[0] < 0.06, errors


def test_noise_asks_for_a_larger_penalty() -> None:
    clean, noisy = (
        chosen(normalize(x, dim=-1), one_hot(y).double())[0] for x, y in (examples(6, 0.05), examples(6, 3))
    )
    assert clean == min(PENALTIES) and noisy == max(PENALTIES)


def test_a_single_example_of_each_class_will_do_and_what_is_not_there_counts_for_nothing() -> None:
    x, y = examples(1, 0.1)
    made = learner(None, regularised(5))
    plain, _ = made.adapt(made.init(None), Batch(x.unsqueeze(0), y.unsqueeze(0)))
    padded = Batch(
        torch.cat([x, torch.full((2, 6), 9.0)]).unsqueeze(0),
        torch.cat([y, torch.tensor([0, 4])]).unsqueeze(0),
        torch.tensor([[True] * 3 + [False] * 2]),
    )
    masked, _ = made.adapt(made.init(None), padded)
    found, other = (made.predict(one, x.unsqueeze(0))[0] for one in (plain, masked))
    assert found.argmax(-1).tolist() == [0, 1, 2]
    assert (found[:, 3:] == -torch.inf).all(), "there is no example of these"
    torch.testing.assert_close(found, other)


def test_more_features_than_examples_change_nothing() -> None:
    (x, y), asked = examples(6, 0.7), examples(4, 0.7, seed=9)[0]
    turn, _ = torch.linalg.qr(torch.randn(60, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    made, found = learner(None, regularised(None)), []
    for into in (torch.eye(6, dtype=torch.float64), turn):
        adapted, _ = made.adapt(made.init(None), Batch((x @ into.mT).unsqueeze(0), y.unsqueeze(0)))
        assert adapted.params["weights"].shape == (1, 3, len(into))
        found.append(made.predict(adapted, (asked @ into.mT).unsqueeze(0)))
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)
