"""The image sets that are part of the package, and what a damaged data file meets."""

import hashlib
import io
import json
import re
import zipfile
from collections import Counter

import pytest
import torch

from headstart import tasks
from headstart.data.images import builtin as module
from headstart.data.images.builtin import read_archive
from headstart.errors import FileError, ShortClassError

COLOURED = pytest.mark.parametrize("name", ["emoji", "flags"])
FREE = {"MIT", "Apache-2.0", "ISC", "CC0-1.0", "BSD-3-Clause", "CC-BY-4.0"}
LEAST = {"icons": (530, 12), "emoji": (700, 6), "flags": (200, 5)}
"""Classes, and designers of each."""
BYTES = {"icons": 5_000_000, "emoji": 6_000_000, "flags": 2_000_000}


def _members(name):
    with module.data_file(name).open("rb") as file, zipfile.ZipFile(file) as archive:
        return {member: archive.read(member) for member in archive.namelist()}


@pytest.mark.parametrize("name", LEAST)
def test_the_file_is_small_and_has_enough_classes_and_designers_in_every_split(name):
    stores = read_archive(name).stores
    classes, designers = LEAST[name]
    counts = {split: len(store.names) for split, store in stores.items()}
    total = sum(counts.values())
    assert sum(map(len, _members(name).values())) > 0 and total >= classes
    with module.data_file(name).open("rb") as file:
        assert len(file.read()) <= BYTES[name]
    assert all(int(store.sizes.min()) >= designers for store in stores.values())
    assert list(counts) == ["train", "validation", "test"]
    assert [count / total for count in counts.values()] == pytest.approx([0.60, 0.15, 0.25], abs=0.03)
    names = [one for store in stores.values() for one in store.names]
    assert len(set(names)) == len(names)


@COLOURED
def test_images_are_in_colour_on_white_and_fill_the_frame(name):
    for store in read_archive(name).stores.values():
        images = store.examples
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 32, 32)
        assert (images % 17 == 0).all()
        edge = torch.cat((images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]), -1)
        assert int(edge.min()) == 255
        drawn = (images < 255).any(1)
        reach = torch.stack([_reach(drawn.any(2)), _reach(drawn.any(1))]).amax(0)
        assert int(reach.max()) == 30
        assert (reach >= 28).float().mean() > 0.9  # or an edge is white itself, as of Japan's flag
        assert float((images.amax(1) != images.amin(1)).float().mean()) > 0.2


def _reach(occupied):
    """Return, for each row, the distance from its first to its last true value, both counted."""
    places = torch.arange(1, occupied.shape[-1] + 1)
    return (occupied * places).amax(1) - torch.where(occupied, places, places[-1] + 1).amin(1) + 1


@pytest.mark.parametrize("name", LEAST)
def test_no_two_images_are_the_same(name):
    flat = torch.cat([store.examples for store in read_archive(name).stores.values()]).flatten(1).numpy()
    assert len({row.tobytes() for row in flat}) == len(flat)


@pytest.mark.parametrize("name", LEAST)
def test_every_image_has_a_source_under_a_licence_that_the_notices_carry(name):
    members, archive = _members(name), read_archive(name)
    index, manifest = (json.loads(members[part]) for part in ("index.json", "manifest.json"))
    assert hashlib.sha256(members["manifest.json"]).hexdigest() == index["sha256"]["manifest.json"]
    assert len(manifest["images"]) == sum(len(store.examples) for store in archive.stores.values())
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for _, _, digest in manifest["images"])
    licences = Counter(manifest["sets"][which][3] for which, _, _ in manifest["images"])
    assert licences == archive.details["licences"] and set(licences) <= FREE
    text = (module.data_file(name).parent / "NOTICES.md").read_text("utf-8")
    assert f"`{name}.zip`" in text
    for prefix, _, author, spdx in manifest["sets"]:
        of_licence = text.split(f"## {spdx}\n")[1].split("\n## ")[0]
        assert re.search(rf"\(`{re.escape(prefix)}`\) \| {re.escape(author)} \| [^|]+ \| <https?://", of_licence), (
            prefix
        )
    of_class = [(c, size) for classes in index["splits"].values() for c, size, _ in classes]
    owners = iter(which for which, _, _ in manifest["images"])
    for _, size in of_class:  # by a set once: in the coloured ones, a set is a designer
        drawn_by = [next(owners) for _ in range(size)]
        assert len(set(drawn_by)) == size


def _split_of(name):
    return {one: split for split, store in read_archive(name).stores.items() for one in store.names}


@pytest.mark.parametrize(
    ("name", "alike"),
    [
        ("emoji", ("cat", "cat-face", "crying-cat", "smiling-cat-with-heart-eyes")),
        ("emoji", ("first-quarter-moon", "waning-gibbous-moon", "crescent-moon")),
        ("emoji", ("grinning-face", "crying-face", "neutral-face", "pensive-face")),
        ("emoji", ("left-arrow", "up-right-arrow")),
        ("emoji", ("beating-heart", "growing-heart", "broken-heart")),
        ("flags", ("australia", "new-zealand", "cayman-islands")),
        ("flags", ("netherlands", "luxembourg")),
        ("flags", ("ireland", "italy")),
    ],
)
def test_near_synonyms_and_look_alikes_share_a_split(name, alike):
    where = _split_of(name)
    assert len({where[one] for one in alike}) == 1


def test_no_skin_tones_no_flags_and_no_flag_twice():
    emoji, flags = _split_of("emoji"), _split_of("flags")
    assert not [one for one in emoji if "skin-tone" in one or one.startswith("flag-") and one != "flag-in-hole"]
    assert not {one.split("-")[-1] for one in emoji} & {"square", "circle", "diamond", "triangle"}
    for twins in (("chad", "romania"), ("indonesia", "monaco")):
        assert len(flags.keys() & set(twins)) == 1
    assert not flags.keys() & {"bouvet-island", "svalbard-and-jan-mayen", "u-s-outlying-islands", "reunion"}


@COLOURED
def test_a_task_of_the_default_size_fits_and_a_larger_one_says_what_fits(name):
    made = getattr(tasks, name)()
    assert made.input_shape == (3, 32, 32) and made.details["skipped_classes"] == 0
    with pytest.raises(ShortClassError, match="--queries 1 works"):
        getattr(tasks, name)(shots=LEAST[name][1] - 1)


@pytest.mark.parametrize(("name", "low", "high"), [("emoji", 0.66, 0.77), ("flags", 0.71, 0.82)])
def test_nearest_class_mean_of_pixels_is_far_from_chance_and_from_perfect(name, low, high):
    episodes = getattr(tasks, name)().sample("test", range(300))
    support, query = episodes.support.x.flatten(2), episodes.query.x.flatten(2)
    right = (torch.cdist(query, support).argmin(-1) == episodes.query.y).float()
    assert low < float(right.mean()) < high


def _repacked(change, name) -> bytes:
    """Return a data file with its members changed by ``change(members)``."""
    members = _members(name)
    change(members)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        for name, data in members.items():
            out.writestr(name, data)
    return file.getvalue()


def _flip_a_pixel(members):
    members["images.bin"] = bytes([members["images.bin"][0] ^ 1]) + members["images.bin"][1:]


def _drop_images(members):
    del members["images.bin"]


def _change_index(**values):
    def change(members):
        members["index.json"] = json.dumps(json.loads(members["index.json"]) | values).encode()

    return change


def _cut_images(members):
    images = members["images.bin"][:-1]
    index = json.loads(members["index.json"])
    index["sha256"]["images.bin"] = hashlib.sha256(images).hexdigest()
    members["images.bin"], members["index.json"] = images, json.dumps(index).encode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_flip_a_pixel, "checksum of images.bin"),
        (_drop_images, "images.bin"),
        (_change_index(format="other"), "format 'other'"),
        (_change_index(splits={"train": [["a", 1, True]]}), "1 images"),
        (_cut_images, "bytes"),
        (None, "Reinstall headstart"),
        (b"no zip file", "Reinstall headstart"),
    ],
)
def test_a_damaged_file_is_refused(change, said, tmp_path, monkeypatch):
    if change is not None:
        (tmp_path / "flags.zip").write_bytes(change if isinstance(change, bytes) else _repacked(change, "flags"))
    monkeypatch.setattr(module, "data_file", lambda name: tmp_path / f"{name}.zip")
    read_archive.cache_clear()
    with pytest.raises(FileError, match=said):
        read_archive("flags")
    read_archive.cache_clear()
