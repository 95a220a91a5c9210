"""Several methods on the same tasks: train each in a folder of its own, and put their test scores in one table."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch

from headstart.errors import ConfigError, UsageError
from headstart.registry import find
from headstart.training.build import make_tasks
from headstart.training.config import TrainConfig, flag, make_config
from headstart.training.defaults import TASKS, compared, resolve, taken_by
from headstart.training.files import make_folder, to_json, write
from headstart.training.metrics import write_csv
from headstart.training.progress import Silent, View
from headstart.training.report.comparison_plot import draw_comparison
from headstart.training.report.report import score_to_json, shown
from headstart.training.run import Result, train


def default_methods(config: TrainConfig) -> tuple[str, ...]:
    """Return the methods that are compared on the tasks of ``config`` where nobody names any; a table is read for it.

    Raises:
        HeadstartError: tasks that cannot be made.
    """
    given = {name: value for name, value in config.model_dump(exclude_unset=True).items() if name in TASKS["table"]}
    plain = make_config({**given, "tasks": config.tasks, "seed": config.seed}) if _is_table(config) else None
    if plain is None:
        return compared(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training reads the table again, and warns then
        kind = make_tasks(resolve(plain), torch.device("cpu")).kind
    return compared(config, classes=kind == "classification")


def _is_table(config: TrainConfig) -> bool:
    return "task_column" in taken_by(config)


class Entry(NamedTuple):
    """One method's line in the table."""

    method: str
    result: Result
    seconds: float
    """Wall-clock time of this call: training, or what was left of it, and testing."""


def compare(config: TrainConfig, methods: Sequence[str], out: str | Path, *, view: View | None = None) -> list[Entry]:
    """Train every one of ``methods`` on the tasks of ``config``, each in the folder ``out/method``.

    All are judged on the same test tasks. An option that a method does not take is left out for that method, and
    defaults are each method's own. Killed, the same call goes on where it was.

    Returns:
        One entry a method, in the order given; ``out`` holds ``comparison.csv``, ``.json`` and ``.png``. Where a signal
        stopped it, the entries so far, the last one with ``result.stopped``, and no new files.

    Raises:
        UnknownNameError: a method that does not exist.
        UsageError: no methods, or one of them twice.
        ConfigError: an option that none of the methods takes.
    """
    out, view = Path(out), view or Silent()
    configs = _configs(config, methods)
    make_folder(out)
    entries: list[Entry] = []
    for method, own in configs.items():
        view.note(f"── {method}: {find('method', method).summary}")
        start = perf_counter()
        result = train(own, out / method, view=view)
        entries.append(Entry(method, result, perf_counter() - start))
        if result.stopped is not None:
            return entries
    _write(out, entries)
    return entries


def _configs(config: TrainConfig, methods: Sequence[str]) -> dict[str, TrainConfig]:
    """Return the methods' configurations, resolved before any of them is trained."""
    if not methods or len(set(methods)) < len(methods):
        raise UsageError(f"compare needs one or more different methods, got {', '.join(methods) or 'none'}")
    given = {name: value for name, value in config.model_dump().items() if value is not None}
    configs, used = {}, set[str]()
    for method in methods:
        find("method", method)
        refused = given.keys() - taken_by(config.model_copy(update={"method": method}))
        own = {name: None if name in refused else value for name, value in given.items()}
        configs[method] = resolve(config.model_copy(update={**own, "method": method}))
        used |= given.keys() - refused
    lost = given.keys() - used
    if lost:
        raise ConfigError(f"none of {', '.join(methods)} takes {', '.join(map(flag, sorted(lost)))}; leave it out")
    return configs


def rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return the table as plain values."""
    table: list[dict[str, Any]] = []
    for method, result, seconds in entries:
        score = result.score
        assert score is not None
        table.append(
            {
                "method": method,
                score.metric: score.mean,
                "ci95": score_to_json(score)["ci95"],
                "episodes": score.episodes,
                "steps": result.step,
                "best_step": result.best_step,
                "seconds": round(seconds, 1),
                "score": shown(
                    "classification" if score.metric == "accuracy" else "regression", score.mean, score.ci95
                ),
            }
        )
    return table


def pictures(entries: Sequence[Entry], out: str | Path) -> list[Path]:
    """Return the paths of all pictures that the comparison drew."""
    runs = [entry.result.run / name for entry in entries for name in ("results.png", "episode.png")]
    return [Path(out) / "comparison.png", *(path for path in runs if path.exists())]


def _write(out: Path, entries: Sequence[Entry]) -> None:
    table = rows(entries)
    write(out / "comparison.json", to_json(table))
    write_csv(out / "comparison.csv", [{k: v for k, v in row.items() if k != "score"} for row in table])
    scores = {entry.method: entry.result.score for entry in entries if entry.result.score is not None}
    write(out / "comparison.png", draw_comparison(scores, entries[0].result.config))
