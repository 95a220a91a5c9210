"""How methods that were trained on each of several sources do on each of several: the matrix of transfer.

::

    OUT/
      SOURCE/METHOD/     a run for each method and each source that is trained on
      SOURCE/comparison.csv, .json, .png    its methods on its own test tasks
      matrix.json, matrix.csv, matrix.png   the score of each run on the test tasks of every source

All runs are judged on the same tasks of a source, so that differences between them are told by task.
"""

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headstart.data.kind import kind_of_family
from headstart.errors import ConfigError, UsageError
from headstart.registry import find, load
from headstart.training.build import find_device, make_tasks
from headstart.training.compare import compare, default_methods
from headstart.training.config import Tree, called, flag, normal, resolve, schema_of
from headstart.training.elsewhere import elsewhere, refuse_trained_on, sizes_of, target_config
from headstart.training.evaluate import Interval, Score, evaluate, interval
from headstart.training.files import explained, finite, make_folder, to_json, write
from headstart.training.metrics import write_csv
from headstart.training.progress import View
from headstart.training.report.matrix_plot import draw_matrix
from headstart.training.run import open_run
from headstart.types import Tasks

RAW = "nearest"
"""The baseline that learns nothing."""


class Cell(NamedTuple):
    """One run on the test tasks of one source."""

    method: str
    trained_on: str
    on: str
    score: Score
    own: Interval | None
    """How much higher than that of the same method trained on that source itself, of the same tasks; ``None`` where
    nobody trained there."""
    raw: Interval | None
    """How much higher than that of the nearest class mean of raw inputs; ``None`` where that says nothing."""
    notes: tuple[str, ...]


class Matrix(NamedTuple):
    """The matrix, and what stopped it."""

    cells: list[Cell]
    """By method, then by source; empty where a signal stopped it."""
    baseline: dict[str, Score]
    """By source, the score of the nearest class mean of raw inputs; empty where that says nothing."""
    stopped: signal.Signals | None = None


@explained("use")
def matrix(
    tree: Tree,
    sources: Sequence[str | Mapping[str, Any]],
    targets: Sequence[str | Mapping[str, Any]] | None,
    methods: Sequence[str] | None,
    out: str | Path,
    *,
    jobs: int = 1,
    view: View | None = None,
) -> Matrix:
    """Train each method on each source, in ``out/SOURCE/METHOD``, and judge it on the test tasks of every target.

    Ways, shots and queries are the same everywhere: those given, else the first source's. Killed, the same call goes
    on where it was; what is trained already is judged again.

    Args:
        tree: a configuration without the tasks' name; an option is given to every source and method that takes it.
        sources: what is trained on: names, paths, or mappings of a ``name`` and options.
        targets: what is judged on; by default the sources.
        methods: their names; by default those of `headstart.training.compare.default_methods`.
        out: the folder; made where it does not exist.
        jobs: as for `headstart.training.compare.compare`.
        view: where to report progress to; by default nowhere.

    Raises:
        UsageError: no sources, or two that are called alike.
        ConfigError: an option that no source takes, or sources of several kinds, or of one that means nothing
            elsewhere.
        LeakageError: a target with test classes that were trained on.
    """
    out, view = Path(out), view or View()
    options = dict(tree.get("tasks") or {})
    train, test = (_named(given, options) for given in (sources, sources if targets is None else targets))
    first = next(iter(train.values()))
    _refuse_lost(options, [*train.values(), *test.values()])
    _refuse_kinds([*train.values(), *test.values()])
    run = {"run": tree.get("run") or {}}
    sizes = _sizes(first, run)
    train, test = ({name: {**sizes, **part} for name, part in parts.items()} for parts in (train, test))
    whole = {owner: part for owner, part in tree.items() if owner != "tasks"}
    methods = default_methods({**run, "tasks": next(iter(train.values()))}) if methods is None else methods
    scores: dict[tuple[str, str, str], tuple[Score, tuple[str, ...]]] = {}
    made: dict[bytes, Tasks] = {}
    for trained_on, part in train.items():
        view.note(f"═══ training on {trained_on}")
        entries = compare({**whole, "tasks": part}, methods, out / trained_on, jobs=jobs, view=view)
        if entries[-1].result.stopped is not None:
            return Matrix([], {}, entries[-1].result.stopped)
        for entry in entries:
            job, checkpoint = open_run(entry.result.run, entry.result.config.run.device)
            for on, target in test.items():
                view.note(f"{entry.method} trained on {trained_on}: judging on {on}")
                config = target_config(job, target)
                key = to_json(config.tree()["tasks"])
                tasks = made.get(key) or make_tasks(config, job.device)
                made[key] = tasks
                notes = refuse_trained_on(job, config, tasks, "test")
                judged, count = elsewhere(job, tasks), job.config.run.test_tasks
                score = evaluate(judged.learner, checkpoint.best.meta, judged.tasks, episodes=count)
                scores[entry.method, trained_on, on] = score, notes
    baseline = _baseline(test, run) if RAW in find("data", find("task", first["name"]).kind).compared else {}
    found = Matrix(_cells(scores, baseline), baseline)
    table = rows(found)
    make_folder(out)
    write(out / "matrix.json", to_json(table))
    write_csv(out / "matrix.csv", table)
    write(out / "matrix.png", draw_matrix(table))
    return found


def _named(sources: Sequence[str | Mapping[str, Any]], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return sources by what they are called, each with the options that it takes."""
    found: dict[str, dict[str, Any]] = {}
    for source in sources:
        own = normal({"tasks": source})["tasks"]
        known = schema_of({"tasks": own}).options
        own = {**{name: value for name, value in options.items() if f"tasks.{name}" in known}, **own}
        name = called(resolve({"tasks": own}))
        if name in found:
            raise UsageError(f"two sources are called {name!r}; each needs a name of its own")
        found[name] = own
    if not found:
        raise UsageError("a matrix needs one source or more to train on, and to judge on; got none")
    return found


def _refuse_lost(options: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> None:
    lost = sorted(options.keys() - {name for part in parts for name in part})
    if lost:
        raise ConfigError(f"no source takes {', '.join(flag(f'tasks.{name}') for name in lost)}; leave it out")


def _refuse_kinds(parts: Sequence[Mapping[str, Any]]) -> None:
    first, *others = ((part["name"], find("task", part["name"]).kind) for part in parts)
    if other := next((other for other in others if other[1] != first[1]), None):
        raise ConfigError(
            f"{first[0]!r} is {first[1]}, and {other[0]!r} is {other[1]}; a matrix is of one kind of data"
        )


def _sizes(part: Mapping[str, Any], run: Tree) -> dict[str, Any]:
    """Return how large a task of a source is, as the options that say it of every one."""
    config = resolve({**run, "tasks": part})
    seam = kind_of_family(config.tasks.name).elsewhere
    if seam is None:
        raise ConfigError(f"what is learned of {find('task', config.tasks.name).kind} means nothing for other sources")
    return {name: value for name, value in sizes_of(make_tasks(config, find_device("cpu")), seam).items() if value}


def _baseline(test: Mapping[str, Mapping[str, Any]], run: Tree) -> dict[str, Score]:
    found, raw = {}, load("method", RAW)()
    for on, part in test.items():
        config = resolve({**run, "tasks": part})
        tasks = make_tasks(config, find_device(config.run.device))
        found[on] = evaluate(raw, raw.init(None), tasks, episodes=config.run.test_tasks)
    return found


def _cells(
    scores: Mapping[tuple[str, str, str], tuple[Score, tuple[str, ...]]], baseline: Mapping[str, Score]
) -> list[Cell]:
    def more(score: Score, other: Score | None) -> Interval | None:
        return (
            None
            if other is None
            else interval([value - less for value, less in zip(score.values, other.values, strict=True)])
        )

    cells = []
    for (method, trained_on, on), (score, notes) in scores.items():
        own = scores.get((method, on, on), (None,))[0] if on != trained_on else None
        cells.append(Cell(method, trained_on, on, score, more(score, own), more(score, baseline.get(on)), notes))
    order = list(dict.fromkeys(cell.method for cell in cells))
    return sorted(cells, key=lambda cell: order.index(cell.method))


def rows(found: Matrix) -> list[dict[str, Any]]:
    """Return the matrix as plain values, a row each cell; the baseline's are trained on nothing."""
    table: list[dict[str, Any]] = []
    for method, trained_on, on, score, own, raw, notes in found.cells:
        row = {"method": method, "trained_on": trained_on, "on": on, score.metric: score.mean, "ci95": score.ci95}
        for name, one in (("than_own", own), ("than_nearest", raw)):
            row |= {name: one and one.mean, f"{name}_ci95": one and one.ci95}
        table.append(finite({**row, "tasks": score.episodes, "notes": "; ".join(notes)}))
    for on, score in found.baseline.items():
        row = {"method": RAW, "trained_on": None, "on": on, score.metric: score.mean, "ci95": score.ci95}
        table.append(finite({**row, "tasks": score.episodes}))
    return table
