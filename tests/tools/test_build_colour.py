"""The builders of emoji and flags: names, meanings, same drawings, look-alikes, and what is fitted to the frame."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(autouse=True)
def _tools_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))


def tool(name):
    return importlib.import_module(name)


def disc(colour=(200, 30, 30), mark=None):
    image = Image.new("RGBA", (240, 120), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.ellipse((60, 20, 140, 100), fill=colour)
    if mark:
        draw.rectangle((95, *mark), fill="black")
    return image


def test_fitted_crops_to_what_is_drawn_on_white_and_keeps_16_levels():
    images = tool("colour_images")
    found = images.fitted(disc())
    assert found.shape == (3, 32, 32) and (found % 17 == 0).all()
    drawn = (found < 255).any(0)
    assert np.ptp(np.flatnonzero(drawn.any(0))) == np.ptp(np.flatnonzero(drawn.any(1))) == 29
    assert tuple(found[:, 16, 16]) == (204, 34, 34)
    assert images.fitted(Image.new("RGBA", (240, 240), (0, 0, 0, 0))) is None


def test_the_same_are_copies_in_other_reds_and_not_other_mouths():
    images = tool("colour_images")
    drawings = [disc(), disc((220, 40, 40)), disc(mark=(50, 105, 55)), disc(mark=(70, 105, 75)), disc((30, 30, 200))]
    stack = np.stack([images.fitted(one) for one in drawings])
    assert images.same_drawings(stack, rows=2).tolist() == [0, 0, 2, 3, 4]


def choices(**of_class):
    archive, images = tool("archive"), tool("colour_images")
    return [
        archive.Choice(key, f"hand{place}", archive.Source(f"hand{place}", key, ""), images.fitted(drawing))
        for key, drawings in of_class.items()
        for place, drawing in enumerate(drawings)
    ]


def test_look_alikes_are_those_that_half_of_their_designers_draw_alike():
    images = tool("colour_images")
    red, blue, dotted = disc(), disc((30, 30, 200)), disc(mark=(50, 105, 55))
    found = choices(a=[red, red], b=[dotted, blue], c=[blue, blue])
    assert images.look_alikes(found, 0.9) == [("a", "b"), ("b", "c")]


def test_each_drawing_is_there_once_and_its_classes_are_known():
    images = tool("colour_images")
    kept, pairs = images.each_once(choices(a=[disc(), disc((30, 30, 200))], b=[disc((30, 200, 30)), disc()]))
    assert sorted((choice.key, choice.hand) for choice in kept) == [("a", "hand0"), ("a", "hand1"), ("b", "hand0")]
    assert pairs == [("a", "b")]
    assert images.by_class(kept, 2).keys() == {"a"}


def test_meanings_join_what_is_the_same_but_for_qualifiers():
    emoji = tool("build_emoji")
    assert emoji.meaning("blue-book") == emoji.meaning("open-books") == ["book"]
    names = ["cat", "cat-with-wry-smile", "palm-tree", "christmas-tree", "dog", "left-arrow", "right-arrow"]
    pairs = {frozenset(pair) for pair in emoji.near_synonyms(names)}
    expected = [("cat", "cat-with-wry-smile"), ("palm-tree", "christmas-tree"), ("left-arrow", "right-arrow")]
    assert pairs == set(map(frozenset, expected))


def test_characters_are_single_and_neither_tones_nor_plain_shapes():
    emoji = tool("build_emoji")
    chars = {
        "1f600": "grinning-face",
        "1f3fb": "light-skin-tone",
        "1f44b-1f3fb": "waving-light",
        "2764-fe0f": "red-heart",
    }
    sets = {
        "twemoji": {"chars": {**chars, "1f7e6": "blue-square"}, "aliases": {"smile": {"parent": "grinning-face"}}},
        "noto": {"chars": {"1f600": "grin"}},
        "fluent-emoji-flat": {"chars": {}},
    }
    assert emoji.characters(sets) == {
        "grinning-face": ["grinning-face", "grin", "smile", "grinning-face"],
        "red-heart": ["red-heart", "heavy-black-heart"],
    }


def test_countries_are_pairs_of_letters_without_those_of_anothers_flag():
    flags = tool("build_flags")
    chars = {"1f1e6-1f1f9": "flag-austria", "1f1f8-1f1ef": "flag-svalbard", "1f600": "grinning-face"}
    assert flags.countries({"chars": chars}) == {"at": "austria"}
    icon_set = {"icons": {"at-4x3": {"body": "<g/>"}, "at-1x1": {"body": "<g/>"}}}
    assert flags.source("flag", icon_set, "at", "austria").name == "at-4x3"
    assert flags.source("cif", icon_set, "at", "austria") is None


@pytest.mark.parametrize("change", ["licence", "palette"])
def test_sets_that_are_not_free_or_not_in_colour_are_refused(change):
    archive, flags = tool("archive"), tool("build_flags")
    infos = {prefix: {"palette": True, "license": {"spdx": "MIT"}} for prefix in flags.COPYRIGHTS}
    colours = archive.ImageSet("flags", flags.COPYRIGHTS, flags.HEAD, flags.LEVELS, flags.build, True)
    assert archive.usable(infos, colours) == sorted(flags.COPYRIGHTS)
    infos["cif"] |= {"license": {"spdx": "CC-BY-SA-4.0"}} if change == "licence" else {"palette": False}
    with pytest.raises(SystemExit, match="cif"):
        archive.usable(infos, colours)
