"""Read image files that nobody has checked before: every picture comes out at one size, or with a reason."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from headstart.errors import DataError, FileError, UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
"""Names of the files that count as images, in any case."""

MOST_PIXELS = 50_000_000
"""An image with more is refused before it is decoded: a small file can ask for all of the memory."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


class SkippedImageWarning(UserWarning):
    """An image file that cannot be read was left out."""


def read_image(path: str | Path, size: int = 28, channels: Literal[1, 3] = 1) -> Tensor:
    """Read one image file, whatever its shape, colours and orientation, as models are trained on it.

    In order: the first frame; turned upright by its EXIF orientation; transparent parts laid on white; made
    grey (1 channel) or RGB (3); its shorter side scaled to ``size`` with antialiasing, keeping the aspect
    ratio; the centre square cut out.

    Args:
        path: a PNG, JPEG, WebP, BMP or GIF file.
        size: height and width to return, in pixels.
        channels: 1 or 3.

    Returns:
        ``(channels, size, size)`` uint8; `headstart.data.images.store.scaled` makes it a model's input.

    Raises:
        UsageError: a size below 1, or channels other than 1 or 3.
        FileError: no such file.
        DataError: a file that is not an image of these formats, is damaged, or has over 50 million pixels.
    """
    check_image_shape(size, channels)
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path} is not a file; expected an image ({', '.join(SUFFIXES)})")
    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"{width} x {height} pixels; at most {MOST_PIXELS} are read")
            upright = ImageOps.exif_transpose(image)
            plain = _flattened(upright, "L" if channels == 1 else "RGB")
            square = ImageOps.fit(plain, (size, size), Image.Resampling.BILINEAR)
    except Exception as error:  # decoders fail on damaged files in more ways than they document
        raise DataError(f"cannot read the image {path}: {_reason(error)}") from error
    return torch.from_numpy(np.array(square)).view(size, size, channels).permute(2, 0, 1).contiguous()


def read_images(
    paths: Sequence[Path], size: int, channels: Literal[1, 3], strict: bool
) -> Iterator[Tensor | DataError]:
    """Read images in parallel, in order; a damaged one comes as its error, or is raised where ``strict``."""

    def read(path: Path) -> Tensor | DataError:
        try:
            return read_image(path, size, channels)
        except DataError as error:
            return error

    with ThreadPoolExecutor() as pool:
        for image in pool.map(read, paths):
            if strict and isinstance(image, DataError):
                pool.shutdown(cancel_futures=True)
                raise image
            yield image


def image_files(folder: Path) -> list[Path]:
    """Return the image files directly in ``folder``, by name; hidden files do not count."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def check_image_shape(size: int, channels: int) -> None:
    """Raise `UsageError` unless images of this shape can be made."""
    if size < 1:
        raise UsageError(f"size must be at least 1 pixel, got {size}")
    if channels not in (1, 3):
        raise UsageError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")


def _flattened(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """Convert without losing what a plain conversion would: 16-bit greys, and what is transparent."""
    if image.mode.startswith("I"):  # 16 bits a pixel
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return image.convert(mode)


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not a {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} file"
    return str(error) or type(error).__name__
