"""What the baselines share: rows of tasks as arrays, those of all training tasks in M, and fits that are kept.

A baseline that is fitted to the pooled rows of the training tasks keeps these rows in M (`Pooled`), since a fitted
estimator is no tensor. It is fitted anew from them wherever they are loaded, always alike.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from headstart.core import losses
from headstart.core.losses import present
from headstart.errors import ShapeError, UsageError
from headstart.types import Adapted, Batch, Gaussian, Info, Learner, Meta, Params, Prepare, Tasks, Tree

Array: TypeAlias = NDArray[Any]

#: Training tasks that are read of a family that has no end of them.
MOST = 256
#: Fits that are kept in memory, by what they were fitted to.
_KEPT = 8
_FITS: "OrderedDict[bytes, Any]" = OrderedDict()
#: The part of the probability that is spread evenly over all classes, since trees are often sure and wrong.
SMOOTHING = 0.01


class Task(NamedTuple):
    """The rows of one task that are there, float64."""

    x: Array
    """``(n, inputs)``."""
    y: Array
    """``(n, outputs)``, or class ids ``(n,)``."""
    query: Array
    """``(m, inputs)``."""


class Pooled(NamedTuple):
    """All rows of the training tasks, those of one task together, its support rows first."""

    x: Array
    """``(N, inputs)``."""
    y: Array
    """``(N, outputs)``, or class ids ``(N,)``."""
    task: Array
    """``(N,)`` int64, from 0."""
    support: Array
    """``(N,)`` bool, whether it was a support row."""


Answer: TypeAlias = Callable[[Params, Task], tuple[Array, Array | None]]
"""``(M on the CPU, task) -> (outputs (m, outputs), their variances, or None where nothing is known of them)``."""


def learner_of(
    answer: Answer,
    structure: Callable[[], Params],
    prepare: Prepare | None,
    *,
    inputs: int,
    outputs: int,
    loss: str = "mse",
    intervals: bool = False,
) -> Learner:
    """Return the learner that keeps a task's support rows, and answers from these and M.

    Args:
        answer: what is said of one task's query rows.
        structure: M before any training task has been read.
        prepare: reads it off the training tasks.
        inputs, outputs: numbers in an input, and target values or classes.
        loss: ``"mse"`` or ``"cross_entropy"``.
        intervals: whether ``answer`` gives variances.
    """
    if inputs < 1 or outputs < 1:
        raise UsageError(f"inputs and outputs must be at least 1, got {inputs} and {outputs}")
    classifies = loss == "cross_entropy"

    def init(generator: Generator | None = None) -> Meta:
        return Meta({}, structure())

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        support = present(support)
        check_targets(support, outputs, classifies)
        x, mask = flat(support.x, inputs), support.mask
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        # no more room than the largest task needs
        order = (~mask).to(torch.int8).argsort(dim=1, stable=True)[:, : int(mask.sum(1).max())]
        place = torch.arange(len(x), device=x.device).unsqueeze(1), order
        kept = {"x": x[place].detach(), "y": support.y[place].detach(), "mask": mask[place]}
        return Adapted(meta, kept, {}, support.seed), Info(x.new_zeros(0, len(x)))

    def answers(adapted: Adapted, x: Tree) -> Gaussian:
        queries = flat(x, inputs)
        known = {name: value.detach().cpu() for name, value in adapted.meta.structure.items()}
        rows = (adapted.params[name].cpu() for name in ("x", "y", "mask"))
        found = np.full((2, *queries.shape[:2], outputs), np.nan)
        for number, (x, y, mask, query) in enumerate(zip(*rows, queries.detach().cpu())):
            there = query.isfinite().all(1)  # padding may be anything
            said = answer(known, Task(array(x[mask]), array(y[mask]), array(query[there])))
            for part, values in zip(found[:, number], said):
                if values is not None:
                    part[there.numpy()] = values
        return Gaussian(*torch.from_numpy(found).to(queries))

    def predict(adapted: Adapted, x: Tree) -> Tensor:
        return answers(adapted, x).mean

    distribution = answers if intervals else None
    return Learner(
        init, adapt, predict, losses.resolve(loss), None, exact=False, distribution=distribution, prepare=prepare,
        shown=_shown,
    )  # fmt: skip


def _shown(meta: Meta) -> Params:
    """Return how many rows of training tasks M holds."""
    return {"rows": meta.structure["rows.y"].new_tensor(len(meta.structure["rows.y"]), dtype=torch.float32)}


def flat(x: Tree, inputs: int) -> Tensor:
    """Return the inputs as ``(B, n, inputs)``.

    Raises:
        ShapeError: inputs of another size.
    """
    if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[2:].numel() != inputs:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(f"this method was made for inputs (tasks, rows, *features) of {inputs} numbers; got {got}")
    return x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)


def check_targets(batch: Batch, outputs: int, classifies: bool) -> None:
    """Raise `ShapeError` for targets that are not what the method learns."""
    y = batch.y
    if y.is_floating_point() == classifies or y.shape[2:] != (() if classifies else (outputs,)):
        wanted = "(tasks, rows) and integers" if classifies else f"(tasks, rows, {outputs}) and floating"
        raise ShapeError(f"this method takes targets {wanted}; got {tuple(y.shape)} of {y.dtype}")


def array(values: Tensor) -> Array:
    """Return a tensor as an array, float64 where it is floating."""
    found: Array = (values.double() if values.is_floating_point() else values).numpy()
    return found


def rows_of(tasks: Tasks) -> Iterator[tuple[Task, Array]]:
    """Yield each training task, its later rows as the query, with their targets."""
    count = (tasks.counts or {}).get("train", MOST)
    for first in range(0, count, 64):
        support, query = tasks.sample("train", range(first, min(first + 64, count)))
        for place in range(len(support.y)):
            own, later = (_there(batch, place) for batch in (support, query))
            yield Task(*own, later[0]), later[1]


def _there(batch: Batch, place: int) -> tuple[Array, Array]:
    mask = slice(None) if batch.mask is None else batch.mask[place].cpu()
    return array(batch.x[place].flatten(1).cpu()[mask]), array(batch.y[place].cpu()[mask])


def no_rows(inputs: int, outputs: int, classifies: bool) -> Params:
    """Return M of `Pooled` before any task has been read: tensors without rows."""
    y = torch.zeros(0, dtype=torch.int64) if classifies else torch.zeros(0, outputs)
    task, support = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    return {"rows.x": torch.zeros(0, inputs), "rows.y": y, "rows.task": task, "rows.support": support}


def read_rows(meta: Meta, tasks: Tasks, seed: int, folder: object = None, /) -> Meta:
    """Put all rows of the training tasks in M: what `no_rows` leaves room for; a `Prepare`."""
    parts: list[Pooled] = []
    for number, (task, later) in enumerate(rows_of(tasks)):
        size = len(task.x) + len(task.query)
        x, y = np.concatenate([task.x, task.query]), np.concatenate([task.y, later])
        parts.append(Pooled(x, y, np.full(size, number), np.arange(size) < len(task.x)))
    rows = Pooled(*(np.concatenate(values) for values in zip(*parts)))
    found = {f"rows.{name}": torch.from_numpy(values) for name, values in rows._asdict().items()}
    found |= {"time": time_of(tasks, meta.structure["time"])} if "time" in meta.structure else {}
    return meta._replace(structure={name: found[name].to(value) for name, value in meta.structure.items()})


def pooled_rows(known: Params) -> Pooled:
    """Return the rows that M holds."""
    classes = not known["rows.y"].ndim > 1
    y = known["rows.y"].long() if classes else known["rows.y"]
    return Pooled(
        array(known["rows.x"]), array(y), array(known["rows.task"].long()), array(known["rows.support"].bool())
    )


def time_of(tasks: Tasks, like: Tensor) -> Tensor:
    """Return 1 at the input that is the table's time column, or the only input, and else 0; ``(inputs,)``."""
    found = torch.zeros_like(like)
    column = tasks.details.get("schema", {}).get("time_column")
    names = list(tasks.details.get("features", ()))
    if column in names:
        found[names.index(column)] = 1
    elif len(found) == 1:
        found[0] = 1
    return found


def log_probabilities(estimator: Any, query: Array, ways: int) -> Array:
    """Return log((1 − δ) p + δ / ways) ``(m, ways)`` with p of a fitted classifier, 0 for classes it has not seen."""
    found = np.zeros((len(query), ways))
    found[:, np.asarray(estimator.classes_, dtype=int)] = estimator.predict_proba(query)
    logs: Array = np.log((1 - SMOOTHING) * found + SMOOTHING / ways)
    return logs


def fitted(what: str, make: Callable[[], Any], *arrays: Array) -> Any:
    """Return what ``make`` does, or what it returned when it was last asked for the same ``what`` and arrays."""
    digest = hashlib.sha256(what.encode())
    for values in arrays:
        digest.update(repr((values.shape, values.dtype)).encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    key = digest.digest()
    found = _FITS.get(key)
    if found is None:
        found = _FITS[key] = make()
        while len(_FITS) > _KEPT:
            _FITS.popitem(last=False)
    return found


def required(module: str) -> Any:
    """Import and return a module of the extra ``baselines``.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = {"sklearn": "scikit-learn"}.get(module.partition(".")[0], module.partition(".")[0])
        raise UsageError(
            f"{package} is not installed, which this method needs: pip install headstart[baselines]"
        ) from error
