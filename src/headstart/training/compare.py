"""Several methods on the same tasks: train each in a folder of its own, and put their test scores in one table."""

import multiprocessing
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch

from headstart.errors import ConfigError, UsageError
from headstart.registry import find
from headstart.training.build import refuse_target, target_of
from headstart.training.config import Config, Tree, flag, flat, kind_of, nested, normal, resolve, schema_of
from headstart.training.files import explained, make_folder, to_json, write
from headstart.training.metrics import write_csv
from headstart.training.progress import View
from headstart.training.report.report import score_to_json, shown
from headstart.training.report.score_plots import draw_comparison
from headstart.training.run import Result, train
from headstart.training.signals import stop_signals


def default_methods(tree: Tree | str) -> tuple[str, ...]:
    """Return the methods that are compared on tasks where nobody names any: those of the kind that can do them.

    Raises:
        HeadstartError: tasks that cannot be made.
    """
    parts = normal(tree)
    kind, target = kind_of(parts), target_of(parts)
    return tuple(name for name in kind.compared if target in find("method", name).targets)


class Entry(NamedTuple):
    """One method's line in the table."""

    method: str
    result: Result
    seconds: float
    """Wall-clock time of this call: training, or what was left of it, and testing."""


@explained("use")
def compare(
    tree: Tree | str, methods: Sequence[str] | None, out: str | Path, *, jobs: int = 1, view: View | None = None
) -> list[Entry]:
    """Train several methods on the same tasks, each in the folder ``out/method``.

    All are judged on the same test tasks. An option that a method does not take is left out for it, and defaults are
    each method's own. Killed, the same call goes on where it was.

    Args:
        tree: a configuration (`headstart.training.config`) without a method's name; a text is the tasks alone.
        methods: their names; by default those of `default_methods`.
        out: the folder; made where it does not exist.
        jobs: how many methods are trained at the same time, each in a process of its own, which share the cores.
        view: where to report progress to; by default nowhere.

    Returns:
        One entry a method, in the order given; ``out`` holds ``comparison.csv``, ``.json`` and ``.png``. Where a signal
        stopped it, the entries so far, the last one with ``result.stopped``, and no new files.

    Raises:
        UnknownNameError: a method that does not exist.
        UsageError: no methods, or one of them twice; less than one job.
        ConfigError: an option that none of the methods takes.
    """
    out, view = Path(out), view or View()
    entries = train_each(configs_of(tree, default_methods(tree) if methods is None else methods), out, jobs, view)
    if entries[-1].result.stopped is not None:
        return entries
    table = rows(entries)
    write(out / "comparison.json", to_json(table))
    write_csv(out / "comparison.csv", [{k: v for k, v in row.items() if k != "score"} for row in table])
    scores = {entry.method: entry.result.score for entry in entries if entry.result.score is not None}
    write(out / "comparison.png", draw_comparison(scores, entries[0].result.config))
    return entries


def train_each(configs: Mapping[str, Config], out: Path, jobs: int, view: View, *, tested: bool = True) -> list[Entry]:
    """Train each method in the folder ``out/method``, and, unless ``tested`` is false, judge it on the test tasks.

    Where a signal stops it, the last of the entries has ``result.stopped``.
    """
    make_folder(out)
    if jobs < 1:
        raise UsageError(f"jobs must be at least 1, got {jobs}")
    if jobs > 1:
        return _side_by_side(configs, out, min(jobs, len(configs)), view, tested)
    entries: list[Entry] = []
    for method, own in configs.items():
        entries.append(_entry(method, own, out, view, tested))
        if entries[-1].result.stopped is not None:
            break
    return entries


def _entry(method: str, config: Config, out: Path, view: View, tested: bool) -> Entry:
    view.note(f"── {method}: {find('method', method).summary}")
    start = perf_counter()
    result = train(config, out / method, view=view, tested=tested)
    return Entry(method, result, perf_counter() - start)


def _side_by_side(configs: Mapping[str, Config], out: Path, jobs: int, view: View, tested: bool) -> list[Entry]:
    """Train in processes of their own; a signal or an error stops them all, and what was stopped comes last."""
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that has run PyTorch's threads can hang
    threads, waiting = max(1, torch.get_num_threads() // jobs), list(configs)
    running: dict[str, tuple[SpawnProcess, Connection]] = {}
    entries: dict[str, Entry] = {}
    failed: Exception | None = None
    asked = False
    with stop_signals() as stop:
        while running or (waiting and not asked):
            while waiting and len(running) < jobs and not asked:
                method = waiting.pop(0)
                receiver, sender = spawn.Pipe(duplex=False)
                given = sender, threads, method, configs[method], out, view.named(method), tested
                process = spawn.Process(target=_worker, args=given, daemon=True)
                process.start()
                sender.close()
                running[method] = process, receiver
            ready = wait([receiver for _, receiver in running.values()], timeout=0.2)
            for method in [method for method, (_, receiver) in running.items() if receiver in ready]:
                process, receiver = running.pop(method)
                try:
                    found = receiver.recv()
                except EOFError:
                    found = UsageError(f"the process of {method} was killed, perhaps for lack of memory; lower --jobs")
                process.join()
                if isinstance(found, Exception):
                    failed = failed or found
                else:
                    entries[method] = found
            if not asked and (stop.requested or failed is not None):
                asked = True
                for process, _ in running.values():
                    process.terminate()
    if stop.requested:
        halted = {
            name: Entry(name, Result(out / name, own, 0, 0, None, stop.number), 0.0) for name, own in configs.items()
        }
        return sorted((halted | entries).values(), key=lambda entry: entry.result.stopped is not None)
    if failed is not None:
        raise failed
    return [entries[method] for method in configs]


def _worker(sender: Connection, threads: int, method: str, config: Config, out: Path, view: View, tested: bool) -> None:
    torch.set_num_threads(threads)
    warnings.showwarning = lambda message, *_, **__: view.note(f"warning: {message}")
    try:
        sender.send(_entry(method, config, out, view, tested))
    except Exception as error:
        sender.send(error)


def configs_of(tree: Tree | str, methods: Sequence[str]) -> dict[str, Config]:
    """Return each method's configuration, an option being given to those that take it.

    Raises:
        UnknownNameError, UsageError, ConfigError: as for `compare`.
    """
    if not methods or len(set(methods)) < len(methods):
        raise UsageError(f"expected one or more different methods, got {', '.join(methods) or 'none'}")
    parts = normal(tree)
    given = {name: value for name, value in flat(parts).items() if value is not None and name != "method.name"}
    own = {method: _taken(given, method) for method in methods}
    lost = given.keys() - {name for values in own.values() for name in values}
    if lost:
        raise ConfigError(f"none of {', '.join(methods)} takes {', '.join(map(flag, sorted(lost)))}; leave it out")
    configs = {method: resolve(nested({"method.name": method, **values})) for method, values in own.items()}
    target = target_of(parts)
    for method in configs:
        refuse_target(find("method", method), target, parts["tasks"]["name"])
    return configs


def _taken(given: Mapping[str, Any], method: str) -> dict[str, Any]:
    row = find("method", method)
    owners = {"tasks", "method", "run", *(["outer"] if row.outer else []), *(["model"] if row.model != "none" else [])}
    own = {name: value for name, value in given.items() if name.partition(".")[0] in owners}
    deciding = ("tasks.encode", "tasks.sources")
    names = {name: value for name, value in own.items() if name.endswith(".name") or name.startswith(deciding)}
    schema = schema_of(nested({**names, "method.name": method}))
    return {name: value for name, value in own.items() if name in names or name in schema.options}


def rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the table as plain values."""
    table: list[dict[str, Any]] = []
    for method, result, seconds in entries:
        score = result.score
        assert score is not None
        row = {"method": method, score.metric: score.mean, "ci95": score_to_json(score)["ci95"]}
        row |= {"episodes": score.episodes, "steps": result.step, "best_step": result.best_step}
        kind = "classification" if score.metric == "accuracy" else "regression"
        table.append({**row, "seconds": round(seconds, 1), "score": shown(kind, score.mean, score.ci95)})
    return table


def pictures(entries: Sequence[Entry], out: str | Path) -> list[Path]:
    """Return the paths of all pictures that the comparison drew."""
    runs = [entry.result.run / name for entry in entries for name in ("results.png", "episode.png")]
    return [Path(out) / "comparison.png", *(path for path in runs if path.exists())]
