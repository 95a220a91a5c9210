"""Colours of contenders, and lines that fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.bench import memory_cases, speed_cases
from headstart.bench.chart_style import lines, soft, styles, width, wrapped


@pytest.mark.parametrize("contenders", [speed_cases.CONTENDERS, memory_cases.CONTENDERS])
def test_no_two_contenders_look_the_same(contenders) -> None:
    found = styles(each.name for each in contenders)
    assert len(set(found.values())) == len(contenders)


def test_a_library_has_one_colour_whoever_else_is_there() -> None:
    one, other = styles(["headstart", "JAX", "learn2learn, 1 thread"]), styles(["learn2learn", "higher", "JAX"])
    assert one["JAX"] == other["JAX"]
    assert one["learn2learn, 1 thread"].colour == other["learn2learn"].colour
    assert one["learn2learn, 1 thread"].dashed and not other["learn2learn"].dashed


def test_unknown_ones_have_colours_of_their_own() -> None:
    found = styles(["learn2learn", "one", "two", "one, 2 workers"])
    assert len({found[name].colour for name in ("learn2learn", "one", "two")}) == 3
    assert found["one"].colour == found["one, 2 workers"].colour


def test_ours_is_ours_with_all_its_variants() -> None:
    found = styles(["headstart", "headstart compiled", "headstart, in its first 50 steps", "headstarter"])
    assert [style.ours for style in found.values()] == [True, True, True, False]


@given(st.text(st.sampled_from("MWil ,-=()"), max_size=60), st.booleans())
def test_lines_are_no_wider_than_asked_for_and_lose_no_word(text: str, bold: bool) -> None:
    found = wrapped(text, 0.5, 8.5, bold)
    assert all(width(line, 8.5, bold) <= 0.5 for line in found.split("\n"))
    assert "".join(found.split()) == "".join(text.split())


def test_lines_are_counted() -> None:
    assert [lines(text) for text in ("", "a", "a\nb")] == [0, 1, 2]


@given(st.integers(0, 0xFFFFFF))
def test_soft_colours_are_colours_and_no_darker(value: int) -> None:
    colour = f"#{value:06x}"
    found = soft(colour)
    assert len(found) == 7 and all(int(found[at : at + 2], 16) >= int(colour[at : at + 2], 16) for at in (1, 3, 5))
