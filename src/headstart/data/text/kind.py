"""Texts as a kind of data: a new task is labelled texts, and what is predicted is a text's class."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headstart.data.encoder import Encoder, like_of
from headstart.data.kind import DataKind, Failed, Inputs, NewTask, Row, class_answers, files_of, unsampled
from headstart.data.text.read import (
    LABEL,
    LINES,
    SPLIT,
    TABLES,
    TEXT,
    CutTextWarning,
    Labelled,
    by_class,
    column_of,
    encoded,
    read_texts,
    start_of,
)
from headstart.errors import DataError, FileError
from headstart.types import Batch, Tasks

_CHUNK = 256


class Prepared(NamedTuple):
    """How texts become what a run was trained on."""

    length: int
    """The most bytes of a text."""
    lower: bool
    classes: int
    """Classes of a task, as trained."""
    training_classes: str
    """The SHA-256 of the names of the classes that were trained on."""
    text: str | None
    """What the column of texts was called."""
    label: str | None
    """What the column of labels was called."""
    encoder: Encoder | None
    """The pretrained network that texts went through, where they did."""


def _preparation(tasks: Tasks) -> dict[str, Any] | None:
    if tasks.details.get("encoding") != "bytes":
        return None
    details, names = tasks.details, "\n".join(tasks.details["class_names"]["train"])
    return Prepared(
        details["length"], details["lower"], tasks.output_size, hashlib.sha256(names.encode()).hexdigest(),
        details["text"], details["label"], details["encoder"],
    )._asdict()  # fmt: skip


def _read(value: Any, where: str) -> Prepared:
    kinds = (int, bool, int, str, str | None, str | None, Encoder | None)
    if not isinstance(value, dict) or value.keys() != set(Prepared._fields):
        raise FileError(f"{where} does not say how texts are prepared; expected {', '.join(Prepared._fields)}")
    found = Prepared(**value)._replace(encoder=Encoder.read(value["encoder"], where))
    odd = [name for name, part, kind in zip(Prepared._fields, found, kinds) if not isinstance(part, kind)]
    if odd or not 1 <= found.length <= 4096 or not 2 <= found.classes <= 1_000_000:
        raise FileError(f"{where} does not say how texts are prepared: {odd[0] if odd else 'sizes'} cannot be")
    return found


def _difference(kept: Prepared, now: Prepared) -> str:
    names = {
        "length": "how long texts are",
        "encoder": "the pretrained network",
        "training_classes": "which classes there are",
    }
    return next((names.get(name, name) for name in Prepared._fields if getattr(kept, name) != getattr(now, name)), "")


#: What a file of texts may have besides, and no features.
_BESIDES = (SPLIT, "id", "index", "idx", "")


def _recognises(path: Path) -> bool:
    """Return whether a file has a column of texts and one of labels, and no features, or a folder holds ``.txt``."""
    if path.is_dir():
        return any(path.glob("*/*.txt")) and not any(path.glob("*/*.csv"))
    if path.name.lower().endswith(LINES):
        return True
    # a pipe would be waited for
    columns = start_of(path) if path.is_file() and path.name.lower().endswith(TABLES) else {}
    left = {name: values for name, values in columns.items() if name.lower() not in _BESIDES}
    try:
        text, label = (column_of(str(path), left, role) for role in (TEXT, LABEL))
    except DataError:
        return False
    wordy = text is not None and any(letter.isalpha() for value in left[text] for letter in value)
    return wordy and label is not None and {text, label} == left.keys()


def _as_trained(prepared: Prepared, texts: Sequence[str]) -> Tensor:
    if prepared.encoder is not None:
        return prepared.encoder(texts)
    x, cut = encoded(texts, prepared.length, lower=prepared.lower)
    if cut:
        warnings.warn(
            f"{cut} of {len(texts)} texts {'is' if cut == 1 else 'are'} longer than {prepared.length} bytes; what"
            " comes after is not read (--length when training)",
            CutTextWarning,
            stacklevel=3,
        )
    return x.long()


def _shape(prepared: Prepared) -> tuple[int, ...]:
    return (prepared.length,) if prepared.encoder is None else prepared.encoder.shape


def _support(prepared: Prepared, source: Path | None, strict: bool) -> list[tuple[NewTask, Batch]]:
    if source is None:
        raise DataError("classes of texts are learned from texts; give a file of texts and their labels")
    found = read_texts(source, prepared.text, prepared.label, asked=False)
    if not found.labels:
        raise DataError(f"{source} has no column of labels, from which the classes are learned")
    classes = by_class(found, lower=prepared.lower)
    labels = sorted(classes)
    if len(labels) < 2:
        raise DataError(f"{source} has one class only, {labels[0]!r}; there is nothing to tell it from")
    counts = tuple(len(classes[name]) for name in labels)
    x = _as_trained(prepared, [found.texts[row] for name in labels for row in classes[name]])
    y = torch.arange(len(labels)).repeat_interleave(torch.tensor(counts))
    return [(NewTask(None, tuple(labels), counts), Batch(x.unsqueeze(0), y.unsqueeze(0)))]


_FILES = (*TABLES, *LINES, ".txt")


def _inputs(
    prepared: Prepared, sources: Sequence[str], tasks: Mapping[str, Sequence[str]], failed: Failed
) -> Iterator[Inputs]:
    for file in files_of(sources, _FILES, failed):
        try:
            found = read_texts(file, prepared.text, prepared.label, asked=False, labelled=False)
        except (DataError, FileError) as error:
            failed(error)
            continue
        there = [row for row, text in enumerate(found.texts) if text.strip()]
        if empty := len(found.texts) - len(there):
            first = next(row for row, text in enumerate(found.texts) if not text.strip())
            more = f" (so are {empty - 1} more)" if empty > 1 else ""
            failed(DataError(f"{found.where(first)}: the text is empty{more}"))
        columns = found.columns or {"file": [str(file)] * len(found.texts), "text": found.texts}
        rows = [Row({name: values[row] for name, values in columns.items()}) for row in there]
        yield from _some(prepared, [found.texts[row] for row in there], rows, partial(_at, found, there))


def _at(found: Labelled, rows: Sequence[int], place: int) -> str:
    return found.where(rows[place])


def _is_text(value: str) -> bool:
    """Return whether a string is a text, and not what a file, a folder or a glob is called."""
    try:
        there = Path(value).exists()
    except (OSError, ValueError):  # too long for a name
        there = False
    called = value.lower().endswith(_FILES) or os.sep in value and not any(map(str.isspace, value))
    return not (there or called)


def _values(prepared: Prepared, values: Sequence[Any]) -> Iterator[Inputs]:
    odd = next((value for value in values if not isinstance(value, str)), None)
    if odd is not None:
        raise DataError(f"a {type(odd).__name__} is no text; expected texts, or paths of files of them")
    if empty := [row for row, value in enumerate(values) if not value.strip()]:
        raise DataError(f"text {empty[0]} is empty; leave it out")
    yield from _some(prepared, list(values), [Row(text=value) for value in values], lambda row: f"text {row}")


def _some(prepared: Prepared, texts: list[str], rows: list[Row], where: Callable[[int], str]) -> Iterator[Inputs]:
    for first in range(0, len(texts), _CHUNK):
        own = slice(first, first + _CHUNK)
        x = _as_trained(prepared, texts[own])
        yield Inputs(x, [None] * len(x), rows[own], lambda row, first=first: where(first + row))


def _task(tasks: Tasks) -> str:
    shots, queries = tasks.details["shots"], tasks.details["queries"]
    shots = "-".join(map(str, shots)) if isinstance(shots, tuple) else shots
    return f"{tasks.output_size} classes; {shots} support and {queries} query texts a class"


def _advice(tasks: Tasks) -> str:
    if tasks.details["encoder"] is not None:
        return ""
    return (
        "No pretrained network was used: what words mean is known from the training texts alone. One would also know"
        " words that none of them has, and which words mean the same."
    )


TEXTS = DataKind(
    name="texts",
    recognises=_recognises,
    preparation=_preparation,
    read=_read,
    difference=_difference,
    like=lambda prepared, classes: Tasks(
        "texts", unsampled, "classification", _shape(prepared), classes or prepared.classes, like_of(prepared.encoder)
    ),
    support=_support,
    inputs=_inputs,
    values=_values,
    is_value=_is_text,
    advice=_advice,
    answers=lambda prepared, labels, outputs, deviations: class_answers(labels, outputs),
    predicts=lambda prepared: (
        f"the class of a text (its first {prepared.length} bytes)"
        if prepared.encoder is None
        else f"the class of a text, as {prepared.encoder.source} sees it"
    ),
    task=_task,
    examples="texts",
    usage=("LABELLED_TEXTS.csv", "TEXTS.csv"),
)
