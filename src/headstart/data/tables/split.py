"""Which tasks a table has, which split each is in, and in which order its rows stand."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.data.random import SPLITS, bits, check_seed
from headstart.data.tables.file import Table, Texts, distinct, error, first, is_missing
from headstart.data.tables.learn import in_order, refuse_missing
from headstart.data.tables.values import common_date_format, dates, is_number, numbers
from headstart.errors import DataError, UsageError


class Grouped(NamedTuple):
    """Rows and their tasks."""

    table: Table
    """With the rows in the order in which they are to stand."""
    task: Tensor
    """``(N,)`` int64, the number of each row's task, a place in ``names``."""
    names: tuple[str, ...]
    """What the tasks are called, in order."""

    def rows(self, kept: NDArray[np.bool_]) -> "Grouped":
        """Return the rows that are to be kept."""
        return self._replace(table=self.table.rows(kept), task=self.task[torch.from_numpy(kept)])


def group(table: Table, task_column: str, time_column: str | None) -> Grouped:
    """Return the tasks of a table, their rows in the file's order or by time.

    Raises:
        DataError: a missing task or time, or a time that is neither number nor date.
    """
    refuse_missing(table, task_column, "task")
    if time_column is not None:
        refuse_missing(table, time_column, "time")
        table = table.rows(np.argsort(_times(table, time_column), kind="stable"))
    found, codes = distinct(table.columns[task_column])
    names = in_order(found)
    places = {name: place for place, name in enumerate(names)}
    return Grouped(table, torch.tensor([places[name] for name in found])[torch.from_numpy(codes)], names)


def _times(table: Table, column: str) -> NDArray[np.float64]:
    if any(map(is_number, distinct(table.columns[column])[0])):
        return numbers(table, column, "the time is a number or an ISO 8601 date in every row")
    chosen = common_date_format(table, column)
    if chosen is None:
        text = str(table.columns[column][0])
        raise error(table, column, 0, f"{text!r} is no time; expected numbers or ISO 8601 dates, such as 2020-01-31")
    return dates(table, column, chosen)


def split_tasks(count: int, validation: float, test: float, seed: int, where: str) -> dict[str, tuple[int, ...]]:
    """Draw which of ``count`` tasks are for training, validation and test: whole tasks, at least one each.

    Raises:
        UsageError: shares that leave nothing for a split.
        DataError: fewer than three tasks.

    >>> {name: len(tasks) for name, tasks in split_tasks(10, 0.2, 0.2, 0, "a table").items()}
    {'train': 6, 'validation': 2, 'test': 2}
    """
    check_seed(seed)
    if not (0 < validation and 0 < test and validation + test < 1):
        raise UsageError(
            f"validation and test are shares of the tasks, above 0 and together below 1; got {validation} and {test}"
        )
    if count < len(SPLITS):
        found = "one task only" if count == 1 else f"{count} tasks only"
        raise DataError(f"{where}: {found}; expected at least 3, one each for training, validation and test")
    sizes = [max(1, round(share * count)) for share in (validation, test)]
    while sum(sizes) >= count:
        sizes[sizes.index(max(sizes))] -= 1
    order = bits(seed, "train", [0], stream=2, count=count)[0].argsort(stable=True).tolist()
    held_out = order[: sizes[0]], order[sizes[0] : sum(sizes)]
    found_splits = (order[sum(sizes) :], *held_out)
    return {name: tuple(sorted(tasks)) for name, tasks in zip(SPLITS, found_splits)}


def repeated(task: Tensor, x: Tensor, y: Tensor, time: Texts | None) -> NDArray[np.int64]:
    """Return for each row the first row that equals it in task, inputs, target and time; itself where none does."""
    parts = [task.unsqueeze(1), x, y.reshape(len(y), -1)]
    parts += [] if time is None else [torch.from_numpy(distinct(time)[1]).unsqueeze(1)]
    seen: dict[bytes, int] = {}
    # adding zero makes -0 and 0 equal bytes
    values = torch.cat([part.double() for part in parts], 1).numpy() + 0.0
    return np.array([seen.setdefault(row.tobytes(), place) for place, row in enumerate(values)], dtype=np.int64)


def one_task(table: Table, task_column: str, learned: str | None = None) -> str | None:
    """Refuse rows of more than one task, or of another than the one that was ``learned``.

    Returns:
        What the rows' task is called; ``None`` where the task column is absent, or empty.

    Raises:
        DataError: it names the first row of another task.
    """
    if task_column not in table.columns:
        return None
    texts = table.columns[task_column]
    there = ~is_missing(texts)
    if not there.any():
        return None
    begun = str(texts[first(there)]) if learned is None else learned
    row = first(there & np.asarray(texts != begun))
    if row is None:
        return begun
    found = f"{str(texts[row])!r} is another task than {begun!r}"
    if learned is None:
        found += f" before it ({len(distinct(texts[there])[0])} tasks in all); adapt learns one task at a time, so give"
        raise error(table, task_column, row, f"{found} a file of one task's rows")
    found += ", from whose rows this model was learned; adapt to that task, or leave the column out"
    raise error(table, task_column, row, found)
