"""What is fitted to logits whose truth is known says that truth, and no more of it than is promised."""

import math

import pytest
import torch

from headstart.errors import UsageError
from headstart.training.reliability import auroc, measured, reliability
from headstart.training.trials import Trial
from headstart.training.trust import Trust, among_classes, believed, likeness_of
from headstart.training.trust_fitting import fitted
from tests.training.drawn import SIZES, drawn, several


@pytest.fixture(scope="module")
def trust() -> Trust:
    found = fitted(several(0))
    assert found is not None
    return found


def test_the_temperature_is_found_and_with_it_the_probabilities_are_right(trust: Trust) -> None:
    for place, size in enumerate(SIZES):
        found = measured(trust, drawn(*size, 3.0, 100 + place, tasks=200))
        assert found.before.ece > 0.1 and found.after.ece < 0.03, size
        assert found.held >= 0.89 and found.labels <= size[0]


def test_a_temperature_that_depends_on_sizes_is_found_where_it_does() -> None:
    true = {size: 2.0 * size[1] ** 0.5 * size[0] ** -0.2 for size in SIZES}
    trust = fitted([drawn(*size, true[size], place) for place, size in enumerate(SIZES)])
    assert trust is not None
    for size, one in true.items():
        assert trust.log_temperature(trust.within(*size)) == pytest.approx(math.log(one), abs=0.15)


def test_where_the_nearest_class_is_far_probabilities_are_doubted() -> None:
    def odd(seed: int) -> Trial:
        one = drawn(5, 1, 1.0, seed, tasks=200)
        lost = one.logits.amax(-1) < 2  # whose labels are as they come
        generator = torch.Generator().manual_seed(seed)
        return one._replace(y=torch.where(lost, torch.randint(5, one.y.shape, generator=generator), one.y))

    trust = fitted([odd(0)])
    assert trust is not None and trust.doubt is not None and trust.doubt.nearness < -0.5
    found = measured(trust, odd(1))
    assert found.after.ece < found.before.ece / 2


def test_of_known_examples_no_more_are_turned_away_than_is_said_and_most_others_are(trust: Trust) -> None:
    for place, size in enumerate(SIZES):
        one = drawn(*size, 3.0, 200 + place, tasks=200)
        known, other = (likeness_of(trust, logits, size[1]) for logits in (one.logits, one.unknown))
        for share in (0.02, 0.05, 0.2):
            assert (known <= share).double().mean() < 1.6 * share + 0.005, (size, share)
        assert ((0 <= known) & (known <= 1)).all() and known.mean() > other.mean()
        found = measured(trust, one).others
        assert found is not None and found.auroc > 0.75
        # of which these are ranks
        assert found.auroc == pytest.approx(auroc(known, other), abs=0.02)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_what_is_said_with_other_classes_among_what_is_asked_is_right(trust: Trust, share: float) -> None:
    for place, size in enumerate(SIZES):
        one = drawn(*size, 3.0, 300 + place, tasks=200)
        many = round(len(one.y) * share / (1 - share))
        logits = torch.cat([one.logits, drawn(*size, 3.0, 400 + place, others=many).unknown])
        found = believed(trust, logits, size[1], share)
        assert found.unknown is not None
        assert torch.allclose(found.probabilities.sum(-1) + found.unknown, torch.ones(len(logits), dtype=torch.float64))
        none = torch.arange(len(logits)) >= len(one.y)
        assert reliability(found.unknown, none).ece < 0.06, size
        assert abs(float(found.unknown.mean()) - share) < 0.06


def test_where_everything_is_of_the_classes_none_is_not_one_of_them(trust: Trust) -> None:
    one = drawn(5, 1, 3.0, 0)
    closed, half, most = (believed(trust, one.unknown, 1, share) for share in (0, 0.5, 0.9))
    assert torch.equal(closed.probabilities, among_classes(trust, one.unknown, 1))
    assert closed.unknown is not None and half.unknown is not None and most.unknown is not None
    assert (closed.unknown == 0).all() and (half.unknown < most.unknown).all()
    # the odds of none grow ninefold
    odds = [one.unknown / (1 - one.unknown) for one in (half, most) if one.unknown is not None]
    assert torch.allclose(odds[1], 9 * odds[0])


def test_without_unknown_classes_nothing_is_said_of_them_and_of_nothing_nothing() -> None:
    bare = [one._replace(unknown=one.unknown[:0]) for one in several(0)]
    trust = fitted(bare[:2])
    assert trust is not None and trust.unknown is None and measured(trust, bare[0]).others is None
    with pytest.raises(UsageError, match="not seen"):
        likeness_of(trust, bare[0].logits, 1)
    none = bare[0].y[:0]
    assert believed(trust, bare[0].logits, 1).unknown is None
    assert fitted([]) is None and fitted([bare[0]._replace(y=none, task=none, logits=none.new_zeros(0, 5))]) is None


def test_what_is_called_impossible_stays_so_and_right_answers_that_were_are_left_out() -> None:
    one = drawn(5, 1, 2.0, 0)
    cut = one.logits.clone()
    cut[:, 4] = -torch.inf
    trust = fitted([one._replace(logits=cut)])
    assert trust is not None
    found = among_classes(trust, cut, 1)
    assert (found[:, 4] == 0).all() and torch.allclose(found.sum(-1), torch.ones(len(found), dtype=torch.float64))


@pytest.mark.parametrize("right", [True, False])
def test_few_examples_that_are_all_right_or_all_wrong_leave_probabilities_finite(right):
    logits = torch.tensor([[-1.2, 0.1], [0.4, -0.9], [3.0, -30.0], [-1e4, 0.0]], dtype=torch.float64)
    y = logits.argmax(-1) if right else logits.argmin(-1)
    trial = Trial(2, 1, logits, y, torch.arange(4) // 2, logits[:0])
    found = fitted([trial])
    assert found is not None
    chances = among_classes(found, logits, 1)
    assert bool(chances.isfinite().all()) and torch.allclose(chances.sum(-1), torch.ones(4, dtype=torch.float64))
    assert measured(found, trial).after.ece <= 1
