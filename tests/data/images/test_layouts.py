"""Data sets as they are handed out: their own splits, pickles, and folders of several data sets."""

import os
import pickle
import zlib

import pytest
from PIL import Image

from headstart import tasks
from headstart.data.images.folder import SUFFIXES
from headstart.data.images.kind import IMAGES
from headstart.data.images.layouts import data_sets, split_lists
from headstart.errors import DataError


def make(folder, names, images=2):
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(images):
            Image.new("RGB", (12, 12), (*zlib.crc32(name.encode()).to_bytes(4)[:2], 60 * number)).save(
                folder / name / f"{number}.png"
            )
    return folder


BIRDS = [f"{number:03}.Bird_{number}" for number in range(1, 14)]


def cub(folder):
    make(folder / "images", BIRDS)
    (folder / "classes.txt").write_text("".join(f"{place} {name}\n" for place, name in enumerate(BIRDS, 1)))
    (folder / "images.txt").write_text("1 001.Bird_1/0.png\n")
    (folder / "train_test_split.txt").write_text("1 0\n")
    return folder


def cifar_fs(folder, splits="bertinetto"):
    make(folder / "data", ["apple", "bear", "cup", "dog", "elm", "fox", "bus"])
    for file, names in {"train": "apple bear cup", "val": "dog elm", "test": "fox bus"}.items():
        path = folder / "splits" / splits / f"{file}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names.split()))
    return folder


def test_cub_is_split_by_the_order_of_its_classes(tmp_path):
    made = tasks.folder(cub(tmp_path / "CUB_200_2011"), queries=1, image_size=12)
    names = made.details["class_names"]
    assert names["train"] == BIRDS[0::2] and names["validation"] == BIRDS[1::4] and names["test"] == BIRDS[3::4]
    assert made.sample("test", [0]).support.x.shape == (1, 3, 3, 12, 12)
    assert IMAGES.recognises(tmp_path)  # and the folder that it was unpacked in


@pytest.mark.parametrize(("around", "splits"), [("", "bertinetto"), ("cifar100", "mine")])
def test_cifar_fs_is_split_by_its_lists(around, splits, tmp_path):
    cifar_fs(tmp_path / around, splits)
    names = tasks.folder(tmp_path, queries=1, image_size=12, ways=2).details["class_names"]
    assert names == {"train": ["apple", "bear", "cup"], "validation": ["dog", "elm"], "test": ["bus", "fox"]}


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda folder: (folder / "splits/bertinetto/val.txt").write_text("dog\nunicorn\nyeti\n"),
            "'unicorn' and 1 more",
        ),
        (lambda folder: (folder / "splits/bertinetto/val.txt").write_text("../data/dog\nelm\n"), "no class folder"),
        (lambda folder: (folder / "splits/bertinetto/val.txt").write_text("apple\ndog\n"), "share class 'apple'"),
        (lambda folder: (folder / "splits/bertinetto/val.txt").unlink(), "val.txt"),
        (lambda folder: (folder / "splits/bertinetto/val.txt").write_text("x" * 9000), "no class folder"),
        (lambda folder: _pipe(folder / "splits/bertinetto/val.txt"), "val.txt: it is not a file"),
    ],
)
def test_lists_that_do_not_fit_the_folders_are_refused(change, said, tmp_path):
    change(cifar_fs(tmp_path))
    with pytest.raises((DataError, OSError), match=said):
        tasks.folder(tmp_path, queries=1, image_size=12, ways=2)


def test_tiered_imagenet_in_folders_is_read(tmp_path):
    for split in ("train", "val", "test"):
        make(tmp_path / split, [f"{split}{number}" for number in range(3)])
    assert tasks.folder(tmp_path, queries=1, image_size=12).details["classes"]["train"] == 3
    assert split_lists(tmp_path) is None and data_sets(tmp_path, SUFFIXES) == {}


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("name", ["mini-imagenet-cache-train.pkl", "CIFAR_FS_test.pickle", "train_images_png.pkl"])
def test_pickles_are_never_loaded_and_it_is_said_what_to_do(name, tmp_path):
    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    for source in (tmp_path, tmp_path / name):
        assert IMAGES.recognises(source)
        with pytest.raises(DataError, match=r"pickle\.load"):
            tasks.folder(source)


def test_a_folder_of_data_sets_names_them_and_is_none_itself(tmp_path):
    make(tmp_path / "aircraft", ["a1", "a2"])
    cub(tmp_path / "birds")
    for split in ("train", "val", "test"):
        make(tmp_path / "signs" / split, [f"{split}{number}" for number in range(2)])
    assert data_sets(tmp_path, SUFFIXES) == {name: tmp_path / name for name in ("aircraft", "birds", "signs")}
    with pytest.raises(DataError, match="3 data sets"):
        tasks.folder(tmp_path)
    (tmp_path / "empty").mkdir()
    assert data_sets(tmp_path, SUFFIXES) == {}
    assert data_sets(tmp_path / "aircraft", SUFFIXES) == {}
