"""Numbers, booleans and dates out of text."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.data.tables.file import strings
from headstart.data.tables.values import (
    are_booleans,
    as_numbers,
    booleans,
    common_date_format,
    date_format,
    dates,
    is_number,
    numbers,
)
from headstart.errors import DataError


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_are_read_back_exactly(values: list[float]) -> None:
    found = as_numbers(strings([repr(value) for value in values]))
    assert found is not None and found.tolist() == values


@given(st.lists(st.text(max_size=6)))
def test_text_is_a_number_where_each_part_is(texts: list[str]) -> None:
    there = [text for text in texts if text]
    assert (as_numbers(strings(texts)) is not None) == all(is_number(text) for text in there)


def test_what_is_no_number_is_named(in_memory: Any) -> None:
    table = in_memory({"x": ["1", "", "1_000", "b"]})
    with pytest.raises(DataError, match=r"some.csv, line 4, column 'x': '1_000' is not a number; mend it"):
        numbers(table, "x", "mend it")
    with pytest.raises(DataError, match="line 2, .*a decimal comma is not read, write a point; mend it"):
        numbers(in_memory({"x": ["1,5"]}), "x", "mend it")
    with pytest.raises(DataError, match="line 3, .*'inf' is not a finite number"):
        numbers(in_memory({"x": ["1", "inf"]}), "x", "mend it")
    found = numbers(in_memory({"x": ["1", "", "-2.5e3"]}), "x", "mend it").tolist()
    assert found[0] == 1 and math.isnan(found[1]) and found[2] == -2500


def test_booleans_are_told_in_either_case(in_memory: Any) -> None:
    assert booleans(in_memory({"x": ["Yes", "no", "TRUE", "f"]}), "x").tolist() == [1, 0, 1, 0]
    assert are_booleans(["true", "N"]) and not are_booleans(["true", "maybe"])
    with pytest.raises(DataError, match="line 3, column 'x': 'maybe' is not true or false"):
        booleans(in_memory({"x": ["yes", "maybe"]}), "x")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2020-02-29", "date"), ("2020-02-29T12:30", "date and time"), ("2020-02-29 12:30:05.25", "date and time"),
        ("2020-02-29T12:30:00Z", "date and time with zone"), ("2020-02-29 12:30+02:00", "date and time with zone"),
        ("29/02/2020", "other"), ("29.2.20", "other"), ("2/29/2020 12:30", "other"), ("2020/02/29", "other"),
        ("red", None), ("1.5", None), ("192.168.0.1", None), ("", None),
    ],
)  # fmt: skip
def test_formats_of_dates_are_told_apart(text: str, found: str | None) -> None:
    assert date_format(text) == found


def test_dates_are_days(in_memory: Any) -> None:
    table = in_memory({"x": ["1970-01-02", "1969-12-31", "2020-02-29", ""]})
    assert common_date_format(table, "x") == "date"
    found = dates(table, "x", "date").tolist()
    assert found[:3] == [1, -1, 18321] and math.isnan(found[3])
    table = in_memory({"x": ["1970-01-01T12:00", "1970-01-02 00:00:00.000000000"]})
    assert dates(table, "x", "date and time").tolist() == [0.5, 1]
    table = in_memory({"x": ["1970-01-01T12:00Z", "1970-01-01T12:00 -06:00"]})
    assert dates(table, "x", "date and time with zone").tolist() == [0.5, 0.75]


def test_dates_in_several_formats_are_refused(in_memory: Any) -> None:
    table = in_memory({"x": ["2020-01-31", "2020-02-01", "01/02/2020", "2020-02-03"]})
    with pytest.raises(DataError, match="some.csv, line 4, column 'x': '01/02/2020' is not a date, as the column's"):
        common_date_format(table, "x")
    with pytest.raises(DataError, match="line 2, column 'x': '01/02/2020' is a date that is not ISO 8601; write all"):
        common_date_format(in_memory({"x": ["01/02/2020", "02/02/2020"]}), "x")
    with pytest.raises(DataError, match="line 3, column 'x': '2020-01-01T12:00' is not a date, as"):
        common_date_format(in_memory({"x": ["2020-01-01", "2020-01-01T12:00", "2020-01-02"]}), "x")
    with pytest.raises(DataError, match="line 2, column 'x': '2020-02-30' is no day of the calendar"):
        dates(in_memory({"x": ["2020-02-30"]}), "x", "date")
    assert common_date_format(in_memory({"x": ["2020-01-01", "red", "blue", ""]}), "x") is None
