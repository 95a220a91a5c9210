"""Several methods on the same tasks: train each in a folder of its own, and put their test scores in one table."""

import os
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from headstart.errors import ConfigError, UsageError
from headstart.registry import Target, find
from headstart.training.build import refuse_target, target_of
from headstart.training.config import Config, Tree, flag, flat, kind_of, nested, normal, resolve, schema_of, text
from headstart.training.files import explained, to_json, write
from headstart.training.metrics import write_csv
from headstart.training.progress import View
from headstart.training.report.report import score_to_json, shown
from headstart.training.report.score_plots import draw_comparison
from headstart.training.side_by_side import Entry, train_each


def default_methods(tree: Tree | str) -> tuple[str, ...]:
    """Return the methods that are compared on tasks where nobody names any: those of the kind that can do them.

    Raises:
        HeadstartError: tasks that cannot be made.
    """
    parts = normal(tree)
    kind, target = kind_of(parts), target_of(parts)
    return tuple(name for name in kind.compared if target in find("method", name).targets)


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
    scores = {entry.name: entry.result.score for entry in entries if entry.result.score is not None}
    write(out / "comparison.png", draw_comparison(scores, entries[0].result.config))
    return entries


def configs_of(
    tree: Tree | str, methods: Sequence[str], grid: Mapping[str, Sequence[Any]] | None = None
) -> dict[str, Config]:
    """Return each method's configuration by its name, an option being given to those that take it.

    Args:
        tree, methods: as for `compare`.
        grid: values to try of options by owner and name. A method has a configuration for each combination of those
            that it takes, called by them, too, as in ``maml-inner_rate=0.1``.

    Raises:
        UnknownNameError, UsageError, ConfigError: as for `compare`.
    """
    if not methods or len(set(methods)) < len(methods):
        raise UsageError(f"expected one or more different methods, got {', '.join(methods) or 'none'}")
    grid = grid or {}
    given = {name: value for name, value in flat(normal(tree)).items() if value is not None and name != "method.name"}
    lost, configs, targets = given.keys() | grid.keys(), dict[str, Config](), dict[str, Target]()
    for method in methods:
        for values in product(*grid.values()):
            own = _taken(given | dict(zip(grid, values)), method)
            lost -= own.keys()
            config = resolve(nested({"method.name": method, **own}))
            parts = config.tree()
            if (tasks := str(parts["tasks"])) not in targets:
                targets[tasks] = target_of(parts)
            refuse_target(find("method", method), targets[tasks], config.tasks.name)
            name = "-".join([method, *(f"{word}={value}" for word, value in chosen(config, grid).items())])
            if configs.setdefault(name, config) != config:
                raise UsageError(f"two settings are called {name}; take values that are called differently")
    if lost:
        raise ConfigError(f"none of {', '.join(methods)} takes {', '.join(map(flag, sorted(lost)))}; leave it out")
    return configs


def chosen(config: Config, grid: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Return what a configuration has of a grid's options, in words that a file's name can hold.

    >>> chosen(resolve({"tasks": "sinusoid", "method": {"name": "maml", "rate": 0.1}}), {"method.rate": (), "x.y": ()})
    {'inner_rate': '0.1'}
    """
    schema, values = schema_of(config.tree()), flat(config.tree())
    told: dict[str, str] = {}
    for name in grid:
        if (value := values.get(name)) is not None:
            option = schema.options.get(name)
            word = str(value) if option is None else text(value, option)
            told[flag(name, schema)[2:].replace("-", "_")] = os.path.basename(word.rstrip(os.sep))
    return told


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
    for name, result, seconds in entries:
        score = result.score
        assert score is not None
        row = {"method": name, score.metric: score.mean, "ci95": score_to_json(score)["ci95"]}
        row |= {"episodes": score.episodes, "steps": result.step, "best_step": result.best_step}
        kind = "classification" if score.metric == "accuracy" else "regression"
        table.append({**row, "seconds": round(seconds, 1), "score": shown(kind, score.mean, score.ci95)})
    return table


def pictures(entries: Sequence[Entry], out: str | Path) -> list[Path]:
    """Return the paths of all pictures that the comparison drew."""
    runs = [entry.result.run / name for entry in entries for name in ("results.png", "episode.png")]
    return [Path(out) / "comparison.png", *(path for path in runs if path.exists())]
