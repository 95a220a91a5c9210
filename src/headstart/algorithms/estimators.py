"""Anything that is fitted to rows as a learner: a task's support rows are kept, its query rows answered from them."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from headstart.core import losses
from headstart.core.losses import present, there
from headstart.errors import ShapeError, UsageError
from headstart.types import Adapted, Batch, Gaussian, Info, Learner, Meta, Params, Prepare, Tasks, Tree

Array: TypeAlias = NDArray[Any]

#: Training tasks that are read of a family that has no end of them.
MOST = 256


class Task(NamedTuple):
    """The rows of one task that are there, float64."""

    x: Array
    """``(n, inputs)``."""
    y: Array
    """``(n, outputs)``, or class ids ``(n,)``."""
    query: Array
    """``(m, inputs)``."""


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
    incomplete: bool = False,
) -> Learner:
    """Return the learner that keeps a task's support rows, and answers from these and M.

    A single target value may be without an axis of its own, and then is answered so.

    Args:
        answer: what is said of one task's query rows.
        structure: M before any training task has been read.
        prepare: reads it off the training tasks.
        inputs, outputs: numbers in an input, and target values or classes.
        loss: ``"mse"`` or ``"cross_entropy"``.
        intervals: whether ``answer`` gives variances.
        incomplete: whether it is also asked of query rows with some finite numbers only; those with none get NaN.
    """
    if inputs < 1 or outputs < 1:
        raise UsageError(f"inputs and outputs must be at least 1, got {inputs} and {outputs}")
    classifies = loss == "cross_entropy"

    def init(generator: Generator | None = None) -> Meta:
        return Meta({}, structure())

    def adapt(meta: Meta, support: Batch, /, steps: int | None = None) -> tuple[Adapted, Info]:
        support = present(support)
        check_targets(support, outputs, classifies, plain=True)
        x, mask = flat(support.x, inputs), there(support)
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
            finite = query.isfinite()
            asked = finite.any(1) if incomplete else finite.all(1)
            y = y[mask] if classifies else y[mask].view(-1, outputs)
            said = answer(known, Task(array(x[mask].double()), array(y), array(query[asked].double())))
            for part, values in zip(found[:, number], said):
                if values is not None:
                    part[asked.numpy()] = values
        both = torch.from_numpy(found).to(queries)
        plain = not classifies and adapted.params["y"].ndim == 2
        return Gaussian(*(both.squeeze(-1) if plain else both))

    def predict(adapted: Adapted, x: Tree) -> Tensor:
        return answers(adapted, x).mean

    distribution = answers if intervals else None
    loss_of = losses.resolve(loss)
    return Learner(init, adapt, predict, loss_of, None, exact=False, distribution=distribution, prepare=prepare)


def flat(x: Tree, inputs: int) -> Tensor:
    """Return the inputs as ``(B, n, inputs)``.

    Raises:
        ShapeError: inputs of another size.
    """
    if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[2:].numel() != inputs:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(f"this method was made for inputs (tasks, rows, *features) of {inputs} numbers; got {got}")
    return x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)


def check_targets(batch: Batch, outputs: int, classifies: bool, plain: bool = False) -> None:
    """Raise `ShapeError` for targets that are not what the method learns; ``plain``: a single one needs no axis."""
    y = batch.y
    shape = () if classifies or (plain and outputs == 1 and y.ndim == 2) else (outputs,)
    if y.is_floating_point() == classifies or y.shape[2:] != shape:
        wanted = "(tasks, rows) and integers" if classifies else f"(tasks, rows, {outputs}) and floating"
        raise ShapeError(f"this method takes targets {wanted}; got {tuple(y.shape)} of {y.dtype}")


def array(values: Tensor) -> Array:
    """Return a tensor as an array, float64 where it is floating."""
    found: Array = (values.double() if values.is_floating_point() else values).numpy()
    return found


def rows_of(tasks: Tasks) -> Iterator[tuple[Task, Array]]:
    """Yield each training task, its later rows as the query, with their targets."""
    count = (tasks.counts or {}).get("train", 250)  # of a family without end as many as boosted trees tell apart
    for first in range(0, count, 64):
        episodes = tasks.sample("train", range(first, min(first + 64, count)))
        for place in range(len(episodes.support.y)):
            (x, y), (query, later) = (
                [array(part[place][there(batch)[place]].cpu()) for part in (batch.x.flatten(2), batch.y)]
                for batch in episodes
            )
            yield Task(x, y, query), later


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


def required(module: str, extra: str = "baselines") -> Any:
    """Import and return a module of an extra.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0].replace("sklearn", "scikit-learn")
        raise UsageError(
            f"{package} is not installed, which this method needs: pip install headstart[{extra}]"
        ) from error
