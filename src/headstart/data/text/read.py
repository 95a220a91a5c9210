"""Files of texts and their labels: CSV, TSV and Parquet, JSON lines, and folders of class folders of ``.txt`` files."""

import csv
import gzip
import json
import warnings
import zlib
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from unicodedata import east_asian_width, normalize

import numpy as np
import torch
from torch import Tensor

from headstart.data.kind import LeftOutWarning
from headstart.data.random import SPLITS
from headstart.data.tables.read import (
    MISSING,
    encoding_of,
    find_columns,
    is_zipped,
    not_utf8,
    read_table,
    separator_of,
)
from headstart.errors import DataError, FileError, check_text

#: What the column is called that says which split a row is in.
SPLIT = "split"

TABLES = (".csv", ".tsv", ".parquet", ".pq", ".csv.gz", ".tsv.gz")
LINES = (".jsonl", ".ndjson")

#: What a file of texts may have besides, and no features.
BESIDES = ("id", "index", "idx", "")

#: A file of one text, and a line of JSON, may have so many bytes.
_MOST = 2**24


class Labelled(NamedTuple):
    """Texts of a file or folder, in its order."""

    path: str
    texts: list[str]
    labels: list[str]
    """Empty where there is no column of labels."""
    splits: list[str]
    """Empty where there is no column of splits."""
    where: Callable[[int], str]
    """Where one of them stands, as errors say it."""
    columns: dict[str, list[str]]
    """All columns, of a file that has some."""
    text: str | None = None
    """What the column of texts is called."""
    label: str | None = None
    """What the column of labels is called."""
    tasks: list[str] = []
    """Empty where there is no column of tasks."""
    task: str | None = None
    """What the column of tasks is called."""
    commas: frozenset[str] = frozenset()
    """The columns whose numbers have a decimal comma."""

    def rows(self, kept: Sequence[int]) -> "Labelled":
        """Return some of the rows, without the columns of the file."""
        texts, labels, splits, tasks = (
            [values[row] for row in kept] if values else []
            for values in (self.texts, self.labels, self.splits, self.tasks)
        )
        own = self._replace(texts=texts, labels=labels, splits=splits, tasks=tasks, columns={})
        return own._replace(where=lambda row: self.where(kept[row]))

    def split(self, row: int) -> str:
        """Return the split of a row, as the file says; a `DataError` where that is none."""
        told = self.splits[row].lower()
        split = {"val": "validation", "valid": "validation", "dev": "validation"}.get(told, told)
        if split not in SPLITS:
            raise DataError(
                f"{self.where(row)}: the split is {self.splits[row]!r}; expected train, validation (or val) or test"
            )
        return split


def unread(found: Labelled) -> list[str]:
    """Return the columns of which nothing is read, but for those that texts may have beside them."""
    read = (found.text, found.label, found.task)
    return [name for name in found.columns if name not in read and name.lower() not in (SPLIT, *BESIDES)]


def told_columns(found: Labelled) -> str:
    """Return what the columns are called, as an error says it, so that a first line that is none is seen."""
    return ", ".join(repr(name[:60]) for name in [*found.columns][:20]) or "none"


class SameTextWarning(UserWarning):
    """A text is there with several labels."""


class AlikeLabelsWarning(UserWarning):
    """Labels differ by capital letters, spaces or how a number is written alone."""


class CutTextWarning(UserWarning):
    """Texts are longer than what is read of them."""


def _sentences(values: Sequence[str]) -> bool:
    """Return whether most of the values have several words, and most differ."""
    return 2 * sum(map(_several, values)) > len(values) <= 2 * len(set(values))


def _several(value: str) -> bool:
    """Return whether a value has several words; of Chinese or Japanese, which have no spaces, five letters are some.

    >>> _several("my card"), _several("card"), _several("我的卡在哪里"), _several("银行卡")
    (True, False, True, False)
    """
    return " " in value.strip() or sum(one.isalpha() and east_asian_width(one) == "W" for one in value) > 4


def repeated(values: Sequence[str]) -> bool:
    """Return whether there are several values, each of which comes twice on average, or more often."""
    return 1 < len(set(values)) <= len(values) / 2


class Role(NamedTuple):
    """What a column may be."""

    option: str
    called: tuple[str, ...]
    """What such columns are called, where nobody says."""
    seems: Callable[[Sequence[str]], bool]
    """Whether the values of a column that is called otherwise tell that it is one."""


TEXT = Role(
    "--text",
    ("text", "sentence", "utterance", "query", "question", "message", "review", "content", "title", "body"),
    _sentences,
)
LABEL = Role("--label", ("label", "intent", "category", "class", "sentiment", "topic", "target"), repeated)


def column_of(path: str, columns: Mapping[str, Sequence[str]], role: Role, fix: str = "say which it is") -> str | None:
    """Return the column of a role: the one that is called so, else the only one whose values tell it.

    Raises:
        DataError: several that may be it, and the ``fix``.

    >>> column_of("a.csv", {"x1": ["My card is lost", "Where is it?"] * 2, "x2": ["lost", "find"] * 2}, TEXT)
    'x1'
    """
    called = [name for name in columns if name.strip().lower() in role.called]
    likely = called if len(called) == 1 else [name for name in called or columns if role.seems(columns[name])]
    if len(called) > 1 and not likely or len(likely) > 1:
        told = " and ".join(map(repr, likely or called))
        raise DataError(f"{path}: which column is the {role.option[2:]}? {told} may be; {fix}")
    return likely[0] if likely else None


def read_texts(
    path: Path,
    text: str | None = None,
    label: str | None = None,
    task: str | None = None,
    *,
    asked: bool = True,
    labelled: bool = True,
) -> Labelled:
    """Read a file of texts, or a folder that holds a folder of ``.txt`` files for each class.

    Args:
        path: a CSV, TSV, Parquet or JSON lines file, a folder, or a ``.txt`` file that is one text.
        text, label: what the columns (JSON: the keys) are called, where `column_of` is not to find them.
        task: what the column of tasks is called, where there is one.
        asked: whether what is called so must be there; else it is found out where it is not.
        labelled: whether labels are looked for, and each row must have a text and, where there are any, a label.

    Raises:
        DataError: no such columns, a row without a text, or what is no such file.
        FileError: a file that cannot be read.
    """
    if path.exists() and not (path.is_dir() or path.is_file()):
        raise FileError(f"{path} is not an ordinary file")  # a pipe would be waited for
    lines = False
    if path.is_dir() or path.name.lower().endswith(".txt"):
        found = _of_files(path)
        if task is not None and asked:
            raise DataError(f"{path} has no columns, such as {task!r} (--task-column); give a CSV or JSON lines file")
    else:
        commas: frozenset[str] = frozenset()
        if lines := path.name.lower().endswith(LINES):
            columns, where = _of_lines(path, (text, label, task))
        else:
            table = read_table(path)
            where, commas = table.where, table.commas
            columns = {name: values.tolist() for name, values in table.columns.items()}
            _refuse_nested(str(path), [name for name in table.header if name not in columns], (text, label, task))
        fixes = [f"say it with {role.option}" for role in (TEXT, LABEL)]
        if not asked:
            fixes = [f"call it {own or role.called[0]!r}, as it was" for role, own in ((TEXT, text), (LABEL, label))]
            text, label, task = (name if name in columns else None for name in (text, label, task))
            task = task if task is not None and any(map(str.strip, columns[task])) else None
        named = ((TEXT.option, text), (LABEL.option, label), ("--task-column", task))
        find_columns(str(path), tuple(columns), [(option, name) for option, name in named if name is not None])
        for one, other in ((text, label), (text, task), (label, task)):
            if one is not None and one == other:
                raise DataError(f"{path}: column {one!r} is asked for twice, as text, label or task; name another")
        split = next((name for name in columns if name.lower() == SPLIT and name not in (text, label, task)), None)
        left = {name: values for name, values in columns.items() if name not in (split, label, task)}
        if text is None:
            text = next(iter(left)) if len(left) == 1 else column_of(str(path), left, TEXT, fixes[0])
        if text is None:
            has = ", ".join(map(repr, columns))
            raise DataError(f"{path}: which column is the text? None of {has} tells; {fixes[0]}")
        left = {name: values for name, values in columns.items() if name not in (split, text, task)}
        label = None if not labelled else label if label is not None else column_of(str(path), left, LABEL, fixes[1])
        if text is not None and " " in text.strip() and label is not None and label in columns[label]:
            raise DataError(
                f"{path}: the first line has to name the columns, but is {text[:60]!r} and {label!r}, as if it were a"
                " text and its label; put a line above it, such as text,label"
            )
        texts, labels, splits, tasks = ([] if name is None else columns[name] for name in (text, label, split, task))
        found = Labelled(str(path), texts, labels, splits, where, columns, text, label, tasks, task, commas)
    for what, values in (("text", found.texts), ("label", found.labels), ("task", found.tasks)) if labelled else ():
        empty = [row for row, value in enumerate(values) if not value.strip()]
        if empty:
            more = f" (so are {len(empty) - 1} more)" if len(empty) > 1 else ""
            none = f" (or one of {', '.join(MISSING)}, which say that there is none)"
            none = "" if found.text is None else " (or null, or no finite number)" if lines else none
            raise DataError(f"{found.where(empty[0])}: the {what} is empty{more}{none}; leave the row out")
    return found


_Columns: TypeAlias = tuple[dict[str, list[str]], Callable[[int], str]]


def start_of(path: Path, rows: int = 200) -> dict[str, list[str]]:
    """Return the columns of the first rows of a CSV, TSV or Parquet file; empty where it is no such file."""
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            from pyarrow.parquet import ParquetFile

            batch = next(ParquetFile(path).iter_batches(rows), None)
            found = {} if batch is None else batch.to_pydict()
            nested = {name for name, values in found.items() for v in values if isinstance(v, (dict, list))}
            return {name: ["" if v is None else str(v) for v in found[name]] for name in found if name not in nested}
        with path.open("rb") as file:
            opened = gzip.open if is_zipped(file.read(2)) else open
        with opened(path, "rb") as file:
            encoding = encoding_of(file.read(2))
        with opened(path, "rt", encoding=encoding, newline="") as file:
            separator = separator_of(file)
            file.seek(0)
            header, *lines = islice(csv.reader(file, delimiter=separator, strict=True), rows + 1)
            whole = [line for line in lines if len(line) == len(header)]
            return {name.strip(): [line[place] for line in whole] for place, name in enumerate(header)}
    except (OSError, ValueError, EOFError, zlib.error, csv.Error, ImportError):
        return {}


def _of_lines(path: Path, named: Collection[str | None]) -> _Columns:
    """Return the columns of JSON lines but for those with lists or objects in them, none of which may be ``named``."""
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=lambda name: None)  # NaN is no label
        except (ValueError, RecursionError) as problem:
            raise DataError(f"{path}, line {number} is not JSON: {problem}") from problem
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number} is {line.strip()[:60]!r}; expected an object with a text and a label"
            )
        for value in (*row, *row.values()):
            check_text(f"{path}, line {number}:", value if isinstance(value, str) else "")
        nested = [name for name, value in row.items() if isinstance(value, (dict, list))]
        _refuse_nested(f"{path}, line {number}", nested, named)
        rows.append(row)
        lines.append(number)
    if not rows:
        raise DataError(f"{path} has no rows")
    names = dict.fromkeys(name for row in rows for name in row)
    plain = {name: [row.get(name) for row in rows] for name in names}
    return {
        name: ["" if value is None else str(value).strip() for value in values]
        for name, values in plain.items()
        if not any(isinstance(value, (dict, list)) for value in values)
    }, lambda row: f"{path}, line {lines[row]}"


def _refuse_nested(where: str, nested: Iterable[str], named: Collection[str | None]) -> None:
    """Refuse columns of lists or objects, which are left out, where one is named or called as a text or a label."""
    needed = {*named, *TEXT.called, *LABEL.called}
    if odd := [name for name in nested if name in needed]:
        raise DataError(f"{where}: {odd[0]!r} is a list or an object; expected one text, or one label, a row")


def _lines(path: Path) -> Iterator[str]:
    with _text_of(path), path.open(encoding=_encoding(path)) as file:
        while line := file.readline(_MOST):
            if len(line) == _MOST:
                raise DataError(f"{path} has a line of more than {_MOST} letters; expected one JSON object a line")
            yield line


def _of_files(path: Path) -> Labelled:
    files = [path]
    if path.is_dir():
        shown = [file for file in path.rglob("*") if not any(part[0] == "." for part in file.relative_to(path).parts)]
        files = sorted(file for file in shown if file.suffix.lower() == ".txt" and file.parent.parent == path)
        files = [file for file in files if file.is_file()]
        if not files:
            raise DataError(f"{path} has no class folder of .txt files; expected one folder a class, one file a text")
        _warn_of_others(path, shown, files)
    texts: list[str] = []
    for file in files:
        with _text_of(file):
            if file.stat().st_size > _MOST:
                raise DataError(f"{file} has more than {_MOST} bytes; expected one text a file")
            texts.append(file.read_text(encoding=_encoding(file)))
        if "\0" in texts[-1]:
            raise DataError(f"{file} is not text (it has zero bytes, as UTF-16 without its mark); save it as UTF-8")
    labels = [file.parent.name for file in files] if path.is_dir() else []
    return Labelled(str(path), texts, labels, [], lambda row: str(files[row]), {})


def _warn_of_others(path: Path, shown: Sequence[Path], files: Sequence[Path]) -> None:
    """Warn of what is in class folders and no text of theirs, and of class folders without any."""
    others = sorted(file for file in {*shown} - {*files} if file.parent != path and file.is_file())
    empty = sorted(
        {one.name for one in shown if one.parent == path and one.is_dir()} - {one.parent.name for one in files}
    )
    told = [f"{len(others)} files that are no .txt in a class folder (such as {others[0]})"] if others else []
    told += [f"folders without a .txt: {', '.join(empty[:5])}{', …' * (len(empty) > 5)}"] if empty else []
    if told:
        warnings.warn(f"left out of {path}: {'; '.join(told)}", LeftOutWarning, stacklevel=4)


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        return encoding_of(file.read(2))


@contextmanager
def _text_of(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeError:
        raise not_utf8(path) from None
    except OSError as problem:
        raise FileError(f"cannot read {path}: {problem.strerror or problem}") from problem


def by_class(found: Labelled, *, lower: bool) -> dict[str, list[int]]:
    """Return the rows of each label, in the order of their first; `warn_of_several` warns of what is odd."""
    classes: dict[str, list[int]] = {}
    for row, name in enumerate(found.labels):
        classes.setdefault(name, []).append(row)
    warn_of_several(found, [plain(text.lower() if lower else text) for text in found.texts])
    return classes


def warn_of_several(found: Labelled, keys: Sequence[Hashable]) -> None:
    """Warn of rows of the same key, which stands for their text, that have several labels, and of labels alike."""
    labels: dict[Hashable, set[str]] = {}
    first: dict[Hashable, int] = {}
    for row, (own, name) in enumerate(zip(keys, found.labels)):
        labels.setdefault(own, set()).add(name)
        first.setdefault(own, row)
    several = [key for key, names in labels.items() if len(names) > 1]
    if several:
        one = first[several[0]]
        warnings.warn(
            f"{len(several)} text{'s are' if len(several) > 1 else ' is'} there with several labels, which no model can"
            f" tell apart: {found.where(one)}, {found.texts[one][:60]!r}, is"
            f" {' and '.join(sorted(labels[several[0]])[:3])}",
            SameTextWarning,
            stacklevel=4,
        )
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(found.labels):
        alike.setdefault(_meant(name), []).append(name)
    if doubtful := [names for names in alike.values() if len(names) > 1]:
        more = f" (so do {len(doubtful) - 1} more)" if len(doubtful) > 1 else ""
        warnings.warn(
            f"{found.path}: the labels {' and '.join(map(repr, doubtful[0]))} differ only in how they are written"
            f"{more}; each is a class of its own",
            AlikeLabelsWarning,
            stacklevel=4,
        )


def _meant(label: str) -> str:
    """Return a label without what people write in several ways.

    >>> _meant("Lost  Card") == _meant("lost card"), _meant("01") == _meant("1.0")
    (True, True)
    """
    try:
        return str(float(label))
    except ValueError:
        return plain(label).casefold()


def plain(text: str) -> str:
    """Return a text in one form of Unicode (NFC), its spaces single.

    >>> plain("  Where  is\\nmy card? ")
    'Where is my card?'
    """
    return " ".join(normalize("NFC", text).split())


def _bytes(text: str, lower: bool) -> bytes:
    return plain(text.lower() if lower else text).replace("\0", " ").encode()


def encoded(texts: Sequence[str], length: int, *, lower: bool = False) -> tuple[Tensor, int]:
    """Return texts as bytes of UTF-8 ``(n, length)`` uint8, 0 where there is none, and how many had to be cut.

    A letter is never cut in two.

    >>> encoded(["card", "Wörter"], 5, lower=True)[0].tolist()
    [[99, 97, 114, 100, 0], [119, 195, 182, 114, 116]]
    """
    kept, cut = np.zeros((len(texts), length), dtype=np.uint8), 0
    for row, text in enumerate(texts):
        data = _bytes(text[: 64 * length], lower)
        if len(text) > 64 * length and len(data) < 2 * length:  # spaces, most of them
            data = _bytes(text, lower)
        if len(data) > length:
            cut += 1
            data = data[:length].decode(errors="ignore").encode()
        kept[row, : len(data)] = np.frombuffer(data, dtype=np.uint8)
    return torch.from_numpy(kept), cut
