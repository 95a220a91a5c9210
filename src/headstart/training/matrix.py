"""How methods that were trained on each of several sources do on each of several: the matrix of transfer.

::

    OUT/
      SOURCE/METHOD/     a run for each method and each source that is trained on
      SOURCE/METHOD/judged.json    its score on each task, so that none is worked out twice
      matrix.json, matrix.csv, matrix.png   the score of each run on the test tasks of every source

All are judged on the same tasks of a source, so that differences between them are told by task. What learns nothing
across tasks is the bar: a run that does not pass it has learned nothing that is of use for that source.
"""

import hashlib
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from torch.utils._pytree import tree_leaves

from headstart.cache import sha256_of
from headstart.data.kind import kind_of_family
from headstart.errors import ConfigError, FileError, HeadstartError, UsageError
from headstart.registry import find
from headstart.schema import Option
from headstart.training.build import Job, find_device, make_learner, make_tasks, reproducible
from headstart.training.compare import configs_of, default_methods
from headstart.training.config import Config, Tree, called, flag, forms, normal, resolve, schema_of
from headstart.training.elsewhere import elsewhere, refuse_trained_on, sizes_of, target_config
from headstart.training.evaluate import Interval, Metric, evaluate, interval
from headstart.training.files import explained, finite, make_folder, read_json, to_json, write
from headstart.training.loop import start
from headstart.training.metrics import write_csv
from headstart.training.progress import View
from headstart.training.report.matrix_plot import draw_matrix
from headstart.training.run import open_run
from headstart.training.side_by_side import train_each
from headstart.types import Learner, Meta, Tasks

RAW = "nearest"
"""The baseline that every matrix has, where the kind of data can."""


class Cell(NamedTuple):
    """One method on the test tasks of one source."""

    method: str
    trained_on: str | None
    """``None`` where it learns nothing across tasks."""
    on: str
    metric: Metric
    values: tuple[float, ...]
    """The metric of each task."""
    own: Interval | None = None
    """How much higher than that of the same method trained on that source itself, on the same tasks; ``None`` where
    nobody trained there."""
    untrained: Interval | None = None
    """How much higher than that of the best method that learns nothing; ``None`` where there is no such."""
    notes: tuple[str, ...] = ()

    @property
    def score(self) -> Interval:
        """The mean over the tasks."""
        return interval(self.values)


class Matrix(NamedTuple):
    """The matrix, and what stopped it."""

    cells: list[Cell]
    """By method, then by what was trained on; last those that learn nothing. Empty where a signal stopped it."""
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

    Methods that learn nothing across tasks are judged on every target as they are; so is the nearest class mean of raw
    inputs, named or not, where the kind of data can. Ways, shots and queries are the same everywhere: those given,
    else the least that any source has. Killed, the same call goes on where it was.

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
        ShortClassError: a source with too few classes or examples, before anything is trained.
        LeakageError: a target with test classes that were trained on.
    """
    out, view = Path(out), view or View()
    options = dict(tree.get("tasks") or {})
    train, test = (_named(given, options) for given in (sources, sources if targets is None else targets))
    if other := next((name for name in train.keys() & test.keys() if train[name] != test[name]), None):
        raise UsageError(f"two sources are called {other!r}, one to train and one to judge on; rename one of them")
    _refuse_lost(options, [*train.values(), *test.values()])
    _refuse_kinds([*train.values(), *test.values()])
    made: dict[bytes, Tasks] = {}

    def tasks_of(config: Config) -> Tasks:
        key = to_json(config.tree()["tasks"])
        if key not in made:
            made[key] = _made(config)
        return made[key]

    run = {"run": tree.get("run") or {}}
    sizes = _sizes([resolve({**run, "tasks": part}) for part in (train | test).values()], tasks_of)
    train, test = ({name: {**sizes, **part} for name, part in parts.items()} for parts in (train, test))
    if methods is None:
        methods = default_methods({**run, "tasks": next(iter(train.values()))})
    whole = {owner: part for owner, part in tree.items() if owner != "tasks"}
    configs = {name: configs_of({**whole, "tasks": part}, methods) for name, part in (train | test).items()}
    for own in configs.values():  # refuse what cannot be before anything is trained
        tasks_of(next(iter(own.values())))
    first = configs[next(iter(train))]
    idle = [method for method, config in first.items() if _learns_nothing(_begun(config, tasks_of(config))[0])]
    cells: list[Cell] = []
    for on, part in test.items():
        bars = {RAW: resolve({**run, "tasks": part, "method": {"name": RAW}})} if RAW in _compared(part) else {}
        for method, config in (bars | {name: configs[on][name] for name in idle}).items():
            view.note(f"{method}, which learns nothing: judging on {on}")
            tasks = tasks_of(config)
            cells.append(Cell(method, None, on, *_scored(config, *_begun(config, tasks), tasks)))
    for trained_on in train:
        learning = {method: config for method, config in configs[trained_on].items() if method not in idle}
        view.note(f"═══ training on {trained_on}")
        entries = train_each(learning, out / trained_on, jobs, view, tested=False) if learning else []
        if entries and entries[-1].result.stopped is not None:
            return Matrix([], entries[-1].result.stopped)
        for entry in entries:
            job, checkpoint = open_run(entry.result.run, entry.result.config.run.device)
            for on, target in test.items():
                view.note(f"{entry.name} trained on {trained_on}: judging on {on}")
                config = target_config(job, target)
                tasks = tasks_of(config)
                notes = refuse_trained_on(job, config, tasks, "test")
                scored = _judged(entry.result.run, elsewhere(job, tasks), checkpoint.best.meta)
                cells.append(Cell(entry.name, trained_on, on, *scored, notes=notes))
    found = Matrix(_compared_by_task(cells, [*methods, RAW]))
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
        own, known = _taking(normal({"tasks": source})["tasks"], options)
        own = {**{name: value for name, value in options.items() if f"tasks.{name}" in known}, **own}
        name = called(resolve({"tasks": own}))
        if name in found:
            raise UsageError(f"two sources are called {name!r}; each needs a name of its own, so rename one")
        found[name] = own
    if not found:
        raise UsageError("a matrix needs one source or more to train on, and to judge on; got none")
    return found


def _taking(own: dict[str, Any], options: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Option]]:
    """Return a source, and the options that it takes.

    Where it lacks one that mixtures of such sources take (the shape of all images), it is a mixture of itself alone.
    """
    first, *others = ((form, schema_of({"tasks": form}).options) for form in forms(own))
    for form, known in others:
        if any(f"tasks.{name}" in known.keys() - first[1].keys() for name in options):
            return form, known
    return first


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


def _made(config: Config) -> Tasks:
    """Make tasks; an error says of which source."""
    name = called(config)
    try:
        return make_tasks(config, find_device(config.run.device))
    except HeadstartError as error:
        raise type(error)(f"{name}: {str(error).removeprefix(f'{name}: ')}") from error


def _sizes(configs: Sequence[Config], tasks_of: Callable[[Config], Tasks]) -> dict[str, Any]:
    """Return how large a task is that every source has, as the options that say it of every one."""
    family = configs[0].tasks.name
    seam = kind_of_family(family).elsewhere
    if seam is None:
        raise ConfigError(f"what is learned of {find('task', family).kind} means nothing for other sources")
    every = [sizes_of(tasks_of(config), seam) for config in configs]
    found = {name: [sizes.get(name) for sizes in every] for name in every[0]}
    numbers = {name: [value for value in values if isinstance(value, int)] for name, values in found.items()}
    least = {name: min(numbers[name]) if numbers[name] else values[0] for name, values in found.items()}
    return {name: value for name, value in least.items() if value}


def _compared(part: Mapping[str, Any]) -> Sequence[str]:
    return find("data", find("task", part["name"]).kind).compared


def _begun(config: Config, tasks: Tasks) -> tuple[Learner, Meta]:
    """Return a method, and what it is before it has learned anything."""
    learner, _ = make_learner(config, tasks, find_device(config.run.device))
    return learner, start(learner, seed=config.run.seed).meta


def _learns_nothing(learner: Learner) -> bool:
    return learner.gradient is None and learner.prepare is None


def _scored(config: Config, learner: Learner, meta: Meta, tasks: Tasks) -> tuple[Metric, tuple[float, ...]]:
    with reproducible(config):
        score = evaluate(learner, meta, tasks, episodes=config.run.test_tasks)
    return score.metric, score.values


def _judged(run: Path, job: Job, meta: Meta) -> tuple[Metric, tuple[float, ...]]:
    """Return the score on each test task, kept in the run's folder by what its weights and these tasks are."""
    place, seen = run / "judged.json", hashlib.sha256(sha256_of(run / "best.safetensors").encode())
    config, tasks = job.config, job.tasks
    count = min(config.run.test_tasks, (tasks.counts or {}).get("test", config.run.test_tasks))
    for number in range(count):
        for leaf in filter(torch.is_tensor, tree_leaves(tasks.sample("test", [number]))):
            seen.update(leaf.cpu().contiguous().numpy().tobytes())
    kept = _kept(place) if place.exists() else {}
    if (key := seen.hexdigest()) not in kept:
        kept[key] = _scored(config, job.learner, meta, tasks)
        write(place, to_json(kept))
    metric, values = kept[key]
    if (metric == "accuracy") != (tasks.kind == "classification") or len(values) != count:
        raise FileError(f"{place} has the {metric} of {len(values)} tasks, not of {count} such; {_REMOVE}")
    return metric, values


_REMOVE = "remove it, and the scores are computed again"


def _kept(place: Path) -> dict[str, tuple[Metric, tuple[float, ...]]]:
    """Return the scores that `_judged` has kept."""
    found = read_json(place)
    try:
        return TypeAdapter(dict[str, tuple[Metric, tuple[float, ...]]]).validate_json(json.dumps(found), strict=True)
    except ValidationError as error:
        raise FileError(f"{place} does not hold scores by task; {_REMOVE}") from error


def _compared_by_task(cells: Sequence[Cell], order: Sequence[str]) -> list[Cell]:
    """Return the cells in order, with how much they differ from their own source's run, and from the bar."""

    def more(cell: Cell, other: Cell | None) -> Interval | None:
        if other is None:
            return None
        return interval([value - less for value, less in zip(cell.values, other.values, strict=True)])

    trained = {(cell.method, cell.trained_on, cell.on): cell for cell in cells if cell.trained_on is not None}
    bars: dict[str, Cell] = {}
    for cell in (cell for cell in cells if cell.trained_on is None):
        best = max if cell.metric == "accuracy" else min
        bars[cell.on] = best(bars.get(cell.on, cell), cell, key=lambda one: one.score.mean)
    found = [
        cell._replace(
            own=None if cell.on == cell.trained_on else more(cell, trained.get((cell.method, cell.on, cell.on))),
            untrained=more(cell, bars.get(cell.on)),
        )
        for cell in trained.values()
    ]
    found += [cell for cell in cells if cell.trained_on is None]
    return sorted(found, key=lambda cell: (cell.trained_on is None, order.index(cell.method)))


def rows(found: Matrix) -> list[dict[str, Any]]:
    """Return the matrix as plain values, a row each cell."""
    table: list[dict[str, Any]] = []
    for cell in found.cells:
        mean, ci95 = cell.score
        row = {"method": cell.method, "trained_on": cell.trained_on, "on": cell.on, cell.metric: mean, "ci95": ci95}
        for name, one in (("than_own", cell.own), ("than_untrained", cell.untrained)):
            row |= {name: one and one.mean, f"{name}_ci95": one and one.ci95}
        table.append(finite({**row, "tasks": len(cell.values), "notes": "; ".join(cell.notes)}))
    return table
