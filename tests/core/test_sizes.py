import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.core.sizes import to_bytes, to_text
from headstart.errors import UsageError


@pytest.mark.parametrize(
    "memory, expected",
    [
        (1, 1),
        (123456, 123456),
        ("7", 7),
        ("7 B", 7),
        ("2KB", 2000),
        ("2KiB", 2048),
        (" 500 mb ", 500 * 10**6),
        ("1.5GiB", 3 * 2**29),
        ("2gb", 2 * 10**9),
        ("1 TiB", 2**40),
        ("1TB", 10**12),
    ],
)
def test_amounts_are_read(memory, expected):
    assert to_bytes(memory) == expected


@pytest.mark.parametrize(
    "memory",
    [0, -5, "0 MB", "-1 GB", "", "GB", "1 gigabyte", "1,5 GB", "1e9", "much", None, "0.4", 0.4, "0.0009 KB"],
)
def test_what_is_no_amount_is_refused(memory):
    with pytest.raises(UsageError, match="memory must be a number of bytes from 1 up, or a text such as '2GiB'"):
        to_bytes(memory)


@pytest.mark.parametrize(
    "size, expected",
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (3 * 2**19, "1.5 MiB"),
        (2**30, "1 GiB"),
        (2**43, "8192 GiB"),
    ],
)
def test_amounts_are_written(size, expected):
    assert to_text(size) == expected


@given(st.integers(1, 10**15))
def test_what_is_written_can_be_read(size):
    assert abs(to_bytes(to_text(size)) - size) <= 0.01 * size
