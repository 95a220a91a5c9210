"""Several runs, each in a folder of its own: one after another, or some at a time in processes of their own."""

import multiprocessing
import warnings
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch

from headstart.errors import UsageError
from headstart.registry import find
from headstart.training.config import Config
from headstart.training.files import make_folder
from headstart.training.progress import View
from headstart.training.run import Result, train
from headstart.training.signals import stop_signals


class Entry(NamedTuple):
    """How one of the runs ended."""

    name: str
    result: Result
    seconds: float
    """Wall-clock time of this call: training, or what was left of it, and testing."""


def train_each(
    configs: Mapping[str, Config],
    out: Path,
    jobs: int,
    view: View,
    *,
    tested: bool = True,
    failed: dict[str, Exception] | None = None,
) -> list[Entry]:
    """Train each in the folder ``out/name``, and, unless ``tested`` is false, judge it on the test tasks.

    Where a signal stops it, the last of the entries has ``result.stopped``.

    Args:
        configs: the runs, by name.
        out: the folder; made where it does not exist.
        jobs: how many are trained at the same time, each in a process of its own, which share the cores.
        view: where to report progress to.
        tested: whether they are judged on the test tasks.
        failed: where what runs fail of is put, by name, while the others go on; by default the first stops all.
    """
    make_folder(out)
    if jobs < 1:
        raise UsageError(f"jobs must be at least 1, got {jobs}")
    if jobs > 1 and len(configs) > 1:
        return _side_by_side(configs, out, min(jobs, len(configs)), view, tested, failed)
    entries: list[Entry] = []
    for name, config in configs.items():
        try:
            entries.append(_entry(name, config, out, view, tested))
        except Exception as error:
            if failed is None:
                raise
            failed[name] = error
            continue
        if entries[-1].result.stopped is not None:
            break
    return entries


def _entry(name: str, config: Config, out: Path, view: View, tested: bool) -> Entry:
    view.note(f"── {name}: {find('method', config.method.name).summary}")
    start = perf_counter()
    result = train(config, out / name, view=view, tested=tested)
    return Entry(name, result, perf_counter() - start)


def _side_by_side(
    configs: Mapping[str, Config], out: Path, jobs: int, view: View, tested: bool, failed: dict[str, Exception] | None
) -> list[Entry]:
    """Train in processes of their own; a signal stops them all, and what was stopped comes last."""
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that has run PyTorch's threads can hang
    threads, waiting = max(1, torch.get_num_threads() // jobs), list(configs)
    running: dict[str, tuple[SpawnProcess, Connection]] = {}
    entries: dict[str, Entry] = {}
    first: Exception | None = None
    asked = False
    with stop_signals() as stop:
        while running or (waiting and not asked):
            while waiting and len(running) < jobs and not asked:
                name = waiting.pop(0)
                receiver, sender = spawn.Pipe(duplex=False)
                given = sender, threads, name, configs[name], out, view.named(name), tested
                process = spawn.Process(target=_worker, args=given, daemon=True)
                process.start()
                sender.close()
                running[name] = process, receiver
            ready = wait([receiver for _, receiver in running.values()], timeout=0.2)
            for name in [name for name, (_, receiver) in running.items() if receiver in ready]:
                process, receiver = running.pop(name)
                try:
                    found = receiver.recv()
                except EOFError:
                    found = UsageError(f"the process of {name} was killed, perhaps for lack of memory; lower --jobs")
                process.join()
                if isinstance(found, Entry):
                    entries[name] = found
                elif failed is not None:
                    failed[name] = found
                else:
                    first = first or found
            if not asked and (stop.requested or first is not None):
                asked = True
                for process, _ in running.values():
                    process.terminate()
    if stop.requested:
        halted = {
            name: Entry(name, Result(out / name, config, 0, 0, None, stop.number), 0.0)
            for name, config in configs.items()
        }
        return sorted((halted | entries).values(), key=lambda entry: entry.result.stopped is not None)
    if first is not None:
        raise first
    return [entries[name] for name in configs if name in entries]


def _worker(sender: Connection, threads: int, name: str, config: Config, out: Path, view: View, tested: bool) -> None:
    torch.set_num_threads(threads)
    warnings.showwarning = lambda message, *_, **__: view.note(f"warning: {message}")
    try:
        sender.send(_entry(name, config, out, view, tested))
    except Exception as error:
        sender.send(error)
