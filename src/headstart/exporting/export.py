"""Adapted models, and learners, as files for other programs: PyTorch without headstart, onnxruntime anywhere."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

import headstart
from headstart.data.kind import Raw
from headstart.errors import ConfigError, UsageError, check_known, unknown_name
from headstart.exporting import card
from headstart.exporting.adapted import of_learner, of_task, raw_of
from headstart.exporting.card import Cost
from headstart.exporting.graph import Graph, Input
from headstart.exporting.module import to_module
from headstart.exporting.onnx import answered as onnx_answered, in_int8, to_onnx
from headstart.exporting.program import to_program
from headstart.registry import find
from headstart.training.adapted import WEIGHTS, AdaptedModel, open_adapted, supports_of
from headstart.training.examples import EXAMPLES
from headstart.training.files import explained, read_json, to_json
from headstart.training.head_start import AdaptedTask, HeadStart, answered, of_run
from headstart.training.report.report import RESULTS
from headstart.types import Batch, Params

Format: TypeAlias = Literal["onnx", "torch", "module"]
FORMAT = "headstart-export-1"

_FORMATS: Mapping[str, Callable[[Graph], dict[str, bytes]]] = {
    "onnx": to_onnx,
    "torch": to_program,
    "module": to_module,
}
#: By how much answers may differ: probabilities, and numbers in units of their scale; of the learner itself, whose
#: many operations each round, more.
TOLERANCE, LEARNER_TOLERANCE = 1e-5, 1e-4


@explained("use")
def export(
    model: AdaptedModel | str | Path,
    to: Format,
    *,
    task: str | None = None,
    int8: bool = False,
    learner: bool = False,
    ways: int | None = None,
    shots: int | None = None,
) -> dict[str, bytes]:
    """Return an adapted model, or a learner, as files that need no headstart, by name.

    What is returned gives the answers of headstart: it has been compared on examples, ONNX files in onnxruntime. The
    input is as near to raw data as operations on tensors go; ``preparation.json`` says how raw data become it.

    Args:
        model: what `headstart.adapt` returned, or its folder; with ``learner``, a run's folder.
        to: ``"onnx"``: an ONNX file; ``"torch"``: a program of ``torch.export``; ``"module"``: a module's source in
            plain PyTorch and its weights as safetensors.
        task: which of several tasks of an adapted model.
        int8: of ONNX, products of 8-bit numbers. The README says what that costs on the examples that were kept.
        learner: export what learns: from a support set and queries to answers, with adaptation inside.
        ways: of a learner, how many classes a task has; by default as trained.
        shots: of a learner, how many support examples of each class, or of numbers in all, where it goes by that; by
            default as trained.

    Raises:
        ConfigError: a method or data that cannot be exported so, or an extra that is not installed.
        FileError: no such folder, or files that are not what they should be.
        UnknownNameError: a task that was not learned.
        UsageError: options that do not go together.
    """
    check_known("format", to, get_args(Format))
    if int8 and to != "onnx":
        raise UsageError(f"int8 is for onnx, got {to}; leave it out")
    if learner:
        return _learner(model, to, ways, shots, int8, task)
    if ways is not None or shots is not None:
        raise UsageError("ways and shots are for a learner, which is exported with learner=True (--learner)")
    folder = None if isinstance(model, AdaptedModel) else Path(model)
    opened = model if isinstance(model, AdaptedModel) else open_adapted(model, device="cpu")
    chosen = _chosen(opened, task)
    by, raw = opened.by, raw_of(opened.by)
    graph = of_task(by, chosen, raw)

    def truth(*inputs: Tensor) -> Params:
        return _answered(by, chosen, raw.inputs(inputs[0]))

    files, cost = _compared(graph, truth, to, raw, TOLERANCE), None
    if int8:
        place = opened.tasks.index(chosen)
        files["model.onnx"] = in_int8(files["model.onnx"])
        if folder is not None and (folder / EXAMPLES).is_dir():
            cost = _cost(by, chosen, supports_of(folder, opened)[1][place][1])
    return files | {
        **raw.files,
        "preparation.json": _told(by, graph, raw, chosen.labels),
        "README.md": card.of_task(opened, chosen, graph, to, files, int8, cost).encode(),
    }


def _learner(
    run: AdaptedModel | str | Path, to: Format, ways: int | None, shots: int | None, int8: bool, task: str | None
) -> dict[str, bytes]:
    if isinstance(run, AdaptedModel) or (Path(run) / WEIGHTS).exists():
        raise UsageError(
            "a learner is exported from a run's folder; this is what it has adapted, which is exported"
            " without learner=True (--learner)"
        )
    if int8 or task is not None:
        raise UsageError("int8 and task are for adapted models; a learner computes gradients and has no tasks yet")
    by = of_run(Path(run), torch.device("cpu"))
    like, method = by.like(0), by.config.method.name
    classes = like.kind == "classification"
    if not classes and ways is not None:
        raise UsageError("ways is a number of classes, but this run predicts numbers; leave it out")
    if classes and ways is not None and ways != like.output_size and find("method", method).classes == "trained":
        raise ConfigError(f"{method} was trained for {like.output_size} classes, and learns no {ways}; leave ways out")
    if like.shared_classes and ways not in (None, like.output_size):
        raise ConfigError(f"these classes mean the same in all tasks, and are {like.output_size}; leave ways out")
    trained = by.config.option("tasks.shots")
    trained = trained[-1] if isinstance(trained, (tuple, list)) else trained
    shots = shots if shots is not None else trained if isinstance(trained, int) else 5
    ways = ways or (like.output_size if classes else 1)
    for name, value, least in (("ways", ways, 2 if classes else 1), ("shots", shots, 1)):
        if value < least or value > 1000:
            raise UsageError(f"{name} must be from {least} to 1000, got {value}")
    raw = raw_of(by)
    graph = of_learner(by, raw, ways, shots)
    learner = by.learner_of(ways if classes else 0)

    def truth(support: Tensor, y: Tensor, queries: Tensor) -> Params:
        targets = y if classes else ((y - raw.mean) / raw.scale).float().unsqueeze(-1)
        assert by.meta is not None
        with torch.no_grad():
            adapted, _ = learner.adapt(by.meta, Batch(raw.inputs(support).unsqueeze(0), targets.unsqueeze(0)))
        labels = tuple(map(str, range(ways))) if classes else ()
        counts = (shots,) * ways if classes else (len(y),)
        return _answered(by, AdaptedTask(None, labels, counts, learner, adapted), raw.inputs(queries))

    files = _compared(graph, truth, to, raw, LEARNER_TOLERANCE)
    results = read_json(Path(run) / RESULTS) if (Path(run) / RESULTS).exists() else None
    return files | {
        **raw.files,
        "preparation.json": _told(by, graph, raw, None, {"ways": ways} if classes else {}),
        "README.md": card.of_learner(by, graph, to, files, ways, shots, results).encode(),
    }


def _chosen(model: AdaptedModel, task: str | None) -> AdaptedTask:
    names = [one.name for one in model.tasks if one.name is not None]
    if task is None and len(model.tasks) > 1:
        listed = ", ".join(map(repr, names[:20])) + (", …" if len(names) > 20 else "")
        raise UsageError(f"{len(names)} tasks were learned, and one at a time is exported; take --task: {listed}")
    if task is not None and task not in names:
        raise unknown_name("task", task, names)
    return next(one for one in model.tasks if task in (None, one.name))


def _answered(by: HeadStart, task: AdaptedTask, x: Tensor) -> Params:
    """Return what headstart answers, as a graph does."""
    with torch.no_grad():
        outputs = task.learner.predict(task.adapted, x.unsqueeze(0))[0].double()
        deviations = None
        if task.learner.distribution is not None:
            deviations = task.learner.distribution(task.adapted, x.unsqueeze(0)).variance[0].double().sqrt()
    rows = answered(by, task, outputs, deviations)
    if task.labels:
        chances = [[row["probabilities"][label] for label in task.labels] for row in rows]
        unknown = {"unknown": torch.tensor([row["unknown"] for row in rows])} if "unknown" in rows[0] else {}
        return {"probabilities": torch.tensor(chances), **unknown}
    names = [name for name in ("prediction", "low", "high") if name in rows[0]]
    return {name: torch.tensor([float(row[name]) for row in rows], dtype=torch.float64) for name in names}


def _compared(graph: Graph, truth: Callable[..., Params], to: Format, raw: Raw, tolerance: float) -> dict[str, bytes]:
    """Return a graph's files, once it has given headstart's answers: for many queries, and for one.

    Raises:
        ConfigError: it does not.
    """
    files = _FORMATS[to](graph)
    *support, queries = (one.some for one in graph.inputs)
    trials = [(*support, queries), (*support, queries[:1])]
    if support and graph.inputs[0].free:  # fewer support examples, too
        trials.append((*(part[: len(part) // 2 + 1] for part in support), queries[:3]))
    for given in trials:
        expected, found = truth(*given), graph(*given)
        if to == "onnx":
            found = onnx_answered(files["model.onnx"], dict(zip((one.name for one in graph.inputs), given)))
        for name, value in expected.items():
            unit = 1.0 if name in ("probabilities", "unknown") else raw.scale
            apart = float((found[name].double() - value.double()).abs().max()) / unit
            if not apart <= tolerance:
                raise ConfigError(
                    f"what was exported differs from headstart's own answers by {apart:.1g} (at most {tolerance:g}), so"
                    " it is not written; predict by headstart"
                )
    return files


def _cost(by: HeadStart, task: AdaptedTask, support: Batch) -> Cost:
    """Return what 8-bit numbers cost on kept examples, which are as models see them."""
    seen = Raw("examples", support.x[0], lambda x: x, {}, mean=0.0, scale=1.0)
    graph = of_task(by, task, seen)
    data = to_onnx(graph)["model.onnx"]
    y = support.y[0]
    found = [onnx_answered(one, {"examples": seen.some}) for one in (data, in_int8(data))]
    if task.labels:
        whole, small = (float((one["probabilities"].argmax(-1) == y).double().mean()) for one in found)
    else:
        whole, small = (float((one["prediction"] - y[:, 0]).square().mean()) for one in found)
    return Cost(len(y), whole, small, bool(task.labels))


def _told(
    by: HeadStart, graph: Graph, raw: Raw, labels: Sequence[str] | None, more: Mapping[str, Any] | None = None
) -> bytes:
    """Return what a program has to know to use the files."""

    def shape(one: Input) -> list[int | str]:
        free = {0: f"number of {one.name}", 1: "length"}
        return [free.get(axis, "any") if axis in one.free else size for axis, size in enumerate(one.some.shape)]

    kinds = {torch.uint8: "uint8", torch.int64: "int64", torch.float32: "float32", torch.float64: "float64"}
    inputs = [{"name": one.name, "type": kinds[one.some.dtype], "shape": shape(one)} for one in graph.inputs]
    told = {
        "format": FORMAT,
        "headstart": headstart.__version__,
        "method": by.config.method.name,
        "kind": by.kind.name,
        "inputs": inputs,
        "outputs": list(graph.outputs),
        **({} if labels is None else {"labels": list(labels)}),
        **(more or {}),
        raw.name: dict(raw.told),
    }
    return to_json(told)
