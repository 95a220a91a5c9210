"""Texts as rows of tasks: many small text data sets with labels of their own, and numbers that texts are to tell."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Le
from torch import Tensor

from headstart.data.encoder import Encoded, encoded as encode
from headstart.data.fewshot import shuffled
from headstart.data.random import SPLITS
from headstart.data.rows import OnShort, Rows, row_tasks
from headstart.data.tables.read import to_number
from headstart.data.text.read import Labelled, encoded as in_bytes, plain, unread, warn_of_several
from headstart.errors import DataError
from headstart.types import Tasks

_QUERIES = 15  # of each class, on average, where nobody says
_OF_NUMBERS = 100
_HELD_OUT = 0.2


class Scale(NamedTuple):
    """How numbers became targets, by the texts of training tasks."""

    mean: float
    deviation: float
    low: float
    """The least target, standardised."""
    high: float

    def targets(self, values: Tensor) -> Tensor:
        """Return targets of numbers."""
        return ((values - self.mean) / self.deviation).float()


def row_text_tasks(
    found: Labelled,
    *,
    numbers: bool,
    length: Annotated[int, Ge(8), Le(4096)] = 128,
    lower: bool = True,
    shots: int = 1,
    queries: int | None = None,
    on_short: OnShort = "error",
    encoder: str | None = None,
    encoded: Encoded = "features",
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Tasks:
    """Make tasks of texts, each of which is one value of the column of tasks.

    ``x`` is bytes of UTF-8, ``(B, n, length)`` int64, 0 where there is none. Whole tasks are for training, validation
    or test: as a column of splits says, or a fifth each for validation and test, by the SHA-256 of their names. Without
    a column of tasks every draw of support texts is one task, and whole texts are in one split, likewise.

    Args:
        found: the texts.
        numbers: whether labels are numbers, which are predicted; else they are classes, of each task its own.
        length: the most bytes of a text; what is longer is cut, and counted.
        lower: whether capital letters become small ones.
        shots: support texts of a task, of classes of each.
        queries: at most so many query texts of a task, by default 15 for each class of the largest, or 100.
        on_short: what to do with a task of too few texts, or of one class: an error, or leave it out.
        encoder, encoded: the pretrained network that texts go through, and whether its features or its inputs are x; as
            `headstart.data.text.text.text_tasks` takes them.
        seed: draws support texts.
        device: where to put the tensors.

    Raises:
        DataError: a target that is no number, or numbers that never change; too few tasks; a task that is too small, or
            is in two splits.
    """
    notes = [f"columns that are not read: {', '.join(others)}"] if (others := unread(found)) else []
    found, again = _without_repeated(found, lower, classes=not numbers)
    names = sorted(set(found.tasks)) if found.tasks else list(SPLITS)
    split_of = _splits_of_tasks(found, names) if found.tasks else dict(zip(SPLITS, SPLITS))
    places = {name: place for place, name in enumerate(names)}
    task = torch.tensor([places[name] for name in found.tasks or _splits_of_texts(found, lower)])
    splits = {part: [places[name] for name in names if split_of[name] == part] for part in SPLITS}
    training = torch.isin(task, torch.tensor(splits["train"]))
    scale, labels = None, None
    if numbers:
        y, scale = _standardised(found, training)
    else:
        y, labels = _ids(found, task, len(names))
    seen, cut = None, 0
    if encoder is not None:
        # as one class, whose examples keep their order
        seen = encode(encoder, encoded, {"all": {"": found.texts}}, "texts")
        x, view = seen.stores["all"][0], seen.view or Tensor.clone
    else:
        x, cut = in_bytes(found.texts, length, lower=lower)
        view = Tensor.long
    most = max(map(len, labels)) if labels else 0
    if again:
        notes.append(f"{again} texts that are there again, in the same task and with the same label, are left out")
    if not found.tasks and (shared := _in_several(found, task, lower)):
        notes.append(
            f"{shared} texts are in more than one split, with other numbers: what was learned of them is asked again"
        )
    if cut:
        notes.append(f"{cut} of {len(x)} texts are longer than {length} bytes, and cut there (--length)")
    if seen is not None and seen.cut:
        notes.append(seen.cut)
    told = {
        "source": Path(found.path).name,
        "encoding": "bytes",
        "encoder": None if seen is None else seen.encoder._asdict(),
        "text": found.text,
        "label": found.label,
        "task": found.task,
        "scale": scale and scale._asdict(),
        "length": length,
        "lower": lower,
        "cut": cut,
        "notes": tuple(notes),
        "shots": shots,
        "queries": queries,
        "class_names": {part: [names[place] for place in places] for part, places in splits.items()},
    }
    try:
        tasks = row_tasks(
            Rows(x, y, task, tuple(names)), splits, support=shots, on_short=on_short, seed=seed, device=device,
            queries=queries or (_QUERIES * most if labels else _OF_NUMBERS), name="text", view=view,
            unit=1.0 if scale is None else scale.deviation, labels=labels, details=told,
        )  # fmt: skip
    except DataError as problem:
        raise DataError(f"{found.path}: {problem}") from problem
    limits = None if scale is None else (scale.low, scale.high)
    return tasks._replace(limits=limits, counts=tasks.counts if found.tasks else None)


def _without_repeated(found: Labelled, lower: bool, *, classes: bool) -> tuple[Labelled, int]:
    """Return the rows without those that equal an earlier one, which could be learned from and the other judged on."""
    tasks = found.tasks or [""] * len(found.texts)
    keys = [(plain(text.lower() if lower else text), *more) for text, *more in zip(found.texts, found.labels, tasks)]
    if classes:
        warn_of_several(found, [(text, task) for text, _, task in keys])
    kept = sorted({key: row for row, key in reversed(list(enumerate(keys)))}.values())
    return found.rows(kept), len(keys) - len(kept)


def _in_several(found: Labelled, split: Tensor, lower: bool) -> int:
    """Return how many different texts are in several splits."""
    texts = [plain(text.lower() if lower else text) for text in found.texts]
    return sum(count > 1 for count in Counter(text for text, _ in {*zip(texts, split.tolist())}).values())


def _splits_of_tasks(found: Labelled, names: Sequence[str]) -> dict[str, str]:
    """Return the split of each task, by name."""
    if found.splits:
        told: dict[str, str] = {}
        for row, name in enumerate(found.tasks):
            split = found.split(row)
            if told.setdefault(name, split) != split:
                raise DataError(f"{found.where(row)}: task {name!r} is in the splits {told[name]} and {split}")
        return told
    if len(names) < len(SPLITS):
        raise DataError(
            f"{found.path}, column {found.task!r}: {len(names)} task{'s' * (len(names) > 1)} only; expected at least 3,"
            " one each for training, validation and test"
        )
    return _shared_out(names)


def _splits_of_texts(found: Labelled, lower: bool) -> list[str]:
    """Return the split of each text; equal ones have the same."""
    if found.splits:
        return [found.split(row) for row in range(len(found.texts))]
    texts = [plain(text.lower() if lower else text) for text in found.texts]
    told = _shared_out(set(texts))
    return [told[text] for text in texts]


def _shared_out(names: Collection[str]) -> dict[str, str]:
    """Return the split of each name: a fifth each, and one at least, for validation and test, by their SHA-256."""
    order, held_out = shuffled(names), max(1, round(_HELD_OUT * len(names)))
    return {name: SPLITS[-1 - min(place // held_out, 2)] for place, name in enumerate(order)}


def _ids(found: Labelled, task: Tensor, count: int) -> tuple[Tensor, list[tuple[str, ...]]]:
    """Return the class ids of rows, and what they are called in each task."""
    own: list[set[str]] = [set() for _ in range(count)]
    for place, label in zip(task.tolist(), found.labels):
        own[place].add(label)
    labels = [tuple(sorted(names)) for names in own]
    ids = [dict(zip(names, range(len(names)))) for names in labels]
    return torch.tensor([ids[place][label] for place, label in zip(task.tolist(), found.labels)]), labels


def _standardised(found: Labelled, training: Tensor) -> tuple[Tensor, Scale]:
    values = as_numbers(found)
    mean, deviation = values[training].mean(), values[training].std(correction=0)
    if not deviation > 1e-12 * mean.abs():
        raise DataError(
            f"{found.path}, column {found.label!r}: the target is always {found.labels[0]}, to rounding, in training"
        )
    y = (values - mean) / deviation
    ends = float(y[training].min()), float(y[training].max())
    return y.float().unsqueeze(1), Scale(float(mean), float(deviation), *ends)


def as_numbers(found: Labelled) -> Tensor:
    """Return the labels as numbers ``(n,)`` float64.

    Raises:
        DataError: one that is none.
    """
    comma = found.label in found.commas
    values = [to_number(label.strip(), comma) for label in found.labels]
    odd = [row for row, value in enumerate(values) if value is None or not math.isfinite(value)]
    if odd:
        more = f" (so are {len(odd) - 1} more)" if len(odd) > 1 else ""
        raise DataError(
            f"{found.where(odd[0])}: the target {found.label!r} is {found.labels[odd[0]][:60]!r}, which is no number"
            f"{more}; correct it, or say that the column is of classes (--label)"
        )
    return torch.tensor(values, dtype=torch.float64)
