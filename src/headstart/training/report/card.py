"""The model card: what a run's weights are, how good they are, and how to make and use them again."""

from collections.abc import Mapping, Sequence
from typing import Any

from headstart.data.kind import kind_of_family
from headstart.registry import find
from headstart.training.build import Job
from headstart.training.calibration import LEVEL, Spread
from headstart.training.config import called, command, schema_of, text
from headstart.training.reliability import SURE, Measured
from headstart.training.report.figures import half
from headstart.training.report.structure import Findings, summary
from headstart.training.trust import UNKNOWN_SHARE

#: What is said of a transductive method.
TOGETHER = (
    "Transductive: a task's query set is read together, so what is predicted of one example depends on the others that"
    " are asked with it; the result holds for query sets like these, and compares with that of other transductive"
    " methods only. Ask for many examples of all classes at once."
)


def card(
    job: Job, results: dict[str, Any], found: Findings, pictured: bool = True, mistakes: Sequence[Any] = ()
) -> str:
    """Return the text of a finished run's README.md.

    ``pictured``: there is a picture of an episode; ``mistakes``: which class was taken for which, most often first.
    """
    config, kind = job.config, kind_of_family(job.config.tasks.name)
    told = _rows(job, results) | ({"Learned about the model": summary(found)} if found.any() else {})
    if mistakes:
        most = "; ".join(
            f"{one['class']} for {one['taken for']} ({one['times']} of {one['of']})" for one in mistakes[:3]
        )
        told["Most often mistaken"] = f"{most}; all in confusions.csv"
    rows = "\n".join(f"| {name} | {text} |" for name, text in told.items())
    structure = "\n![What was learned about the model](structure.png)\n" if found.any() else ""
    trusted = "\n![How far probabilities can be believed](reliability.png)\n" if results.get("trusted") else ""
    notes = [kind.caption] if pictured else []
    if config.option("model.norm") == config.option("method.buffers") == "batch":
        notes.insert(
            0,
            "Batch normalisation goes by the statistics of the batch at hand, so the query images of a test task are"
            " predicted together (a transductive setting). `headstart adapt` goes by the support images instead, so"
            " that images can be predicted one by one, somewhat less well.",
        )
    if find("method", config.method.name).transductive:
        notes.insert(0, TOGETHER)
    usage = f"headstart adapt RUN {kind.usage[0]} --out ADAPTED\n    headstart predict ADAPTED {kind.usage[1]}"
    if kind.preparation(job.tasks) is None:
        usage = "headstart evaluate RUN"
    noted = "\n".join(notes)
    version = results["headstart"]
    advice = f"{first}\n\n" if (first := kind.advice(job.tasks)) else ""
    return f"""# {config.method.name} on {called(config)}

{advice}Weights from which a new task of this kind is learned out of a few examples, made with headstart {version}.

| | |
|---|---|
{rows}

![Training and adaptation](results.png)
{structure}{trusted}
{noted}
{_effects(found)}
## Make it again

    {command(config)}

## Use it

    {usage}
"""


def _effects(found: Findings) -> str:
    """Return the table of random effects; empty where there are none."""
    if not found.effects:
        return ""
    lines = []
    for row in found.effects[:20]:
        told = ", ".join("?" if one is None else f"{one:+.2f}" for one in row["correlations"])
        lines.append(f"| {row['effect']} | {row['sd']:.4g} | {told} |")
    more = f"\nand {len(found.effects) - 20} more in structure.json\n" if len(found.effects) > 20 else ""
    head = "| effect | standard deviation | correlations with those above |\n|---|---|---|"
    told = (
        "What each task has of its own, as it varies over tasks: the intercept at the features' means, and slopes in"
        " the target's unit for one of the feature's."
    )
    return "\n".join(["", "## How tasks differ", "", told, "", head, *lines, more])


def _rows(job: Job, results: dict[str, Any]) -> dict[str, str]:
    config = job.config
    method, tasks = find("method", config.method.name), find("task", config.tasks.name)
    rows = {
        "Result": _result(results),
        "In other words": more_text(results),
        **({"By domain": domains_text(results)} if results.get("by_domain") else {}),
        "Tasks": f"{tasks.name}: {tasks.summary}",
        "A task": kind_of_family(config.tasks.name).task(job.tasks),
        "Data": _data(job),
        "Method": f"{method.name}: {method.summary}" + (f" ({method.reference})" if method.reference else ""),
        "Model": _model(job),
    }
    if "choice" in results:
        rows["Chosen"] = choice_text(results["choice"])
    if "calibration" in results:
        rows["Calibration"] = calibration_text(results["calibration"])
    if results.get("trusted"):
        rows |= trusted_rows(results["trusted"])
    if unlike := results.get("unlike"):
        rows["Unlike tasks"] = (
            f"`adapt` warns of a task that looks unlike the training tasks, and of 5 % of those like the validation"
            f" tasks; it would of {unlike['told']} of {unlike['of']} test tasks"
        )
    if results.get("intervals"):
        rows["Intervals"] = spread_text(Spread(**results["intervals"]))
    inner, outer = config.option("method.steps"), config.outer
    if inner is not None:
        rows["Inner loop"] = f"{inner} gradient step{'s' * (inner != 1)} of size {config.option('method.rate')}"
    if outer is not None and outer.steps:
        counts, most, looks = job.tasks.counts or {}, outer.tasks_per_step, config.run.evaluate_tasks
        looked = min(looks, counts.get("validation", looks))
        rows["Outer loop"] = (
            f"{results['step']} steps of {min(most, counts.get('train', most))} tasks each (the mean of their"
            f" gradients), {outer.optimizer} with rate {outer.rate} ({outer.schedule})"
        )
        if left := results.get("left_out"):
            without = f"{left['count']} task{'s' * (left['count'] != 1)} left out (metrics.jsonl names them)"
            rows["Outer loop"] += f"; {without}, as their loss or meta-gradient was not finite"
        rows["Weights"] = (
            f"best.safetensors, after step {results['best_step']}: the best of all looks at {looked}"
            f" validation task{'s' * (looked != 1)}; test tasks had no part in the choice. headstart itself reads the"
            " same from checkpoints/, where checksums are"
        )
    rows["Seed, device"] = f"{config.run.seed}, {results['device']}"
    return rows


def _result(results: dict[str, Any]) -> str:
    percent = results["metric"] == "accuracy"
    scale, unit, name, digits = (100, " %", "accuracy", ".2f") if percent else (1, "", "mean squared error", ".4g")
    interval = "" if results["ci95"] is None else f" ± {half(scale * results['ci95'])}"
    text = (
        f"**{name} {scale * results['mean']:{digits}}{interval}{unit}** on {results['episodes']} test"
        f" {'tasks (mean and 95 % interval)' if interval else 'task, of which alone no interval can be told'}"
    )
    before = results["by_inner_step"].get("0")
    if before and before["mean"] is not None:
        text += f"; before adapting {scale * before['mean']:{digits}}{unit}"
    if nearest := results.get("nearest"):
        raw = f"{scale * nearest['mean']:{digits}}{unit}"
        text += f"; the nearest class mean of raw inputs, which learns nothing, has {raw}"
    return text


def _data(job: Job) -> str:
    details = job.tasks.details
    parts = []
    for what, one, counts in (("tasks", "task", job.tasks.counts), ("classes", "class", details.get("classes"))):
        if counts is not None:
            counted = ", ".join(f"{count} {split}" for split, count in counts.items())
            parts.append(f"{what}: {counted} (no {one} is in two splits)")
    if skipped := sum(details.get("skipped", {}).values()):
        parts.append(f"{skipped} tasks with too few rows were skipped")
    if details.get("duplicates"):
        parts.append(f"{details['duplicates']} repeated rows (--on-duplicates {details['on_duplicates']})")
    if details.get("left_out"):
        parts.append("columns left out: " + ", ".join(f"{name!r} ({why})" for name, why in details["left_out"].items()))
    parts += details.get("notes", ())
    if "source" in details:
        parts.append(f"source: {details['source']}")
    if licence := details.get("licence") or details.get("licences"):
        parts.append(f"licence: {licence if isinstance(licence, str) else ', '.join(sorted(map(str, licence)))}")
    return "; ".join(parts)


def _model(job: Job) -> str:
    model = job.config.model
    if model is None:
        return "none"
    known = schema_of(job.config.tree()).options
    given = {name: value for name, value in model.options.items() if value is not None}
    told = ", ".join(f"{name} {text(value, known[f'model.{name}'])}" for name, value in given.items())
    return f"{model.name} ({told}), {job.parameters} parameters"


def more_text(results: Mapping[str, Any]) -> str:
    """Return what people ask for beside the mean, of a score's JSON: other errors, the median and the worst task.

    >>> more_text({"metric": "mse", "median": 1.0, "worst": 9.0, "errors": {"rmse": 1.5, "mae": 1.25, "r2": 0.912}})
    'RMSE 1.5, MAE 1.25, R² 0.912; RMSE of the median task 1, of the worst 3'
    >>> more_text({"metric": "accuracy", "median": 0.98, "worst": 0.5})
    'accuracy of the median task 98 %, of the worst 50 %'
    """
    if results["metric"] == "accuracy":
        median, worst = (f"{100 * results[name]:.4g} %" for name in ("median", "worst"))
        return f"accuracy of the median task {median}, of the worst {worst}"
    found = results["errors"]
    median, worst = (f"{results[name] ** 0.5:.4g}" for name in ("median", "worst"))
    r2 = "" if found["r2"] is None or found["r2"] != found["r2"] else f", R² {found['r2']:.3f}"
    return (
        f"RMSE {found['rmse']:.4g}, MAE {found['mae']:.4g}{r2}; RMSE of the median task {median}, of the worst {worst}"
    )


def domains_text(results: Mapping[str, Any]) -> str:
    """Return how a run does on the tasks of each of its sources, of a score's JSON.

    >>> domains_text({"metric": "accuracy", "by_domain": {"a": {"mean": 0.5, "ci95": 0.02}}})
    'a 50.00 ± 2 %'
    """
    scale, digits, unit = (100, ".2f", " %") if results["metric"] == "accuracy" else (1, ".4g", "")
    told = []
    for domain, found in results["by_domain"].items():
        more = "" if found["ci95"] is None or found["ci95"] != found["ci95"] else f" ± {half(scale * found['ci95'])}"
        told.append(f"{domain} {scale * found['mean']:{digits}}{more}{unit}")
    return "; ".join(told)


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


def spread_text(spread: Spread) -> str:
    """Return how intervals were made as wide as they are.

    >>> spread_text(Spread(1.25, 12))
    '1.25 times as wide as the model says, as 90 % of what 12 validation tasks hold needs (conformal by task)'
    """
    return (
        f"{spread.factor:.3g} times as wide as the model says, as {100 * LEVEL:.0f} % of what {spread.tasks} validation"
        f" tasks hold needs (conformal by task)"
    )


def trusted_rows(found: Measured) -> dict[str, str]:
    """Return how far probabilities, label sets and what is said of other classes hold."""
    on = f"on {found.tasks} test tasks ({found.ways}-way {found.shots}-shot)"
    before, after = (100 * one.ece for one in (found.before, found.after))
    rows = {
        "Probabilities": f"calibrated on validation tasks; {on} they are off by {after:.1f} points, given that an"
        f" example is of the classes (expected calibration error; {before:.1f} before; reliability.png)",
        "Label sets": f"hold the right label of {100 * found.held:.1f} % of these examples ({100 * LEVEL:.0f} % is"
        f" promised), with {found.labels:.2f} labels each",
    }
    others = found.others
    if others is not None:
        rows["Probabilities"] += (
            f", and by {100 * others.told.ece:.1f} where {100 * UNKNOWN_SHARE:.0f} % of what is asked is of other"
            " classes"
        )
        rows["Other classes"] = (
            f"an example of another class looks less like the classes than one of them in {100 * others.auroc:.1f} %"
            f" of pairs (AUROC); {100 * others.sure:.1f} % of them get a label with a probability over"
            f" {100 * SURE:.0f} %; where 5 % of the classes' own examples are turned away, {100 * others.fpr:.0f} % of"
            f" other classes' still get a label (FPR at 95 % TPR); `predict --reject 0.05` turned away"
            f" {100 * others.rejected:.1f} % of the own ones"
        )
    return rows


def choice_text(choice: Mapping[str, Any]) -> str:
    """Return which method was chosen from which, and by how much the others were worse; from ``choice.json``.

    >>> rows = [{"name": "a", "mean": 1.5, "more": 0.0, "more_ci95": 0.0}]
    >>> rows += [{"name": "b", "mean": 2.0, "more": 0.5, "more_ci95": 0.25}]
    >>> choice_text({"chosen": "a", "metric": "mse", "validation_tasks": 9, "candidates": rows})
    'a, by the mse on 9 validation tasks: a 1.5; b 2 (+0.5 ± 0.25)'
    """
    told = []
    for row in choice["candidates"]:
        more = "" if row["more_ci95"] is None else f" ± {row['more_ci95']:.2g}"
        told.append(f"{row['name']} {row['mean']:.4g}" + (f" ({row['more']:+.2g}{more})" if row["more"] else ""))
    tasks = choice["validation_tasks"]
    return f"{choice['chosen']}, by the {choice['metric']} on {tasks} validation tasks: {'; '.join(told)}"
