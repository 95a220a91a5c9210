"""Kinds of data: all that differs between images, tables and curves is one value, `DataKind`.

Nothing above this folder asks which kind it is. A new kind is one folder with such a value, and one row.
"""

import glob
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from headstart.errors import DataError, FileError, HeadstartError
from headstart.registry import find, load
from headstart.types import Batch, Episodes, Tasks

Row: TypeAlias = dict[str, Any]
"""One example's answer, and what it is the answer to."""


class Written(float):
    """A number that, as text, is as it was written: 4.10 and not 4.1."""

    text: str

    def __new__(cls, text: str) -> "Written":
        """Return the number that a text stands for."""
        found = super().__new__(cls, text)
        found.text = text
        return found

    def __str__(self) -> str:
        return self.text


class NewTask(NamedTuple):
    """A task that was not trained on."""

    name: str | None
    """What it is called; ``None`` where its source does not say."""
    labels: tuple[str, ...]
    """What its class ids are called; empty where numbers are predicted."""
    counts: tuple[int, ...]
    """How many examples there are to learn it from: of each class, or of all, where numbers are predicted."""


class Inputs(NamedTuple):
    """Examples that are to be predicted."""

    x: Tensor
    """``(n, *features)``."""
    tasks: Sequence[str | None]
    """The task that each is of; ``None`` where the source does not say."""
    rows: Sequence[Row]
    """What is to stand beside each answer."""
    where: Callable[[int], str]
    """Where one of them stands, as errors say it."""
    unseen: Sequence[Sequence[str]] | None = None
    """Of each, in which columns its value is like none of training tasks, so that nothing was learned of such rows;
    ``None`` where nothing tells that."""


class Elsewhere(NamedTuple):
    """How tasks of other sources become such as a run was trained on, to be judged on."""

    sizes: tuple[str, ...]
    """What tells how large a task is: options and details of one name."""
    options: Callable[[Tasks], Mapping[str, Any]]
    """What others are best read with, where they take it; of the tasks that were trained on."""
    fitted: Callable[[Tasks, Tasks], Tasks]
    """``(trained on, others)``: the others, with inputs like those; raises `ConfigError` where that cannot be."""


class Untrained(NamedTuple):
    """How new tasks are read where none was trained on."""

    options: tuple[str, ...]
    """Those of the options of the kind's family that say how."""
    preparation: Callable[[Path | None, Mapping[str, Any], Mapping[str, Any] | None], Mapping[str, Any]]
    """``(source, these options, the pretrained network or None)``: the preparation, as JSON; without a source, of
    examples that come as values."""


class Raw(NamedTuple):
    """Examples as an exported model takes them: as near to raw data as operations on tensors go."""

    name: str
    """What they are called: images, values, bytes or tokens."""
    some: Tensor
    """A few such examples, ``(n, …)``, for trials."""
    inputs: Callable[[Tensor], Tensor]
    """What models see of them, by PyTorch's operations alone."""
    told: Mapping[str, Any]
    """How raw data become this, as JSON."""
    files: Mapping[str, bytes] = {}
    """What is needed for that, by name."""
    free: tuple[int, ...] = (0,)
    """The axes that have any size."""
    mean: float = 0.0
    scale: float = 1.0
    """Numbers that are predicted are ``mean + scale · output`` in their own units."""


Failed: TypeAlias = Callable[[HeadstartError], None]
"""Told of what cannot be predicted, so that all else is; or it raises what it is told."""


def raised(error: HeadstartError) -> None:
    """The `Failed` that raises."""
    raise error


class DataKind(NamedTuple):
    """A kind of data.

    How raw data become numbers is learned from training tasks and kept as JSON with a run: the *preparation*. ``read``
    turns it into the kind's own value, which the others are given.
    """

    name: str
    recognises: Callable[[Path], bool]
    """Whether a user's file or folder is of this kind."""
    preparation: Callable[[Tasks], Mapping[str, Any] | None]
    """The preparation of tasks, as JSON; ``None`` where a new task cannot be read from files."""
    read: Callable[[Any, str], Any]
    """``(JSON, where it came from) ->`` what it says; raises `FileError` where it is not whole."""
    difference: Callable[[Any, Any], str]
    """What of the training data differs between two preparations; empty where nothing does."""
    like: Callable[[Any, int], Tasks]
    """``(preparation, classes)``: such tasks, which nobody can sample; with 0 classes, as those trained on."""
    support: Callable[[Any, Path | None, bool], list[tuple[NewTask, Batch]]]
    """``(preparation, source, strict)``: the tasks that a source holds, each with its batch of one; without a source, a
    task of which nothing is there. Unless ``strict``, what cannot be read may be left out with a warning."""
    inputs: Callable[[Any, Sequence[str], Mapping[str, Sequence[str]], Failed], Iterator[Inputs]]
    """``(preparation, sources, labels by the names of tasks, failed)``: what sources hold, so much at a time as may be
    predicted together; files, folders and globs. What cannot be read is told to ``failed``, and left out."""
    answers: Callable[[Any, Sequence[str], Tensor, Tensor | None], list[Row]]
    """``(preparation, labels, outputs (n, outputs), their standard deviations or None)``: an answer for each."""
    predicts: Callable[[Any], str]
    """What is predicted from what, in words."""
    task: Callable[[Tasks], str]
    """What a task is, in words."""
    examples: str
    """What examples are called."""
    usage: tuple[str, str]
    """What `headstart adapt` and `headstart predict` take, as a command line has it."""
    values: Callable[[Any, Sequence[Any]], Iterator[Inputs]] | None = None
    """As ``inputs``, of examples that are no files but values in memory, where such can be predicted."""
    taught: Callable[[Any, Sequence[Any], Sequence[str]], tuple[NewTask, Batch]] | None = None
    """``(preparation, values, labels)``: as ``support``, one task whose examples are values in memory, with a label for
    each; where the target is a part of the value, as in a row of a table, there are no labels."""
    elsewhere: Elsewhere | None = None
    """``None`` where what was learned means nothing for other sources, as for a table of other columns."""
    is_value: Callable[[str], bool] = lambda text: False
    """Whether a text is an example itself, and not what a file, a folder or a glob is called."""
    raw: Callable[[Any], Raw] | None = None
    """What an exported model takes; ``None`` where none can be exported. Raises `ConfigError` where this one cannot."""
    names: Callable[[Any, Sequence[str]], Tensor] | None = None
    """``(preparation, labels)``: the names of classes as examples, as the model takes them; ``None`` where a name is no
    such thing as an example."""
    untrained: "Untrained | None" = None
    """``None`` where how data become numbers has to be learned from training tasks."""
    advice: Callable[[Tasks], str] = lambda tasks: ""
    """What a report says first, if anything: what else would help."""
    picture: str | None = None
    """``module:function`` of what draws test tasks: ``(tasks, learner, meta, truth) -> PNG bytes``, or ``None`` where
    there is no picture of such tasks; ``truth(n)`` gives the same tasks with n query examples and no noise."""
    caption: str = ""
    """What that picture shows."""


def find_kind(name: str) -> DataKind:
    """Return the kind of data that is called ``name``; `UnknownNameError` where there is none."""
    return cast(DataKind, load("data", name))


def kind_of_family(family: str) -> DataKind:
    """Return the kind of data of a family of tasks."""
    return find_kind(find("task", family).kind)


def unsampled(split: str, numbers: Sequence[int]) -> Episodes:
    """The ``sample`` of tasks that only tell a learner their sizes."""
    raise DataError("these tasks tell what a new task is like; there is none to sample")


def nothing(like: Tasks, dtype: torch.dtype = torch.float32) -> Batch:
    """Return the support set of a task like these, of which there is no example: one that is masked out."""
    classes = like.kind == "classification"
    y = torch.zeros(1, 1, dtype=torch.int64) if classes else torch.zeros(1, 1, like.output_size, dtype=dtype)
    x = torch.zeros(1, 1, *like.input_shape, dtype=torch.int64 if like.integers else dtype)
    return Batch(x, y, torch.zeros(1, 1, dtype=torch.bool))


def of_classes(found: Iterable[Inputs], labels: Sequence[str]) -> tuple[NewTask, Batch]:
    """Return the task of examples, each with the label of its class."""
    x, names = torch.cat([inputs.x for inputs in found]), sorted(set(labels))
    places = {name: place for place, name in enumerate(names)}
    y = torch.tensor([places[label] for label in labels])
    order = y.argsort(stable=True)  # one class after the other, as folders and files of all of them have them
    new = NewTask(None, tuple(names), tuple(y.bincount(minlength=len(names)).tolist()))
    return new, Batch(x[order].unsqueeze(0), y[order].unsqueeze(0))


class LeftOutWarning(UserWarning):
    """Files of a folder were left out, since nothing reads their type."""


_COMPANIONS = (".txt", ".md", ".json", ".csv", ".yaml", ".yml", ".xml", ".html", ".db", ".ini", ".log", ".py")


def unknown_types(files: Iterable[Path], suffixes: Sequence[str]) -> str:
    """Return how many of the files are of none of the types, in words; nothing where none is.

    Hidden files do not count, nor notes such as lie beside data.

    >>> unknown_types(map(Path, ["a.png", "b.psd", "c.psd", "notes.txt"]), [".png"])
    '2 files of unknown type (.psd)'
    """
    known = (*suffixes, *_COMPANIONS)
    others = [path for path in files if not path.name.lower().endswith(known) and path.name[0] != "."]
    others = [path for path in others if not path.is_dir()]
    kinds = sorted({path.suffix or "no ending" for path in others})
    told = ", ".join(kinds[:8]) + ("" if len(kinds) <= 8 else ", …")
    return f"{len(others)} file{'s' * (len(others) != 1)} of unknown type ({told})" if others else ""


def files_of(sources: Iterable[str], suffixes: Sequence[str], failed: Failed = raised) -> Iterator[Path]:
    """Yield the files that sources name: a file itself, a folder's files with these suffixes, what a glob matches.

    ``failed`` is told of a source that names nothing (`FileError`), and of a folder without such a file (`DataError`).
    """
    for source in sources:
        path = Path(source)
        if path.is_dir():
            every = (file for file in path.rglob("*") if file.is_file())
            shown = [file for file in every if not any(part[0] == "." for part in file.relative_to(path).parts)]
            inside = sorted(file for file in shown if file.name.lower().endswith(tuple(suffixes)))
            if told := unknown_types(shown, suffixes):
                warnings.warn(f"left out of {path}: {told}", LeftOutWarning, stacklevel=2)
            if not inside:
                failed(DataError(f"{path} holds no file of these: {', '.join(suffixes)}"))
            yield from inside
        elif path.exists() or not glob.has_magic(source):
            yield path
        else:
            matched = sorted(glob.glob(source, recursive=True))
            if not matched:
                failed(FileError(f"no file is matched by {source!r}"))
            yield from files_of(matched, suffixes, failed)


def unsound(outputs: Tensor, classes: bool) -> Tensor:
    """Return which rows of ``outputs`` are no prediction: numbers, or all of the logits, that are not finite.

    Of ``classes``, some may be minus infinity: those that cannot be.
    """
    finite = outputs.isfinite().flatten(1)
    return ~((finite | (outputs.flatten(1) == -math.inf)).all(1) & finite.any(1) if classes else finite.all(1))


def class_answers(labels: Sequence[str], logits: Tensor) -> list[Row]:
    """Return the likeliest label of each row of ``logits``, and all probabilities."""
    chances = [dict(zip(labels, row)) for row in logits.softmax(-1).tolist()]
    best = [max(row, key=row.__getitem__) for row in chances]
    return [{"prediction": one, "probability": row[one], "probabilities": row} for one, row in zip(best, chances)]


def number_answers(outputs: Tensor, deviations: Tensor | None, mean: float = 0.0, scale: float = 1.0) -> list[Row]:
    """Return the first output of each row in its own units, and where 90 % of observations are to lie, if known."""
    columns = {"prediction": outputs[:, 0]}
    if deviations is not None:
        half = NormalDist().inv_cdf(0.95) * deviations[:, 0]
        columns |= {"low": outputs[:, 0] - half, "high": outputs[:, 0] + half}
    in_units = {name: (mean + scale * values).tolist() for name, values in columns.items()}
    return [dict(zip(in_units, (_digits(value, scale) for value in row))) for row in zip(*in_units.values())]


def _digits(value: float, scale: float) -> Written:
    """Return a number as text of nine digits, and more where it is large for the scale on which numbers differ."""
    return Written(f"{value:.{9 + max(0, math.floor(math.log10(max(abs(value) / scale, 1))))}g}")
