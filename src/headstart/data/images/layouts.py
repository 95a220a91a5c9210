"""Where images may lie beside folders of class folders: zip files of these, and CSV files of image paths and labels."""

import csv
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath

from headstart.errors import DataError, FileError

LABELS = ("label", "class", "category")
PATHS = ("filename", "path", "image", "file", "filepath", "file_name", "image_path")
SPLIT = "split"

_MEMBER_BYTES, _ZIP_BYTES = 2**29, 2**36
_CSV_BYTES = 2**30


@contextmanager
def unpacked(path: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """Yield a path as it is, or the folder that the images of a zip file are unpacked to, for as long as is needed.

    A single folder around all others is left out. Only images are unpacked.

    Raises:
        DataError: a zip that is damaged, encrypted, far too large, or has paths that lead outside of it.
    """
    if path.suffix.lower() != ".zip" or not path.is_file():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="headstart-") as place:
        try:
            with zipfile.ZipFile(path) as file:
                members = [one for one in file.infolist() if _suffix(one.filename) in suffixes]
                _check(path, members)
                file.extractall(place, members)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error, EOFError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"cannot read the zip file {path}: {error}") from error
        except OSError as error:
            raise FileError(f"cannot unpack {path}: {error.strerror or error}") from error
        folder = Path(place)
        while len(inside := [child for child in folder.iterdir() if child.name != "__MACOSX"]) == 1:
            if not inside[0].is_dir() or not any(child.is_dir() for child in inside[0].iterdir()):
                break
            folder = inside[0]
        yield folder


def _check(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    for one in members:
        name = PurePosixPath(one.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or (name.parts and name.parts[0].endswith(":")):
            raise DataError(f"{path} holds {one.filename!r}, which leads outside of it; nothing was unpacked")
    largest, total = max((one.file_size for one in members), default=0), sum(one.file_size for one in members)
    if largest > _MEMBER_BYTES or total > _ZIP_BYTES:
        raise DataError(f"{path} unpacks to {total} bytes, and one file of {largest}; unpack it yourself")


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def holds_images(path: Path, suffixes: Sequence[str]) -> bool:
    """Return whether a file is a zip file with images, or a CSV file of image paths and labels and nothing else."""
    if path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as file:
                return any(_suffix(name) in suffixes for name in file.namelist())
        except (zipfile.BadZipFile, OSError):
            return False
    if path.suffix.lower() != ".csv":
        return False
    try:
        rows = list(islice(_rows(path), 2))
        names = _columns(path, rows[0])
    except (DataError, IndexError):
        return False
    return len(rows) == 2 and len(rows[1]) == len(rows[0]) and _suffix(rows[1][names[0]]) in suffixes


def _check_list(path: Path) -> None:
    """Refuse what is no ordinary file, such as a pipe, which would be waited for, and what is far too large."""
    if not path.is_file():
        raise FileError(f"cannot read {path}: it is not a file")
    if path.stat().st_size > _CSV_BYTES:
        raise DataError(f"{path} is larger than {_CSV_BYTES} bytes")


def _rows(path: Path) -> Iterator[list[str]]:
    _check_list(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from (row for row in csv.reader(file, strict=True) if row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a CSV file of image paths: {error}") from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error


def _columns(path: Path, header: Sequence[str]) -> tuple[int, int, int | None]:
    """Return where a CSV file has the images' paths, their labels and splits; there may be no other column."""
    called = [name.strip().lower() for name in header]
    found = [[place for place, name in enumerate(called) if name in names] for names in (PATHS, LABELS, (SPLIT,))]
    sizes = [len(places) for places in found]
    if sizes[:2] != [1, 1] or sizes[2] > 1 or sum(sizes) != len(called):
        raise DataError(
            f"{path} has the columns {', '.join(header)}; a CSV file of images has one of {', '.join(PATHS)}, one of"
            f" {', '.join(LABELS)}, and maybe {SPLIT}"
        )
    return found[0][0], found[1][0], found[2][0] if found[2] else None


def listed(path: Path) -> dict[str, dict[str, list[Path]]]:
    """Return the images that a CSV file lists, by split (empty where it has none) and by label.

    Paths are looked up beside the file, and in the folder ``images`` beside it.

    Raises:
        DataError: other columns, a row without a label, a path that is there twice, or images that are not there.
        FileError: a file that cannot be read.
    """
    rows = _rows(path)
    image, label, split = _columns(path, next(rows, []))
    found: dict[str, dict[str, list[Path]]] = {}
    seen = set[str]()
    lies_in = path.parent
    for number, row in enumerate(rows, start=2):
        if len(row) <= max(image, label, split or 0) or not row[label].strip() or row[image] in seen:
            why = f"{row[image]!r} is there before" if len(row) > image and row[image] in seen else "it is not whole"
            raise DataError(f"row {number} of {path}: {why}; expected a path of its own and a label")
        seen.add(row[image])
        if number == 2 and not os.path.isfile(lies_in / row[image]):  # of a name of any length
            lies_in = path.parent / "images"
            if not os.path.isfile(lies_in / row[image]):
                raise DataError(f"{path} lists {row[image]!r}, which is neither in {path.parent} nor in {lies_in}")
        part = found.setdefault("" if split is None else row[split].strip().lower(), {})
        part.setdefault(row[label].strip(), []).append(lies_in / row[image])
    return found


def split_lists(path: Path) -> dict[str, dict[str, Path]] | None:
    """Return the class folders by split of a data set that says its splits beside the images; ``None`` for another.

    - CUB-200-2011: ``images/CLASS``, and ``classes.txt``. It has no split of classes for few-shot learning; the usual
      one takes them in order: every second for training, and of the others by turns one for validation and one for test
      (Chen et al. 2019, arXiv:1904.04232).
    - CIFAR-FS: ``data/CLASS``, and ``splits/bertinetto`` (or another) of ``train.txt``, ``val.txt`` and ``test.txt``, a
      class a line (Bertinetto et al. 2019, arXiv:1805.08136).

    Both may lie in a single folder of that one.

    Raises:
        DataError: classes that are listed, but not there.
    """
    for root in (path, *_only_child(path)):
        if (root / "classes.txt").is_file() and (root / "images").is_dir():
            names = sorted(row.split()[-1] for row in _lines(root / "classes.txt"))
            parts = {"train": names[::2], "validation": names[1::4], "test": names[3::4]}
            return {split: _listed_classes(root / "images", part) for split, part in parts.items()}
        lists = sorted((root / "splits").glob("*/train.txt")) if (root / "data").is_dir() else []
        if lists:
            usual = next((one.parent for one in lists if one.parent.name == "bertinetto"), lists[0].parent)
            if len(lists) > 1 and usual.name != "bertinetto":
                several = ", ".join(one.parent.name for one in lists)
                raise DataError(f"{root / 'splits'} has several splits ({several}), and none is called bertinetto")
            files = {"train": usual / "train.txt", "validation": usual / "val.txt", "test": usual / "test.txt"}
            return {split: _listed_classes(root / "data", _lines(file)) for split, file in files.items()}
    return None


def _only_child(path: Path) -> list[Path]:
    inside = [one for one in path.iterdir() if one.is_dir() and one.name[0] not in "._"] if path.is_dir() else []
    return inside if len(inside) == 1 else []


def _lines(path: Path) -> list[str]:
    _check_list(path)
    try:
        return [row.strip() for row in path.read_text("utf-8").splitlines() if row.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read the list of classes {path}: {error}") from error


def _listed_classes(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    outside = [name for name in names if len(PurePosixPath(name).parts) != 1 or name == ".."]
    missing = [name for name in names if name in outside or not os.path.isdir(folder / name)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{folder} has no class folder {missing[0]!r}{more}, which the data set's lists name")
    return {name: folder / name for name in names}


_PICKLES = (".pkl", ".pickle")


def pickles(path: Path) -> list[Path]:
    """Return the pickles that a source is, or holds: mini-ImageNet, tieredImageNet and CIFAR-FS are handed on so."""
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    return [one for one in inside if one.suffix.lower() in _PICKLES and one.is_file()]


def refuse_pickles(path: Path) -> None:
    """Raise `DataError` for a source that is pickles, and say how they become images."""
    if found := pickles(path):
        raise DataError(
            f"{found[0]} is a pickle, and loading a pickle runs whatever code its maker put into it, so headstart loads"
            " none. If you trust it, save its images yourself, once, in folders SPLIT/CLASS: for mini-ImageNet's,\n"
            "  data = pickle.load(open('mini-imagenet-cache-train.pkl', 'rb'))\n"
            "  for name, places in data['class_dict'].items():\n"
            "      os.makedirs(f'mini/train/{name}')\n"
            "      for place in places:\n"
            "          PIL.Image.fromarray(data['image_data'][place]).save(f'mini/train/{name}/{place}.png')\n"
            "and likewise val and test; then give the folder mini. (tieredImageNet's hold encoded images in"
            " *_images_png.pkl, and 'label_specific' in *_labels.pkl; CIFAR-FS's hold 'data' and 'labels'.)"
        )


def data_sets(path: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Return the data sets in a folder of them, such as a copy of Meta-Dataset's, by name.

    A data set is a folder of class folders, or of ``train``, ``val`` and ``test`` folders of these, or one of
    `split_lists`. Nothing is returned where ``path`` is a data set itself, or where any folder in it is none.

    Raises:
        DataError: as `split_lists`.
    """
    inside = _folders(path)
    is_one = {"train", "test"} <= {one.stem for one in path.iterdir()} if inside else True
    if len(inside) < 2 or is_one or split_lists(path) is not None:
        return {}
    return {one.name: one for one in inside} if all(_is_data_set(one, suffixes) for one in inside) else {}


def _folders(path: Path) -> list[Path]:
    inside = sorted(path.iterdir()) if path.is_dir() else []
    return [one for one in inside if one.is_dir() and not one.name.startswith((".", "__MACOSX"))]


def _is_data_set(path: Path, suffixes: Sequence[str]) -> bool:
    inside = _folders(path)
    if not inside or any(_suffix(one.name) in suffixes for one in path.iterdir() if one.is_file()):
        return False
    classes = [deep for one in inside if one.name == "train" for deep in _folders(one)] or inside
    return split_lists(path) is not None or any(_suffix(one.name) in suffixes for one in classes[0].iterdir())
