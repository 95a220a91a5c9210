"""Logistic regression that chooses its penalty."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import normalize, one_hot

from headstart.algorithms.heads.head import learner
from headstart.algorithms.heads.regularised import PENALTIES, penalty_of, regularised
from headstart.types import Batch


def examples(each: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return examples around three centres, and their classes."""
    generator, y = torch.Generator().manual_seed(seed), torch.arange(3).repeat(each)
    centres = torch.eye(3, 6, dtype=torch.float64)
    return centres[y] + noise * torch.randn(3 * each, 6, dtype=torch.float64, generator=generator), y


def held_out_cost(x: torch.Tensor, y: torch.Tensor, penalty: float) -> float:
    """Return what scikit-learn pays for held-out examples, each class's dealt out in turn to five parts."""
    part, cost = torch.arange(len(y)) // 3 % 5, 0.0  # the classes come in turn
    for number in range(5):
        held = part == number
        model = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-8, max_iter=1000).fit(x[~held], y[~held])
        cost -= model.predict_log_proba(x[held])[range(int(held.sum())), y[held]].sum()
    return cost


# with another number of parts, the second and third choose another penalty
@pytest.mark.parametrize(("noise", "seed"), [(0.05, 0), (0.7, 1), (0.9, 0), (3.0, 0)])
def test_it_is_scikit_learns_at_the_penalty_that_held_out_examples_choose(noise: float, seed: int) -> None:
    x, y = examples(6, noise, seed)
    unit = normalize(x, dim=-1)
    best = min(PENALTIES, key=lambda penalty: held_out_cost(unit, y, penalty))
    assert penalty_of(unit, one_hot(y).double()) == best
    made = learner(None, regularised(None))
    adapted, _ = made.adapt(made.init(None), Batch(x.unsqueeze(0), y.unsqueeze(0)))
    theirs = LogisticRegression(C=1 / best, fit_intercept=False, tol=1e-9, max_iter=1000).fit(unit, y)
    asked = examples(4, noise, seed=9)[0]
    chances = made.predict(adapted, asked.unsqueeze(0))[0].softmax(-1)
    torch.testing.assert_close(chances, torch.tensor(theirs.predict_proba(normalize(asked, dim=-1))), atol=1e-5, rtol=0)


def test_noise_asks_for_a_larger_penalty() -> None:
    clean, noisy = (
        penalty_of(normalize(x, dim=-1), one_hot(y).double()) for x, y in (examples(6, 0.05), examples(6, 3))
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
