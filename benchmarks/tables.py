"""``python -m benchmarks tables``: every method on panels, by leaving tasks out.

A split holds out a quarter of the tasks. From their first rows (the support rows) and all rows of the other tasks, the
later rows are predicted. All methods see the same splits, so they are compared split by split. Finished cells are kept
in ``tables.jsonl``, a line each: the same call goes on where it was stopped or killed.
"""

import hashlib
import inspect
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.settings import FRACTION, SETS, SETTINGS, Plan, Setting
from benchmarks.tables_report import Cell, Key, Table, table
from headstart.data.random import bits
from headstart.data.rows import Rows, row_tasks
from headstart.data.tables.read import find_columns, numbers, read_table
from headstart.errors import DataError, DivergenceError, FileError, UsageError, unknown_name
from headstart.registry import load
from headstart.training.evaluate import evaluate
from headstart.training.files import explained, make_folder, read, write
from headstart.training.loop import copied, fit, start
from headstart.training.progress import clock
from headstart.types import Learner, Meta, Tasks

NAME = "tables.jsonl"


class Panel(NamedTuple):
    """A table in which many units, the tasks, were each measured several times; sorted by task, then by time."""

    name: str
    x: NDArray[np.float64]
    """``(N, features)``, time first."""
    y: NDArray[np.float64]
    """``(N,)``."""
    task: NDArray[np.int64]
    """``(N,)`` from 0."""
    names: tuple[str, ...]
    """What the tasks are called."""


def bench_tables(plan: Plan, out: Path | None = None, note: Callable[[str], None] = print) -> list[Table]:
    """Run every method on every split, and return the tables.

    Args:
        plan: what to compute.
        out: the folder that keeps finished cells.
        note: is told what goes on, a line at a time.

    Raises:
        UnknownNameError: a data set or a method that does not exist.
        UsageError: numbers out of range, or no folder of data.
        DataError: data that cannot be used.
        FileError: files that cannot be read or written.
    """
    check(plan)
    panels = {name: read_panel(find_folder(plan.data), name) for name in plan.sets}
    groups = [
        [key_of(panels[name], support, method, seed) for seed in range(plan.splits)]
        for method in sorted(plan.methods, key=lambda method: not SETTINGS[method].baseline)
        for name in plan.sets
        for support in plan.support
    ]
    if out is not None:
        make_folder(out)
    done = read_cells(out) if out is not None else {}
    todo = [key for keys in groups for key in keys if key not in done]
    if len(todo) < sum(map(len, groups)):
        note(f"{sum(map(len, groups)) - len(todo)} cells are done already")
    last, began = {keys[-1]: keys for keys in groups}, perf_counter()
    with _appended(out) as keep, _workers(plan.jobs) as run:
        for number, cell in enumerate(run([(panels[key.dataset], key) for key in todo]), start=1):
            keep(cell)
            done[cell.key] = cell
            if cell.key in last:
                left = len(todo) - number
                pace = clock(left * (perf_counter() - began) / number)
                note(f"{_told([done[key] for key in last[cell.key]])}; {left} cells left, about {pace}")
    found: dict[tuple[str, int], dict[str, list[Cell]]] = {}
    for keys in groups:
        found.setdefault(keys[0][:2], {})[keys[0].method] = [done[key] for key in keys]
    return [table(name, support, SETS[name].unit, cells) for (name, support), cells in found.items()]


def check(plan: Plan) -> None:
    """Refuse a plan that cannot be carried out."""
    for what, names, known in (("data set", plan.sets, SETS), ("method for tables", plan.methods, SETTINGS)):
        for name in names:
            if name not in known:
                raise unknown_name(what, name, known)
    for what, chosen in (("sets", plan.sets), ("support", plan.support), ("methods", plan.methods)):
        if not chosen or len(set(chosen)) < len(chosen):
            raise UsageError(f"--{what} must name one or more, each once; got {', '.join(map(str, chosen)) or 'none'}")
    if min(plan.splits, plan.jobs, *plan.support) < 1:
        raise UsageError("--splits, --support and --jobs must be at least 1")


def find_folder(given: Path | None) -> Path:
    """Return the folder of the panels' files: the one given, else ``panel`` in that of HEADSTART_DATA, or in
    ``../shared/data``.

    Raises:
        UsageError: there is no such folder.
    """
    place = given or Path(os.environ.get("HEADSTART_DATA", Path("..", "shared", "data")), "panel")
    if not place.is_dir():
        raise UsageError(
            f"there is no folder {place}; give the one that holds {', '.join(f'{name}.csv' for name in SETS)} "
            "with --data DIR, or set HEADSTART_DATA to the folder that has it as 'panel'"
        )
    return place


def read_panel(folder: Path, name: str) -> Panel:
    """Read ``folder/name.csv``.

    Raises:
        FileError: the file is not there.
        DataError: a column is missing, or is not of numbers.
    """
    columns = SETS[name]
    values = columns.time, *columns.others, columns.target

    def choose(path: str, header: tuple[str, ...]) -> list[str]:
        find_columns(path, header, [("a column of the panel", column) for column in (columns.task, *values)])
        return [columns.task, *values]

    found = read_table(folder / f"{name}.csv", choose)
    every = np.column_stack([numbers(found, column, "a panel is of numbers") for column in values])
    names, task = np.unique([str(text) for text in found.columns[columns.task]], return_inverse=True)
    order = np.lexsort((every[:, 0], task))
    return Panel(name, every[order, :-1], every[order, -1], task[order].astype(np.int64), tuple(map(str, names)))


def tasks_of(panel: Panel, shots: int, seed: int, validation: float) -> Tasks:
    """Hold out a quarter of the tasks for the test, and part of the others for validation.

    Features and target are standardised by the rows of the others.

    Args:
        panel: the rows.
        shots: the number of first rows of a task that are its support rows.
        seed: of the split.
        validation: the share of the other tasks that is for validation; 0: none.

    Raises:
        DataError: a task with no row left to predict, or too few tasks.
    """
    kept, held = leave_out(len(panel.names), seed)
    if len(held) < 2:
        raise DataError(f"{panel.name} has {len(panel.names)} tasks; leaving out a quarter needs at least 6")
    rows = np.isin(panel.task, kept)
    (x_mean, x_scale), (y_mean, y_scale) = _standard(panel.x[rows]), _standard(panel.y[rows])
    x, y = (
        torch.tensor(part, dtype=torch.float32) for part in ((panel.x - x_mean) / x_scale, (panel.y - y_mean) / y_scale)
    )
    cut = len(kept) - (max(1, round(validation * len(kept))) if validation else 0)
    splits = {"train": kept[:cut], "validation": kept[cut:], "test": held}
    columns = SETS[panel.name]
    return row_tasks(
        Rows(x, y[:, None], torch.tensor(panel.task), panel.names),
        {name: tasks for name, tasks in splits.items() if tasks},
        support=shots, order="first", name=panel.name, unit=float(y_scale),
        details={"features": [columns.time, *columns.others], "schema": {"time_column": columns.time}},
    )  # fmt: skip


def leave_out(count: int, seed: int) -> tuple[list[int], list[int]]:
    """Return which of ``count`` tasks are for training and which are held out, both in random order."""
    order = bits(seed, "test", [0], stream=0, count=count)[0].argsort(stable=True).tolist()
    held = max(1, round(FRACTION * count))
    return order[held:], order[:held]


def _standard(values: NDArray[np.float64]) -> tuple[Any, Any]:
    """Return the mean and the scale of every column; that of a constant is 1."""
    scale = values.std(0)
    return values.mean(0), np.where(scale > 0, scale, 1.0)


def key_of(panel: Panel, support: int, method: str, seed: int) -> Key:
    """Return the key of a cell."""
    digest = hashlib.sha256(repr(SETTINGS[method]).encode())
    for part in (panel.x, panel.y, panel.task):
        digest.update(np.ascontiguousarray(part).tobytes())
    return Key(panel.name, support, method, seed, digest.hexdigest()[:12])


def run_cell(panel: Panel, key: Key) -> Cell:
    """Meta-train on the split's training tasks, and judge on the unseen ones."""
    setting = SETTINGS[key.method]
    tasks = tasks_of(panel, key.support, key.seed, setting.validation)
    began = process_time()
    try:
        learner = make(setting, tasks)
        score = evaluate(learner, trained(learner, tasks, setting), tasks, episodes=len(panel.names), batch=1024)
    except DivergenceError:
        return Cell(key, None, None, None, process_time() - began)
    told = score.calibration
    seconds = round(process_time() - began, 3)
    return Cell(key, score.mean**0.5, told and told.nll.mean, told and told.coverage, seconds)


def make(setting: Setting, tasks: Tasks) -> Learner:
    """Make the method's learner, with a network for these tasks where it has one."""
    factory = load("method", setting.method)
    accepted = inspect.signature(factory).parameters
    sizes = {"inputs": tasks.input_shape[0], "outputs": tasks.output_size, "explain": None}
    options: dict[str, Any] = {name: value for name, value in sizes.items() if name in accepted}
    if "loss" in accepted or "options" in accepted:
        options["loss"] = "mse"
    options |= setting.options
    if setting.network is None:
        made: Learner = factory(**options)
        return made
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = load("model", setting.network)
        module = network(tasks.input_shape, setting.embedding or tasks.output_size, **setting.sizes)
    return factory(module, **options)


def trained(learner: Learner, tasks: Tasks, setting: Setting) -> Meta:
    """Meta-train, and return the weights with the best score on the validation tasks; without these, the last."""
    optimizer = partial({"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[setting.optimizer], lr=setting.rate)
    state = start(learner, optimizer=optimizer, tasks=tasks)
    if learner.gradient is None or not setting.steps:
        return state.meta
    best, meta = _validation(learner, state.meta, tasks), copied(state.meta)
    every, count = max(1, setting.steps // setting.looks), (tasks.counts or {})["train"]
    for record in fit(
        learner, tasks, steps=setting.steps, tasks_per_step=count, state=state, schedule=setting.schedule
    ):
        if record.step == setting.steps or (setting.validation and record.step % every == 0):
            value = _validation(learner, state.meta, tasks)
            if value < best or not setting.validation:
                best, meta = value, copied(state.meta)
    return meta


def _validation(learner: Learner, meta: Meta, tasks: Tasks) -> float:
    """Return the mean squared error on the validation tasks, infinite where there is none."""
    count = (tasks.counts or {}).get("validation", 0)
    if not count:
        return float("inf")
    try:
        return evaluate(learner, meta, tasks, episodes=max(2, count), split="validation", batch=1024).mean
    except DivergenceError:
        return float("inf")


def read_cells(folder: Path) -> dict[Key, Cell]:
    """Return the cells that are done; a last line that was cut short is dropped.

    Raises:
        FileError: a file that holds something else.
    """
    path = folder / NAME
    if not path.exists():
        return {}
    whole = read(path)[: read(path).rfind(b"\n") + 1]
    write(path, whole)
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
        cells = [Cell(Key(*line["key"]), *(line[name] for name in Cell._fields[1:])) for line in lines]
    except (ValueError, TypeError, KeyError) as error:
        raise FileError(
            f"{path} holds a line that is no cell of a table; choose another --out, or remove it"
        ) from error
    return {cell.key: cell for cell in cells}


@contextmanager
def _appended(folder: Path | None) -> Iterator[Callable[[Cell], None]]:
    """Give a function that appends a cell to the folder's file, and brings it to the disk."""
    path = (folder or Path()) / NAME
    with explained("write", path), nullcontext() if folder is None else path.open("a", encoding="utf-8") as file:

        def keep(cell: Cell) -> None:
            if file is not None:
                file.write(json.dumps(cell._asdict(), allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())

        yield keep


def _told(cells: Sequence[Cell]) -> str:
    """Say in a line what a method's cells of a table came to."""
    rmse = [cell.rmse for cell in cells if cell.rmse is not None]
    found = f"{sum(rmse) / len(rmse):.4g}" if len(rmse) == len(cells) else f"diverged {len(cells) - len(rmse)} times"
    key = cells[0].key
    return f"{key.method} on {key.dataset}, {key.support} support rows: RMSE {found} over {len(cells)} splits"


@contextmanager
def _workers(jobs: int) -> Iterator[Callable[[Iterable[tuple[Panel, Key]]], Iterator[Cell]]]:
    """Give a function that computes cells in their order, in this process or in several."""
    if jobs == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield lambda todo: (run_cell(*one) for one in todo)
        finally:
            torch.set_num_threads(before)
        return
    # spawned: a fork of a process that has run PyTorch's threads can hang
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))
    try:
        yield lambda todo: pool.map(run_cell, *zip(*todo)) if todo else iter(())
    finally:
        pool.shutdown(cancel_futures=True)
