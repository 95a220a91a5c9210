"""Where images may lie beside folders of class folders: zip files of these, and CSV files of image paths and labels."""

import csv
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


def _rows(path: Path) -> Iterator[list[str]]:
    try:
        if path.stat().st_size > _CSV_BYTES:
            raise DataError(f"{path} is larger than {_CSV_BYTES} bytes")
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
        if number == 2 and not (lies_in / row[image]).is_file():
            lies_in = path.parent / "images"
            if not (lies_in / row[image]).is_file():
                raise DataError(f"{path} lists {row[image]!r}, which is neither in {path.parent} nor in {lies_in}")
        part = found.setdefault("" if split is None else row[split].strip().lower(), {})
        part.setdefault(row[label].strip(), []).append(lies_in / row[image])
    return found
