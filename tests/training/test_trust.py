"""What is said of examples adds up, changes no label, and comes back from JSON as it was."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from headstart.errors import FileError
from headstart.training.trust import Doubt, Judged, Line, Trust, among_classes, label_sets
from headstart.training.trust_fitting import fitted
from tests.training.drawn import several


@pytest.fixture(scope="module")
def trust() -> Trust:
    found = fitted(several(0))
    assert found is not None
    return found


def trust_of(ways: int = 3) -> Trust:
    return Trust(Line(0.5), Doubt(Line(-3.0), -1.0, 0.0, 1.0), None, 0.8, (Judged(ways, 1, 9, 0.5),))


def test_sizes_beyond_those_that_were_tried_count_as_the_nearest(trust: Trust) -> None:
    assert trust.within(50, 0.5) == (20, 1) and trust.within(3, 3) == (3, 3)


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


LOGITS = st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(LOGITS)
def test_calibrating_changes_no_label_and_sets_hold_it(rows: list[list[float]]) -> None:
    logits = torch.tensor(rows, dtype=torch.float64)
    found = among_classes(trust_of(), logits, 1)
    assert torch.allclose(found.sum(-1), torch.ones(len(rows), dtype=torch.float64))
    best = logits.argmax(-1, keepdim=True)
    assert torch.allclose(found.gather(1, best), found.amax(-1, keepdim=True))
    kept = label_sets(trust_of(), found)
    assert kept.gather(1, found.argmax(-1, keepdim=True)).all()
    # no label outside is more probable than one inside
    inside = torch.where(kept, found, 2).amin(-1)
    assert (torch.where(kept, -1.0, found).amax(-1) <= inside + 1e-12).all()
