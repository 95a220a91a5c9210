"""Your own images: a folder that holds one folder of images for each class, read whatever their shape and colours."""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from headstart.data.fewshot import GIVEN, ClassStore, Ways, class_splits, few_shot, fitted
from headstart.data.images.augment import Change, augmented
from headstart.data.images.decoded import decoded
from headstart.data.images.layouts import data_sets, listed, refuse_pickles, split_lists, unpacked
from headstart.data.kind import LeftOutWarning, unknown_types
from headstart.data.random import SPLITS, size_range
from headstart.errors import DataError, FileError, UsageError
from headstart.models.trunks.source import absolute
from headstart.models.trunks.trunk import open_trunk
from headstart.schema import Size, extends
from headstart.types import Tasks

HEIC = bool(find_spec("pillow_heif"))
"""Whether HEIC files can be read: the extra ``heic`` reads them."""

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *((".avif",) if features.check("avif") else ()),
    *((".heic", ".heif") if HEIC else ()),
)
"""Names of the files that count as images, in any case."""

MOST_PIXELS = 50_000_000
"""An image with more is refused before it is decoded: a small file can ask for all of the memory."""

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", *(("HEIF",) if HEIC else ()))


Fit: TypeAlias = Literal["crop", "pad", "stretch"]
"""How an image becomes a square: its centre, all of it on white, or all of it out of proportion."""


class SkippedImageWarning(UserWarning):
    """An image file that cannot be read was left out."""


class SameImageWarning(UserWarning):
    """Two files hold the same image, as far as a model can see."""


def read_image(path: str | Path, size: int = 28, channels: Literal[1, 3] = 1, fit: Fit = "crop") -> Tensor:
    """Read one image file, whatever its shape, colours and orientation, as models are trained on it.

    In order: the first frame; turned upright by its EXIF orientation; transparent parts laid on white; made grey (1
    channel) or RGB (3); made a square of ``size``, scaled with antialiasing.

    Args:
        path: a PNG, JPEG, WebP, BMP, GIF, TIFF or AVIF file, or with the extra ``heic`` a HEIC file.
        size: height and width to return, in pixels.
        channels: 1 or 3.
        fit: ``"crop"`` cuts out the centre square, so that of an image of 3:2 a third is lost; ``"pad"`` takes all of
            it, with white beside it; ``"stretch"`` takes all of it, out of proportion.

    Returns:
        ``(channels, size, size)`` uint8; `headstart.data.fewshot.scaled` makes it a model's input.

    Raises:
        UsageError: a size below 1, or channels other than 1 or 3.
        FileError: no such file.
        DataError: a file that is not an image of these formats, is damaged, or has one pixel or over 50 million.
    """
    check_image_shape(size, channels)
    path = Path(path)
    if not os.path.isfile(path):
        raise FileError(f"{path} is not a file; expected an image ({', '.join(SUFFIXES)})")
    with _opened(path, f"the image {path}") as image:
        return as_square(image, size, channels, fit)


@contextmanager
def _opened(file: Path | BinaryIO, what: str) -> Iterator[Image.Image]:
    """Open an image that is no bomb; what goes wrong with it is a `DataError` that says what it is."""
    if HEIC:
        _register_heic()
    try:
        with Image.open(file, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"{width} x {height} pixels; at most {MOST_PIXELS} are read")
            if max(width, height) < 2:
                raise ValueError("1 x 1 pixels show nothing")
            yield image
    except Exception as error:  # decoders fail on damaged files in more ways than they document
        reason = f"not a file of {', '.join(SUFFIXES)}" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"cannot read {what}: {reason or type(error).__name__}") from error


def as_square(image: Image.Image, size: int, channels: Literal[1, 3], fit: Fit = "crop") -> Tensor:
    """Return an open image as `read_image` does."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    square = _flattened(ImageOps.exif_transpose(image) if turned else image, "L" if channels == 1 else "RGB")
    if square.size != (size, size):
        square = _squares[fit](square, (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).view(size, size, channels).permute(2, 0, 1).contiguous()


def pictures(value: Any, what: str = "an image") -> list[Image.Image]:
    """Return images that are given as values as PIL has them.

    Args:
        value: what an image file holds, as bytes; a PIL image, a tensor ``(C, H, W)`` or ``(n, C, H, W)``, or an array
            ``(H, W)``, ``(H, W, C)`` or ``(n, H, W, C)``; C is 1, 3 or 4, and numbers are uint8, or floating in [0, 1].
        what: what errors call a file that cannot be read.

    Raises:
        DataError: anything else.
    """
    if isinstance(value, bytes):
        with _opened(BytesIO(value), what) as image:
            image.load()
        return [image]
    if isinstance(value, Image.Image):
        return [value]
    array = np.asarray(value.detach().cpu().movedim(-3, -1) if isinstance(value, Tensor) and value.dim() > 2 else value)
    flat = array.ndim == 2
    array = array[None, :, :, None] if flat else array[None] if array.ndim == 3 else array
    sound = array.ndim == 4 and array.shape[-1] in (1, 3, 4) and 0 not in array.shape
    if sound and np.issubdtype(array.dtype, np.floating) and array.min() >= 0 and array.max() <= 1:
        array = np.rint(array * 255).astype(np.uint8)
    if not sound or array.dtype != np.uint8:
        told = f"{type(value).__name__}" + (f" {tuple(array.shape[flat:])} of {array.dtype}" if array.ndim else "")
        raise DataError(
            f"a {told} is no image; expected a PIL image, a tensor (C, H, W), or an array (H, W, C), with 1, 3 or 4"
            " channels of uint8, or of floats in [0, 1]"
        )
    return [Image.fromarray(one.squeeze(-1) if one.shape[-1] == 1 else one) for one in array]


_squares: dict[Fit, Callable[..., Image.Image]] = {
    "crop": ImageOps.fit,
    "pad": partial(ImageOps.pad, color="white"),
    "stretch": Image.Image.resize,
}


@cache
def _register_heic() -> None:
    import_module("pillow_heif").register_heif_opener()


def read_images(
    paths: Sequence[Path], size: int, channels: Literal[1, 3], strict: bool, fit: Fit = "crop"
) -> Iterator[Tensor | DataError | FileError]:
    """Read images in parallel, in order; a bad or missing one comes as its error, or is raised where ``strict``."""

    def read(path: Path) -> Tensor | DataError | FileError:
        try:
            return read_image(path, size, channels, fit)
        except (DataError, FileError) as error:
            return error

    with ThreadPoolExecutor() as pool:
        for image in pool.map(read, paths):
            if strict and not isinstance(image, Tensor):
                pool.shutdown(cancel_futures=True)
                raise image
            yield image


def image_files(folder: Path) -> list[Path]:
    """Return the image files directly in ``folder``, by name; hidden files do not count."""
    named = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in named if path.is_file())


def refuse_unknown(folders: Iterable[Path], strict: bool) -> None:
    """Warn of files of types that are not read, or refuse them where ``strict``."""
    files = (path for folder in folders for path in folder.iterdir())
    if told := unknown_types(files, SUFFIXES):
        heic = "" if HEIC or ".hei" not in told else "; `pip install headstart[heic]` reads HEIC"
        if strict:
            raise DataError(f"{told} cannot be read{heic}; read are {', '.join(SUFFIXES)}")
        warnings.warn(f"left out: {told}{heic}", LeftOutWarning, stacklevel=4)


def check_image_shape(size: int, channels: int) -> None:
    """Raise `UsageError` unless images of this shape can be made."""
    if size < 1:
        raise UsageError(f"size must be at least 1 pixel, got {size}")
    if channels not in (1, 3):
        raise UsageError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")


def _flattened(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """Convert without losing what a plain conversion would: 16-bit greys, and what is transparent."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode[0] == "F" or not 0 <= values.min() <= values.max() < 2**16:
            raise ValueError("its pixels are no numbers of 8 or 16 bits, so nothing says what is white; convert it")
        image = Image.fromarray((values.astype(np.int64) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours)
    return image.convert(mode)


_Classes: TypeAlias = Mapping[str, Path | Sequence[Path]]
"""By name, the folder of a class, or its images."""


class ClassFolder(NamedTuple):
    """The images of a folder of class folders, sorted by name."""

    names: list[str]
    images: list[Tensor]
    """One ``(n, channels, size, size)`` uint8 tensor a class."""
    files: list[list[Path]]
    """The files they are from."""
    skipped: int
    """How many image files could not be read."""
    every: Tensor
    """The images of all classes, of which ``images`` are the parts."""


@extends(few_shot, without=GIVEN)
def folder(
    data: str | Path,
    *,
    ways: Ways | None = None,
    shots: Size | tuple[Size, Size] = 1,
    queries: Size | None = None,
    image_size: Annotated[int, Ge(8), Le(512)] | None = None,
    channels: Literal[1, 3] = 3,
    fit: Fit = "crop",
    augment: Sequence[Change] = (),
    strict: bool = False,
    **options: Any,
) -> Tasks:
    """Make few-shot tasks out of a folder of class folders of images, or what stands for one.

    That is a zip file of such a folder, or a CSV file of columns ``path`` and ``label``, and maybe ``split``, and
    nothing else (``filename``, ``image`` or ``file``, ``class`` or ``category`` are as good); or a folder of three such
    files, ``train.csv``, ``val.csv`` and ``test.csv``, with the images in ``images``, as mini-ImageNet is laid out.

    CUB-200-2011 and CIFAR-FS are read as they are handed out (`headstart.data.images.layouts.split_lists`), mini- and
    tieredImageNet from folders of class folders; pickles are refused, and it is said how they become folders.

    Where ``data`` holds ``train``, ``validation`` (or ``val``) and ``test`` folders of class folders, those are the
    splits. Else the class folders are shuffled by the SHA-256 of their names, and a fifth each is for validation and
    for test: whatever the seed, but adding or removing a class can move others to another split.
    `headstart.data.images.folder.read_image` says how an image is read. Where a split's images take over 256 MiB, they
    are kept decoded in the user's cache folder and mapped into memory from there.

    Args:
        data: the folder, or a zip or CSV file.
        ways: classes of a task, by default 5, or as many as every split has.
        queries: query images a class, by default 15, or as many as the smallest class has left.
        image_size: height and width of the images, in pixels, by default 28, or what the encoder takes.
        channels: 1 for grey, 3 for colour.
        fit: how an image becomes a square: its centre (crop), all of it with white beside it (pad), or all of it, out
            of proportion (stretch).
        augment: how training images are changed at random: any of crop (shifted by up to an eighth), flip (left to
            right) and colour (brightness, contrast, saturation).
        strict: refuse a folder that holds an image that cannot be read; else it is left out with a
            `SkippedImageWarning`, and counted in ``details['skipped_images']``.
        options: those of `few_shot`.

    Raises:
        FileError: no such folder.
        DataError: no class folder, or, where ``strict``, an image that cannot be read.
        ShortClassError: too few classes for the ways, or too few images in a class.
        LeakageError: a class folder that is in two splits.
    """
    if image_size is None:
        encoder = options.get("encoder")
        image_size = 28 if encoder is None else int(open_trunk(absolute(encoder)).told.get("size", 28))
    check_image_shape(image_size, channels)
    unbalanced = options.get("sampler") == "meta_dataset"  # such tasks have as many ways and shots as there are
    with unpacked(Path(data), SUFFIXES) as place:
        splits = _splits(place, 2 if unbalanced else ways or 2)
        read = {split: _read(classes, image_size, channels, strict, fit) for split, classes in splits.items()}
    _warn_of_same(read.values())
    stores = {split: _store(found) for split, found in read.items()}
    on_short, own_ways = options.get("on_short", "error"), options.get("train_ways")
    judged = {split: store for split, store in stores.items() if split != "train" or own_ways is None}
    ways, queries, notes = fitted(judged, 1 if unbalanced else size_range("shots", shots)[1], ways, queries, on_short)
    details = {
        "notes": tuple(notes),
        "fit": fit,
        "source": Path(data).resolve().name,
        "class_names": {split: found.names for split, found in read.items()},
        "skipped_images": sum(found.skipped for found in read.values()),
        "licence": "that of the images in the folder; no image is in this folder but in episode.png",
    }
    made = few_shot("folder", stores, ways=ways, shots=shots, queries=queries, details=details, **options)
    return augmented(made, augment, options.get("seed", 0))


def read_class_folder(
    path: str | Path, size: int = 28, channels: Literal[1, 3] = 3, strict: bool = False, fit: Fit = "crop"
) -> ClassFolder:
    """Read one folder of class folders, such as the support set of a new task.

    A class without an image that can be read is left out with a `SkippedImageWarning`, or refused where ``strict``.

    Raises:
        FileError: no such folder.
        DataError: no class; where ``strict``, an image that cannot be read, or a class without any.
    """
    check_image_shape(size, channels)
    classes = _classes(Path(path))
    found = _read(classes, size, channels, strict, fit)
    empty = [place for place, images in enumerate(found.images) if not len(images)]  # never of a CSV file
    for place in empty:
        here = Path(path) / found.names[place]
        holds = f"it holds {_contents(here)}); expected at least one of {', '.join(SUFFIXES)}"
        told = f"class folder {here} has no image that can be read ({holds}"
        if strict or len(classes) == len(empty):
            raise DataError(told)
        warnings.warn(f"left out: {told}", SkippedImageWarning, stacklevel=2)
    there = [place for place in range(len(classes)) if place not in empty]
    found = ClassFolder(
        [found.names[place] for place in there],
        [found.images[place] for place in there],
        [found.files[place] for place in there],
        found.skipped,
        found.every,
    )
    _warn_of_same([found])
    return found


def _warn_of_same(found: Iterable[ClassFolder]) -> None:
    """Warn of images that are there twice: they may be learned from and asked again, or be of two classes."""
    first, twice, others = dict[bytes, tuple[str, Path]](), list[tuple[Path, Path]](), 0
    for one in found:
        for name, images, files in zip(one.names, one.images, one.files):
            for image, path in zip(images, files):
                owner, before = first.setdefault(hashlib.blake2b(image.numpy().data).digest(), (name, path))
                if before != path:
                    twice.append((before, path))
                    others += owner != name
    if twice:
        warnings.warn(
            f"{len(twice)} images are there before, to a model the same ({twice[0][1]} as {twice[0][0]}): {others} in"
            " another class, which no model can tell apart, and the others may be asked of those who learned from"
            " them, which flatters a score",
            SameImageWarning,
            stacklevel=3,
        )


def task_folders(path: Path) -> dict[str | None, Path]:
    """Return the folders of class folders in a folder of them, by name; without a name where it is one itself."""
    inside = _subfolders(path) if path.is_dir() else []
    if inside and all(_subfolders(child) and not image_files(child) for child in inside):
        return {child.name: child for child in inside}
    return {None: path}


def _read(classes: _Classes, size: int, channels: Literal[1, 3], strict: bool, fit: Fit) -> ClassFolder:
    names = sorted(classes)
    refuse_unknown([path for path in classes.values() if isinstance(path, Path)], strict)
    files = [image_files(found) if isinstance(found := classes[name], Path) else list(found) for name in names]
    paths = [path for own in files for path in own]
    read = partial(read_images, size=size, channels=channels, strict=strict, fit=fit)
    images, kept, failed = decoded(paths, (channels, size, size), fit, read)
    for told in failed:
        warnings.warn(f"skipped: {told}", SkippedImageWarning, stacklevel=4)
    owner = [place for place, own in enumerate(files) for _ in own]
    counts = Counter(owner[place] for place in kept)
    ends = [*accumulate(counts[place] for place in range(len(names)))]
    spans = [slice(end - counts[place], end) for place, end in enumerate(ends)]
    left = [[paths[place] for place in kept[span]] for span in spans]
    return ClassFolder(names, [images[span] for span in spans], left, len(failed), images)


def _store(found: ClassFolder) -> ClassStore:
    """Return a store of the images where they are: what is mapped from a file is not copied."""
    sizes = torch.tensor([len(images) for images in found.images])
    return ClassStore(found.every, sizes.cumsum(0) - sizes, sizes, tuple(found.names))


def _splits(data: Path, ways: int) -> Mapping[str, _Classes]:
    own = {"val": "validation"} | {split: split for split in SPLITS}
    refuse_pickles(data)
    if known := split_lists(data):
        return known
    if several := data_sets(data, SUFFIXES):
        raise DataError(
            f"{data} holds {len(several)} data sets ({', '.join([*several][:5])}{', …' * (len(several) > 5)}), and none"
            f" of them are classes; give one or more of them, such as {next(iter(several.values()))}"
        )
    if data.is_file():
        lists = listed(data)
        if [*lists] != [""]:
            if sorted(own.get(split, "") for split in lists) != sorted(SPLITS):
                raise DataError(
                    f"{data} has the splits {', '.join(map(repr, lists))}; expected train, validation (or val) and test"
                )
            return {own[split]: classes for split, classes in lists.items()}
        by_name: _Classes = lists[""]
    elif (data / "train.csv").is_file() and (data / "test.csv").is_file():
        found = {own[split]: data / f"{split}.csv" for split in own if (data / f"{split}.csv").is_file()}
        if set(found) != set(SPLITS):
            raise DataError(f"{data} has a train.csv and a test.csv, but no val.csv (or validation.csv)")
        return {split: _classes(path) for split, path in found.items()}
    else:
        by_name = _classes(data)
        holders = {own[name]: data / name for name in by_name if name in own and _subfolders(data / name)}
        if "train" in holders:
            missing = [split for split in SPLITS if split not in holders]
            if missing:
                raise DataError(
                    f"{data} has a train folder of class folders, but none for {' and '.join(missing)}; expected"
                    " train, validation (or val) and test, or the class folders themselves"
                )
            return {split: _classes(holders[split]) for split in SPLITS}
    names = class_splits(str(data), by_name, ways, "make train, validation and test folders")
    return {split: {name: by_name[name] for name in part} for split, part in names.items()}


def _classes(path: Path) -> _Classes:
    """Return the class folders in a folder, or the images that a CSV file lists, by class."""
    if path.is_file() and path.suffix.lower() == ".csv":
        parts = listed(path).values()
        return {name: [file for part in parts for file in part.get(name, ())] for part in parts for name in part}
    if not path.is_dir():
        raise FileError(
            f"{path} is not a folder; expected a folder that holds one folder of images a class, such a folder as a"
            " zip file, or a CSV file of the columns path and label"
        )
    found = _subfolders(path)
    if not found:
        raise DataError(f"{path} has no class folder (it holds {_contents(path)}); expected one of images a class")
    return {folder.name: folder for folder in found}


def _subfolders(path: Path) -> list[Path]:
    # macOS leaves a folder of its own in what it packs
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith((".", "__MACOSX")))


def _contents(path: Path) -> str:
    names = sorted(child.name for child in path.iterdir()) or ["nothing"]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
