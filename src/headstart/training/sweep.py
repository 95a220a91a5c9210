"""Methods, seeds and options: a run for each combination, and a table of the means over seeds.

::

    OUT/
      SETTING-seed=3/    a run for each setting, as in maml-inner_rate=0.1, and each seed
      sweep.json, sweep.csv, sweep.md, sweep.png     the table, a row each setting

A run that has ended is not trained again, one that was cut off goes on, and one that failed is tried again. Where a
method has several settings for the same tasks, the one that is chosen is the best on the validation tasks.
"""

import csv
import io
import math
import signal
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from headstart.errors import FileError, HeadstartError, UsageError
from headstart.training.compare import chosen, configs_of, default_methods
from headstart.training.config import Config, Tree, diff
from headstart.training.evaluate import Metric
from headstart.training.files import explained, finite, make_folder, read, to_json, write
from headstart.training.metrics import write_csv
from headstart.training.over_seeds import OverSeeds, over_seeds
from headstart.training.progress import View
from headstart.training.report.report import CARD, read_results
from headstart.training.report.score_plots import draw_means
from headstart.training.run import read_config
from headstart.training.side_by_side import train_each

#: Trains runs in folders, ``(configs, out, jobs, view, failed)``, and returns what stopped it; what they fail of is put
#: into the last.
Launch = Callable[[Mapping[str, Config], Path, int, View, dict[str, Exception]], "signal.Signals | None"]


class Judged(NamedTuple):
    """What a run has come to."""

    metric: Metric
    values: dict[Hashable, float]
    """Of each test task, by its name, or by seed and number where every seed draws tasks of its own."""
    validation: float
    """The best weights' score on the validation tasks."""


class Setting(NamedTuple):
    """A method with its options, and its runs."""

    name: str
    method: str
    options: dict[str, str]
    """Those of the grid that it takes."""
    tasks: str
    """What tasks it learns, whatever the seed: only settings of the same ones can be compared."""
    runs: dict[int, Judged]
    """By seed; without those that failed."""
    score: OverSeeds | None
    """The test score; ``None`` where all runs failed."""
    more: OverSeeds | None = None
    """How much higher than that of the first setting of the same tasks, by the tasks of the seeds that both have."""
    best: bool = False
    """Whether it is the best of its method on the validation tasks, where there is a choice."""

    @property
    def metric(self) -> Metric:
        """What was measured."""
        return next(run.metric for run in self.runs.values())

    @property
    def validation(self) -> float:
        """The mean over seeds of the best weights' score on the validation tasks."""
        return fmean(run.validation for run in self.runs.values())

    @property
    def test_tasks(self) -> int:
        """How many test tasks there were, each counted once however many runs were judged on it."""
        return len({task for run in self.runs.values() for task in run.values})


class Sweep(NamedTuple):
    """The table, what failed of what, and what stopped it."""

    settings: list[Setting]
    failed: dict[str, Exception]
    stopped: signal.Signals | None = None


def local(
    configs: Mapping[str, Config], out: Path, jobs: int, view: View, failed: dict[str, Exception]
) -> signal.Signals | None:
    """Train in processes of this machine, which share its cores."""
    entries = train_each(configs, out, jobs, view, failed=failed)
    return entries[-1].result.stopped if entries else None


@explained("use")
def sweep(
    tree: Tree | str,
    methods: Sequence[str] | None,
    out: str | Path,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    seeds: int = 5,
    jobs: int = 1,
    launch: Launch = local,
    view: View | None = None,
) -> Sweep:
    """Train every method with each combination of the grid's options and each seed, and put the means in a table.

    Killed, the same call goes on where it was. Every run is judged on the test tasks, which have no part in what is
    chosen: that goes by the mean over seeds of the validation score, among settings none of whose runs failed.

    Args:
        tree: a configuration without a method's name; a text is the tasks alone. Its seed is the first.
        methods: their names; by default those of `headstart.training.compare.default_methods`.
        out: the folder; made where it does not exist.
        grid: values to try of options by owner and name, as in ``{"method.rate": [0.01, 0.1]}``; a method takes those
            that it has.
        seeds: how many.
        jobs: how many runs at the same time.
        launch: where they run: `local`, or what `headstart.training.slurm.slurm` returns.
        view: where to report progress to; by default nowhere.

    Raises:
        UnknownNameError, UsageError: a method that does not exist, or is there twice; no seeds, or no values.
        ConfigError: an option that none of the methods takes, or a value that it cannot have.
    """
    out, view, grid = Path(out), view or View(), dict(grid or {})
    if seeds < 1:
        raise UsageError(f"seeds must be at least 1, got {seeds}")
    for name, values in grid.items():
        if name in ("run.seed", "method.name"):
            raise UsageError(f"{name} has an option of its own here: --{'seeds' if name == 'run.seed' else 'methods'}")
        if not values or len(set(map(str, values))) < len(values):
            raise UsageError(f"the values of {name} must be one or more, each once; got {', '.join(map(str, values))}")
    settings = configs_of(tree, default_methods(tree) if methods is None else methods, grid)
    first = next(iter(settings.values())).run.seed
    configs = {
        f"{name}-seed={seed}": config._replace(run=config.run._replace(seed=seed))
        for seed in range(first, first + seeds)
        for name, config in settings.items()
    }
    make_folder(out)
    left = {name: config for name, config in configs.items() if not ended(out / name, config)}
    if len(left) < len(configs):
        view.note(f"{len(configs) - len(left)} of {len(configs)} runs have ended already")
    failed: dict[str, Exception] = {}
    stopped = launch(left, out, jobs, view, failed) if left else None
    if stopped is not None:
        return Sweep([], failed, stopped)
    judged: dict[str, Judged] = {}
    for name, config in configs.items():
        if name not in failed:
            try:
                judged[name] = read_judged(out / name, config.run.seed)
            except HeadstartError as error:
                failed[name] = error
    found = []
    for name, config in settings.items():
        runs = {seed: one for seed in range(first, first + seeds) if (one := judged.get(f"{name}-seed={seed}"))}
        score = over_seeds([one.values for one in runs.values()]) if runs else None
        found.append(Setting(name, config.method.name, chosen(config, grid), str(config.tasks), runs, score))
    result = Sweep(_compared(_best(found, seeds)), failed)
    table = rows(result)
    told = {name: reason(error) for name, error in failed.items()}
    write(out / "sweep.json", to_json({"settings": table, "failed": told}))
    if table:
        write_csv(out / "sweep.csv", table)
        write(out / "sweep.md", markdown(result).encode())
        scores = {one.name: (one.metric, one.score) for one in result.settings if one.score is not None}
        write(out / "sweep.png", draw_means(scores))
    return result


def ended(run: Path, config: Config) -> bool:
    """Return whether a folder holds this very run, trained to its end, tested and reported."""
    try:
        results, there = read_results(run), read_config(run)
    except HeadstartError:
        return False
    if not (run / CARD).exists():  # what a report writes last
        return False
    steps = None if config.outer is None else config.outer.steps
    same = not diff(there, config) and (there.outer is None or there.outer.steps == steps)
    return same and results.get("step") in (0, steps)  # 0: a method that learns nothing


def read_judged(run: Path, seed: int) -> Judged:
    """Read what a run has come to off its folder.

    Raises:
        FileError: it has not ended, or a file is damaged.
    """
    results = read_results(run)
    place, metric = run / "test.csv", results["metric"]
    try:
        lines = list(csv.DictReader(io.StringIO(read(place).decode()), strict=True))
        values: dict[Hashable, float] = {
            line["task"] if "task" in line else (seed, line["number"]): float(line[metric]) for line in lines
        }
        validation = float(results["best_validation"])
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise FileError(f"{place} does not hold the score of each task; run `headstart train` again") from error
    if len(values) != results["episodes"]:
        raise FileError(f"{place} has {len(values)} tasks, not {results['episodes']}; run `headstart train` again")
    return Judged(metric, values, validation)


def _best(settings: list[Setting], seeds: int) -> list[Setting]:
    """Return them with the best of each method and tasks marked, where there is a choice."""
    found = list(settings)
    for method, tasks in dict.fromkeys((one.method, one.tasks) for one in settings):
        own = [one for one in settings if (one.method, one.tasks) == (method, tasks)]
        whole = [one for one in own if len(one.runs) == seeds]
        if len(own) > 1 and whole:
            pick = max if whole[0].metric == "accuracy" else min
            kept = pick(whole, key=lambda one: one.validation)
            found[found.index(kept)] = kept._replace(best=True)
    return found


def _compared(settings: list[Setting]) -> list[Setting]:
    """Return them with how much they differ from the first of the same tasks."""
    firsts: dict[str, Setting] = {}
    found = []
    for one in settings:
        base = firsts.setdefault(one.tasks, one)
        pairs = [(run.values, base.runs[seed].values) for seed, run in one.runs.items() if seed in base.runs]
        more = [{task: own[task] - other[task] for task in own if task in other} for own, other in pairs]
        found.append(one._replace(more=over_seeds(more)) if one is not base and more and all(more) else one)
    return found


def rows(found: Sweep) -> list[dict[str, Any]]:
    """Return the table as plain values, a row each setting that has a run."""
    table: list[dict[str, Any]] = []
    for one in found.settings:
        if one.score is not None:
            row: dict[str, Any] = {"setting": one.name, "method": one.method, **one.options}
            row |= {"seeds": len(one.runs), "tasks": one.test_tasks, one.metric: one.score.mean}
            row |= {f"ci95_{name}": value for name, value in one.score._asdict().items() if name != "mean"}
            row |= {"validation": one.validation, "chosen": one.best}
            row |= {"than_first": one.more and one.more.mean, "than_first_ci95": one.more and one.more.both}
            table.append(finite(row))
    return table


def markdown(found: Sweep) -> str:
    """Return the table as people read it."""
    there = [(one, one.score) for one in found.settings if one.score is not None]
    words = dict.fromkeys(word for one, _ in there for word in one.options)
    columns: dict[str, list[str]] = {"method": [one.method for one, _ in there]}
    columns |= {word: [one.options.get(word, "") for one, _ in there] for word in words}
    columns |= {"seeds": [str(len(one.runs)) for one, _ in there], "tasks": [str(one.test_tasks) for one, _ in there]}
    columns["test score"] = [_told(one, score.mean) for one, score in there]
    for name in ("seeds", "tasks", "both"):
        columns[f"± over {name}"] = [_told(one, getattr(score, name)) for one, score in there]
    columns["validation"] = [_told(one, one.validation) for one, _ in there]
    if any(one.best for one, _ in there):
        columns["chosen"] = ["by validation" if one.best else "" for one, _ in there]
    if any(one.more for one, _ in there):
        columns["than the first"] = [
            f"{_told(one, one.more.mean, '+')} ± {_told(one, one.more.both)}" if one.more else "" for one, _ in there
        ]
    lines = [list(columns), ["---"] * len(columns), *zip(*columns.values())]
    return "".join(f"| {' | '.join(word.replace('|', '/') for word in line)} |\n" for line in lines)


def _told(one: Setting, value: float, sign: str = "") -> str:
    if math.isnan(value):
        return "?"
    return f"{100 * value:{sign}.2f} %" if one.metric == "accuracy" else f"{value:{sign}.4g}"


def reason(error: Exception) -> str:
    """Return what a run failed of, as people read it."""
    return str(error) if isinstance(error, HeadstartError) else f"{type(error).__name__}: {error}"
