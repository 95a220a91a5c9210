"""Decoded images: the same in memory as in the file that many are kept in, and when that file is taken again."""

import numpy as np
import pytest
import torch
from PIL import Image

from headstart import tasks
from headstart.cache import NotKeptWarning
from headstart.data.images import decoded as module
from headstart.data.images.decoded import decoded
from headstart.errors import DataError
from headstart.testing.faults import flip


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for kind in "abcdef":
        for number in range(4):
            file = tmp_path / "photos" / kind / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(file)
    return tmp_path / "photos"


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "MOST_IN_MEMORY", 0)
    return tmp_path / "cache/images"


def _reader(calls):
    def read(paths):
        for path in paths:
            calls.append(path)
            image = torch.full((1, 2, 2), int(path.read_text()), dtype=torch.uint8)
            yield DataError(f"{path.name} is odd") if int(path.read_text()) % 2 else image

    return read


def _numbers(folder, values):
    paths = [folder / f"{place}.txt" for place in range(len(values))]
    for path, value in zip(paths, values):
        path.write_text(str(value))
    return paths


def test_a_file_holds_what_memory_would_and_is_taken_again(tmp_path, mapped, monkeypatch):
    paths, calls = _numbers(tmp_path, [2, 3, 4, 6]), []
    first = decoded(paths, (1, 2, 2), "x", _reader(calls))
    again = decoded(paths, (1, 2, 2), "x", _reader(calls))
    assert len(calls) == 4 and len([*mapped.glob("*.bin")]) == 1
    monkeypatch.setattr(module, "MOST_IN_MEMORY", 100)
    plain = decoded(paths, (1, 2, 2), "x", _reader([]))
    for one in (first, again):
        assert torch.equal(one.images, plain.images) and one[1:] == plain[1:] == ((0, 2, 3), ("1.txt is odd",))


@pytest.mark.parametrize("what", ["content", "how", "cut", "told", "bit"])
def test_another_image_another_way_of_reading_and_half_a_file_are_read_anew(what, tmp_path, mapped):
    paths, calls = _numbers(tmp_path, [2, 4]), []
    decoded(paths, (1, 2, 2), "x", _reader(calls))
    if what == "content":
        paths[1].write_text("8")
    elif what == "bit":
        flip(next(mapped.glob("*.bin")))
    elif what != "how":
        file = next(mapped.glob("*.bin" if what == "cut" else "*.json"))
        file.write_bytes(file.read_bytes()[:-1])
    found = decoded(paths, (1, 2, 2), "y" if what == "how" else "x", _reader(calls))
    assert len(calls) == 4
    assert found.images[:, 0, 0, 0].tolist() == [2, 8 if what == "content" else 4]


def test_what_is_written_to_the_tensor_does_not_reach_the_file(tmp_path, mapped):
    paths = _numbers(tmp_path, [2, 4])
    decoded(paths, (1, 2, 2), "x", _reader([])).images.zero_()
    assert decoded(paths, (1, 2, 2), "x", _reader([])).images.amin() == 2


def test_a_cache_that_cannot_be_written_leaves_images_in_memory(tmp_path, mapped):
    mapped.parent.mkdir(parents=True)
    mapped.write_text("a file where the folder should be")
    with pytest.warns(NotKeptWarning, match="decoded images cannot be kept .*HEADSTART_CACHE"):
        found = decoded(_numbers(tmp_path, [2, 3, 4]), (1, 2, 2), "x", _reader([]))
    assert found.images[:, 0, 0, 0].tolist() == [2, 4] and found.kept == (0, 2)


def test_tasks_of_a_mapped_folder_are_those_of_one_in_memory(photos, mapped, monkeypatch):
    options = {"ways": 2, "queries": 2, "image_size": 12, "augment": ["flip"]}
    from_file = tasks.folder(photos, **options)
    assert [*mapped.glob("*.bin")]
    monkeypatch.setattr(module, "MOST_IN_MEMORY", 2**30)
    in_memory = tasks.folder(photos, **options)
    for split in ("train", "test"):
        for one, other in zip(from_file.sample(split, [0, 5]), in_memory.sample(split, [0, 5])):
            assert torch.equal(one.x, other.x) and one.x.shape[-3:] == (3, 12, 12)
