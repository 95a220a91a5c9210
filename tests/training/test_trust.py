"""What is fitted to logits whose truth is known says that truth, and no more of it than is promised."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from headstart.errors import FileError, UsageError
from headstart.training.trials import Trial
from headstart.training.trust import (
    Doubt,
    Judged,
    Line,
    Trust,
    auroc,
    fitted,
    label_sets,
    measured,
    probabilities,
    reliability,
    unknown_of,
)

SIZES = ((5, 1), (2, 1), (2, 5), (20, 1), (20, 5))


def drawn(ways: int, shots: int, temperature: float, seed: int, tasks: int = 40, queries: int = 30) -> Trial:
    """Labels that are as likely as the logits divided by the temperature say; other classes have smaller logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(tasks * queries, ways, generator=generator, dtype=torch.float64)
    y = logits.softmax(-1).multinomial(1, generator=generator).squeeze(1)
    other = 2 * torch.randn(1000, ways, generator=generator, dtype=torch.float64) - 3
    task = torch.arange(tasks).repeat_interleave(queries)
    return Trial(ways, shots, temperature * logits, y, task, temperature * other)


def several(seed: int, temperature: float = 3.0) -> list[Trial]:
    return [drawn(*size, temperature, seed + place) for place, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def trust() -> Trust:
    found = fitted(several(0))
    assert found is not None
    return found


def trust_of(ways: int = 3) -> Trust:
    return Trust(Line(0.5), Doubt(Line(-3.0), -1.0, 0.0, 1.0), None, 0.8, (Judged(ways, 1, 9, 0.5),))


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


def test_sizes_beyond_those_that_were_tried_count_as_the_nearest(trust: Trust) -> None:
    assert trust.within(50, 0.5) == (20, 1) and trust.within(3, 3) == (3, 3)


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
        known, other = (unknown_of(trust, logits, size[1]) for logits in (one.logits, one.unknown))
        for share in (0.02, 0.05, 0.2):
            assert (1 - known <= share).double().mean() < 1.6 * share + 0.005, (size, share)
        assert ((0 <= known) & (known <= 1)).all() and known.mean() < other.mean()
        found = measured(trust, one)
        assert found.auroc is not None and found.auroc > 0.75
        # another draw, by pairs
        assert found.auroc == pytest.approx(auroc(-known, -other), abs=0.02)


def test_it_comes_back_from_json_as_it_was(trust: Trust) -> None:
    assert Trust.from_json(trust.to_json(), "x") == trust
    assert Trust.from_json(None, "x") is None
    plain = trust.to_json()
    for damaged in (
        {**plain, "mass": "much"},
        {name: value for name, value in plain.items() if name != "judged"},
        {**plain, "judged": []},
        {**plain, "unknown": {**plain["unknown"], "known": [0.0]}},
        {**plain, "unknown": {**plain["unknown"], "score": "the moon"}},
        3,
    ):
        with pytest.raises(FileError, match="x does not say how far answers can be believed"):
            Trust.from_json(damaged, "x")


def test_without_unknown_classes_nothing_is_said_of_them_and_of_nothing_nothing() -> None:
    bare = [one._replace(unknown=one.unknown[:0]) for one in several(0)]
    trust = fitted(bare[:2])
    assert trust is not None and trust.unknown is None and measured(trust, bare[0]).auroc is None
    with pytest.raises(UsageError, match="not seen"):
        unknown_of(trust, bare[0].logits, 1)
    none = bare[0].y[:0]
    assert fitted([]) is None and fitted([bare[0]._replace(y=none, task=none, logits=none.new_zeros(0, 5))]) is None


def test_what_is_called_impossible_stays_so_and_right_answers_that_were_are_left_out() -> None:
    one = drawn(5, 1, 2.0, 0)
    cut = one.logits.clone()
    cut[:, 4] = -torch.inf
    trust = fitted([one._replace(logits=cut)])
    assert trust is not None
    found = probabilities(trust, cut, 1)
    assert (found[:, 4] == 0).all() and torch.allclose(found.sum(-1), torch.ones(len(found), dtype=torch.float64))


LOGITS = st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(LOGITS)
def test_calibrating_changes_no_label_and_sets_hold_it(rows: list[list[float]]) -> None:
    logits = torch.tensor(rows, dtype=torch.float64)
    found = probabilities(trust_of(), logits, 1)
    assert torch.allclose(found.sum(-1), torch.ones(len(rows), dtype=torch.float64))
    best = logits.argmax(-1, keepdim=True)
    assert torch.allclose(found.gather(1, best), found.amax(-1, keepdim=True))
    kept = label_sets(trust_of(), found)
    assert kept.gather(1, found.argmax(-1, keepdim=True)).all()
    # no label outside is more probable than one inside
    inside = torch.where(kept, found, 2).amin(-1)
    assert (torch.where(kept, -1.0, found).amax(-1) <= inside + 1e-12).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_auroc_is_the_share_of_pairs(known: list[int], unknown: list[int]) -> None:
    pairs = [(a > b) + (a == b) / 2 for a in known for b in unknown]
    found = auroc(*(torch.tensor(values, dtype=torch.float64) for values in (known, unknown)))
    assert found == pytest.approx(sum(pairs) / len(pairs))


def test_reliability_by_hand() -> None:
    chances: Tensor = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]], dtype=torch.float64)
    found = reliability(chances, torch.tensor([0, 1, 1, 1]))
    assert found.confidence == pytest.approx((0.6, 0.9)) and found.accuracy == (1.0, 0.5) and found.share == (0.5, 0.5)
    assert found.ece == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)


@pytest.mark.parametrize("right", [True, False])
def test_few_examples_that_are_all_right_or_all_wrong_leave_probabilities_finite(right):
    logits = torch.tensor([[-1.2, 0.1], [0.4, -0.9], [3.0, -30.0], [-1e4, 0.0]], dtype=torch.float64)
    y = logits.argmax(-1) if right else logits.argmin(-1)
    trial = Trial(2, 1, logits, y, torch.arange(4) // 2, logits[:0])
    found = fitted([trial])
    assert found is not None
    chances = probabilities(found, logits, 1)
    assert bool(chances.isfinite().all()) and torch.allclose(chances.sum(-1), torch.ones(4, dtype=torch.float64))
    assert measured(found, trial).after.ece <= 1
