import pytest
import torch
from PIL import Image

from headstart.data.images.files import SkippedImageWarning
from headstart.data.images.folder import folder, read_class_folder
from headstart.errors import DataError, FileError, LeakageError, ShortClassError


def make(root, classes, images=4, first=0):
    """Write class folders of plain images; image j of class k has the shade 10 k + j."""
    for k, name in enumerate(classes, start=first):
        (root / name).mkdir(parents=True)
        for j in range(images):
            Image.new("L", (6, 6), 10 * k + j).save(root / name / f"{j}.png")
    return root


NAMES = [f"class{k:02}" for k in range(20)]
SMALL = {"ways": 3, "queries": 2}


def test_episodes_hold_the_images_of_their_class_folders(tmp_path):
    make(tmp_path, NAMES)
    tasks = folder(tmp_path, size=5, channels=1, **SMALL)
    assert tasks.input_shape == (1, 5, 5)
    assert tasks.details["skipped_images"] == 0
    of_split = {split: set(names) for split, names in tasks.details["class_names"].items()}
    assert sorted(name for names in of_split.values() for name in names) == NAMES
    assert {split: len(names) for split, names in of_split.items()} == {
        "train": 12,
        "validation": 4,
        "test": 4,
    }
    for split, names in of_split.items():
        support, query = tasks.sample(split, range(30))
        for batch in (support, query):
            shades = (batch.x[:, :, 0, 0, 0] * 255).round().long()
            classes = shades // 10
            assert {NAMES[k] for k in classes.flatten().tolist()} <= names
            first = support.x[..., 0, 0, 0].mul(255).round().long() // 10
            assert torch.equal(classes, first.gather(1, batch.y))


def test_splits_depend_on_names_alone(tmp_path):
    make(tmp_path / "a", NAMES)
    make(tmp_path / "b", reversed(NAMES), images=6)
    one = folder(tmp_path / "a", seed=1, **SMALL)
    other = folder(tmp_path / "b", seed=2, shots=3, ways=2, queries=2)
    assert one.details["class_names"] == other.details["class_names"]


@pytest.mark.parametrize("validation", ["validation", "val"])
def test_split_folders_are_taken_as_they_are(tmp_path, validation):
    make(tmp_path / "train", NAMES[:5])
    make(tmp_path / validation, NAMES[5:9], first=5)
    make(tmp_path / "test", NAMES[9:12], first=9)
    tasks = folder(tmp_path, **SMALL)
    assert tasks.details["class_names"] == {
        "train": NAMES[:5],
        "validation": NAMES[5:9],
        "test": NAMES[9:12],
    }
    assert tasks.input_shape == (3, 28, 28)


def test_split_folders_must_be_complete_and_disjoint(tmp_path):
    make(tmp_path / "train", NAMES[:5])
    make(tmp_path / "test", NAMES[4:9])
    with pytest.raises(DataError, match="none for validation"):
        folder(tmp_path, **SMALL)
    make(tmp_path / "val", NAMES[10:15])
    with pytest.raises(LeakageError, match="'train' and 'test' of folder share class 'class04'"):
        folder(tmp_path, **SMALL)


def test_a_class_may_be_called_train(tmp_path):
    make(tmp_path, ["train", *NAMES[:19]])
    names = folder(tmp_path, **SMALL).details["class_names"]
    assert "train" in sum(names.values(), [])


def test_a_damaged_image_is_named_skipped_and_counted(tmp_path):
    make(tmp_path, NAMES)
    bad = tmp_path / NAMES[3] / "1.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.warns(SkippedImageWarning, match="class03.1.png") as caught:
        tasks = folder(tmp_path, **SMALL)
    assert len(caught) == 1
    assert tasks.details["skipped_images"] == 1
    assert sum(tasks.details["images"].values()) == 79
    with pytest.raises(DataError, match="class03.1.png"):
        folder(tmp_path, strict=True, **SMALL)


def test_a_class_folder_with_too_few_images_is_named_or_skipped(tmp_path):
    make(tmp_path, NAMES)
    for path in (tmp_path / NAMES[7]).iterdir():
        path.unlink()
    with pytest.raises(ShortClassError, match="'class07'.*has 0 images.*need 3.*--on-short skip"):
        folder(tmp_path, **SMALL)
    tasks = folder(tmp_path, on_short="skip", **SMALL)
    assert tasks.details["skipped_classes"] == 1


def test_too_few_classes_say_how_many_there_are_and_are_needed(tmp_path):
    make(tmp_path, NAMES[:10])
    with pytest.raises(ShortClassError) as caught:
        folder(tmp_path, ways=5)
    for part in ("10 class folders", "6 for train", "2 for test", "5 ways need 5 classes in each split"):
        assert part in str(caught.value)
    assert folder(tmp_path, ways=2, queries=2).output_size == 2


def test_one_class_only_is_refused(tmp_path):
    make(tmp_path, NAMES[:1])
    with pytest.raises(ShortClassError, match="1 class folder "):
        folder(tmp_path, ways=2)
    with pytest.raises(DataError, match="one class folder only, 'class00'"):
        read_class_folder(tmp_path)


def test_a_folder_without_class_folders_says_what_it_holds(tmp_path):
    with pytest.raises(FileError, match="is not a folder"):
        folder(tmp_path / "absent")
    with pytest.raises(DataError, match="holds nothing"):
        folder(tmp_path)
    for name in "abcde":
        (tmp_path / f"{name}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"no class folder \(it holds a.png, b.png, c.png and 2 more\)"):
        folder(tmp_path)


def test_a_support_folder_gives_names_and_images_in_order(tmp_path):
    make(tmp_path, ["bee", "ant"], images=3)
    (tmp_path / "bee" / "notes.txt").write_text("not an image")
    (tmp_path / "bee" / "2.png").write_bytes(b"damaged")
    with pytest.warns(SkippedImageWarning, match="2.png"):
        names, images, skipped = read_class_folder(tmp_path, size=4, channels=3)
    assert names == ["ant", "bee"]
    assert [tuple(x.shape) for x in images] == [(3, 3, 4, 4), (2, 3, 4, 4)]
    assert images[0][:, 0, 0, 0].tolist() == [10, 11, 12]
    assert images[1][:, 0, 0, 0].tolist() == [0, 1]
    assert skipped == 1
    with pytest.raises(DataError, match="2.png"):
        read_class_folder(tmp_path, strict=True)


def test_a_support_class_without_images_is_refused(tmp_path):
    make(tmp_path, ["ant", "bee"], images=1)
    (tmp_path / "bee" / "0.png").rename(tmp_path / "bee" / "0.tiff")
    with pytest.raises(DataError, match=r"bee has no image that can be read \(it holds 0.tiff\)"):
        read_class_folder(tmp_path)
