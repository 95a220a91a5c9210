"""What is read off a factory, and which values it takes."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Le
from hypothesis import given, strategies as st

from headstart.errors import ConfigError
from headstart.schema import REQUIRED, Count, Option, Positive, allowed, checked, extends, is_range, joined, options_of


def parent(
    module: object,
    *,
    steps: Annotated[int, Ge(0), Le(1000)] = 5,
    rate: Positive = 0.1,
    kernel: Literal["linear", "rbf"] | Callable[[], None] = "linear",
    hidden: Sequence[int] = (40, 40),
    rule: Callable[[], None] | None = None,
    loss: str | None = None,
) -> None:
    """Do something.

    Args:
        module: a module.
        steps, rate: how many `steps`,
            and how long.
        kernel: ``"linear"`` or another.
        hidden: widths.
    """


@extends(parent, without=("kernel",))
def child(module: object, *, shots: int | tuple[int, int] = 1, rate: float = 0.5, data: str, **options: Any) -> None:
    """Do something else.

    Args:
        shots: how many.
    """


def test_a_signature_is_the_schema() -> None:
    assert [(name, option.default) for name, option in options_of(parent).items()] == [
        ("steps", 5), ("rate", 0.1), ("kernel", "linear"), ("hidden", (40, 40)), ("loss", None),
    ]  # fmt: skip
    assert options_of(parent)["steps"].help == options_of(parent)["rate"].help == "how many steps, and how long."
    assert options_of(parent)["kernel"].help == '"linear" or another.'


def test_an_option_without_a_type_is_named() -> None:
    def untyped(module, *, steps=5) -> None: ...

    with pytest.raises(ConfigError, match="untyped does not say of what type steps is"):
        options_of(untyped)


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [(int | str, "5", 5), (int | str, "a5", "a5"), (float | str, "1e-3", 0.001), (bool | str, "true", True),
     (int | str, "9" * 50, "9" * 50), (str, "5", "5")],
)  # fmt: skip
def test_a_text_that_spells_a_number_is_one_where_it_may_be(hint: Any, text: str, value: object) -> None:
    for said in (text, value):
        found = checked(Option("option", hint, None, ""), said)
        assert found == value and type(found) is type(value)


def test_what_a_factory_hands_on_is_its_own() -> None:
    found = options_of(child)
    assert list(found) == ["shots", "rate", "data", "steps", "hidden", "loss"]
    assert (found["rate"].default, found["data"].default) == (0.5, REQUIRED)
    assert found["shots"].help == "how many." and found["steps"].help == "how many steps, and how long."
    assert allowed(found["rate"].type) == "a number"  # its own, not the one that it takes the place of


@pytest.mark.parametrize(
    ("hint", "value", "kept"),
    [
        (int, "5", 5),
        (float, "1e-3", 0.001),
        (bool, "true", True),
        (bool, False, False),
        (int | tuple[int, int], "1-5", (1, 5)),
        (int | tuple[int, int], [1, 5], (1, 5)),
        (int | tuple[int, int], " 3 ", 3),
        (tuple[float, float], "2", (2.0, 2.0)),
        (tuple[float, float], " .8 - 1.2 ", (0.8, 1.2)),
        (tuple[float, float], "1e-5-2e-5", (1e-5, 2e-5)),
        (tuple[int, ...], "64, 32", (64, 32)),
        (tuple[int, ...], [64, 32], (64, 32)),
        (tuple[str, ...], "sine,line", ("sine", "line")),
        (Literal[1, 3], "3", 3),
        (Literal["a", "b"] | None, "b", "b"),
    ],
)
def test_values_come_in_any_form(hint: Any, value: object, kept: object) -> None:
    found = checked(Option("some", hint, None, ""), value)
    assert found == kept and type(found) is type(kept)


@given(st.lists(st.floats(min_value=1e-300, max_value=1e300), min_size=2, max_size=2).map(sorted))
def test_a_range_is_kept_to_the_last_bit(ends: list[float]) -> None:
    option = Option("frequency", tuple[float, float], None, "")
    assert checked(option, "-".join(map(str, ends))) == tuple(ends) == checked(option, ends)


@given(st.lists(st.text(st.characters(codec="ascii", min_codepoint=32), min_size=1).map(str.strip).filter(bool)))
def test_names_with_commas_and_quotes_come_back(names: list[str]) -> None:
    assert checked(Option("columns", tuple[str, ...], None, ""), joined(names)) == tuple(names)


@pytest.mark.parametrize(
    ("hint", "value", "words"),
    [
        (Count, 0, "is 0, but must be a whole number from 1 up"),
        (Annotated[int, Ge(2), Le(9)], "x", "is 'x', but must be a whole number from 2 up to 9"),
        (Positive, float("nan"), "is nan, but must be a number above 0 up"),
        (Positive, "1e999", "is '1e999', but must be a number above 0 up"),
        (int, 1.5, "must be a whole number"),
        (int, True, "is True, but must be a whole number"),
        (int | tuple[int, int], "5-1", "is '5-1', but must be a whole number or a range such as 1-5"),
        (tuple[float, float], "1-2-3", "must be a range such as 1-5"),
        (tuple[int, ...], "40,x", "must be values joined by commas, such as 40,40"),
        (Literal["a", "b"], "c", "is 'c', but must be one of a, b"),
        (tuple[Literal["a", "b"], ...], "a,c", "is 'a,c', but must be one of a, b, or several joined by commas"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(hint: Any, value: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(Option("some", hint, None, ""), value)
    assert words in str(caught.value) and "pydantic" not in str(caught.value)


def test_only_pairs_are_ranges() -> None:
    assert is_range(int | tuple[int, int]) and not is_range(tuple[int, ...]) and not is_range(int)
