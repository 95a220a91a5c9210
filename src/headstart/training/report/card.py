"""The model card: what a run's weights are, how good they are, and how to make and use them again."""

import shlex
from collections.abc import Mapping
from typing import Any

from headstart.registry import find
from headstart.training.build import Job
from headstart.training.config import TrainConfig, flag
from headstart.training.defaults import resolve
from headstart.training.report.figures import half
from headstart.training.report.plots import pictured
from headstart.training.report.structure import Findings, summary

#: Options without which the others have no defaults.
_NEEDED = ("tasks", "method", "data", "task_column", "target")


def card(job: Job, results: dict[str, Any], found: Findings) -> str:
    """Return the text of a finished run's README.md."""
    config = job.config
    told = _rows(job, results) | ({"Learned about the model": summary(found)} if found.any() else {})
    rows = "\n".join(f"| {name} | {text} |" for name, text in told.items())
    structure = "\n![What was learned about the model](structure.png)\n" if found.any() else ""
    return f"""# {config.method} on {config.tasks}

Weights from which a new task of this kind is learned out of a few examples, made with headstart {results["headstart"]}.

| | |
|---|---|
{rows}

![Training and adaptation](results.png)
{structure}
{_notes(job, results)}
## Make it again

    {command(config)}

## Use it

{_usage(job)}
"""


def command(config: TrainConfig) -> str:
    """Return the command that makes a run again: what differs from the defaults, and the seed."""
    plain = {name: getattr(config, name) for name in _NEEDED}
    if config.model is not None:
        plain["model"] = config.model
    base = resolve(TrainConfig(**plain))
    words = ["headstart", "train", config.tasks]
    for name in type(config).model_fields:
        value = getattr(config, name)
        if name == "tasks" or value is None:
            continue
        if name in (*_NEEDED, "seed") or value != getattr(base, name) or name == "model" and _chosen(config):
            words += [flag(name) if value is not False else flag(f"no_{name}")]
            words += [] if isinstance(value, bool) else [str(value)]
    return shlex.join([*words, "--out", "RUN"])


def _chosen(config: TrainConfig) -> bool:
    """Return whether the model is another than the default."""
    return config.model != resolve(TrainConfig(**{name: getattr(config, name) for name in _NEEDED})).model


def _rows(job: Job, results: dict[str, Any]) -> dict[str, str]:
    config = job.config
    method, tasks = find("method", config.method), find("task", config.tasks)
    rows = {
        "Result": _result(results),
        "Tasks": f"{config.tasks}: {tasks.summary}",
        "A task": _task(job),
        "Data": _data(job),
        "Method": f"{config.method}: {method.summary}" + (f" ({method.reference})" if method.reference else ""),
        "Model": _model(job),
    }
    if "calibration" in results:
        rows["Calibration"] = calibration_text(results["calibration"])
    if config.inner_steps is not None:
        rows["Inner loop"] = (
            f"{config.inner_steps} gradient step{'s' * (config.inner_steps != 1)} of size {config.inner_rate}"
        )
    if config.steps:
        counts, most = job.tasks.counts or {}, config.tasks_per_step or 1
        looked = min(config.evaluate_tasks, counts.get("validation", config.evaluate_tasks))
        rows["Outer loop"] = (
            f"{results['step']} steps of {min(most, counts.get('train', most))} tasks each"
            " (the mean of their gradients),"
            f" {config.optimizer} with rate {config.outer_rate} ({config.schedule})"
        )
        rows["Weights"] = (
            f"best.safetensors, after step {results['best_step']}: the best of all looks at {looked}"
            f" validation task{'s' * (looked != 1)}; test tasks had no part in the choice"
        )
    rows["Seed, device"] = f"{config.seed}, {results['device']}"
    return rows


def _result(results: dict[str, Any]) -> str:
    percent = results["metric"] == "accuracy"
    scale, unit, name = (100, " %", "accuracy") if percent else (1, "", "mean squared error")
    digits = ".2f" if percent else ".4g"
    interval = "" if results["ci95"] is None else f" ± {half(scale * results['ci95'])}"
    text = (
        f"**{name} {scale * results['mean']:{digits}}{interval}{unit}** on {results['episodes']} test"
        f" {'tasks (mean and 95 % interval)' if interval else 'task, of which alone no interval can be told'}"
    )
    before = results["by_inner_step"].get("0")
    if before and before["mean"] is not None:
        text += f"; before adapting {scale * before['mean']:{digits}}{unit}"
    return text


def _task(job: Job) -> str:
    config = job.config
    if config.tasks == "table":
        return _table_task(config)
    if job.tasks.kind == "regression":
        text = f"{config.shots} support points to learn from, {config.queries} query points to be judged on"
        if config.frequency is not None:
            text += f"; frequency {config.frequency}"
        if config.noise:
            text += f"; noise {config.noise}, so that no expected error is below {config.noise**2:.4g}"
        return text
    return f"{config.ways} classes; {config.shots} support and {config.queries} query images a class"


def _table_task(config: TrainConfig) -> str:
    rows = f"its first {config.support_first}" if config.support_first else f"{config.shots} of its"
    judged = "the other rows" if config.queries is None else f"at most {config.queries} of the others"
    return (
        f"one {config.task_column}: {config.target} of {judged} is predicted from {rows} rows"
        f"{f', in the order of {config.time_column}' if config.time_column else ''}"
    )


def _data(job: Job) -> str:
    details = job.tasks.details
    parts = []
    if job.tasks.counts is not None:
        counted = ", ".join(f"{count} {split}" for split, count in job.tasks.counts.items())
        parts.append(f"tasks: {counted} (no task is in two splits)")
    skipped = sum(details["skipped"].values()) if job.config.tasks == "table" else 0
    if skipped:
        parts.append(f"{skipped} tasks with too few rows were skipped")
    if details.get("duplicates"):
        parts.append(f"{details['duplicates']} repeated rows (--on-duplicates {job.config.on_duplicates})")
    if details.get("left_out"):
        parts.append("columns left out: " + ", ".join(f"{name!r} ({why})" for name, why in details["left_out"].items()))
    if "classes" in details:
        counts = ", ".join(f"{count} {split}" for split, count in details["classes"].items())
        parts.append(f"classes: {counts} (no class is in two splits)")
    if "source" in details:
        parts.append(f"source: {details['source']}")
    licence = details.get("licence") or details.get("licences")
    if licence:
        listed = ", ".join(sorted(str(one) for one in licence)) if not isinstance(licence, str) else licence
        parts.append(f"licence: {listed}")
    elif job.config.tasks == "folder":
        parts.append("the licence is that of the images in the folder; no image is in this folder but in episode.png")
    return "; ".join(parts)


def _model(job: Job) -> str:
    config = job.config
    if config.model is None:
        return "none"
    options = [
        f"{flag(name)[2:]} {value}"
        for name in ("hidden", "filters", "downsample", "norm")
        if (value := getattr(config, name)) is not None
    ]
    return f"{config.model} ({', '.join(options)}), {job.parameters} parameters"


def _notes(job: Job, results: dict[str, Any]) -> str:
    config = job.config
    notes = []
    if config.norm == "batch" and config.buffers == "batch":
        notes.append(
            "Batch normalisation goes by the statistics of the batch at hand, so the query images of a test task are"
            " predicted together (a transductive setting). `headstart adapt` goes by the support images instead, so"
            " that images can be predicted one by one, somewhat less well."
        )
    shown = pictured(job.tasks)
    if shown == "images":
        notes.append("The picture episode.png shows the first test task.")
    elif shown == "curves":
        notes.append("The picture episode.png shows the first test tasks before and after adapting.")
    elif shown == "table":
        notes.append("The picture episode.png shows rows of the first test tasks, and what was predicted.")
    return "\n".join(notes) + "\n"


def _usage(job: Job) -> str:
    if job.config.tasks == "table":
        return "    headstart adapt RUN ROWS_OF_A_TASK.csv --out ADAPTED\n    headstart predict ADAPTED MORE_ROWS.csv"
    if job.tasks.kind == "regression":
        return "    headstart evaluate RUN"
    return "    headstart adapt RUN FOLDER_OF_CLASS_FOLDERS --out ADAPTED\n    headstart predict ADAPTED IMAGE"


def calibration_text(found: Mapping[str, Any]) -> str:
    """Return how well predicted distributions fit, as people write it; from a `Calibration`'s fields.

    >>> calibration_text({"nll": (1.5, 0.1), "coverage": 0.884, "width": 2.0, "level": 0.9})
    '90 % intervals hold 88.4 % of the values, and are 2 wide on average; log-likelihood of a value -1.5'
    """
    nll = found["nll"]["mean"] if isinstance(found["nll"], Mapping) else found["nll"][0]
    return (
        f"{100 * found['level']:.0f} % intervals hold {100 * found['coverage']:.1f} % of the values, and are"
        f" {found['width']:.3g} wide on average; log-likelihood of a value {-nll:.3g}"
    )
