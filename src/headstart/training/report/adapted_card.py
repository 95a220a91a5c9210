"""The card of an adapted model: what was learned, how well, and what is predicted."""

from headstart.registry import find
from headstart.training.adapted import AdaptedModel
from headstart.training.calibration import LEVEL
from headstart.training.config import called
from headstart.training.cross_validation import told_text
from headstart.training.report.card import TOGETHER, spread_text
from headstart.training.trust import UNKNOWN_SHARE, more_examples_text
from headstart.training.without_run import HEAD


def more_text(model: AdaptedModel) -> str:
    """Return what more examples would buy, by the run's validation tasks; empty where they do not tell."""
    one = model.tasks[0]
    if model.by.trust is None or len(model.tasks) > 1 or not one.labels:
        return ""
    return more_examples_text(model.by.trust, len(one.labels), sum(one.counts) / len(one.labels))


def _own_chances(model: AdaptedModel) -> str:
    """Return whether probabilities are calibrated that no run has, in words."""
    if model.untrained and model.by.config.option("method.head") == HEAD:
        if all(max(task.counts) > 1 for task in model.tasks):
            return "calibrated by these\nexamples themselves, each told by others"
    return "the model's own and not\ncalibrated"


def adapted_card(model: AdaptedModel) -> str:
    """Return the text of an adapted folder's README.md."""
    config, kind, tasks = model.by.config, model.by.kind, model.tasks
    total = sum(sum(task.counts) for task in tasks)
    inner = config.option("method.steps")
    steps = "" if inner is None else f" ({inner} inner step{'s' * (inner != 1)})"
    if len(tasks) > 1:
        head, rows = "task", [(str(task.name), sum(task.counts)) for task in tasks[:100]]
        rows += [(f"and {len(tasks) - 100} more", total - sum(count for _, count in rows))] * (len(tasks) > 100)
    else:
        head = "class" if tasks[0].labels else ""
        rows = list(zip(tasks[0].labels or (kind.examples,), tasks[0].counts))
    heads, lines = [head, kind.examples], [[str(name), str(count)] for name, count in rows]
    warned = "".join(f"\n\nWarning: {text}." for text in model.warnings)
    score = f"\n\n{told_text(model.told, kind.examples)}." if model.told else ""
    score += f" {more}." if (more := more_text(model)) else ""
    if model.told and len(tasks) == 1:
        heads.append("told right by the others")
        lines = [
            [*words, f"{right} of {of}"] for words, of, right in zip(lines, model.told[0].judged, model.told[0].right)
        ]
    table = "\n".join(f"| {' | '.join(words)} |" for words in [heads, ["---"] * len(heads), *lines])
    what = f"{len(tasks)} tasks" if len(tasks) > 1 else "a task" if tasks[0].name is None else f"`{tasks[0].name}`"
    together = f"\n\n{TOGETHER}" if find("method", config.method.name).transductive else ""
    source = config.option("tasks.encoder") or config.option("model.name")
    before = f"on {source} as it is" if model.untrained else f"from weights meta-learned on {called(config)}"
    before += ", the name of each class an example more" if model.named else ""
    told = "the model's own, not calibrated" if model.by.spread is None else spread_text(model.by.spread)
    gives = f"""{_own_chances(model)}; of numbers
also `low` and `high`, between which 90 % of observations are to lie: {told}."""
    if model.by.trust is not None:
        gives = f"""calibrated by the run's
validation tasks, and the `set` of labels that is to hold the right one for {100 * LEVEL:.0f} % of examples."""
    if model.by.trust is not None and model.by.trust.unknown is not None:
        gives += f""" `unknown` is the
probability of none of these classes, where {100 * UNKNOWN_SHARE:.0f} % of what is asked is of none; say how many are by
`--unknown-share`. With `--reject 0.05` those are called `none` that look less like the classes than 95 % of their own
examples do."""
    return f"""# {what} learned from {total} {kind.examples}

Predicts {kind.predicts(model.by.prepared)}. Learned by {config.method.name}{steps},
{before}; made with headstart.{together}{score}{warned}

{table}

    headstart predict FOLDER {kind.usage[1]}

It gives the `prediction`, and in classification the probability of each label, {gives}
"""
