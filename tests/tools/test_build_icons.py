"""The builder of the icons data set: names, choice, duplicates, splits, bytes."""

import importlib
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(autouse=True)
def _tools_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))


def tool(name):
    return importlib.import_module(name)


def key(name, styles=None, prefix=""):
    names = tool("icon_names")
    return names.subject(name, names.ALWAYS_STYLES if styles is None else styles, prefix).key


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bell-outline", "bell"),
        ("bell-fill", "bell"),
        ("outline", "outline"),
        ("left-arrow", "arrow-left"),
        ("chevrons-left", "chevron-double-left"),
        ("add-shopping-cart", "cart-plus"),
        ("help-circle", "circle-question"),
        ("eye-slash", "eye-off"),
        ("slash", "slash"),
        ("cog", "gear"),
        ("log-out", "logout"),
        ("traffic-light", "light-traffic"),
    ],
)
def test_subject_takes_style_order_and_synonyms_off(name, expected):
    assert key(name) == expected


def test_a_word_is_a_style_only_in_sets_that_use_it_as_one():
    names = tool("icon_names")
    lined = [f"{word}-{style}" for word in ("bell", "sun", "moon") for style in ("line", "fill")]
    assert key("bell-line", names.set_styles(lined)) == "bell"
    plain = [*(f"icon{i}" for i in range(100)), "chart-line"]
    assert key("chart-line", names.set_styles(plain)) == "chart-line"


def test_sizes_and_prefix_styles_are_taken_off_and_plain_comes_first():
    names = tool("icon_names")
    styles = names.set_styles(
        [f"{w}-{n}-{s}" for w in ("bell", "sun") for n in (16, 24) for s in ("regular", "filled")]
    )
    found = [names.subject(f"bell-{n}-{s}", styles) for n in (16, 24) for s in ("regular", "filled")]
    assert {subject.key for subject in found} == {"bell"}
    assert min(found, key=lambda s: s.penalty) == found[2]  # 24, regular
    assert key("twotone-bell", prefix="ic") == "bell"


def test_directions_brands_and_families():
    names = tool("icon_names")
    assert names.is_directional("arrow-left")
    assert not names.is_directional("umbrella")
    assert names.is_brand("circle-github")
    assert not names.is_brand("circle")
    assert names.family("arrow-left") == names.family("arrows-up") == "arrow"
    assert names.family("users") == names.family("user")
    assert names.family("left") == "left"


def test_splits_keep_groups_whole_and_meet_their_shares():
    names = tool("icon_names")
    groups = [f"g{i // 2}" for i in range(400)]
    split = names.splits_of(groups)
    shares = {s: sum(split[g] == s for g in groups) / 400 for s, _ in names.SPLITS}
    assert shares == pytest.approx({"train": 0.60, "validation": 0.15, "test": 0.25}, abs=0.01)
    assert split == names.splits_of(groups[::-1])


def test_fitted_crops_keeps_shape_and_marks_plates():
    images = tool("icon_images")
    ink = np.zeros((224, 224), np.uint8)
    ink[50:60, 20:220] = 255
    drawing = images.fitted(ink)
    rows, columns = np.nonzero(drawing.image)
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (26, 1)
    assert images.fitted(np.zeros((224, 224), np.uint8)) is None
    plate = np.full((224, 224), 255, np.uint8)
    plate[100:120, 60:160] = 0
    assert images.fitted(plate).plate
    assert not images.fitted(np.pad(np.eye(200, dtype=np.uint8) * 255, 12)).plate


def test_same_drawings_keeps_the_first_of_each():
    images = tool("icon_images")
    rng = np.random.default_rng(0)
    different = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    near = np.clip(different[1].astype(int) + rng.integers(-5, 6, (28, 28)), 0, 255).astype(np.uint8)
    stack = np.stack([*different, different[0], near])
    assert images.same_drawings(stack, rows=2).tolist() == [0, 1, 2, 3, 4, 0, 1]


def test_looks_turned_tells_a_cross_from_an_l():
    images = tool("icon_images")
    rng = np.random.default_rng(0)
    cross, ell = np.zeros((2, 28, 28), np.uint8)
    cross[12:16, 2:26] = cross[2:26, 12:16] = 255
    ell[2:26, 4:8] = ell[22:26, 4:20] = 255

    def drawn(shape):
        return np.stack([shape ^ (rng.random((28, 28)) < 0.05).astype(np.uint8) * 255 for _ in range(12)])

    assert images.looks_turned(drawn(cross))
    assert not images.looks_turned(drawn(ell))


def test_groups_join_pairs_under_the_first_name():
    images = tool("icon_images")
    assert images.groups([("c", "b"), ("b", "a")], "abcd") == {"a": "a", "b": "a", "c": "a", "d": "d"}


def _package(folder, monkeypatch):
    """Write a small package: 13 designers draw 3 things; one thing is under two names; and return its folder."""
    build = tool("build_icons")
    prefixes = [f"set{i}" for i in range(13)]
    monkeypatch.setattr(build, "COPYRIGHTS", dict.fromkeys(prefixes, "Copyright (c) Someone"))
    (folder / "package/json").mkdir(parents=True)
    infos = {}
    for i, prefix in enumerate(prefixes):
        infos[prefix] = {
            "name": prefix.title(),
            "author": {"name": f"Designer {i}", "url": "https://example.org"},
            "license": {"spdx": "MIT"},
            "palette": False,
        }
        stroke = f'stroke="#000" stroke-width="{1 + i / 4}"'
        bodies = {
            "key-outline": f'<circle cx="8" cy="8" r="{3 + i / 3}"/><path d="M12 12l10 {2 * i - 12}" stroke="#000"/>',
            "key": '<rect width="24" height="24"/>',
            "flag": f'<path d="M4 2v20h2v-{6 + i / 2}h{8 + i}v-10z"/>',
            "banner": f'<path fill="currentColor" d="M4 2v20h2v-{6 + i / 2}h{8 + i}v-10z"/>',
            "arrow-left": f'<path d="M2 12h20M2 12l{4 + i} -{3 + i / 2}M2 12l9 9" {stroke}/>',
            "blank": "<g/>",
            "github": '<circle cx="12" cy="12" r="9"/>',
            "sun": '<circle cx="12" cy="12" r="9"><animate attributeName="r"/></circle>',
        }
        icons = {"prefix": prefix, "height": 24, "width": 24, "icons": {n: {"body": b} for n, b in bodies.items()}}
        (folder / f"package/json/{prefix}.json").write_text(json.dumps(icons), "utf-8")
    (folder / "package/collections.json").write_text(json.dumps(infos), "utf-8")
    return folder


def test_build_is_complete_and_the_same_every_time(tmp_path, monkeypatch, capsys):
    pytest.importorskip("resvg_py", reason="needs resvg-py: pip install 'headstart[icons]'")
    monkeypatch.setenv("PYTHONPATH", str(TOOLS))
    package, build = _package(tmp_path, monkeypatch), tool("build_icons")
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as tar:
        tar.add(package / "package", "package")
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    assert build.main([str(package), "--out", str(one), "--processes", "1"]) == 0
    assert build.main([str(tmp_path / "package.tgz"), "--out", str(two), "--processes", "2"]) == 0
    assert (one / "icons.zip").read_bytes() == (two / "icons.zip").read_bytes()
    assert build.main([str(package), "--out", str(one), "--check", "--processes", "1"]) == 0
    with zipfile.ZipFile(one / "icons.zip") as made:
        index = json.loads(made.read("index.json"))
    classes = [name for split in index["splits"].values() for name, *_ in split]
    assert sorted(classes) == ["arrow-left", "banner", "key"]  # 'flag' is the same drawing, 'banner' comes first
    turns = {name: may_turn for split in index["splits"].values() for name, _, may_turn in split}
    assert not turns["arrow-left"]
    (one / "NOTICES.md").write_text("changed", "utf-8")
    assert build.main([str(package), "--out", str(one), "--check", "--processes", "1"]) == 1
    assert "NOTICES.md differs" in capsys.readouterr().out


def test_a_set_that_changed_its_licence_is_refused(tmp_path, monkeypatch):
    package, build = _package(tmp_path, monkeypatch), tool("build_icons")
    path = package / "package/collections.json"
    infos = json.loads(path.read_text("utf-8"))
    infos["set3"]["license"]["spdx"] = "CC-BY-NC-4.0"
    path.write_text(json.dumps(infos), "utf-8")
    with pytest.raises(SystemExit, match="set3"):
        build.main([str(package), "--out", str(tmp_path)])
