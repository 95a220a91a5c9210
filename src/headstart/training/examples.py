"""What an adapted model was learned from, kept beside it, so that examples and classes can be added later.

::

    ADAPTED/examples/
      examples.safetensors   each task's support set, as the model takes it, and where adaptation started from
      manifest.json          its size and SHA-256

Learning from what is kept and what is new together is what learning from all of it at once is: nothing is forgotten,
whatever the method. It takes the memory of the examples, and no more.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.data.encoder import beside, pad_of
from headstart.data.kind import NewTask, nothing
from headstart.errors import DataError, FileError, UsageError, unknown_name
from headstart.training.checkpoint import alike
from headstart.training.files import from_safetensors, read_together, to_safetensors, write_together
from headstart.types import Batch, Meta, Params, Tasks

EXAMPLES = "examples"
_FILE = "examples.safetensors"

Support: TypeAlias = tuple[NewTask, Batch]
"""A task, and its support set as a batch of one."""


def write_examples(folder: Path, meta: Meta, supports: Sequence[Support]) -> None:
    """Keep support sets, and θ and M, in the folder of what was learned from them.

    Raises:
        FileError: the folder cannot be written.
    """
    tensors: Params = {f"{part}.{name}": value for part, own in meta._asdict().items() for name, value in own.items()}
    for number, (_, batch) in enumerate(supports):
        values = {"x": batch.x, "y": batch.y, "mask": batch.mask}
        tensors |= {f"{number}.{name}": value for name, value in values.items() if value is not None}
    write_together(folder / EXAMPLES, {_FILE: to_safetensors(tensors)})


def read_examples(
    folder: Path, tasks: Sequence[NewTask], start: Meta, like: Callable[[int], Tasks]
) -> tuple[Meta, list[Support]]:
    """Return θ and M, and the support sets of the tasks, as `write_examples` has kept them.

    Args:
        folder: of what was learned.
        tasks: that were learned.
        start: θ and M of the same names and shapes; their numbers are not read.
        like: what tasks of so many classes are like.

    Raises:
        DataError: no examples were kept.
        FileError: a file that is damaged, or does not fit what was learned.
    """
    if not (folder / EXAMPLES).exists():
        raise DataError(
            f"{folder} keeps no examples (it was made with --no-keep-examples), so nothing can be added to it; adapt"
            " the run to all examples, old and new"
        )
    contents = read_together(folder / EXAMPLES, (_FILE,))
    where = folder / EXAMPLES / _FILE
    found = from_safetensors(contents[_FILE], str(where))

    def taken(name: str) -> Tensor:
        if name not in found:
            raise FileError(f"{where} does not hold {name}; adapt the run to all examples, old and new")
        return found.pop(name)

    def part(name: str, like: Params) -> Params:
        own = {key: taken(f"{name}.{key}") for key in like}
        other = next((key for key, value in own.items() if not alike(value, like[key])), None)
        if other is not None:
            raise FileError(f"{where} does not hold the tensors of its model ({other}); adapt again")
        return own

    meta = Meta(part("params", start.params), part("structure", start.structure))
    supports = [
        (task, Batch(taken(f"{number}.x"), taken(f"{number}.y"), found.pop(f"{number}.mask", None)))
        for number, task in enumerate(tasks)
    ]
    for task, batch in supports:
        rows = max(sum(task.counts), 1)  # of a task of which nothing is known there is one, masked out
        tasks_like = like(len(task.labels))
        empty = nothing(tasks_like, batch.x.dtype if batch.x.is_floating_point() else torch.float32)
        if pad_of(tasks_like) is not None and batch.x.ndim == empty.x.ndim:
            empty = empty._replace(x=empty.x.new_zeros(batch.x.shape))  # as long as the longest of its texts
        fits = all(a.shape == (1, rows, *b.shape[2:]) and a.dtype == b.dtype for a, b in zip(batch[:2], empty[:2]))
        known = [batch.y[0].eq(label).sum() for label in range(len(task.labels))] == list(task.counts)
        if not fits or (task.labels and batch.mask is None and not known):
            raise FileError(f"{where} does not hold the {rows} examples of the task {task.name!r}; adapt again")
    return meta, supports


def joined(before: Sequence[Support], more: Sequence[Support], pad: int | None = None) -> list[Support]:
    """Return the tasks of both, those of one name as one that has the examples of both, and the classes of both.

    ``pad`` is what `headstart.data.encoder.pad_of` says of such tasks.
    """
    tasks = {task.name: (task, batch) for task, batch in before}
    for task, batch in more:
        tasks[task.name] = _both(tasks[task.name], (task, batch), pad) if task.name in tasks else (task, batch)
    return list(tasks.values())


def without(supports: Sequence[Support], names: Sequence[str], shared_classes: bool = False) -> list[Support]:
    """Return what is left of tasks where some are removed, or classes of them.

    Args:
        supports: the tasks.
        names: of a task; of a class, which is removed from all tasks that have it; or ``TASK/CLASS``.
        shared_classes: whether a class means the same in all tasks, so that none can be removed.

    Raises:
        DataError: a class where they are shared, or nothing that is left.
        UnknownNameError: a name that none has.
        UsageError: a name of a task that is also one of a class.
    """
    left = list(supports)
    for name in names:
        tasks = [task.name for task, _ in left if task.name is not None]
        classes = {label for task, _ in left for label in task.labels}
        alone = {f"{task.name}/{label}": (task.name, label) for task, _ in left for label in task.labels if task.name}
        if name in tasks and name in classes:
            raise UsageError(f"{name!r} is a task, and a class of one; a class of a task is called TASK/CLASS")
        if name in tasks:
            left = [support for support in left if support[0].name != name]
        elif name in classes or name in alone:
            if shared_classes:
                raise DataError(f"the class {name!r} means the same in all tasks, as trained; none can be removed")
            of, label = alone[name] if name not in classes else (None, name)
            left = [
                without_class(support, label) if name in classes or support[0].name == of else support
                for support in left
            ]
        else:
            raise unknown_name("task or class", name, [*tasks, *classes, *alone])
    if not left:
        raise DataError(f"no task is left without {', '.join(map(repr, names))}; delete the folder instead")
    return left


def without_class(support: Support, label: str) -> Support:
    """Return a support set without a class, the others numbered anew; as it is, where it has no such class."""
    task, batch = support
    if label not in task.labels:
        return support
    place = task.labels.index(label)
    kept = batch.y[0] != place
    y = batch.y[:, kept]
    labels, counts = task.labels[:place] + task.labels[place + 1 :], task.counts[:place] + task.counts[place + 1 :]
    mask = None if batch.mask is None else batch.mask[:, kept]
    return NewTask(task.name, labels, counts), Batch(batch.x[:, kept], torch.where(y > place, y - 1, y), mask)


def merged(before: Sequence[Support], more: Sequence[Support], pad: int | None = None) -> list[Support]:
    """Return the tasks of both, as `joined` does, but an example that both have counts once.

    Two models that were grown from one have its examples in common.
    """
    known = {task.name: (task, batch) for task, batch in before}
    return joined(
        before, [_unknown(one, known[one[0].name], pad) if one[0].name in known else one for one in more], pad
    )


def _unknown(support: Support, known: Support, pad: int | None) -> Support:
    """Return a support set without the examples that another has, of the same label; each of these is left out once."""
    length = max(batch.x.shape[-1] for _, batch in (support, known))

    def keys(one: Support) -> list[tuple[object, bytes]]:
        task, batch = one
        x = batch.x if pad is None else F.pad(batch.x, (0, length - batch.x.shape[-1]), value=pad)
        labels = [task.labels[place] for place in batch.y[0].tolist()] if task.labels else batch.y[0].tolist()
        return [(str(label), example.numpy().tobytes()) for label, example in zip(labels, x[0].cpu())]

    task, batch = support
    if not sum(task.counts) or not sum(known[0].counts):
        return support
    there, kept = Counter(keys(known)), list[int]()
    for place, key in enumerate(keys(support)):
        there[key] -= 1
        if there[key] < 0:
            kept.append(place)
    y = batch.y[:, kept]
    counts = tuple(y[0].bincount(minlength=len(task.labels)).tolist()) if task.labels else (len(kept),)
    return task._replace(counts=counts), Batch(batch.x[:, kept], y)


def _both(one: Support, other: Support, pad: int | None) -> Support:
    if not sum(one[0].counts):
        return other
    if not sum(other[0].counts):
        return one
    labels = one[0].labels
    if labels != other[0].labels:
        labels = tuple(sorted({*labels, *other[0].labels}))
    first, second = (_renamed(support, labels) for support in (one, other))
    x, y = beside((first.x, second.x), 1, pad), torch.cat((first.y, second.y), 1)
    if not labels:
        return NewTask(one[0].name, (), (y.shape[1],)), Batch(x, y)
    order = y[0].argsort(stable=True)  # one class after the other, as a source of all of them has them
    counts = tuple(y[0].bincount(minlength=len(labels)).tolist())
    return NewTask(one[0].name, labels, counts), Batch(x[:, order], y[:, order])


def _renamed(support: Support, labels: tuple[str, ...]) -> Batch:
    """Return a support set with its classes numbered as in ``labels``."""
    task, batch = support
    if not labels:
        return batch
    places: Any = torch.tensor([labels.index(label) for label in task.labels])
    return batch._replace(y=places[batch.y])
