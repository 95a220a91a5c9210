"""Several sources of images at once."""

import re

import pytest
import torch
from PIL import Image

from headstart.data.images.domains import domains
from headstart.errors import ConfigError, ShapeError, ShortClassError, UsageError
from headstart.tasks import icons


@pytest.fixture
def flags(tmp_path):
    for place in range(15):
        (tmp_path / "flags" / f"flag {place}").mkdir(parents=True)
        for shade in range(4):
            colour = (16 * place, 16 * place, 20 * shade)
            Image.new("RGB", (12, 8), colour).save(tmp_path / "flags" / f"flag {place}" / f"{shade}.png")
    return tmp_path / "flags"


def test_options_go_to_the_sources_that_take_them_and_grey_becomes_colour(flags):
    tasks = domains(["icons", str(flags)], ways=3, queries=2, channels=3, rotations=False, fit="pad")
    assert tasks.input_shape == (3, 28, 28)
    assert tasks.details["domains"]["icons"]["rotations"] is False and tasks.details["fit"] == "pad"
    x = tasks.sample("test", [0, 1]).query.x
    assert torch.equal(x[0], icons(ways=3, queries=2).sample("test", [0]).query.x[0].repeat(1, 3, 1, 1))
    assert not torch.equal(x[1][:, 0], x[1][:, 2])
    assert {tasks.names("test", number)[0].partition("/")[0] for number in (0, 1)} == {"icons", "flags"}
    assert any("light on dark" in note for note in tasks.details["notes"])


def test_queries_are_as_many_as_every_source_has_by_default():
    assert domains(["emoji", "flags"]).details["queries"] == 4  # flags' own, of 5 drawings
    assert domains(["emoji"], queries=3).details["queries"] == 3
    assert domains(["icons"]).details["queries"] == 5


def test_a_source_may_have_options_of_its_own(flags):
    sources = ["icons", {"name": "folder", "data": str(flags), "channels": "1"}]
    tasks = domains(sources, ways=3, queries=2)
    assert tasks.input_shape == (1, 28, 28)
    assert tasks.details["classes"]["test"] == 3 + len(icons().details["class_names"]["test"])


def test_images_that_differ_are_refused_with_the_options_that_make_them_alike(flags):
    told = "icons has 1 x 28 x 28; flags has 3 x 32 x 32); --channels 3 --image-size 32 makes all of them so"
    with pytest.raises(ShapeError, match=re.escape(told)):
        domains(["icons", {"name": "folder", "data": str(flags), "image_size": 32}], ways=3, queries=2)


def test_a_source_with_too_few_classes_or_images_is_named(flags):
    with pytest.raises(ShortClassError, match="^flags: .* has 15 classes"):
        domains(["icons", str(flags)], channels=3, queries=2)
    with pytest.raises(ShortClassError, match="^flags: class 'flag .* --queries 3 works"):
        domains(["icons", str(flags)], channels=3, ways=3)


@pytest.mark.parametrize(
    ("sources", "options", "error", "message"),
    [
        ([], {}, UsageError, "no source"),
        (["icons", "icons"], {}, UsageError, "icons is there twice"),
        (["icons", "sinusoid"], {}, ConfigError, "'sinusoid' is no single source of images"),
        (["icons", {"name": "domains", "sources": ["icons"]}], {}, ConfigError, "'domains' is no single source"),
        ([{"name": "icons", "ways": 3}], {}, ConfigError, "icons: ways is the same for all sources"),
        ([{"name": "icons", "rotation": 3}], {}, ConfigError, "icons: rotation is no option of it; it takes"),
        ([{"name": "icons", "rotations": 3}], {}, ConfigError, "icons: rotations is 3, but must be true or false"),
        (["icons"], {"fit": "pad"}, UsageError, "none of icons takes fit"),
    ],
)
def test_what_is_wrong_with_sources_is_said(sources, options, error, message):
    with pytest.raises(error, match=message):
        domains(sources, **options)


def test_classes_that_are_called_alike_elsewhere_are_told_of(tmp_path):
    names = sorted(icons().details["class_names"]["train"])[:400:27]
    for place, name in enumerate(names):
        (tmp_path / "others" / name).mkdir(parents=True)
        for shade in range(4):
            Image.new("L", (8, 8), 16 * place + shade).save(tmp_path / "others" / name / f"{shade}.png")
    tasks = domains(["icons", str(tmp_path / "others")], ways=3, queries=2, channels=1)
    (note,) = (note for note in tasks.details["notes"] if "called as training classes" in note)
    assert note.startswith("3 of the test classes") and "of others and icons" in note
