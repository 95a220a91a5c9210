import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.data.images.files import image_files, read_image, read_images
from headstart.errors import DataError, FileError, UsageError


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


def test_one_pixel_and_extreme_shapes_are_read(tmp_path):
    for width, height in ((1, 1), (1, 500), (500, 1)):
        picture(width, height, "L", 77).save(tmp_path / "a.png")
        assert (read_image(tmp_path / "a.png", 6) == 77).all()


def damaged(kind):
    data = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(data, "PNG" if kind != "tiff" else "TIFF")
    content = data.getvalue()
    return {
        "empty": b"",
        "text": b"no image at all",
        "truncated": content[: len(content) // 2],
        "flipped": content[:200] + bytes(50) + content[250:],
        "tiff": content,
        "bomb": content[:16] + (20_000).to_bytes(4, "big") * 2 + content[24:],
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "flipped", "tiff"])
def test_damaged_and_foreign_files_are_data_errors(tmp_path, kind):
    path = tmp_path / "bad.png"
    path.write_bytes(damaged(kind))
    with pytest.raises(DataError, match="cannot read the image .*bad.png: "):
        read_image(path)


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
