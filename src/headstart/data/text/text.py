"""Few-shot tasks of texts: which of a few classes a sentence is of."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from torch import Tensor

from headstart.data.encoder import Encoded, encoded as encode
from headstart.data.fewshot import GIVEN, ClassStore, Ways, class_splits, class_store, few_shot, fitted
from headstart.data.random import SPLITS, size_range
from headstart.data.text.read import (
    Labelled,
    by_class,
    encoded as in_bytes,
    plain,
    read_texts,
    told_columns,
    unread,
)
from headstart.data.text.rows import row_text_tasks
from headstart.errors import DataError, UsageError
from headstart.schema import Size, extends
from headstart.types import Tasks


@extends(few_shot, without=GIVEN)
def text_tasks(
    name: str,
    found: Labelled,
    splits: Mapping[str, Mapping[str, Sequence[int]]],
    *,
    length: Annotated[int, Ge(8), Le(4096)] = 128,
    lower: bool = True,
    ways: Ways | None = None,
    shots: Size | tuple[Size, Size] = 1,
    queries: Size | None = None,
    details: Mapping[str, Any] | None = None,
    encoder: str | None = None,
    encoded: Encoded = "features",
    **options: Any,
) -> Tasks:
    """Make few-shot tasks out of texts, of which it is known which rows of which classes each split has.

    ``x`` is bytes of UTF-8, ``(B, n, length)`` int64, 0 where there is none.

    Args:
        name: what the tasks are called.
        found: the texts.
        splits: by split and class, the rows.
        length: the most bytes of a text; what is longer is cut, and counted.
        lower: whether capital letters become small ones.
        ways: classes of a task, by default 5, or as many as every split has.
        queries: query texts a class, by default 15, or as many as the smallest class has left.
        encoder: a pretrained network for texts, such as ``hf:FOLDER`` or ``FILE.py:factory``, frozen: examples are its
            features, which are computed once and kept on disk. It reads texts as they are, whatever length and lower.
        encoded: whether they are its features, or what it takes, for a model that is the network itself.
        details: more for the model card.
        options: those of `few_shot`.
    """
    seen, cut = None, 0
    if encoder is not None:
        texts = {
            split: {own: [found.texts[row] for row in rows] for own, rows in classes.items()}
            for split, classes in splits.items()
        }
        seen = encode(encoder, encoded, texts, "texts")
        stores = {split: ClassStore(*store) for split, store in seen.stores.items()}
        read: Sequence[Hashable] = [plain(text.lower() if lower else text) for text in found.texts]
    else:
        ids, cut = in_bytes(found.texts, length, lower=lower)
        read = [row.tobytes() for row in ids.numpy()]  # texts that differ where they are cut are the same to a model
        stores = {
            split: class_store({own: ids[list(rows)] for own, rows in classes.items()})
            for split, classes in splits.items()
        }
    on_short, own_ways = options.get("on_short", "error"), options.get("train_ways")
    judged = {split: store for split, store in stores.items() if split != "train" or own_ways is None}
    ways, queries, notes = fitted(judged, size_range("shots", shots)[1], ways, queries, on_short)
    if others := unread(found):
        notes.append(f"columns that are not read: {', '.join(others)} (--task-column makes each value of one a task)")
    if cut:
        notes.append(f"{cut} of {len(found.texts)} texts are longer than {length} bytes, and cut there (--length)")
    if again := sum(_repeated(read, rows) for classes in splits.values() for rows in classes.values()):
        notes.append(
            f"{again} of {len(found.texts)} texts {'is' if again == 1 else 'are'} there before in the same class: where"
            " one is learned from and another asked, the score is flattered"
        )
    if seen is not None and seen.cut:
        notes.append(seen.cut)
    told = {
        "source": Path(found.path).name,
        "encoding": "bytes",
        "encoder": None if seen is None else seen.encoder._asdict(),
        "text": found.text,
        "label": found.label,
        "length": length,
        "lower": lower,
        "cut": cut,
        "notes": tuple(notes),
        "class_names": {split: list(store.names) for split, store in stores.items()},
        **(details or {}),
    }
    return few_shot(
        name,
        stores,
        ways=ways,
        shots=shots,
        queries=queries,
        details=told,
        view=Tensor.long if seen is None else seen.view,
        noun="texts",
        **options,
    )


def _repeated(read: Sequence[Hashable], rows: Sequence[int]) -> int:
    """Return how many rows have what is read of one before."""
    return len(rows) - len({read[row] for row in rows})


@extends(text_tasks, without=("details",))
def text(
    data: str | Path,
    *,
    text: str | None = None,
    label: str | None = None,
    task_column: str | None = None,
    target: str | None = None,
    lower: bool = True,
    **options: Any,
) -> Tasks:
    """Make few-shot tasks out of texts and their labels, in a file or a folder of class folders.

    A column ``split`` of train, validation (or val) and test says which texts each split has; no class may be in two.
    Else the classes are shuffled by the SHA-256 of their names, and a fifth each is for validation and for test.
    `headstart.data.text.read` says which files are read.

    With a column of tasks, each of its values is a task, whose labels are its own, and which is in one split. With a
    target, numbers are predicted. `headstart.data.text.rows` makes both.

    Args:
        data: a CSV, TSV, Parquet or JSON lines file, or a folder that holds a folder of .txt files for each class.
        text: the column of the texts, where its name does not tell.
        label: the column of their classes, where its name does not tell.
        task_column: a column that says which of many small data sets a text is of, such as a customer; it learns all of
            its labels, and --queries is of all of them together.
        target: a column of numbers to predict, instead of classes.
        lower: whether capital letters become small ones.
        options: those of `text_tasks`.

    Raises:
        FileError: no such file.
        DataError: no texts or labels, or a row without one.
        ShortClassError: too few classes for the ways, or too few texts in a class.
        LeakageError: a class that is in two splits.
        UsageError: options that do not go together.
    """
    if target is not None and label is not None:
        raise UsageError("--target is of numbers and --label of classes; name one of them")
    found = read_texts(Path(data), text, label if target is None else target, task_column)
    if not found.labels:
        raise DataError(
            f"{data} has no column that tells it is the labels; say which is, with --label, or --target for numbers; it"
            f" has {told_columns(found)}"
        )
    if task_column is not None or target is not None:
        taken = {name: options.pop(name) for name in _OF_ROWS if name in options}
        odd = [name for name, value in options.items() if value != _BALANCED.get(name)]
        if odd or isinstance(taken.get("shots"), tuple):
            told = f"--{odd[0].replace('_', '-')}" if odd else "--shots LOW-HIGH"
            raise UsageError(f"{told} does not go with --task-column or --target: each task learns all that it has")
        return row_text_tasks(found, numbers=target is not None, lower=lower, **taken)
    classes = by_class(found, lower=lower)
    return text_tasks("text", found, _splits(found, classes, options.get("ways") or 2), lower=lower, **options)


#: What `row_text_tasks` takes of the options, and what the others must be.
_OF_ROWS = ("length", "shots", "queries", "on_short", "encoder", "encoded", "seed", "device")
_BALANCED = {"sampler": "balanced"}


def _splits(found: Labelled, classes: dict[str, list[int]], ways: int) -> dict[str, dict[str, list[int]]]:
    if not found.splits:
        names = class_splits(found.path, classes, ways, "bring a column split of train, validation and test")
        return {split: {name: classes[name] for name in part} for split, part in names.items()}
    own: dict[str, dict[str, list[int]]] = {split: {} for split in SPLITS}
    for row, name in enumerate(found.labels):
        own[found.split(row)].setdefault(name, []).append(row)
    empty = [split for split, part in own.items() if not part]
    if empty:
        raise DataError(f"{found.path} has no text in the split {empty[0]}; leave the column out, or fill all three")
    return own
