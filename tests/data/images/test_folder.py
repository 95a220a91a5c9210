import io
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.data.fewshot import scaled
from headstart.data.images.folder import (
    SUFFIXES,
    SameImageWarning,
    SkippedImageWarning,
    folder,
    image_files,
    read_class_folder,
    read_image,
    read_images,
)
from headstart.data.images.kind import IMAGES
from headstart.data.kind import LeftOutWarning, files_of, raised
from headstart.errors import DataError, FileError, LeakageError, ShortClassError, UsageError


def make(root, classes, images=4, first=0):
    """Write class folders of plain images; image j of class k has the shade 10 k + j."""
    for k, name in enumerate(classes, start=first):
        (root / name).mkdir(parents=True)
        for j in range(images):
            Image.new("L", (6, 6), 10 * k + j).save(root / name / f"{j}.png")
    return root


NAMES = [f"class{k:02}" for k in range(20)]
SMALL = {"ways": 3, "queries": 2}
OWN = {"train": ["01", "02", "05", "07"], "val": ["03", "04", "09"], "test": ["00", "06", "08", "10"]}


def test_episodes_hold_the_images_of_their_class_folders(tmp_path):
    make(tmp_path, NAMES)
    tasks = folder(tmp_path, image_size=5, channels=1, **SMALL)
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
    make(tmp_path / "test", NAMES[4:9], first=10)
    with pytest.raises(DataError, match="none for validation"):
        folder(tmp_path, **SMALL)
    make(tmp_path / "val", NAMES[10:15], first=20)
    with pytest.raises(LeakageError, match="'train' and 'test' of folder share class 'class04'"):
        folder(tmp_path, **SMALL)


def test_zip_and_csv_files_are_read_as_the_folders_that_they_stand_for(tmp_path):
    make(tmp_path / "all", NAMES)
    expected = folder(tmp_path / "all", **SMALL)
    same = [shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "all"), tmp_path / "list.csv"]
    lines = [f"all/{name}/{j}.png,{name}" for name in NAMES for j in range(4)]
    same[1].write_text("\n".join(["path,label", *lines]))
    for source in same:
        found = folder(source, **SMALL)
        assert found.details["class_names"] == expected.details["class_names"]
        assert torch.equal(found.sample("test", [3]).query.x, expected.sample("test", [3]).query.x)
    # as mini-ImageNet is laid out, and all splits in one file
    (tmp_path / "mini").mkdir()
    (tmp_path / "all").rename(tmp_path / "mini" / "images")
    splits = {split: [line[4:] for line in lines if line[-2:] in own] for split, own in OWN.items()}
    for split, own in splits.items():
        (tmp_path / "mini" / f"{split}.csv").write_text("\n".join(["filename,label", *own]))
    one = "\n".join(["filename,label,split", *(f"{line},{split}" for split, own in splits.items() for line in own)])
    (tmp_path / "mini" / "one.csv").write_text(one)
    for source in (tmp_path / "mini", tmp_path / "mini" / "one.csv"):
        names = folder(source, **SMALL).details["class_names"]
        assert {split[:3]: [name[-2:] for name in own] for split, own in names.items()} == {
            split[:3]: own for split, own in OWN.items()
        }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path,label,age\na.png,b,3\n", "has the columns path, label, age"),
        ("path,label\nno.png,a\n", "lists 'no.png', which is neither in"),
        ("path,label\na.png,a\na.png,b\n", "row 3 of .* 'a.png' is there before"),
        ("path,label,split\na.png,a,train\nb.png,b,\n", "has the splits 'train', ''; expected"),
        ("path,label\na.png,\n", "row 2 of .* is not whole"),
    ],
)
def test_lists_that_are_not_whole_are_refused(tmp_path, text, told):
    Image.new("L", (6, 6)).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=told):
        folder(tmp_path / "list.csv")


@pytest.mark.parametrize("name", ["../out.png", "/out.png", "a/../../out.png"])
def test_a_zip_file_is_not_unpacked_outside(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr(name, b"x")
    with pytest.raises(DataError, match="leads outside"):
        folder(tmp_path / "bad.zip")
    (tmp_path / "bad.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="cannot read the zip file"):
        folder(tmp_path / "bad.zip")


def test_only_lists_of_images_are_taken_for_images(tmp_path):
    for place, (text, images) in enumerate(
        [
            ("path,label\na.png,b\n", True),
            ("label,image,split\nb,a.JPG,train\n", True),
            ("path,label,age\na.png,b,3\n", False),
            ("path,label\na.txt,b\n", False),
            ("week,label\n1,b\n", False),
            ("", False),
        ]
    ):
        path = tmp_path / f"{place}.csv"
        path.write_text(text)
        assert IMAGES.recognises(path) is images


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
    for part in ("10 classes", "6 for train", "2 for test", "5 ways need 5 in each split"):
        assert part in str(caught.value)
    assert folder(tmp_path, ways=2, queries=2).output_size == 2


def test_queries_then_ways_are_fitted_to_what_is_there_and_said(tmp_path):
    make(tmp_path, NAMES[:14], images=9)
    for name in "678":
        (tmp_path / NAMES[3] / f"{name}.png").unlink()
    details = folder(tmp_path).details
    assert (details["ways"], details["queries"], details["shots"]) == (3, 5, 1)
    queries, ways, few = details["notes"]
    assert queries == "queries: 5 a class, as many as the smallest class can give"
    assert ways == "ways: 3, as many classes as every split has"
    assert few.startswith("the smallest split has 3 classes only: ")
    # what is skipped does not count
    details = folder(tmp_path, ways=2, on_short="skip").details
    assert (details["queries"], details["skipped_classes"]) == (8, 1)
    with pytest.raises(ShortClassError, match="--queries 5 works for all 14 classes; --on-short skip .* 13 of 14"):
        folder(tmp_path, queries=6)
    with pytest.raises(ShortClassError, match="--shots 5 --queries 1 works for all 14 classes"):
        folder(tmp_path, queries=6, shots=6)
    with pytest.raises(ShortClassError, match="--ways 3 works"):
        folder(tmp_path, ways=4)


@pytest.mark.parametrize("count", [6, 7, 25])
def test_few_classes_are_enough(tmp_path, count):
    make(tmp_path, (NAMES + [f"more{k}" for k in range(5)])[:count], images=9)
    details = folder(tmp_path, shots=3).details
    assert (details["ways"], details["queries"]) == (2 if count < 10 else 5, 6)
    assert len(details["notes"]) == (3 if count < 10 else 2)


def test_one_class_only_is_refused(tmp_path):
    make(tmp_path, NAMES[:1])
    with pytest.raises(ShortClassError, match="1 class "):
        folder(tmp_path, ways=2)


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
        names, images, _, skipped, _ = read_class_folder(tmp_path, size=4, channels=3)
    assert names == ["ant", "bee"]
    assert [tuple(x.shape) for x in images] == [(3, 3, 4, 4), (2, 3, 4, 4)]
    assert images[0][:, 0, 0, 0].tolist() == [10, 11, 12]
    assert images[1][:, 0, 0, 0].tolist() == [0, 1]
    assert skipped == 1
    with pytest.raises(DataError, match="2.png"):
        read_class_folder(tmp_path, strict=True)


def test_an_empty_support_class_is_left_out_or_refused(tmp_path):
    make(tmp_path, ["ant", "bee", "cat"], images=1)
    (tmp_path / "bee" / "0.png").rename(tmp_path / "bee" / "0.txt")
    (tmp_path / "__MACOSX" / "ant").mkdir(parents=True)
    told = r"bee has no image that can be read \(it holds 0.txt\)"
    with pytest.raises(DataError, match=told):
        read_class_folder(tmp_path, strict=True)
    with pytest.warns(SkippedImageWarning, match=f"left out: .*{told}"):
        assert read_class_folder(tmp_path).names == ["ant", "cat"]
    for name in ("ant", "cat"):
        (tmp_path / name / "0.png").unlink()
    told = "ant has no image that can be read .it holds nothing"
    with pytest.raises(DataError, match=told):
        read_class_folder(tmp_path)


def test_the_same_image_twice_is_warned_of(tmp_path):
    make(tmp_path, NAMES)
    Image.new("RGB", (9, 9), (31,) * 3).save(tmp_path / NAMES[2] / "5.bmp")  # that is image 1 of class 3
    make(tmp_path / "other", ["a"], images=2, first=1)
    for path in (tmp_path / "other" / "a").iterdir():
        path.rename(tmp_path / NAMES[1] / f"again{path.name}")
    (tmp_path / "other" / "a").rmdir()
    (tmp_path / "other").rmdir()
    with pytest.warns(SameImageWarning, match="3 images are there before.* 1 in another class") as caught:
        folder(tmp_path, **SMALL)
    assert len(caught) == 1


@pytest.mark.parametrize(("fit", "corner", "side"), [("crop", 77, 77), ("pad", 255, 0), ("stretch", 0, 0)])
def test_how_an_image_becomes_a_square(tmp_path, fit, corner, side):
    image = Image.new("L", (24, 12), 0)
    image.paste(77, (6, 0, 18, 12))
    image.save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", 12, 1, fit)[0]
    assert (found[0, 0], found[6, 0], found[6, 6]) == (corner, side, 77)


def picture(width=20, height=20, mode="RGB", colour="red"):
    return Image.new(mode, (width, height), colour)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "bmp", "gif", "PNG"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_format_is_read(tmp_path, suffix, channels):
    path = tmp_path / f"a.{suffix}"
    picture(40, 30, colour=(200, 100, 50)).save(path)
    image = read_image(path, 8, channels)
    assert image.shape == (channels, 8, 8) and image.dtype == torch.uint8
    expected = [200, 100, 50] if channels == 3 else [124]
    assert (image.flatten(1).float().mean(1) - torch.tensor(expected)).abs().max() < 4


def test_the_centre_square_is_kept_and_the_aspect_too(tmp_path):
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 255  # the centre square is white, the rest black
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.T).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        assert (read_image(tmp_path / name, 10) == 255).all()


def test_shrinking_averages_instead_of_picking_pixels(tmp_path):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "board.png")
    assert (read_image(tmp_path / "board.png", 8).float() - 127.5).abs().max() < 6


def test_exif_orientation_is_respected(tmp_path):
    image = Image.new("RGB", (16, 16))
    image.paste("white", (0, 0, 16, 8))  # upper half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees: the upper half goes right
    image.save(tmp_path / "a.png", exif=exif)
    turned = read_image(tmp_path / "a.png", 16)[0]
    assert turned[:, 8:].min() == 255 and turned[:, :8].max() == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (4, 0, 8, 8))
    path = tmp_path / "a.png"
    image.convert(mode).save(path)
    grey = read_image(path, 8)[0]
    assert (grey[:, :4] == 255).all() and (grey[:, 4:] == 0).all()


def test_sixteen_bits_keep_their_shades(tmp_path):
    shades = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(shades).save(tmp_path / "a.png")
    assert torch.equal(read_image(tmp_path / "a.png", 8)[0], torch.from_numpy((shades >> 8).astype(np.uint8)))


def test_the_first_frame_of_a_gif_counts(tmp_path):
    frames = [picture(mode="L", colour=shade) for shade in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "a.gif", 4) == 10).all()


@pytest.mark.parametrize("suffix", [".tiff", ".TIF", ".avif", ".jfif"])
def test_other_types_of_image_are_read(tmp_path, suffix):
    if suffix in (".tiff", ".TIF") or suffix in SUFFIXES:
        (tmp_path / "a").mkdir()
        kind = {".jfif": "JPEG", ".avif": "AVIF"}.get(suffix, "TIFF")
        picture(mode="L", colour=77).save(tmp_path / "a" / f"1{suffix}", kind)
        (path,) = image_files(tmp_path / "a")
        assert (read_image(path, 6).int() - 77).abs().max() <= 2


@pytest.mark.parametrize("values", [np.full((8, 8), 0.5, np.float32), np.full((8, 8), 70_000, np.int32)])
def test_pixels_of_which_nobody_knows_what_is_white_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match="no numbers of 8 or 16 bits"):
        read_image(tmp_path / "a.tiff")


def test_files_of_other_types_are_counted_and_refused_where_strict(tmp_path):
    make(tmp_path, NAMES)
    for name in ("1.psd", "2.psd", "3.svg", "notes.txt", ".hidden.psd"):
        (tmp_path / NAMES[int(name[0] == "1")] / name).write_bytes(b"x")
    told = r"3 files of unknown type \(.psd, .svg\)"
    with pytest.warns(LeftOutWarning, match=f"left out: {told}"):
        assert sum(folder(tmp_path, **SMALL).details["images"].values()) == 80
    with pytest.raises(DataError, match=f"{told} cannot be read"):
        folder(tmp_path, strict=True, **SMALL)
    with pytest.warns(LeftOutWarning, match=told):
        assert len(list(files_of([str(tmp_path)], SUFFIXES))) == 80


def test_extreme_shapes_are_read(tmp_path):
    for width, height in ((2, 1), (1, 500), (500, 1)):
        picture(width, height, "L", 77).save(tmp_path / "a.png")
        assert (read_image(tmp_path / "a.png", 6) == 77).all()


def damaged(kind):
    data = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(data, "PNG" if kind != "foreign" else "PPM")
    content = data.getvalue()
    return {
        "empty": b"",
        "text": b"no image at all",
        "truncated": content[: len(content) // 2],
        "flipped": content[:200] + bytes(50) + content[250:],
        "foreign": content,
        "bomb": content[:16] + (20_000).to_bytes(4, "big") * 2 + content[24:],
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "flipped", "foreign"])
def test_damaged_and_foreign_files_are_data_errors(tmp_path, kind):
    path = tmp_path / "bad.png"
    path.write_bytes(damaged(kind))
    with pytest.raises(DataError, match="cannot read the image .*bad.png: "):
        read_image(path)


def test_an_image_of_one_pixel_is_refused(tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    with pytest.raises(DataError, match="1 x 1 pixels show nothing"):
        read_image(tmp_path / "dot.png")


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "bomb.bmp"
    header = bytearray()
    with io.BytesIO() as data:
        picture(1, 1).save(data, "BMP")
        header += data.getvalue()
    header[18:26] = (8000).to_bytes(4, "little") + (8000).to_bytes(4, "little")
    path.write_bytes(header)
    with pytest.raises(DataError, match="8000 x 8000 pixels; at most 50000000"):
        read_image(path)
    header[18:26] = (30_000).to_bytes(4, "little") * 2
    path.write_bytes(header)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="cannot read the image"):
            read_image(path)


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(FileError, match="is not a file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(UsageError, match="size must be at least 1"):
        read_image(tmp_path, 0)
    with pytest.raises(UsageError, match="channels must be 1"):
        read_image(tmp_path, 8, 2)


def test_many_images_come_in_order_and_errors_in_their_place(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for i, path in enumerate(paths):
        picture(mode="L", colour=i).save(path)
    paths[5].write_bytes(b"")
    read = list(read_images(paths, 4, 1, strict=False))
    assert isinstance(read[5], DataError)
    assert [int(image[0, 0, 0]) for image in read if not isinstance(image, DataError)] == [
        *range(5),
        *range(6, 12),
    ]
    with pytest.raises(DataError, match="5.png"):
        list(read_images(paths, 4, 1, strict=True))


def test_only_image_files_count_and_by_name(tmp_path):
    for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in image_files(tmp_path)] == ["a.JPG", "b.png"]


def test_new_tasks_and_queries_are_read_as_the_run_was(tmp_path):
    make(tmp_path, ["a", "b"], images=1)
    image = Image.new("L", (24, 12), 7)
    image.save(tmp_path / "a" / "0.png")
    said = {"input_shape": [1, 12, 12], "light_on_dark": False, "classes": 2, "training_classes": "", "fit": "pad"}
    said["encoder"] = None
    prepared = IMAGES.read(said, "here")
    ((_, batch),) = IMAGES.support(prepared, tmp_path, False)
    ((_, packed),) = IMAGES.support(prepared, Path(shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path)), False)
    assert torch.equal(packed.x, batch.x)
    (asked,) = IMAGES.inputs(prepared, [str(tmp_path / "a")], {}, raised)
    expected = scaled(read_image(tmp_path / "a" / "0.png", 12, 1, "pad"))
    assert torch.equal(batch.x[0, 0], expected) and torch.equal(asked.x[0], expected) and expected[0, 0, 0] == 1
    with pytest.raises(FileError, match="made square by 'cut'"):
        IMAGES.read({**said, "fit": "cut"}, "here")
