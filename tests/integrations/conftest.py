from typing import NamedTuple

import numpy as np
import pytest


class Table(NamedTuple):
    """Rows of several tasks."""

    x: np.ndarray
    y: np.ndarray
    groups: np.ndarray


@pytest.fixture(scope="session")
def lines():
    """20 lines through 0 whose slopes differ, 8 points each: what is pooled says nothing."""
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, size=(20, 8, 2))
    slopes = random.normal(size=(20, 1))
    y = slopes * x[..., 0] + 0.05 * random.normal(size=(20, 8))
    return Table(x.reshape(-1, 2), y.ravel(), np.repeat([f"line {n}" for n in range(20)], 8))


@pytest.fixture(scope="session")
def sides():
    """12 tasks of 24 points: the class is the side of a line through 0, and which label is which differs."""
    random = np.random.default_rng(0)
    x = random.normal(size=(12, 24, 4))
    right = (x[..., 0] > 0) ^ (random.random((12, 1)) > 0.5)
    return Table(x.reshape(-1, 4), np.where(right.ravel(), "yes", "no"), np.repeat(np.arange(12), 24))
