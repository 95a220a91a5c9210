"""Ids sort by when they were made."""

import re

from hypothesis import given, strategies as st

from headstart.serve.ids import PATTERN, ids


@given(st.lists(st.integers(0, 2**37), min_size=2, max_size=20))
def test_each_is_after_all_before_it_whatever_the_clock_says(times):
    clock = iter(times)
    make = ids(now=lambda: next(clock))
    made = [make() for _ in times]
    assert made == sorted(made) and len(set(made)) == len(made)
    assert all(re.fullmatch(PATTERN, one) for one in made)


def test_the_first_is_after_what_was_there_although_the_clock_was_set_back():
    last = ids(now=lambda: 2_000_000_000.0)()
    assert ids(last, now=lambda: 1_000_000_000.0)() > last
