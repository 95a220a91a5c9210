"""What a finished run has come to: table, pictures and model card, all made from the files in its folder."""

from math import isfinite
from pathlib import Path
from typing import Any, Literal

from headstart.errors import FileError
from headstart.training.build import Job
from headstart.training.evaluate import Interval, Score
from headstart.training.files import read_json, write
from headstart.training.metrics import read_lines, validations, write_csv
from headstart.training.report.card import card
from headstart.training.report.figures import half
from headstart.training.report.plots import draw_episode, draw_results
from headstart.training.report.structure import Findings, find, write_findings
from headstart.training.report.structure_plot import draw_structure
from headstart.types import Meta

RESULTS = "results.json"


def report(run: Path, job: Job, meta: Meta) -> list[Path]:
    """Write tables, pictures and the model card, and return their paths.

    Always ``results.csv``, ``results.png`` and ``README.md``; ``episode.png`` where a task can be pictured; and
    ``structure.json``, ``structure.csv`` and ``structure.png`` where anything was learned about the model, or moved.

    Args:
        run: the folder of a finished run.
        job: what its configuration describes.
        meta: its best weights, for the picture of an episode and for what was learned about the model.

    Raises:
        FileError: the run has no test score yet, or a file cannot be written.
    """
    results = read_results(run)
    rows = validations(read_lines(run))
    write_csv(run / "results.csv", rows)
    write(run / "results.png", draw_results(read_lines(run), rows, results, job))
    made = [run / "results.csv", run / "results.png"]
    picture = draw_episode(job, meta)
    if picture is not None:
        write(run / "episode.png", picture)
        made.append(run / "episode.png")
    found = find(job, meta)
    made += _report_structure(run, job, found)
    write(run / "README.md", card(job, results, found).encode())
    return [*made, run / "README.md"]


def _report_structure(run: Path, job: Job, found: Findings) -> list[Path]:
    """Write what was learned about the model, where there is anything to tell."""
    if not found.any():
        return []
    made = write_findings(run, found)
    picture = draw_structure(found, f"What {job.config.method} on {job.config.tasks} learned about its model")
    if picture is not None:
        write(run / "structure.png", picture)
        made.append(run / "structure.png")
    return made


def read_results(run: Path) -> dict[str, Any]:
    """Read a run's score on the test tasks.

    Raises:
        FileError: it has none yet.
    """
    if not (run / RESULTS).exists():
        raise FileError(f"the run in {run} has no test score yet: let `headstart train` end it first")
    results = read_json(run / RESULTS)
    wanted = {"metric", "mean", "ci95", "episodes", "by_inner_step", "best_step"}
    if not isinstance(results, dict) or not wanted <= results.keys():
        raise FileError(f"{run / RESULTS} lacks {', '.join(sorted(wanted))}; run `headstart train` again")
    return results


def score_to_json(score: Score) -> dict[str, Any]:
    """Return a score as JSON values, without the tasks' own; what is not finite becomes null.

    ``ci95`` is null for a single task. ``calibration`` is there for learners that predict distributions only.
    """
    told = {
        "metric": score.metric,
        "mean": score.mean,
        "ci95": score.ci95 if isfinite(score.ci95) else None,
        "episodes": score.episodes,
        "split": score.split,
        "by_inner_step": {str(count): _finite(found) for count, found in score.by_inner_step.items()},
    }
    found = score.calibration
    if found is None:
        return told
    return told | {"calibration": found._asdict() | {"nll": _finite(found.nll)}}


def by_task(job: Job, score: Score) -> list[dict[str, Any]]:
    """Return a row for each task: its name where the tasks have some, else its number."""
    names = job.tasks.details.get("task_names", {}).get(score.split) or range(score.episodes)
    return [{"task": name, score.metric: value} for name, value in zip(names, score.values)]


def _finite(found: Interval) -> dict[str, float | None]:
    return {name: value if isfinite(value) else None for name, value in found._asdict().items()}


def shown(kind: Literal["classification", "regression"], mean: float, ci95: float | None = None) -> str:
    """Return a score as people write it; without ± where there is no interval (a single task: NaN, or none given).

    >>> shown("classification", 0.98765, 0.004)
    'accuracy 98.77 ± 0.40 %'
    >>> shown("regression", 0.012345)
    'mse 0.01235'
    >>> shown("regression", 0.012345, float("nan"))
    'mse 0.01235'
    """
    known = ci95 is not None and isfinite(ci95)
    if kind == "classification":
        return f"accuracy {100 * mean:.2f}" + (f" ± {100 * ci95:.2f}" if known else "") + " %"
    return f"mse {mean:.4g}" + (f" ± {half(ci95)}" if known else "")
