"""What a finished run has come to: table, pictures and model card, all made from the files in its folder."""

import json
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from headstart.core.objective import predicted
from headstart.data.kind import kind_of_family
from headstart.errors import FileError
from headstart.training.build import Job, make_tasks
from headstart.training.calibration import near
from headstart.training.config import called
from headstart.training.evaluate import Metric, Score
from headstart.training.files import explained, finite, read_json, write
from headstart.training.metrics import NAME, read_lines, validations, write_csv
from headstart.training.reliability import Measured
from headstart.training.report.card import card
from headstart.training.report.figures import half
from headstart.training.report.reliability_plot import draw_reliability
from headstart.training.report.score_plots import draw_results
from headstart.training.report.structure import find, write_findings
from headstart.training.report.structure_plot import draw_structure
from headstart.types import Learner, Meta, Tasks

RESULTS = "results.json"
CARD = "README.md"
"""The model card: of a report it is what is written last."""
CHOICE = "choice.json"
"""What the method was chosen from, where nobody named one."""


class _Mean(TypedDict):
    mean: float
    ci95: float | None


class _Perhaps(TypedDict):
    mean: float | None
    ci95: float | None


class _Errors(TypedDict):
    rmse: float
    mae: float
    r2: float | None


class _Calibration(TypedDict):
    nll: _Mean
    coverage: float
    width: float
    level: float


class _Results(TypedDict):
    """What ``results.json`` holds; more is passed on as it is."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]
    metric: Metric
    mean: float
    ci95: float | None
    episodes: int
    step: int
    best_step: int
    best_validation: float
    median: float
    worst: float
    device: str
    headstart: str
    by_inner_step: dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], _Perhaps]
    errors: NotRequired[_Errors]
    calibration: NotRequired[_Calibration]
    by_domain: NotRequired[dict[str, _Mean]]
    nearest: NotRequired[_Mean]
    trusted: NotRequired[Measured]


class _Candidate(TypedDict):
    name: str
    mean: float
    more: float
    more_ci95: float | None


class _Choice(TypedDict):
    """What ``choice.json`` holds."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]
    chosen: str
    metric: Metric
    validation_tasks: int
    candidates: list[_Candidate]


@explained("use")
def report(run: Path, job: Job, meta: Meta) -> list[Path]:
    """Write tables, pictures and the model card, and return their paths.

    Always ``results.csv``, ``results.png`` and ``README.md``; ``episode.png`` where a task can be pictured;
    ``reliability.png`` where classes are predicted;
    ``structure.json``, ``structure.csv`` and ``structure.png`` where anything was learned about the model, or moved;
    and ``confusions.csv`` where classes have names: what was taken for what, the most frequent first.

    Args:
        run: the folder of a finished run.
        job: what its configuration describes.
        meta: its best weights.

    Raises:
        FileError: the run has no test score yet, or a file cannot be written.
    """
    results, lines, found = read_results(run), read_lines(run), find(job, meta)
    if (run / CHOICE).exists():
        results["choice"] = read_choice(run)
    best = {"step": results["best_step"], "train_loss": None, results["metric"]: results["best_validation"]}
    looks = validations(lines)
    rows = looks or [{**best, "ci95": None}]  # all that is known where the history was lost
    if any(row.get(results["metric"]) is None for row in looks):
        raise FileError(f"{run / NAME} does not tell the {results['metric']}, which {RESULTS} does; bring both back")
    write_csv(run / "results.csv", rows)
    made = [run / "results.csv", *(write_findings(run, found) if found.any() else ())]
    heading = f"What {job.config.method.name} on {called(job.config)} learned about its model"
    episode = draw_episode(job, meta)
    mistakes = confusions(job.tasks, job.learner, meta)
    if mistakes:
        write_csv(run / "confusions.csv", mistakes)
        made.append(run / "confusions.csv")
    files = {
        "results.png": draw_results(lines, rows, results, job),
        "episode.png": episode,
        "reliability.png": draw_reliability(results["trusted"]) if "trusted" in results else None,
        "structure.png": draw_structure(found, heading),
        CARD: card(job, results, found, episode is not None, mistakes).encode(),
    }
    for name, data in files.items():
        if data is not None:
            write(run / name, data)
            made.append(run / name)
    return made


def draw_episode(job: Job, meta: Meta) -> bytes | None:
    """Draw what adapting to a test task looks like; ``None`` where there is no picture of the kind of data."""

    own = job.config.tasks
    target = kind_of_family(own.name).picture
    if target is None:
        return None

    def truth(queries: int) -> Tasks:
        options = own.options | {"queries": queries} | ({"noise": 0.0} if "noise" in own.options else {})
        return make_tasks(job.config._replace(tasks=own._replace(options=options)), job.device)

    module, function = target.split(":")
    learner = near(job.learner, job.tasks)  # as it is judged
    return getattr(import_module(module), function)(job.tasks, learner, meta, truth)


@torch.no_grad()
def confusions(tasks: Tasks, learner: Learner, meta: Meta, episodes: int = 100) -> list[dict[str, Any]]:
    """Return which class was taken for which in test tasks, how often, and how often it could have been."""
    if tasks.kind != "classification" or tasks.names is None:
        return []
    wrong, together = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    count = min(episodes, (tasks.counts or {}).get("test", episodes))
    for first in range(0, count, 20):
        numbers = range(first, min(first + 20, count))
        support, query = tasks.sample("test", numbers)
        guesses = predicted(learner, learner.adapt(meta, support)[0], query.x, query.mask).argmax(-1)
        there = torch.ones_like(query.y, dtype=torch.bool) if query.mask is None else query.mask
        for number, truth, guess, kept in zip(numbers, query.y, guesses, there):
            names = tasks.names("test", number)
            for label, taken in zip(truth[kept].tolist(), guess[kept].tolist()):
                wrong[names[label], names[taken]] += label != taken
                together.update((names[label], other) for other in names)
    told = ((-wrong[pair], *pair) for pair in wrong if wrong[pair])
    return [
        {"class": own, "taken for": other, "times": -count, "of": together[own, other]}
        for count, own, other in sorted(told)
    ]


def read_results(run: Path) -> dict[str, Any]:
    """Read a run's score on the test tasks.

    Raises:
        FileError: it has none yet.
    """
    if not (run / RESULTS).exists():
        raise FileError(f"the run in {run} has no test score yet: let `headstart train` end it first")
    found = _checked(run / RESULTS, _Results, "run `headstart train` again")
    if found["metric"] == "mse" and "errors" not in found:
        raise FileError(f"{run / RESULTS} lacks errors; run `headstart train` again")
    return found


def read_choice(run: Path) -> dict[str, Any]:
    """Read what a run's method was chosen from.

    Raises:
        FileError: the file is not such a one.
    """
    return _checked(run / CHOICE, _Choice, "bring it back, or choose again in another --out")


def _checked(path: Path, kind: Any, fix: str) -> dict[str, Any]:
    found = read_json(path)
    try:
        return TypeAdapter(kind).validate_json(json.dumps(found))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise FileError(f"{path} is not as it was written: {where} {first['msg'].lower()}; {fix}") from error


def score_to_json(score: Score) -> dict[str, Any]:
    """Return a score as JSON values, without the tasks' own; what is not finite becomes null.

    ``ci95`` is null for a single task. ``calibration`` is there for learners that predict distributions only,
    ``errors`` where numbers are predicted, and ``by_domain`` where tasks are of several sources; ``median`` and
    ``worst`` are of the tasks.
    """
    told = score._asdict() | {
        "by_inner_step": {str(count): found._asdict() for count, found in score.by_inner_step.items()},
        "errors": score.errors and score.errors._asdict(),
        "by_domain": score.by_domain and {name: found._asdict() for name, found in score.by_domain.items()},
        "median": score.median,
        "worst": score.worst[1],
        "calibration": score.calibration and score.calibration._asdict() | {"nll": score.calibration.nll._asdict()},
    }
    return finite({name: value for name, value in told.items() if name != "values" and value is not None})


def by_task(job: Job, score: Score) -> list[dict[str, Any]]:
    """Return a row for each task: its name where the tasks have some, else its number, another task with each seed."""
    named = job.tasks.details.get("task_names", {}).get(score.split)
    domain, split = job.tasks.domain, score.split
    told = [{"domain": domain(split, number)} if domain else {} for number in range(score.episodes)]
    word, names = ("task", named) if named else ("number", range(score.episodes))
    return [{word: name, **own, score.metric: value} for name, own, value in zip(names, told, score.values)]


def shown(kind: Literal["classification", "regression"], mean: float, ci95: float | None = None) -> str:
    """Return a score as people write it; without ± where there is no interval (a single task: NaN, or none given).

    >>> shown("classification", 0.98765, 0.004)
    'accuracy 98.77 ± 0.40 %'
    >>> shown("regression", 0.012345)
    'mse 0.01235'
    >>> shown("regression", 0.012345, float("nan"))
    'mse 0.01235'
    """
    known = ci95 is not None and ci95 == ci95
    if kind == "classification":
        return f"accuracy {100 * mean:.2f}" + (f" ± {100 * ci95:.2f}" if known else "") + " %"
    return f"mse {mean:.4g}" + (f" ± {half(ci95)}" if known else "")
