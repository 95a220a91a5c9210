"""How a run's raw data became numbers: ``RUN/preparation.json``, by which a new task is read and the data are known.

It holds the kind's own ``preparation``, a ``sketch`` of the tasks (a few sums, by which other data show), and the
SHA-256 of both.
"""

from pathlib import Path
from typing import Any

import torch

from headstart.core.tree import tensors_of
from headstart.data.kind import DataKind
from headstart.data.random import SPLITS
from headstart.errors import ConfigError, DataError, FileError
from headstart.training.files import fingerprint, read_json, to_json, write
from headstart.types import Tasks

PREPARATION = "preparation.json"

#: Tasks of a split that are sketched, at most, so many at a time, and until so many numbers have been seen.
_TASKS, _TOGETHER, _NUMBERS = 256, 8, 5_000_000
#: The same data on another machine agree by far better than this.
_ROUNDING = 1e-5


def write_preparation(run: Path, kind: DataKind, tasks: Tasks) -> None:
    """Write the preparation of a run's tasks, where a new task of their kind can be read from files.

    Raises:
        DataError: the run is there already, and was made of other data.
        FileError: the folder cannot be written.
    """
    refuse_other_data(run, kind, tasks)
    found = kind.preparation(tasks)
    if found is not None and not (run / PREPARATION).exists():
        told = {"preparation": found, "sketch": _sketch(tasks)}
        write(run / PREPARATION, to_json({**told, "sha256": fingerprint(to_json(told))["sha256"]}))


def read_preparation(run: Path, kind: DataKind) -> Any:
    """Return the preparation that `write_preparation` has written.

    Raises:
        ConfigError: a run whose kind of tasks is not read from files.
        FileError: a file that is not whole.
    """
    if not (run / PREPARATION).exists():
        raise ConfigError(
            f"there is no {PREPARATION} in {run}: it was deleted, and has to be brought back; or the run's tasks"
            f" ({kind.name}) are such that no file can hold a new one, to which one adapts in Python, with the"
            " learner's own adapt"
        )
    return _read(run)["preparation"]


def _read(run: Path) -> dict[str, Any]:
    told = read_json(run / PREPARATION)
    if not isinstance(told, dict) or told.keys() != {"preparation", "sketch", "sha256"}:
        raise FileError(f"{run / PREPARATION} does not say how data become numbers; bring it back as it was")
    digest = told.pop("sha256")
    if fingerprint(to_json(told))["sha256"] != digest:
        raise FileError(f"{run / PREPARATION} is damaged: it is not what its own SHA-256 says; bring it back as it was")
    return told


def refuse_other_data(run: Path, kind: DataKind, tasks: Tasks) -> None:
    """Refuse tasks whose data are others than those that a run was made of, as far as it has kept any.

    With other data the tasks may be split otherwise, so that tasks that were trained on would be judged on.

    Raises:
        DataError: what is learned from the training data is not what the run has kept, or tasks hold other numbers.
    """
    if not (run / PREPARATION).exists():
        return
    told = _read(run)
    kept = kind.read(told["preparation"], str(run / PREPARATION))
    changed = kind.difference(kept, kind.read(kind.preparation(tasks), "the tasks"))
    changed = changed and f"{changed} differs in the training tasks"
    if changed or (changed := _difference(told["sketch"], _sketch(tasks))):
        raise DataError(
            f"the {kind.name} are not what they were when the run in {run} was made ({changed}), so tasks that were"
            " trained on could be judged on; bring the data back as they were, or train in another --out"
        )


def _sketch(tasks: Tasks) -> dict[str, list[list[float]]]:
    """Return weighted sums of inputs and targets, and the sums of their sizes, of some tasks of each split."""
    found: dict[str, list[list[float]]] = {}
    for split in SPLITS:
        count, seen = min(_TASKS, (tasks.counts or {}).get(split, _TASKS)), 0
        for first in range(0, count, _TOGETHER):
            if seen > _NUMBERS:
                break
            episodes = tasks.sample(split, range(first, min(first + _TOGETHER, count)))
            values = torch.cat([leaf.detach().cpu().double().flatten() for leaf in tensors_of(episodes)])
            terms = values * torch.arange(1, len(values) + 1, dtype=torch.float64).cos()
            found.setdefault(split, []).append([float(terms.sum()), float(terms.abs().sum())])
            seen += len(values)
    return found


def _difference(kept: Any, now: dict[str, list[list[float]]]) -> str:
    try:
        for split, sums in now.items():
            pairs = list(zip(kept[split], sums, strict=True))
            if any(abs(before[0] - after[0]) > _ROUNDING * after[1] for before, after in pairs):
                return f"{split} tasks hold other numbers"
    except (KeyError, TypeError, ValueError):
        return "there are other tasks"
    return ""
