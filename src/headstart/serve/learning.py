"""What the service computes: tasks learned and inputs answered, those of many requests together on the task axis.

Functions over values, which a worker (`headstart.serve.worker`) calls. What goes wrong with one request is its answer,
and the others get theirs.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import headstart
from headstart.data.encoder import beside, pad_of
from headstart.data.kind import NewTask, Row, unsound
from headstart.errors import (
    ConfigError,
    DataError,
    DivergenceError,
    HeadstartError,
    OutOfMemoryError,
    UsageError,
    is_out_of_memory,
)
from headstart.registry import find
from headstart.serve.contract import Kind, Limits, RunTold
from headstart.serve.work import GoneError as GoneError, Lesson, Question, Taught, Wanted
from headstart.training.adapted import AdaptedModel, odd_name
from headstart.training.cross_validation import interval
from headstart.training.examples import Support, joined, without_class
from headstart.training.files import from_safetensors, to_safetensors
from headstart.training.head_start import (
    AdaptedTask,
    HeadStart,
    Predicted,
    alone,
    answered_together,
    learned,
    of_network,
    of_run,
    refuse_unknown,
    refuse_ways,
    stacked,
    told_by_others,
    warnings_of,
)
from headstart.training.trust import UNKNOWN_SHARE, more_examples_text
from headstart.training.without_run import begin, is_network
from headstart.types import Adapted, Batch, Meta, Params

#: Of what is predicted at once: examples, and numbers in them, since a network makes many more of each.
_EXAMPLES, _NUMBERS = 1024, 2**22


class Served(NamedTuple):
    """What new tasks are learned by, under the name that requests call it."""

    name: str
    by: HeadStart
    weights: str
    """A fingerprint of all that decides what is learned: a task that was learned by another is none of this."""
    hidden: tuple[str, ...] = ()
    """Paths of this machine, which nobody is told."""
    unknown_share: float | None = None
    """Which share of what is asked is taken for being of none of the classes, where a request does not say; ``None``
    where nothing tells such examples."""


#: What comes of a request: the answer, or what is wrong with it.
Outcome = Any
Find = Callable[["Question | Wanted"], AdaptedTask]
"""A task that was learned: from memory, or from what is kept."""


def open_served(source: str, device: torch.device, unknown_share: float | None = None) -> Served:
    """Return a run, or a network as it is, by the name that requests call it.

    Args:
        source: where it is.
        device: where to compute.
        unknown_share: which share of what is asked is of none of the classes, where a request does not say and
            something tells such examples; by default as `headstart.predict` takes it.

    Raises:
        HeadstartError: it is none, or none of which tasks can be taught by values.
    """
    if is_network(source):
        by = of_network(begin({"model": source}, None), device)
    else:
        by = of_run(Path(source), device)
    if by.kind.taught is None or by.kind.values is None:
        raise ConfigError(f"{source} is of {by.kind.examples}, which cannot be shown to a service; serve another run")
    told = json.dumps([by.config.tree(), by.preparation], sort_keys=True, default=str)
    digest = hashlib.sha256(told.encode())
    for part in by.meta or ():
        for name, value in sorted(part.items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    encoder = by.config.option("tasks.encoder")
    hidden = {source, str(Path(source).resolve()), str(encoder or source), str(encoder or source).partition(":")[2]}
    hidden = tuple(sorted(hidden - {""}, key=len, reverse=True))
    share = UNKNOWN_SHARE if unknown_share is None else unknown_share
    knows = by.trust is not None and by.trust.unknown is not None
    return Served(name_of(source), by, digest.hexdigest(), hidden, share if knows else None)


def name_of(source: str) -> str:
    """Return what a run or a network is called: the last part of where it is.

    >>> name_of("runs/icons/"), name_of("hf:/models/minilm"), name_of("ngrams")
    ('icons', 'minilm', 'ngrams')
    """
    return Path(source.rpartition(":")[2]).resolve().name


def called(by: HeadStart) -> Kind:
    """Return what the service calls a kind of data."""
    return {"images": "images", "texts": "text"}.get(by.kind.name, "tables")  # type: ignore[return-value]


def told_of(served: Served, limits: Limits) -> RunTold:
    """Return what the service says of a run."""
    by = served.by
    like = by.like(0)
    kind = called(by)
    ways: list[int] | None = None
    columns: list[str] = []
    target: str | None = None
    if like.kind == "classification":
        free = find("method", by.config.method.name).classes == "any" and not like.shared_classes
        ways = [2, limits.ways] if free else [like.output_size, like.output_size]
    details: dict[str, Any] = {"target": like.kind}
    if kind == "tables":
        columns, target = [feature.column for feature in by.prepared.features], by.prepared.target
        details |= {"classes": list(by.prepared.classes), "task_column": by.prepared.task_column}
        details["columns"] = {feature.column: feature.kind for feature in by.prepared.features}
    elif kind == "images":
        channels, height, width = by.prepared.input_shape
        details |= {"channels": channels, "height": height, "width": width, "fit": by.prepared.fit}
    else:
        details["bytes"] = None if by.prepared.encoder is not None else by.prepared.length
    return RunTold(
        name=served.name,
        kind=kind,
        method=by.config.method.name,
        ways=ways,
        columns=columns,
        target=target,
        unknown_share=served.unknown_share,
        input=details,
    )


def support_of(served: Served, lesson: Lesson, before: Support | None, limits: Limits) -> tuple[Support, list[str]]:
    """Return what a task is to be learned from, and what there is to say of it."""
    by = served.by
    assert by.kind.taught is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [] if before is None else [before]
        if lesson.values:
            new = by.kind.taught(by.prepared, list(lesson.values), list(lesson.labels))
            found = joined(found, [(new[0]._replace(name=None), new[1])], pad_of(by.like(0)))
    (support,) = found
    if lesson.without is not None:
        if by.like(0).shared_classes:
            raise DataError("the classes of a table are those of the run, so none of them can be removed")
        if lesson.without not in support[0].labels:
            raise DataError(f"the task has no such class; it has {', '.join(support[0].labels[:20])}")
        support = without_class(support, lesson.without)
    task = support[0]
    limits.check(task.labels, task.counts)
    if (odd := odd_name([task])) is not None:
        raise DataError(f"a class is called {ascii(odd)[:80]}, which is no name to print in a line; rename it")
    refuse_ways(by.config, by.like(0), "the task", [task])
    return support, [str(one.message) for one in caught]


def teach(served: Served, supports: Sequence[Support]) -> list[AdaptedTask | Exception]:
    """Learn tasks by one run; those of equal size together."""
    by = served.by
    if by.meta is not None and len(supports) > 1:
        try:
            return list(learned(by, supports)[1])
        except Exception as error:
            if _fatal(error):
                raise
    found: list[AdaptedTask | Exception] = []
    for support in supports:  # one by one, so that one that fails takes no other with it
        try:
            found.append(learned(by, [support])[1][0])
        except Exception as error:
            found.append(_explained(error))
    return found


def parts_of(served: Served, support: Support, task: AdaptedTask) -> dict[str, bytes]:
    """Return what is kept of a task, as bytes; or raise `DivergenceError` where numbers are not finite."""
    batch, adapted = support[1], task.adapted
    kept: Params = {f"adapted.{name}": value for name, value in adapted.params.items()}
    kept |= {f"buffers.{name}": value for name, value in adapted.buffers.items()}
    if served.by.meta is None:  # it was read off the task's own inputs
        kept |= {f"{part}.{name}": value for part, own in adapted.meta._asdict().items() for name, value in own.items()}
    if any(not bool(torch.isfinite(value).all()) for value in kept.values()):
        raise DivergenceError("learning these examples gives numbers that are not finite; show others, or fewer")
    shown = {
        name: value for name, value in {"x": batch.x, "y": batch.y, "mask": batch.mask}.items() if value is not None
    }
    names = json.dumps([support[0].labels, support[0].counts]).encode()
    head = len(names).to_bytes(8, "little") + names
    return {"support": head + to_safetensors(shown), "adapted": to_safetensors(kept)}


def read_support(data: bytes) -> Support:
    """Return what a task was learned from, of the bytes of `parts_of`."""
    size = int.from_bytes(data[:8], "little")
    labels, counts = json.loads(data[8 : 8 + size])
    found = from_safetensors(data[8 + size :], "what the task was learned from")
    return NewTask(None, tuple(labels), tuple(counts)), Batch(found["x"], found["y"], found.get("mask"))


def read_adapted(served: Served, data: bytes, labels: Sequence[str], counts: Sequence[int]) -> AdaptedTask:
    """Return a task that was learned, of the bytes of `parts_of`."""
    parts: dict[str, Params] = {"adapted": {}, "buffers": {}, "params": {}, "structure": {}}
    for key, value in from_safetensors(data, "what was learned").items():
        part, _, name = key.partition(".")
        parts[part][name] = value.to(served.by.device)
    meta = served.by.meta or Meta(parts["params"], parts["structure"])
    learner = served.by.learner_of(len(labels))
    adapted = Adapted(meta, parts["adapted"], parts["buffers"], None, learner.steps or 0)
    return AdaptedTask(None, tuple(labels), tuple(counts), learner, adapted)


def estimate(served: Served, support: Support) -> dict[str, Any] | None:
    """Return how many examples are told right by the others, as the service says it; ``None`` of numbers."""
    labels, counts = support[0].labels, support[0].counts
    if not labels:
        return None
    told = told_by_others(served.by, support)
    judged, right = sum(told.judged), sum(told.right)
    if not judged:
        return None
    share, (low, high) = right / judged, interval(right, judged)
    ends = {"low": min(low, share), "high": max(high, share)}
    trust = served.by.trust
    more = None if trust is None else more_examples_text(trust, len(labels), sum(counts) / len(labels))
    return {"right": right, "judged": judged, "accuracy": share, **ends, "more": more or None}


def lessons(
    served: Served, asked: Sequence[Lesson], before: Callable[[Lesson], Support | None], limits: Limits
) -> list[tuple[Outcome, AdaptedTask | None]]:
    """Learn tasks by one run, and return of each a `Taught` and the task, or what was wrong."""
    found: list[tuple[Outcome, AdaptedTask | None]] = [(None, None)] * len(asked)
    ready: list[tuple[int, Support, list[str]]] = []
    for place, lesson in enumerate(asked):
        try:
            support, told = support_of(served, lesson, before(lesson), limits)
            ready.append((place, support, told))
        except Exception as error:
            found[place] = _explained(error), None
    with warnings.catch_warnings(action="ignore"):
        tasks = teach(served, [support for _, support, _ in ready])
        for (place, support, told), task in zip(ready, tasks):
            if isinstance(task, Exception):
                found[place] = task, None
                continue
            try:
                parts = parts_of(served, support, task)
                if min(support[0].counts, default=0) == 1 and support[0].labels:
                    told = [*told, "a class has one example only; show more of it, for one tells little"]
                said = {
                    "kind": called(served.by),
                    "labels": list(support[0].labels),
                    "counts": list(support[0].counts),
                    "estimate": estimate(served, support),
                    "warnings": [scrubbed(served, one) for one in [*told, *warnings_of(served.by, [support])]],
                }
                found[place] = Taught(said, parts, hashlib.sha256(parts["support"]).hexdigest()), task
            except DivergenceError as error:  # what there was to warn of may be why
                found[place] = DivergenceError(": ".join([str(error), *told[:1]])), None
            except Exception as error:
                found[place] = _explained(error), None
    return found


def questions(served: Served, asked: Sequence[Question], find_task: Find) -> list[Outcome]:
    """Answer inputs of tasks of one run: of each the rows of answers, or what was wrong."""
    found: list[Outcome] = [None] * len(asked)
    groups: dict[Hashable, list[tuple[int, AdaptedTask, Tensor]]] = {}
    by = served.by
    assert by.kind.values is not None
    pad = pad_of(by.like(0))
    inputs = _inputs(served, [question.values for question in asked])
    for place, (question, own) in enumerate(zip(asked, inputs)):
        try:
            if isinstance(own, Exception):
                raise own
            task, x = find_task(question), own[0]
            groups.setdefault(_shape(served, task, x, place), []).append((place, task, x))
        except Exception as error:
            found[place] = _explained(error)
    for group in groups.values():
        for some in _together(group):
            for (place, _, _), outcome in zip(some, _answers(served, some, pad, asked)):
                found[place] = outcome
    for own, rows in zip(inputs, found):
        if not isinstance(own, Exception) and own[1] is not None and not isinstance(rows, Exception):
            for row, unseen in zip(rows, own[1]):
                row["unseen"] = unseen
    return found


def written(rows: Sequence[Row]) -> bytes:
    """Return answers as the service gives them: written once, where they are made."""
    blank = {"unknown": None, "set": None, "unseen": None}
    told = {"predictions": [blank | row for row in rows]}
    return json.dumps(told, ensure_ascii=False, allow_nan=False).encode()


def _inputs(
    served: Served, values: Sequence[Sequence[Any]]
) -> list[tuple[Tensor, Sequence[Sequence[str]] | None] | Exception]:
    """Return inputs as the model takes them, and what of them is unseen, or what is wrong with those of a request.

    Those of all requests are made at once.
    """
    by = served.by
    assert by.kind.values is not None
    try:
        with warnings.catch_warnings(action="ignore"):
            flat = [value for own in values for value in own]
            every = list(by.kind.values(by.prepared, flat))
        x = beside([inputs.x for inputs in every], 0, pad_of(by.like(0))).split([len(own) for own in values])
        known, unseen = every[0].unseen is not None, (row for inputs in every for row in inputs.unseen or ())
        return [(own, list(islice(unseen, len(own))) if known else None) for own in x]
    except Exception as error:
        if len(values) == 1 or _fatal(error):
            return [_explained(error)] * len(values)
    return [x for own in values for x in _inputs(served, [own])]


def exported(served: Served, wanted: Wanted, find_task: Find) -> Outcome:
    """Return the files of a task for elsewhere, by name, or what was wrong."""
    export: Any = getattr(headstart, "export", None)
    if export is None:
        return UsageError("this headstart cannot export tasks")
    try:
        with warnings.catch_warnings(action="ignore"):
            untrained = served.by.meta is None
            return dict(export(AdaptedModel(served.by, (find_task(wanted),), untrained), wanted.to))
    except Exception as error:
        return _explained(error)


def _shape(served: Served, task: AdaptedTask, x: Tensor, place: int) -> Hashable:
    """Return what tasks have in common that are predicted together; some can be with no other."""
    own = served.by.meta is None or task.learner.transductive
    parts = (task.adapted.params, task.adapted.buffers)
    sizes = tuple((name, tuple(value.shape), value.dtype) for part in parts for name, value in part.items())
    return (place if own else -1, len(task.labels), task.adapted.step, tuple(x.shape[1:]), x.dtype, sizes)


def _together(group: list[tuple[int, AdaptedTask, Tensor]]) -> list[list[tuple[int, AdaptedTask, Tensor]]]:
    """Return parts of a group that fit in memory, those with about as many inputs beside each other."""
    found: list[list[tuple[int, AdaptedTask, Tensor]]] = []
    for one in sorted(group, key=lambda one: len(one[2])):
        x = one[2]
        rows = len(x) * (len(found[-1]) + 1) if found else 0
        if (
            found
            and rows <= _EXAMPLES
            and rows * math.prod(x.shape[1:]) <= _NUMBERS
            and len(x) <= 2 * len(found[-1][0][2])
        ):
            found[-1].append(one)
        else:
            found.append([one])
    return found


def _answers(
    served: Served, some: list[tuple[int, AdaptedTask, Tensor]], pad: int | None, asked: Sequence[Question]
) -> list[Outcome]:
    try:
        return _outputs(served, some, pad, asked)
    except Exception as error:
        if len(some) == 1 or _fatal(error):
            return [_explained(error)] * len(some)
    return [outcome for one in some for outcome in _answers(served, [one], pad, asked)]


def _outputs(
    served: Served, some: list[tuple[int, AdaptedTask, Tensor]], pad: int | None, asked: Sequence[Question]
) -> list[Outcome]:
    """Predict tasks of one shape at once: what is too short is filled up with its own first input."""
    _, first, _ = some[0]
    most = max(len(x) for _, _, x in some)
    filled = [x if len(x) == most else torch.cat([x, x[:1].expand(most - len(x), *x.shape[1:])]) for _, _, x in some]
    x = beside([one.unsqueeze(0) for one in filled], 0, pad).to(served.by.device)
    adapted = first.adapted if len(some) == 1 else stacked([task.adapted for _, task, _ in some])
    variance: Tensor | None = None
    with torch.no_grad():
        outputs = first.learner.predict(adapted, x).cpu().double()
        if first.learner.distribution is not None:
            variance = first.learner.distribution(adapted, x).variance.cpu().double()
    bad = _unsound(outputs, bool(first.labels))
    if variance is not None:
        bad = bad | _unsound(variance, False)
    sizes, odd = [len(own) for _, _, own in some], bad.tolist()
    found: list[Outcome] = [None] * len(some)
    sound = list[tuple[int, Predicted]]()
    for row, ((place, task, _), size) in enumerate(zip(some, sizes)):
        try:
            if any(odd[row][:size]):
                where = odd[row].index(True)
                raise DivergenceError(f"input {where}: the prediction is not finite; show other examples")
            reject, share = asked[place].reject, asked[place].unknown_share
            refuse_unknown(served.by, reject, share)
            deviations = None if variance is None else variance[row, :size].sqrt()
            sound.append(
                (
                    row,
                    Predicted(
                        task, outputs[row, :size], deviations, reject, served.unknown_share if share is None else share
                    ),
                )
            )
        except HeadstartError as error:
            found[row] = _explained(error)
    for (row, _), rows in zip(sound, answered_together(served.by, [one for _, one in sound])):
        found[row] = rows
    return found


def _unsound(outputs: Tensor, classes: bool) -> Tensor:
    return unsound(outputs.flatten(0, 1), classes).view(outputs.shape[:2])


def size_of(task: AdaptedTask) -> int:
    """Return how many bytes a task takes in memory, of its own."""
    parts = (task.adapted.params, task.adapted.buffers)
    return 1024 + sum(value.numel() * value.element_size() for part in parts for value in part.values())


def owned(task: AdaptedTask) -> AdaptedTask:
    """Return a task whose tensors are its own, and no views of those of others that were learned beside it."""
    one = alone(task.adapted, 0)
    params, buffers = ({name: value.clone() for name, value in part.items()} for part in (one.params, one.buffers))
    return task._replace(adapted=one._replace(params=params, buffers=buffers))


def scrubbed(served: Served, text: str) -> str:
    """Return a text without this machine's paths."""
    for path in served.hidden:
        text = text.replace(path, served.name)
    return text


def _fatal(error: Exception) -> bool:
    """Return whether a device is broken, so that nothing on it will work again."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)


def _explained(error: Exception) -> Exception:
    """Return an error as it is told, or raise it where this process can do no more."""
    if _fatal(error):
        raise error
    if is_out_of_memory(error):
        return OutOfMemoryError("there is not enough memory for this now; ask for less at once, or later")
    return error
