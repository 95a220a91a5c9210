"""The card beside what is exported: what it is, what it takes and gives, where it comes from, how it is made again."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from headstart.data.images.builtin import data_file, read_archive
from headstart.exporting.graph import Graph
from headstart.training.adapted import AdaptedModel
from headstart.training.config import called, command
from headstart.training.cross_validation import told_text
from headstart.training.head_start import AdaptedTask, HeadStart
from headstart.training.report.card import spread_text
from headstart.training.report.figures import half

_FORMATS = {
    "onnx": "an ONNX file, for onnxruntime in Python, Node, browsers, phones",
    "torch": "a program of torch.export: `torch.export.load('model.pt2').module()`",
    "module": "a module of plain PyTorch: `python load.py` shows how it is loaded",
}


class Cost(NamedTuple):
    """What 8-bit numbers cost on the examples that a model was learned from."""

    examples: int
    whole: float
    """Share that is told right, or the mean squared error, before."""
    int8: float
    """And after."""
    classes: bool


def of_task(
    model: AdaptedModel,
    task: AdaptedTask,
    graph: Graph,
    to: str,
    files: Mapping[str, bytes],
    int8: bool,
    cost: Cost | None,
) -> str:
    """Return the card of an adapted model."""
    by, total, ways = model.by, sum(task.counts), len(task.labels)
    if ways:
        each = sorted(set(task.counts))
        shots = str(each[0]) if len(each) == 1 else f"{each[0]} to {each[-1]}"
        size = f"{ways}-way {shots}-shot: {', '.join(f'{a} ({n})' for a, n in zip(task.labels, task.counts))}"
    else:
        size = f"{total} {by.kind.examples}"
    started = f"{by.config.option('tasks.encoder') or by.config.option('model.name')} as it is"
    source = started if model.untrained else f"weights meta-learned on {called(by.config)}"
    told = {"Learned from": size, "By": f"{by.config.method.name}, from {source}", **_always(by)}
    if model.told:
        told["How good"] = told_text(model.told, by.kind.examples)
    if cost is not None:
        what = "told right" if cost.classes else "mean squared error, standardised"
        told["8-bit numbers"] = (
            f"on the {cost.examples} {by.kind.examples} that it was learned from: {_figure(cost, cost.int8)} {what},"
            f" before {_figure(cost, cost.whole)}"
        )
    elif int8:
        told["8-bit numbers"] = "no examples were kept to say what they cost"
    name = "A model" if task.name is None else f"`{task.name}`"
    one = "" if task.name is None else f" --task {task.name!r}"
    made = [
        f"headstart adapt RUN {by.kind.usage[0]} --out ADAPTED",
        f"headstart export ADAPTED --to {to}{one}{' --int8' * int8} --out THIS",
    ]
    made = made if model.untrained else [command(by.config), *made]
    return _text(f"{name} learned from {total} {by.kind.examples}", by, graph, to, files, told, made)


def of_learner(
    by: HeadStart,
    graph: Graph,
    to: str,
    files: Mapping[str, bytes],
    ways: int,
    shots: int,
    results: Mapping[str, Any] | None,
) -> str:
    """Return the card of a learner."""
    any_number = bool(graph.inputs[0].free)
    classes = by.like(0).kind == "classification"
    size = (
        "any number of examples"
        if any_number
        else f"{shots * ways} examples, {shots} of each class"
        if classes
        else f"{shots}"
    )
    told = {
        "Learns": f"{f'{ways} classes' if classes else 'numbers'} from {size}, by {by.config.method.name}, inside",
        "Meta-learned on": called(by.config),
        **_always(by),
    }
    if results:
        interval = "" if results.get("ci95") is None else f" ± {half(results['ci95'])}"
        told["On unseen test tasks"] = (
            f"{results['metric']} {results['mean']:.4g}{interval} ({results['episodes']} tasks, mean and 95 % interval)"
        )
    made = [command(by.config), f"headstart export RUN --learner --to {to} --out THIS"]
    return _text(f"What learns as {by.config.method.name} does", by, graph, to, files, told, made)


def _always(by: HeadStart) -> dict[str, str]:
    intervals = "the model's own, not calibrated" if by.spread is None else spread_text(by.spread)
    told = {} if by.like(0).kind == "classification" else {"Intervals of 90 %": intervals}
    return told | {"Licence of the training data": _licence(by), "Seed": str(by.config.run.seed)}


def _licence(by: HeadStart) -> str:
    family = by.config.tasks.name
    if not _is_built_in(family):
        return "that of your own data" if by.config.tasks.options.get("data") else f"that of {family}"
    licences = read_archive(family).details["licences"]
    return ", ".join(f"{name} ({count} images)" for name, count in licences.items())


def _is_built_in(family: str) -> bool:
    try:
        return data_file(family).is_file()
    except ModuleNotFoundError:
        return False


def _figure(cost: Cost, value: float) -> str:
    return f"{100 * value:.1f} %" if cost.classes else f"{value:.4g}"


def _text(
    title: str,
    by: HeadStart,
    graph: Graph,
    to: str,
    files: Mapping[str, bytes],
    told: Mapping[str, str],
    made: Sequence[str],
) -> str:
    rows = "\n".join(f"| {name} | {text} |" for name, text in told.items())
    sizes = ", ".join(f"{name} ({len(data):,} bytes)" for name, data in files.items())
    takes = ", ".join(f"`{one.name}`" for one in graph.inputs)
    commands = "\n".join(f"    {line}" for line in made)
    return f"""# {title}

{_FORMATS[to].capitalize()}. Predicts {by.kind.predicts(by.prepared)}.
It takes {takes}, and gives {", ".join(f"`{name}`" for name in graph.outputs)};
`preparation.json` says how raw data become that. Made with headstart, whose answers it gives.

| | |
|---|---|
{rows}
| Files | {sizes} |

## Make it again

{commands}
"""
