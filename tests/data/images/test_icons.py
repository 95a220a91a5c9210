"""The icons data set: what is in the file, and the tasks made of it."""

import hashlib
import json
import re
import time
import zipfile
from collections import namedtuple
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from headstart.data.images.builtin import read_archive
from headstart.data.images.icons import icons, load_icons

FOLDER = Path(str(files("headstart.data.images.icons")))
Source = namedtuple("Source", ("split", "class_name", "icon_set", "author", "licence", "sha256"))
PERMISSIVE = {"MIT", "Apache-2.0", "ISC", "CC0-1.0", "BSD-3-Clause"}


def read_manifest():
    """Return where each image comes from: its split, class, set, author, licence, and the SHA-256 of its source."""
    with zipfile.ZipFile(FOLDER / "icons.zip") as archive:
        index, manifest = (json.loads(archive.read(name)) for name in ("index.json", "manifest.json"))
        assert hashlib.sha256(archive.read("manifest.json")).hexdigest() == index["sha256"]["manifest.json"]
    places = [
        (split, name) for split, classes in index["splits"].items() for name, size, _ in classes for _ in range(size)
    ]
    sets = manifest["sets"]
    images = [(*[sets[which][part] for part in (0, 2, 3)], digest) for which, _, digest in manifest["images"]]
    return [Source(*place, *image) for place, image in zip(places, images, strict=True)]


def test_file_is_small_and_quick_to_read():
    assert (FOLDER / "icons.zip").stat().st_size <= 5_000_000
    read_archive.cache_clear()
    began = time.perf_counter()
    load_icons()
    assert time.perf_counter() - began < 2.0  # 0.06 s alone; the margin is for a busy machine


def test_splits_have_enough_classes_and_designers():
    stores = load_icons()
    assert list(stores) == ["train", "validation", "test"]
    counts = {split: len(store.names) for split, store in stores.items()}
    total = sum(counts.values())
    assert total >= 450
    assert all(int(store.sizes.min()) >= 12 for store in stores.values())
    for split, share in (("train", 0.60), ("validation", 0.15), ("test", 0.25)):
        assert counts[split] / total == pytest.approx(share, abs=0.03)


def test_classes_are_in_one_split_and_sorted():
    stores = load_icons()
    names = [name for store in stores.values() for name in store.names]
    assert len(set(names)) == len(names)
    assert all(store.names == tuple(sorted(store.names)) for store in stores.values())
    words = {split: {tuple(sorted(n.split("-"))) for n in store.names} for split, store in stores.items()}
    assert not words["train"] & (words["validation"] | words["test"])
    assert not words["validation"] & words["test"]


def test_plural_and_direction_variants_share_a_split():
    where = {name: split for split, store in load_icons().items() for name in store.names}
    for stem in ("arrow", "chevron", "caret", "thumbs"):
        family = {split for name, split in where.items() if re.fullmatch(rf"{stem}-(left|right|up|down)", name)}
        assert len(family) == 1, stem
    plurals = [(name, f"{name}s") for name in where if f"{name}s" in where]
    assert plurals
    assert all(where[one] == where[many] for one, many in plurals)


def test_images_are_ink_on_nothing_fitted_to_the_frame():
    for store in load_icons().values():
        images = store.examples
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (1, 28, 28)
        assert (images % 17 == 0).all()
        edge = torch.cat((images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]), -1)
        assert int(edge.max()) == 0
        drawn = images[:, 0] > 0
        reach = torch.stack([_reach(drawn.any(2)), _reach(drawn.any(1))]).amax(0)
        assert int(reach.max()) == 26  # the longer side fills what the margin leaves
        assert int(reach.min()) >= 24  # or a hairline's end was too faint to keep
        ink = images.float().mean((1, 2, 3)) / 255
        assert float(ink.min()) > 0.01
        assert 0.2 < float(ink.mean()) < 0.4


def _reach(occupied):
    """Return, for each row, the distance from its first to its last true value, both counted."""
    places = torch.arange(1, 29)
    return (occupied * places).amax(1) - torch.where(occupied, places, 29).amin(1) + 1


def test_no_two_images_are_the_same():
    flat = torch.cat([store.examples for store in load_icons().values()]).flatten(1).numpy()
    assert len({row.tobytes() for row in flat}) == len(flat)


def test_manifest_names_the_source_of_every_image():
    stores, sources = load_icons(), read_manifest()
    assert len(sources) == sum(len(store.examples) for store in stores.values())
    assert {source.licence for source in sources} <= PERMISSIVE
    assert all(re.fullmatch("[0-9a-f]{64}", source.sha256) for source in sources)
    expected = [
        (split, name)
        for split, store in stores.items()
        for name, size in zip(store.names, store.sizes.tolist())
        for _ in range(size)
    ]
    assert [(source.split, source.class_name) for source in sources] == expected


def test_a_designer_draws_a_class_once():
    sources = read_manifest()
    assert len({(source.class_name, source.author) for source in sources}) == len(sources)


def test_notices_name_every_set_and_carry_the_licences():
    text = (FOLDER / "NOTICES.md").read_text("utf-8")
    sources = read_manifest()
    for prefix, author in {(source.icon_set, source.author) for source in sources}:
        assert re.search(rf"\(`{re.escape(prefix)}`\) \| {re.escape(author)} \| [^|]+ \| <https?://", text), prefix
    for needed in ("Permission is hereby granted, free of charge", "Apache License, Version 2.0"):
        assert needed in text
    for needed in ("Redistribution and use in source and binary forms", "Permission to use, copy, modify, and/or"):
        assert needed in text


def test_default_tasks_fit_one_and_five_shots():
    for shots in (1, 5):
        episodes = icons(shots=shots).sample("test", [0, 1])
        assert episodes.support.x.shape == (2, 5 * shots, 1, 28, 28)
        assert episodes.query.x.shape == (2, 35, 1, 28, 28)
        assert float(episodes.query.x.max()) == 1.0


def test_rotations_add_classes_to_training_only():
    stores, turns = load_icons(), read_archive("icons").turns
    plain, turned = icons(rotations=False).details, icons().details
    assert plain["classes"] == {split: len(store.names) for split, store in stores.items()}
    assert turned["classes"]["train"] == plain["classes"]["train"] + 3 * sum(turns["train"])
    assert sum(turns["train"]) >= 100
    for split in ("validation", "test"):
        assert turned["classes"][split] == plain["classes"][split]


def test_directional_and_symmetric_classes_are_not_turned():
    may_turn = {
        n: t for split, ts in read_archive("icons").turns.items() for n, t in zip(load_icons()[split].names, ts)
    }
    directional = [n for n in may_turn if {"left", "right", "up", "down", "undo", "horizontal"} & set(n.split("-"))]
    assert directional
    assert not any(may_turn[name] for name in directional)
    assert not any(may_turn[name] for name in ("sun", "globe", "grid", "maximize"))
    assert all(may_turn[name] for name in ("umbrella", "trophy", "key", "home"))


def test_nearest_class_mean_of_pixels_is_far_from_chance_and_from_perfect():
    episodes = icons().sample("test", range(500))
    support, query = episodes.support.x.flatten(2), episodes.query.x.flatten(2)
    right = (torch.cdist(query, support).argmin(-1) == episodes.query.y).float()
    assert 0.55 < float(right.mean()) < 0.67  # 0.61 over 1000 tasks; chance is 0.2


def test_details_describe_the_data():
    details = icons().details
    stores = load_icons()
    assert sum(details["licences"].values()) == sum(len(store.examples) for store in stores.values())
    assert details["sets"] == len({source.icon_set for source in read_manifest()})
    assert details["designers"] >= 12
