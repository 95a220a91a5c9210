"""How far answers may be from each other."""

from pathlib import Path

import numpy as np
import pytest

from headstart.bench.peers.answers import check, difference, read
from headstart.bench.peers.process import PeerError

RIGHT = {"large": np.full(100, 10.0), "small": np.full(4, 2.0), "none": np.zeros(3)}


def test_the_worst_tensor_counts_not_all_together() -> None:
    assert difference({**RIGHT, "small": np.full(4, 2.2)}, RIGHT) == pytest.approx(0.1)
    assert difference({**RIGHT, "large": np.full(100, 10.01)}, RIGHT) == pytest.approx(0.001)


def test_what_is_zero_is_held_against_a_share_of_the_whole() -> None:
    found = difference({**RIGHT, "none": np.full(3, 1e-6)}, RIGHT)
    assert found == pytest.approx(np.sqrt(3) * 1e-6 / (0.01 * np.sqrt(100 * 100 + 16)))


def test_other_parts_shapes_and_numbers_are_refused() -> None:
    for answer, told in (
        ({"large": RIGHT["large"]}, "other parts: none, small"),
        ({**RIGHT, "small": np.full((2, 2), 2.0)}, r"a small of shape \(2, 2\)"),
        ({**RIGHT, "small": np.full(4, np.nan)}, "another one"),
        ({**RIGHT, "large": RIGHT["large"] * 1.01}, "1.0e-02 from it"),
    ):
        with pytest.raises(PeerError, match=told):
            check(answer, RIGHT, 1e-4)
    assert check(RIGHT, RIGHT, 1e-8) == 0


def test_nothing_is_not_an_answer(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="nothing to compare with"):
        difference({}, {})
    with pytest.raises(PeerError, match="no answer"):
        read(tmp_path / "none.npz")
