"""Confidence is held against accuracy as by hand."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from headstart.training.reliability import auroc, reliability


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_auroc_is_the_share_of_pairs(known: list[int], unknown: list[int]) -> None:
    pairs = [(a > b) + (a == b) / 2 for a in known for b in unknown]
    found = auroc(*(torch.tensor(values, dtype=torch.float64) for values in (known, unknown)))
    assert found == pytest.approx(sum(pairs) / len(pairs))


def test_reliability_by_hand() -> None:
    confidence = torch.tensor([0.9, 0.9, 0.6, 0.6], dtype=torch.float64)
    right = torch.tensor([True, False, True, True])
    found = reliability(confidence, right)
    assert found.confidence == pytest.approx((0.6, 0.9)) and found.accuracy == (1.0, 0.5) and found.share == (0.5, 0.5)
    assert found.ece == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
    # as if the second were there thrice
    found = reliability(confidence, right, torch.tensor([1.0, 3.0, 1.0, 1.0], dtype=torch.float64))
    assert found.accuracy == pytest.approx((1.0, 0.25)) and found.share == pytest.approx((1 / 3, 2 / 3))
    assert found.ece == pytest.approx(0.4 / 3 + 0.65 * 2 / 3)
