import io
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.data.images import omniglot as module
from headstart.data.images.omniglot import ZIPS, omniglot, read_omniglot
from headstart.errors import DataError, FileError, ShortClassError, UsageError


@pytest.fixture(scope="module")
def data(tmp_path_factory, shared_data):
    """The real zips in a folder that may be written to, decoded once for all tests."""
    source = shared_data / "omniglot"
    if not all((source / name).is_file() for name in ZIPS):
        pytest.skip("Omniglot's zips are not there; set HEADSTART_DATA to the folder that holds omniglot/")
    folder = tmp_path_factory.mktemp("omniglot")
    for name in ZIPS:
        shutil.copyfile(source / name, folder / name)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Zips of two characters and one, made up, and expected as such."""
    monkeypatch.setattr(module, "ZIPS", {"images_background.zip": 2, "images_evaluation.zip": 1})
    folder = tmp_path / "small"
    folder.mkdir()
    write(folder / "images_background.zip", ["Latin/character01", "Latin/character02"])
    write(folder / "images_evaluation.zip", ["Runes/character01"])
    return folder


def drawing(k, side=105):
    """A drawing with its ``k + 1`` upper rows of 3.75 pixels in ink."""
    paper = np.ones((side, side), bool)
    paper[: 15 * (k % 7 + 1)] = False
    data = io.BytesIO()
    Image.fromarray(paper).save(data, "PNG")
    return data.getvalue()


def write(path, characters, drawers=20, make=drawing):
    with zipfile.ZipFile(path, "w") as archive:
        for character in characters:
            for k in range(drawers):
                archive.writestr(f"{path.stem}/{character}/0001_{k + 1:02}.png", make(k))


def test_the_usual_split_has_the_usual_numbers_of_classes(data):
    tasks = omniglot(data=data)
    assert tasks.details["characters"] == {"train": 1100, "validation": 100, "test": 423}
    assert tasks.details["classes"] == {"train": 4400, "validation": 400, "test": 1692}
    assert tasks.input_shape == (1, 28, 28)
    support, query = tasks.sample("train", range(8))
    assert support.x.shape == (8, 5, 1, 28, 28) and query.x.shape == (8, 75, 1, 28, 28)
    assert 0.03 < query.x.mean() < 0.2, "ink is 1 and covers a small part"
    assert query.x.min() == 0 and query.x.max() == 1


def test_the_alphabets_split_keeps_the_evaluation_alphabets_for_test(data):
    tasks = omniglot(data=data, split="alphabets", seed=3)
    characters = tasks.details["characters"]
    assert characters["test"] == 659
    assert characters["train"] + characters["validation"] == 964
    assert tasks.details["classes"] == {**characters, "train": 4 * characters["train"]}


def test_the_split_does_not_depend_on_the_seed_but_tasks_do(data):
    one, other = (omniglot(data=data, seed=seed) for seed in (0, 1))
    assert one.details["images"] == other.details["images"]
    assert not torch.equal(one.sample("test", [0]).query.x, other.sample("test", [0]).query.x)


def test_all_drawings_are_read_once_and_then_from_the_cache(data, monkeypatch):
    first = read_omniglot(data)
    assert first.images.shape == (1623, 20, 1, 28, 28)
    assert first.background == 964
    assert len({name.partition("/")[0] for name in first.names[:964]}) == 30
    assert len({name.partition("/")[0] for name in first.names[964:]}) == 20
    monkeypatch.setattr(module, "_read_zip", lambda *_: pytest.fail("decoded again"))
    again = read_omniglot(data)
    assert torch.equal(first.images, again.images)
    assert first[1:] == again[1:]


def test_more_images_than_a_character_has_are_refused(data):
    with pytest.raises(ShortClassError, match="has 20 images, but 6 support"):
        omniglot(data=data, shots=6)


def test_ink_is_averaged_over_areas(small):
    images, names, background = read_omniglot(small)
    assert names == ("Latin/character01", "Latin/character02", "Runes/character01")
    assert background == 2
    for k in range(7):
        assert (images[0, k, 0, : 4 * (k + 1)] == 255).all()
        assert (images[0, k, 0, 4 * (k + 1) :] == 0).all()


def test_the_cache_is_beside_the_zips_and_tells_other_zips_apart(small, cache):
    read_omniglot(small)
    (kept,) = small.glob("*.npz")
    assert not cache.exists()
    write(small / "images_evaluation.zip", ["Runes/character09"])
    assert read_omniglot(small).names[-1] == "Runes/character09"
    assert len(list(small.glob("*"))) == 4, "one more array, and nothing half-written"
    assert kept.exists()


def test_the_cache_goes_to_the_users_folder_where_the_data_cannot_be_written(small, cache, monkeypatch):
    whole = module.whole

    def refuse(path):
        if path.parent == small:
            raise PermissionError(path)
        return whole(path)

    monkeypatch.setattr(module, "whole", refuse)
    first = read_omniglot(small)
    assert len(list(cache.glob("*.npz"))) == 1 and not list(small.glob("*.npz"))
    monkeypatch.setattr(module, "_read_zip", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(read_omniglot(small).images, first.images)


@pytest.mark.parametrize("content", [b"", b"PK not an archive", None])
def test_a_damaged_cache_is_made_anew(small, content):
    first = read_omniglot(small)
    (kept,) = small.glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:-100] if content is None else content)
    assert torch.equal(read_omniglot(small).images, first.images)
    with np.load(kept, allow_pickle=False) as arrays:
        assert arrays["images"].shape == (3, 20, 1, 28, 28)


def test_a_missing_zip_is_named(small):
    (small / "images_evaluation.zip").unlink()
    with pytest.raises(FileError, match=r"has no images_evaluation.zip; expected the folder"):
        omniglot(data=small)


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_cut_off_zip_is_a_file_error(small, keep):
    path = small / "images_background.zip"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(FileError, match=r"images_background.zip is damaged.*fetch it again"):
        omniglot(data=small)


def test_a_flipped_byte_is_a_file_error_that_names_the_drawing(small):
    path = small / "images_background.zip"
    content = bytearray(path.read_bytes())
    place = content.index(b"IDAT") + 6
    content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(FileError, match="is damaged at images_background/Latin/character01/0001_01.png"):
        read_omniglot(small)


def test_drawings_of_another_size_are_refused_before_they_are_decoded(small):
    write(small / "images_evaluation.zip", ["Runes/character01"], make=lambda k: drawing(k, side=104))
    with pytest.raises(FileError, match="104 x 104 pixels, expected 105 x 105"):
        read_omniglot(small)


def test_zips_of_something_else_are_data_errors(small):
    write(small / "images_evaluation.zip", ["Runes/character01"], drawers=19)
    with pytest.raises(DataError, match="'Runes/character01' with 19 drawings; Omniglot's has 1 with 20"):
        read_omniglot(small)
    write(small / "images_evaluation.zip", [])
    with pytest.raises(DataError, match="holds 0 characters"):
        read_omniglot(small)


def test_without_a_folder_the_zips_are_downloaded_into_the_cache(small, cache, monkeypatch):
    asked = []

    def fetch(url, path, sha256, *, most, instead):
        asked.append((url, sha256, instead))
        assert most > 10**6
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(small / path.name, path)
        return path

    monkeypatch.setattr(module, "download", fetch)
    monkeypatch.setattr(module, "_VALIDATION_CHARACTERS", 1)
    monkeypatch.setattr(module, "_TEST_CHARACTERS", 1)
    tasks = omniglot(ways=4)
    assert tasks.details["classes"] == {"train": 4, "validation": 4, "test": 4}
    assert [url.rpartition("/")[2] for url, _, _ in asked] == list(ZIPS)
    assert all(url.startswith("https://github.com/brendenlake/omniglot/raw/") for url, _, _ in asked)
    assert all(len(sha256) == 64 and "--data DIR" in instead for _, sha256, instead in asked)
    assert (cache / "omniglot" / "images_evaluation.zip").exists()


def test_an_unknown_split_is_refused():
    with pytest.raises(UsageError, match="unknown split 'letters'"):
        omniglot(split="letters")
