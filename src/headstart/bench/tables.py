"""``headstart bench tables``: everything on panels, by leaving tasks out.

A split holds out a quarter of the tasks. From their first rows (the support rows) and all rows of the other tasks, the
later rows are predicted. All methods see the same splits, so they are compared split by split.
"""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from signal import SIG_IGN, SIGINT, Signals, signal
from time import perf_counter
from typing import NamedTuple

from headstart.bench.baselines import BASELINES
from headstart.bench.cells import Cell, Key, appended, key_of, read_cells, run_cell
from headstart.bench.panels import SETS, Panel, find_folder, panels
from headstart.bench.settings import SETTINGS
from headstart.bench.summary import Table, mean_of, table
from headstart.errors import UsageError, unknown_name
from headstart.training.files import make_folder
from headstart.training.progress import Silent, View, clock
from headstart.training.signals import only_writer, stop_signals


class Plan(NamedTuple):
    """What to compute."""

    sets: tuple[str, ...] = tuple(SETS)
    support: tuple[int, ...] = (3, 5)
    splits: int = 10
    """Their seeds are 0 to splits − 1."""
    methods: tuple[str, ...] = (*BASELINES, *SETTINGS)
    data: Path | None = None
    threads: int = 1
    jobs: int = 1
    """Processes that work at the same time."""


class Bench(NamedTuple):
    """How it ended."""

    tables: tuple[Table, ...]
    """Only those of which all cells are done, where a signal stopped it."""
    stopped: Signals | None


class Group(NamedTuple):
    """The cells of a method in a table."""

    panel: Panel
    keys: tuple[Key, ...]


def bench_tables(plan: Plan, out: Path | None = None, *, view: View | None = None) -> Bench:
    """Run every method on every split, and return the tables.

    Args:
        plan: what to compute.
        out: the folder that keeps finished cells: the same call goes on where it was stopped or killed.
        view: where to report progress to.

    Raises:
        UnknownNameError: a data set or a method that does not exist.
        UsageError: numbers out of range, or no folder of data.
        DataError: data that cannot be used.
        FileError: files that cannot be read or written.
    """
    view = view or Silent()
    check(plan)
    groups = groups_of(plan)
    done: dict[Key, Cell] = {}
    if out is None:
        return _bench(plan, groups, done, lambda cell: None, view)
    make_folder(out)
    with only_writer(out):
        done = read_cells(out)
        with appended(out) as file:
            return _bench(plan, groups, done, file.add, view)


def check(plan: Plan) -> None:
    """Refuse a plan that cannot be carried out."""
    for name in plan.sets:
        if name not in SETS:
            raise unknown_name("data set", name, SETS)
    for name in plan.methods:
        if name not in BASELINES and name not in SETTINGS:
            raise unknown_name("method or baseline for tables", name, [*BASELINES, *SETTINGS])
    for what, names in (("sets", plan.sets), ("support", plan.support), ("methods", plan.methods)):
        if not names or len(set(names)) < len(names):
            raise UsageError(f"--{what} must name one or more, each once; got {', '.join(map(str, names)) or 'none'}")
    if plan.splits < 1 or plan.threads < 1 or plan.jobs < 1 or min(plan.support) < 1:
        raise UsageError("--splits, --support, --threads and --jobs must be at least 1")


def groups_of(plan: Plan) -> list[Group]:
    """Return all cells, the baselines' first."""
    read = list(panels(find_folder(plan.data), plan.sets))
    return [
        Group(panel, tuple(key_of(panel, support, method, seed) for seed in range(plan.splits)))
        for method in sorted(plan.methods, key=lambda method: method not in BASELINES)
        for panel in read
        for support in plan.support
    ]


def _bench(
    plan: Plan, groups: Sequence[Group], done: dict[Key, Cell], keep: Callable[[Cell], None], view: View
) -> Bench:
    """Compute the cells that are not done, and tell of every group."""
    todo = [(group.panel, key) for group in groups for key in group.keys if key not in done]
    if len(todo) < sum(len(group.keys) for group in groups):
        view.note(f"{sum(key in done for group in groups for key in group.keys)} cells are done already")
    began, left = perf_counter(), len(todo)
    last = {group.keys[-1]: group for group in groups}
    with stop_signals() as stop, _workers(plan) as run:
        for cell in run(todo):
            keep(cell)
            done[cell.key], left = cell, left - 1
            if cell.key in last:
                pace = (perf_counter() - began) / (len(todo) - left)
                view.note(f"{_told(last[cell.key], done)}; {left} cells left, about {clock(left * pace)}")
            if stop.requested:
                break
    return Bench(_tables(groups, done), stop.number)


def _told(group: Group, done: dict[Key, Cell]) -> str:
    """Say in a line what a group of cells came to."""
    cells, key = [done[key] for key in group.keys], group.keys[0]
    rmse = [cell.rmse for cell in cells if cell.rmse is not None]
    found = f"{mean_of(rmse).mean:.4g}" if len(rmse) == len(cells) else f"diverged {len(cells) - len(rmse)} times"
    return f"{key.method} on {key.dataset}, {key.support} support rows: RMSE {found} over {len(cells)} splits"


@contextmanager
def _workers(plan: Plan) -> Iterator[Callable[[Iterable[tuple[Panel, Key]]], Iterator[Cell]]]:
    """Give a function that computes cells in their order, in this process or in several."""
    if plan.jobs == 1:
        with _threads(plan.threads):
            yield lambda todo: (run_cell(*one) for one in todo)
        return
    # spawned: a fork of a process that has run PyTorch's threads can hang
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(plan.jobs, context, _start_worker, (plan.threads,))
    try:
        yield lambda todo: pool.map(run_cell, *zip(*todo)) if todo else iter(())
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    signal(SIGINT, SIG_IGN)  # the parent stops


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tables(groups: Sequence[Group], done: dict[Key, Cell]) -> tuple[Table, ...]:
    """Return the tables of the groups of which every cell is done."""
    cells: dict[tuple[str, int], dict[str, list[Cell]]] = {}
    units = {group.panel.name: group.panel.columns.unit for group in groups}
    for group in groups:
        key = group.keys[0]
        if all(key in done for key in group.keys):
            cells.setdefault((key.dataset, key.support), {})[key.method] = [done[key] for key in group.keys]
    return tuple(table(name, support, units[name], found) for (name, support), found in cells.items())
