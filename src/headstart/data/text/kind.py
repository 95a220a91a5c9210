"""Texts as a kind of data: a new task is labelled texts, and what is predicted is a text's class."""

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headstart.data.encoder import Encoder, like_of
from headstart.data.kind import (
    DataKind,
    Elsewhere,
    Failed,
    Inputs,
    NewTask,
    Raw,
    Row,
    Untrained,
    class_answers,
    files_of,
    nothing,
    number_answers,
    unsampled,
)
from headstart.data.tables.read import is_decimal_comma, to_number
from headstart.data.text.read import (
    BESIDES,
    LABEL,
    LINES,
    SPLIT,
    TABLES,
    TEXT,
    CutTextWarning,
    Labelled,
    column_of,
    encoded,
    plain,
    read_texts,
    repeated,
    start_of,
    told_columns,
    warn_of_several,
)
from headstart.data.text.rows import Scale, as_numbers
from headstart.errors import ConfigError, DataError, FileError, check_text
from headstart.models.trunks.source import parts
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
    task: str | None = None
    """What the column of tasks was called."""
    scale: Scale | None = None
    """How numbers became targets; ``None``: classes are predicted."""


def _preparation(tasks: Tasks) -> dict[str, Any] | None:
    if tasks.details.get("encoding") != "bytes":
        return None
    details, names = tasks.details, "\n".join(tasks.details["class_names"]["train"])
    return Prepared(
        details["length"], details["lower"], tasks.output_size, hashlib.sha256(names.encode()).hexdigest(),
        details["text"], details["label"], details["encoder"], details.get("task"), details.get("scale"),
    )._asdict()  # fmt: skip


def _untrained(source: Path, options: Mapping[str, Any], encoder: Mapping[str, Any] | None) -> dict[str, Any]:
    with warnings.catch_warnings(action="ignore"):  # what is read again is told of then
        found = read_texts(source, options["text"], options["label"], options["task_column"])
    of_none = hashlib.sha256(b"").hexdigest()
    own = (options["length"], options["lower"], 2, of_none, found.text, found.label)
    return {**Prepared(*own, None, found.task)._asdict(), "encoder": encoder}


def _read(value: Any, where: str) -> Prepared:
    kinds = (int, bool, int, str, str | None, str | None, Encoder | None, str | None, Scale | None)
    if not isinstance(value, dict) or value.keys() != set(Prepared._fields):
        raise FileError(f"{where} does not say how texts are prepared; expected {', '.join(Prepared._fields)}")
    found = Prepared(**value)._replace(encoder=Encoder.read(value["encoder"], where))
    scale = found.scale
    if isinstance(scale, dict) and scale.keys() == set(Scale._fields):
        found = found._replace(scale=Scale(**{name: float(part) for name, part in scale.items()}))
    odd = [name for name, part, kind in zip(Prepared._fields, found, kinds) if not isinstance(part, kind)]
    least = 2 if found.scale is None else 1
    if odd or not 1 <= found.length <= 4096 or not least <= found.classes <= 1_000_000:
        raise FileError(f"{where} does not say how texts are prepared: {odd[0] if odd else 'sizes'} cannot be")
    return found


def _difference(kept: Prepared, now: Prepared) -> str:
    names = {
        "length": "how long texts are",
        "encoder": "the pretrained network",
        "training_classes": "which classes or tasks there are",
    }
    return next((names.get(name, name) for name in Prepared._fields if getattr(kept, name) != getattr(now, name)), "")


def _recognises(path: Path) -> bool:
    """Return whether a file has a column of texts and one of labels or numbers, and no features, or a folder ``.txt``.

    Where the names of both tell what they are, it may have a third of values that come again: that of tasks.
    """
    if path.is_dir():
        inside = {file.suffix.lower() for file in path.glob("*/*")}
        return ".txt" in inside and ".csv" not in inside
    if path.name.lower().endswith(LINES):
        return True
    # a pipe would be waited for
    columns = start_of(path) if path.is_file() and path.name.lower().endswith(TABLES) else {}
    left = {name: values for name, values in columns.items() if name.lower() not in (SPLIT, *BESIDES)}
    try:
        text, label = (column_of(str(path), left, role) for role in (TEXT, LABEL))
    except DataError:
        return False
    if text is None or not any(letter.isalpha() for value in left[text] for letter in value):
        return False
    others = [name for name in left if name != text]
    if label is None:
        numbers = left[others[0]] if len(others) == 1 else ["none"]
        return all(is_decimal_comma(value.strip()) or to_number(value.strip()) is not None for value in numbers)
    third = [name for name in others if name != label]
    told = text.strip().lower() in TEXT.called and label.strip().lower() in LABEL.called
    return not third or (told and len(third) == 1 and repeated(left[third[0]]))


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


def _raw(prepared: Prepared) -> Raw:
    """Texts as bytes, or as a pretrained network's tokens, by the tokenizer that comes with it."""
    mean, scale = (0.0, 1.0) if prepared.scale is None else (prepared.scale.mean, prepared.scale.deviation)
    few = ["a few words", "Some more of them, and a comma.", "?"] * 6
    if prepared.encoder is None:
        some, _ = encoded(few[:17], prepared.length, lower=prepared.lower)
        told = {
            "encoding": "UTF-8, one number a byte, 0 behind the end",
            "lower case first": prepared.lower,
            "length": prepared.length,
        }
        return Raw("bytes", some.long(), lambda ids: ids, told, mean=mean, scale=scale)
    trunk, seen = prepared.encoder.opened()
    door, where = parts(prepared.encoder.source)
    tokenizer = Path(where).expanduser() / "tokenizer.json"
    files = {"tokenizer.json": tokenizer.read_bytes()} if door == "hf" and tokenizer.is_file() else {}
    told = {"tokens": f"by {'tokenizer.json' if files else 'the tokenizer of ' + trunk.source}", **trunk.told}
    return Raw("tokens", trunk.inputs(few[:17]), seen, told, files, (0, 1), mean, scale)


def _shape(prepared: Prepared) -> tuple[int, ...]:
    return (prepared.length,) if prepared.encoder is None else prepared.encoder.shape


def _support(prepared: Prepared, source: Path | None, strict: bool) -> list[tuple[NewTask, Batch]]:
    if source is None and prepared.scale is not None:
        return [(NewTask(None, (), (0,)), nothing(_like(prepared, 0)))]
    if source is None:
        raise DataError("classes of texts are learned from texts; give a file of texts and their labels")
    found = read_texts(source, prepared.text, prepared.label, prepared.task, asked=False)
    if not found.labels:
        what = "labels, from which the classes are" if prepared.scale is None else "numbers, from which they are"
        called = "label" if prepared.label is None else prepared.label
        raise DataError(f"{source} has no column of {what} learned, such as {called!r}; it has {told_columns(found)}")
    if prepared.scale is None and _are_amounts(found.labels):
        raise DataError(
            f"{source}, column {found.label!r}: the values are numbers, and no two the same, so they are no classes;"
            " numbers are predicted by a run of --target"
        )
    values = torch.zeros(len(found.texts)) if prepared.scale is None else prepared.scale.targets(as_numbers(found))
    x, names = _as_trained(prepared, found.texts), found.tasks or [None] * len(found.texts)
    keys = [plain(text.lower() if prepared.lower else text) for text in found.texts]
    if prepared.scale is None:
        warn_of_several(found, list(zip(keys, names)))
    tasks = []
    for name in dict.fromkeys(names):
        rows = [row for row, own in enumerate(names) if own == name]
        if prepared.scale is not None:
            tasks.append((NewTask(name, (), (len(rows),)), Batch(x[rows].unsqueeze(0), values[rows].view(1, -1, 1))))
            continue
        labels = sorted({found.labels[row] for row in rows})
        rows.sort(key=lambda row: labels.index(found.labels[row]))
        y = torch.tensor([labels.index(found.labels[row]) for row in rows])
        new = NewTask(name, tuple(labels), tuple(y.bincount().tolist()))
        tasks.append((new, Batch(x[rows].unsqueeze(0), y.unsqueeze(0))))
    return tasks


def _are_amounts(labels: Sequence[str]) -> bool:
    """Return whether labels are numbers as one measures them: all different, and not all of them whole."""
    numbers = {number for label in labels if (number := to_number(label)) is not None}
    return len(numbers) == len(labels) and any(number % 1 != 0 for number in numbers)


def _names(prepared: Prepared, labels: Sequence[str]) -> Tensor:
    # as one would say them: card_arrival, card-arrival and cardArrival are two words
    words = [re.sub(r"[\W_]+|(?<=[a-z])(?=[A-Z])", " ", label).strip() or label for label in labels]
    return _as_trained(prepared, words)


_FILES = (*TABLES, *LINES, ".txt")


def _inputs(
    prepared: Prepared, sources: Sequence[str], tasks: Mapping[str, Sequence[str]], failed: Failed
) -> Iterator[Inputs]:
    for file in files_of(sources, _FILES, failed):
        try:
            found = read_texts(file, prepared.text, prepared.label, prepared.task, asked=False, labelled=False)
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
        own = [found.tasks[row].strip() or None for row in there] if found.tasks else [None] * len(there)
        yield from _some(prepared, [found.texts[row] for row in there], rows, own, partial(_at, found, there))


def _at(found: Labelled, rows: Sequence[int], place: int) -> str:
    return found.where(rows[place])


def _is_text(value: str) -> bool:
    """Return whether a string is a text, and not what a file, a folder or a glob is called."""
    try:
        there = bool(value) and Path(value).exists()  # what is empty is the folder where one is
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
    for row, value in enumerate(values):
        check_text(f"text {row},", value)
    yield from _some(
        prepared, list(values), [Row(text=value) for value in values], [None] * len(values), lambda row: f"text {row}"
    )


def _some(
    prepared: Prepared, texts: list[str], rows: list[Row], tasks: Sequence[str | None], where: Callable[[int], str]
) -> Iterator[Inputs]:
    for first in range(0, len(texts), _CHUNK):
        own = slice(first, first + _CHUNK)
        x = _as_trained(prepared, texts[own])
        yield Inputs(x, tasks[own], rows[own], lambda row, first=first: where(first + row))


def _task(tasks: Tasks) -> str:
    details = tasks.details
    shots, queries = details["shots"], details["queries"]
    if "task_names" in details:
        whose = f"one {details['task']}" if details["task"] else "some of the texts"
        each = "" if details["scale"] else " of each class"
        return f"{whose}: {details['label']} of other texts is predicted from {shots} texts{each}"
    shots = "-".join(map(str, shots)) if isinstance(shots, tuple) else shots
    return f"{tasks.output_size} classes; {shots} support and {queries} query texts a class"


def _advice(tasks: Tasks) -> str:
    if tasks.details["encoder"] is not None:
        return ""
    return (
        "No pretrained network was used: what words mean is known from the training texts alone. One would also know"
        " words that none of them has, and which words mean the same."
    )


def _like(prepared: Prepared, classes: int) -> Tasks:
    shape, details, scale = _shape(prepared), like_of(prepared.encoder), prepared.scale
    integers = prepared.encoder is None or prepared.encoder.encoded == "inputs"
    if scale is None:
        size = classes or prepared.classes
        return Tasks("texts", unsampled, "classification", shape, size, details, integers=integers)
    limits = (scale.low, scale.high)
    return Tasks(
        "texts", unsampled, "regression", shape, 1, details, unit=scale.deviation, limits=limits, integers=integers
    )


def _answers(prepared: Prepared, labels: Sequence[str], outputs: Tensor, deviations: Tensor | None) -> list[Row]:
    if prepared.scale is None:
        return class_answers(labels, outputs)
    return number_answers(outputs, deviations, prepared.scale.mean, prepared.scale.deviation)


def _predicts(prepared: Prepared) -> str:
    what = "the class" if prepared.scale is None else f"`{prepared.label}`"
    if prepared.encoder is not None:
        return f"{what} of a text, as {prepared.encoder.source} sees it"
    return f"{what} of a text (its first {prepared.length} bytes)"


def _seen(tasks: Tasks) -> dict[str, Any]:
    """Return what decides what models see of a text."""
    encoder = tasks.details["encoder"]
    if encoder is not None:
        return {name: encoder[name] for name in ("sha256", "encoded")}
    return {name: tasks.details[name] for name in ("length", "lower")}


def _elsewhere(own: Tasks) -> dict[str, Any]:
    encoder = own.details["encoder"]
    return _seen(own) if encoder is None else {"encoder": encoder["source"], "encoded": encoder["encoded"]}


def _fitted(own: Tasks, other: Tasks) -> Tasks:
    """Return other tasks, whose texts have to be read as those that were trained on."""
    if own.kind != "classification" or other.kind != own.kind:
        raise ConfigError("numbers that texts are to tell are on a scale of their own, so they are judged there alone")
    if _seen(own) != _seen(other):
        raise ConfigError(f"{other.name} has texts that are read by {_seen(other)}; in the run it is {_seen(own)}")
    return other


TEXTS = DataKind(
    name="texts",
    recognises=_recognises,
    preparation=_preparation,
    untrained=Untrained(("text", "label", "task_column", "length", "lower"), _untrained),
    read=_read,
    difference=_difference,
    like=_like,
    support=_support,
    names=_names,
    inputs=_inputs,
    values=_values,
    raw=_raw,
    is_value=_is_text,
    advice=_advice,
    answers=_answers,
    predicts=_predicts,
    task=_task,
    examples="texts",
    elsewhere=Elsewhere(("ways", "shots", "queries"), _elsewhere, _fitted),
    usage=("LABELLED_TEXTS.csv", "TEXTS.csv"),
)
