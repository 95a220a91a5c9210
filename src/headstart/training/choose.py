"""Train by the method that nobody named: those of the kind's short list, the best on the validation tasks kept.

::

    RUN/
      candidates/       a run's folder for each of them, none of which has seen a test task
      choice.json       how they did on the validation tasks, and which was chosen
      …                 the chosen one's run
"""

import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headstart.core.inference import out_of_inference_mode
from headstart.errors import ConfigError, DivergenceError, UsageError
from headstart.registry import find
from headstart.training import run
from headstart.training.build import find_device, target_of
from headstart.training.config import Config, Run, Tree, command, flat, kind_of, nested, normal, resolve, schema_of
from headstart.training.distributed import group, processes
from headstart.training.evaluate import Score, evaluate, interval, student
from headstart.training.files import explained, finite, to_json, write
from headstart.training.progress import View
from headstart.training.report.card import choice_text
from headstart.training.report.report import CHOICE, read_choice
from headstart.training.run import CANDIDATES, CONFIG, Result


class Judged(NamedTuple):
    """How a candidate did on the validation tasks."""

    name: str
    config: Config
    score: Score
    """On the validation tasks."""


@explained("use")
@out_of_inference_mode
def train(config: Config | Tree | str, out: str | Path, *, view: View | None = None) -> Result:
    """Meta-train as `headstart.training.run.train` does; where no method is named, by the best of a short list.

    Which are listed is said by the kind of data, and their names are `shortlist`'s. Each that takes the given options
    of a method is trained in a folder of its own, and judged on the validation tasks. The first is kept unless another
    one is better there by more than the standard error of the difference; test tasks have no part in it. Stopped, the
    same call goes on where it was.

    Args:
        config, out, view: as there; a `Config` names its method.

    Raises:
        HeadstartError: as there. A candidate that cannot learn these tasks, or that needs what is not installed, is
            left out, unless all are.
    """
    out, view = Path(out), view or View()
    listed = {} if isinstance(config, Config) else shortlist(config)
    if len(listed) < 2:
        return run.train(next(iter(listed.values()), config), out, view=view)
    own = next(iter(listed.values())).run
    with processes(device=find_device(own.device), hung_after=own.hung_after) as everyone:
        if everyone.says((out / CONFIG).exists() and not (out / CHOICE).exists()):
            return run.train(next(iter(listed.values())), out, view=view)
        if not everyone.says((out / CHOICE).exists()):
            judged, stopped = _trained(listed, out, view)
            if stopped is not None:
                return stopped._replace(run=out)
            if everyone.first:
                write(out / CHOICE, to_json(_choice(judged)))
        names = list(listed)
        chosen = names[everyone.says(_chosen(names, out) if everyone.first else 0)]
        if everyone.first:
            if not (out / CONFIG).exists():
                shutil.copytree(out / CANDIDATES / chosen, out, dirs_exist_ok=True)
            view.note(choice_text(read_choice(out)))
        return run.train(listed[chosen], out, view=view)


def _chosen(names: Sequence[str], out: Path) -> int:
    """Return the place of the one that was chosen."""
    chosen = read_choice(out)["chosen"]
    if chosen not in names:
        raise ConfigError(
            f"the run in {out} was made by {chosen}, which the options given now leave out; give the same"
        )
    return names.index(chosen)


def shortlist(tree: Tree | str) -> dict[str, Config]:
    """Return the configurations that a tree may stand for, by name: one where it names a method, or there is no list.

    Raises:
        HeadstartError: tasks that cannot be made.
    """
    parts = normal(tree)
    kind = kind_of(parts)
    if parts.get("method", {}).get("name") or len(kind.methods) < 2:
        return {}
    target, found = target_of(parts), dict[str, Config]()
    given = {name: value for name, value in flat(parts).items() if value is not None}
    for method in kind.methods:
        row = find("method", method["name"])
        left = {name for name in given if name.startswith("outer.") and not row.outer}
        own = nested({name: value for name, value in given.items() if name not in left})
        own["method"] = {**method, **own.get("method", {})}
        try:
            options = schema_of(own).options
        except ConfigError:
            continue
        asked = {name for name in given if name.startswith(("method.", "model.")) and not name.endswith(".name")}
        if target in row.targets and asked <= options.keys():
            config = resolve(own)
            if config not in found.values():
                found["-".join(map(str, method.values()))] = config
    return found


def _trained(listed: dict[str, Config], out: Path, view: View) -> tuple[list[Judged], Result | None]:
    """Train and judge all; or return what a signal stopped."""
    judged: list[Judged] = []
    failed: UsageError | DivergenceError | None = None
    for name, config in listed.items():
        view.note(f"── {name}: {find('method', config.method.name).summary}")
        try:
            result = run.train(config, out / CANDIDATES / name, view=view, tested=False)
            if result.stopped is not None:
                return judged, result
            score = group().alone(partial(_judged, result.run, config.run))
        except ConfigError:  # the folder is another run's, or somebody writes there
            raise
        except (UsageError, DivergenceError) as error:
            failed = failed or error
            view.note(f"{name} is left out: {error}")
            continue
        judged.append(Judged(name, config, score))  # pyrefly: ignore
    if not judged:
        assert failed is not None
        raise failed
    return judged, None


def _judged(folder: Path, own: Run) -> Score:
    job, checkpoint = run.open_run(folder, own.device)
    return evaluate(job.learner, checkpoint.best.meta, job.tasks, episodes=own.evaluate_tasks, split="validation")


def _choice(judged: Sequence[Judged]) -> dict[str, Any]:
    """Return which is kept, and how much better or worse the others are, as JSON.

    The first of the list, unless another one is better by more than the standard error of the tasks' differences, which
    counts for more the fewer tasks there are, as Student's t does. (Of 60 runs on five panels with four validation
    tasks, 10 kept another than the first: 7 had less error on test tasks, the worst 1.27 times as much; 0.96 over all
    60. By the lowest mean it is 1.04, 4 at worst; to ask for more certainty leaves next to nothing chosen.)
    """
    first, sign = judged[0].score, -1 if judged[0].score.metric == "accuracy" else 1

    def gain(one: Judged) -> float:
        """How much better than the first it is sure to be."""
        better = sign * (np.array(first.values) - np.array(one.score.values))
        if len(better) < 2 or one is judged[0]:
            return 0.0
        doubt = student(len(better) - 1) / student(10_001)
        return float(better.mean() - doubt * better.std(ddof=1) / math.sqrt(len(better)))

    kept = max(judged, key=gain)
    rows = []
    for one in judged:
        more = interval([value - other for value, other in zip(one.score.values, kept.score.values)])
        told = {"name": one.name, "command": command(one.config), "mean": one.score.mean, "ci95": one.score.ci95}
        rows.append(finite(told | {"more": more.mean, "more_ci95": more.ci95}))
    about = {"chosen": kept.name, "metric": first.metric, "validation_tasks": first.episodes}
    return about | {"candidates": rows}
