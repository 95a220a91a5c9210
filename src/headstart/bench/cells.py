"""The cells of the tables: one method on one split, judged; and the file that keeps those that are done.

``tables.jsonl`` is appended to, a line a cell, each brought to the disk before the next begins. A line that was cut
short is dropped when the file is read again, so a bench that was killed goes on where it was.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple, TextIO

import numpy as np

from headstart.bench.baselines import BASELINES
from headstart.bench.methods import meta_learned
from headstart.bench.panels import Panel, split
from headstart.bench.problem import Predicted
from headstart.bench.settings import SETTINGS
from headstart.errors import DivergenceError, FileError
from headstart.training.files import explained, read, write

NAME = "tables.jsonl"
LEVEL = 0.9


class Key(NamedTuple):
    """What a cell is of."""

    dataset: str
    support: int
    method: str
    seed: int
    """Of the split."""
    made: str
    """A fingerprint of the data and of the method's setting: a cell of others is not this one."""


class Cell(NamedTuple):
    """What came of it."""

    key: Key
    rmse: float | None
    """Over the query rows of all unseen tasks, in the target's own unit; ``None`` where the method diverged."""
    nll: float | None
    """Negative log-likelihood of a target in nats, in its own unit; ``None`` without a distribution."""
    coverage: float | None
    """Which fraction of the targets is in its 90 % interval."""
    seconds: float
    """Of processor time, for fitting and predicting."""
    counts: dict[str, int]


def key_of(panel: Panel, support: int, method: str, seed: int) -> Key:
    """Return the key of a cell."""
    digest = hashlib.sha256(repr(SETTINGS.get(method)).encode())
    for part in (panel.x, panel.y, panel.task):
        digest.update(np.ascontiguousarray(part).tobytes())
    return Key(panel.name, support, method, seed, digest.hexdigest()[:12])


def run_cell(panel: Panel, key: Key) -> Cell:
    """Fit the method on the split's training tasks and judge it on the unseen ones."""
    parted = split(panel, key.support, key.seed)
    predict = BASELINES.get(key.method) or meta_learned(SETTINGS[key.method])
    began = process_time()
    try:
        found = predict(parted.problem)
    except DivergenceError:
        found = Predicted(np.full(len(parted.y), np.nan))
    return judged(key, found, parted.y, parted.unit, process_time() - began)


def judged(key: Key, found: Predicted, y: np.ndarray[Any, Any], unit: float, seconds: float) -> Cell:
    """Return the cell of predictions in standard units."""
    from scipy.stats import norm

    error, nll, coverage = found.mean - y, None, None
    rmse = unit * float(np.sqrt(np.square(error).mean()))
    if not np.isfinite(rmse):
        return Cell(key, None, None, None, seconds, dict(found.counts))
    if found.variance is not None:
        nats = 0.5 * (np.log(2 * np.pi * found.variance) + np.square(error) / found.variance)
        nll = float(nats.mean() + np.log(unit))
        coverage = float((np.abs(error) <= norm.ppf((1 + LEVEL) / 2) * np.sqrt(found.variance)).mean())
    return Cell(key, rmse, nll, coverage, round(seconds, 3), dict(found.counts))


def read_cells(folder: Path) -> dict[Key, Cell]:
    """Return the cells that are done.

    Raises:
        FileError: a file that holds something else.
    """
    path = folder / NAME
    if not path.exists():
        return {}
    *whole, _ = read(path).split(b"\n")
    try:
        cells = [_decoded(json.loads(line)) for line in whole]
    except (ValueError, TypeError, KeyError) as error:
        raise FileError(
            f"{path} holds a line that is no cell of a table; choose another --out, or remove it"
        ) from error
    return {cell.key: cell for cell in cells}


@contextmanager
def appended(folder: Path) -> Iterator["CellFile"]:
    """Open the folder's file of cells for appending, without the line that was cut short, if any."""
    path = folder / NAME
    if path.exists():
        write(path, read(path)[: read(path).rfind(b"\n") + 1])
    with explained("write", path), path.open("a", encoding="utf-8", newline="\n") as file:
        yield CellFile(path, file)


class CellFile:
    """A file that takes cells."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file = path, file

    def add(self, cell: Cell) -> None:
        """Append a cell and bring it to the disk."""
        values = {name: value for name, value in cell._asdict().items() if name != "key"}
        with explained("write", self.path):
            self.file.write(json.dumps({**cell.key._asdict(), **values}, allow_nan=False) + "\n")
            self.file.flush()
            os.fsync(self.file.fileno())


def _decoded(line: dict[str, Any]) -> Cell:
    key = Key(*(line[name] for name in Key._fields))
    return Cell(key, *(line[name] for name in Cell._fields[1:]))
