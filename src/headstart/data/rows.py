"""Tasks made of rows: one small table a task, each split anew into support and query rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from headstart.data.random import SPLITS, bits, check_seed, check_sizes
from headstart.errors import DataError, UsageError, check_known
from headstart.types import Batch, Episodes, Tasks

Order = Literal["random", "first"]
OnShort = Literal["error", "skip"]


class Rows(NamedTuple):
    """Examples of many tasks."""

    x: Tensor
    """Features ``(N, features)``, floating, or ids ``(N, length)`` of an integer type."""
    y: Tensor
    """Targets ``(N, outputs)`` floating, or class ids ``(N,)`` int64."""
    task: Tensor
    """``(N,)`` int64, the number of each row's task, a place in ``names``; a task's rows are in their own order."""
    names: tuple[str, ...]
    """What the tasks are called."""


def row_tasks(
    rows: Rows,
    splits: Mapping[str, Sequence[int]],
    *,
    support: int = 5,
    order: Order = "random",
    queries: int | None = None,
    on_short: OnShort = "error",
    classes: int | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    name: str = "rows",
    unit: float = 1.0,
    details: Mapping[str, Any] | None = None,
    labels: Sequence[Sequence[str]] | None = None,
    view: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tasks:
    """Return the tasks that ``rows`` hold.

    Number t of 'validation' and 'test' is task ``t mod G`` of the split's G tasks in their order; 'train' goes through
    its tasks in a new random order every G numbers. With ``order="random"`` every number draws support rows anew.

    Args:
        rows: the examples.
        splits: which tasks (numbers) each split has; no task may be in two.
        support: support rows of a task, in classification with random order of each class, but all but one where it has
            no more; the others are query rows.
        order: draw the support rows at random, or take the ``"first"`` rows, so that what came later is predicted from
            what came before, whether or not its class is among the first.
        queries: at most so many query rows, the first that are left; by default all.
        on_short: refuse a task with too few rows, or ``"skip"`` it.
        classes: the number of classes, in classification; by default the largest class id plus one.
        seed, device, name, unit, details: as in `Tasks`; the details tell how many tasks were skipped, and, in
            ``task_names``, what those of each split are called.
        labels: what the classes 0, 1, … of each task are called, where they are its own: then every number has them in
            another order, so that a class's place says nothing, and the details tell the ``ways``. A task of one class
            is too small.
        view: ``(kept) -> x``: what models see of features as they are kept.

    Raises:
        UsageError: support or queries below 1, a task in two splits, or tensors that do not fit each other.
        DataError: a task with too few rows, unless skipped; a split without tasks; or numbers that are not finite.

    >>> rows = Rows(torch.randn(40, 3), torch.randn(40, 1), torch.arange(40) // 10, ("a", "b", "c", "d"))
    >>> tasks = row_tasks(rows, {"train": (0, 1), "validation": (2,), "test": (3,)}, support=4)
    >>> tasks.sample("test", [0]).query.x.shape
    torch.Size([1, 6, 3])
    """
    check_seed(seed)
    check_sizes(support=support, queries=1 if queries is None else queries)
    check_known("order of rows", order, get_args(Order))
    check_known("on_short", on_short, get_args(OnShort))
    _check_splits(rows, splits)
    _check_rows(rows, classes, labels)
    regression = rows.y.is_floating_point()
    size = rows.y.shape[1] if regression else int(rows.y.max()) + 1 if classes is None else classes
    numbered = rows.task.bincount(minlength=len(rows.names))
    there = torch.arange(int(numbered.max())) < numbered.unsqueeze(1)
    index = torch.zeros(there.shape, dtype=torch.int64)
    index[there] = rows.task.argsort(stable=True)
    ordered = _Ordered(rows.y, index, there, support, order)
    ways = None if labels is None else torch.tensor([len(own) for own in labels])
    kept, skipped = _usable(rows, splits, ordered, on_short, ways)
    rows = rows._replace(x=rows.x.to(device), y=rows.y.to(device))

    most = index.shape[1] if queries is None else queries
    sizes = {split: ordered.split(index[tasks], there[tasks]) for split, tasks in kept.items()}

    def batch(numbers: Tensor, chosen: Tensor, counts: Tensor, places_of: Tensor | None) -> Batch:
        # as wide as the split's largest task, so that a task does not depend on those beside it
        width, even = int(counts.max()), bool((counts == counts[0]).all())
        places = (~chosen).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
        numbers, mask = numbers.gather(1, places).to(device), chosen.gather(1, places).to(device)
        x, y = view(rows.x[numbers.flatten()]).unflatten(0, numbers.shape), rows.y[numbers]
        y = y if places_of is None else places_of.gather(1, y)
        if even:
            return Batch(x, y)
        # what is not there is zero, lest a task hold another one's row
        x, y = (values.masked_fill(~mask.view(*mask.shape, *(1,) * (values.ndim - 2)), 0) for values in (x, y))
        return Batch(x, y, mask)

    def sample(split: str, numbers: Sequence[int]) -> Episodes:
        check_known("split", split, kept)
        drawn = ordered.draw(seed, split, numbers, tasks := _tasks_of(seed, split, numbers, kept[split]))
        query = drawn.query & (drawn.query.cumsum(1) <= most)
        counts = (sizes[split].support.sum(1), sizes[split].query.sum(1).clamp(max=most))
        places_of = None if ways is None else _orders(seed, split, numbers, ways[tasks]).argsort(1).to(device)
        return Episodes(*(batch(drawn.rows, *part, places_of) for part in zip((drawn.support, query), counts)))

    def names(split: str, number: int) -> tuple[str, ...]:
        assert labels is not None and ways is not None
        task = _tasks_of(seed, split, [number], kept[split])
        own = labels[int(task)]
        return tuple(own[place] for place in _orders(seed, split, [number], ways[task])[0].tolist()[: len(own)])

    counts = {split: len(found) for split, found in kept.items()}
    called = {split: [rows.names[task] for task in found.tolist()] for split, found in kept.items()}
    told = {**(details or {}), "task_names": called, "tasks": counts, "skipped": skipped}
    if ways is not None:
        used = ways[torch.cat(list(kept.values()))]
        least, size = int(used.min()), int(used.max())
        told["ways"] = size if least == size else (least, size)
    kind = "regression" if regression else "classification"
    return Tasks(
        name, sample, kind, tuple(rows.x.shape[1:]), size, told, counts, unit, None if labels is None else names,
        shared_classes=not regression and labels is None, integers=not view(rows.x[:1]).is_floating_point(),
    )  # fmt: skip


class _Drawn(NamedTuple):
    """``(B, n)`` numbers of rows, and which of them are support rows and query rows."""

    rows: Tensor
    support: Tensor
    query: Tensor


class _Ordered(NamedTuple):
    """Puts the rows of tasks in order, and says which are support rows."""

    y: Tensor
    index: Tensor
    """``(G, n)`` the numbers of each task's rows, where they are there."""
    there: Tensor
    support: int
    order: Order

    def draw(self, seed: int, split: str, numbers: Sequence[int], tasks: Tensor) -> _Drawn:
        index, there = self.index[tasks], self.there[tasks]
        if self.order == "random":
            keys = bits(seed, split, numbers, stream=0, count=index.shape[1])
            # what is not there goes last
            places = torch.where(there, keys, 2**32).argsort(dim=1, stable=True)
            index, there = index.gather(1, places), there.gather(1, places)
        return self.split(index, there)

    def split(self, index: Tensor, there: Tensor) -> _Drawn:
        rank = torch.arange(index.shape[1]).expand_as(index)
        if not self.y.is_floating_point() and self.order == "random":
            # how many earlier rows of its task have a row's class
            labels = torch.where(there, self.y[index], -1)
            grouped, places = labels.sort(dim=1, stable=True)
            begins = grouped != torch.cat([grouped[:, :1] - 1, grouped[:, :-1]], 1)
            begun = torch.where(begins, rank, 0).cummax(1).values
            rank = torch.empty_like(labels).scatter_(1, places, rank - begun)
            # where a class has two rows, one is left to judge by
            number = begins.cumsum(1) - 1
            sizes = torch.zeros_like(labels).scatter_add_(1, number, torch.ones_like(labels)).gather(1, number)
            most = torch.empty_like(labels).scatter_(1, places, (sizes - 1).clamp(1, self.support))
            return _Drawn(index, there & (rank < most), there & (rank >= most))
        return _Drawn(index, there & (rank < self.support), there & (rank >= self.support))


def _orders(seed: int, split: str, numbers: Sequence[int], ways: Tensor) -> Tensor:
    """Return an order of each number's ``ways`` classes ``(B, most)``, those that its task has not behind them."""
    most = int(ways.max())
    keys = bits(seed, split, numbers, stream=3, count=most)
    return torch.where(torch.arange(most) < ways.unsqueeze(1), keys, 2**32).argsort(dim=1, stable=True)


def _tasks_of(seed: int, split: str, numbers: Sequence[int], tasks: Tensor) -> Tensor:
    """Return the task of each number: the split's tasks in turn, those of 'train' in a new order every round."""
    if split != "train":
        return tasks[torch.tensor([number % len(tasks) for number in numbers], dtype=torch.int64)]
    rounds = sorted({number // len(tasks) for number in numbers})
    orders = dict(zip(rounds, bits(seed, split, rounds, stream=1, count=len(tasks)).argsort(dim=1, stable=True)))
    return torch.stack([tasks[orders[number // len(tasks)][number % len(tasks)]] for number in numbers])


def _usable(
    rows: Rows, splits: Mapping[str, Sequence[int]], ordered: _Ordered, on_short: str, ways: Tensor | None
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the tasks of each split that have support and query rows, and how many have not."""
    drawn = ordered.split(ordered.index, ordered.there)
    enough = drawn.query.any(1) & (drawn.support.sum(1) >= (ordered.support if rows.y.is_floating_point() else 1))
    enough &= True if ways is None else ways > 1
    kept, skipped = {}, {}
    for split, tasks in splits.items():
        short = [task for task in tasks if not enough[task]]
        if short and on_short == "error":
            many = f"{len(short)} of {len(tasks)} tasks of split {split!r} are too small"
            fix = "ask for fewer support rows, or skip such tasks (--on-short skip)"
            raise DataError(f"{_too_small(rows, ordered, short[0], ways)} ({many}); {fix}")
        kept[split] = torch.tensor([task for task in tasks if enough[task]], dtype=torch.int64)
        skipped[split] = len(short)
        if not len(kept[split]):
            fix = "ask for fewer support rows, or bring more tasks"
            raise DataError(
                f"split {split!r} has no task left with {ordered.support} support rows and a query row; {fix}"
            )
    return kept, skipped


def _too_small(rows: Rows, ordered: _Ordered, task: int, ways: Tensor | None) -> str:
    """Say why a task cannot be split into support and query rows."""
    if ways is not None and int(ways[task]) < 2:
        return f"task {rows.names[task]!r} has one class only, which there is nothing to tell from"
    count, support = int(ordered.there[task].sum()), ordered.support
    found = f"task {rows.names[task]!r} has {count} row{'s' * (count != 1)}"
    if rows.y.is_floating_point() or ordered.order == "first":
        return f"{found}, too few for {support} support rows and a query row"
    return f"{found}, but no class with two, so nothing would be left to judge on"


def _check_splits(rows: Rows, splits: Mapping[str, Sequence[int]]) -> None:
    seen = dict[int, str]()
    for split, tasks in splits.items():
        check_known("split", split, SPLITS)
        for task in tasks:
            if not 0 <= task < len(rows.names):
                raise UsageError(f"split {split!r} names task {task}, but there are {len(rows.names)}")
            if task in seen:
                raise UsageError(f"task {rows.names[task]!r} is in split {seen[task]!r} and in {split!r}")
            seen[task] = split


def _check_rows(rows: Rows, classes: int | None, labels: Sequence[Sequence[str]] | None) -> None:
    x, y, task = rows.x, rows.y, rows.task
    if not len(x) == len(y) == len(task) or not len(x):
        raise UsageError(f"x, y and task must have one row an example; got {len(x)}, {len(y)}, {len(task)}")
    if x.dtype == torch.bool or x.is_complex() or y.ndim != (2 if y.is_floating_point() else 1) or task.ndim != 1:
        raise UsageError(
            "expected x of numbers, y (N, outputs) floating or (N,) int64, and task (N,) int64; got x "
            f"{tuple(x.shape)} of {x.dtype}, y {tuple(y.shape)} of {y.dtype}, task {tuple(task.shape)} of {task.dtype}"
        )
    if not 0 <= int(task.min()) <= int(task.max()) < len(rows.names):
        ends = f"{int(task.min())} to {int(task.max())}"
        raise UsageError(f"task numbers go from {ends}, but there are {len(rows.names)} tasks")
    if not y.is_floating_point() and not 0 <= int(y.min()) <= int(y.max()) < (classes or int(y.max()) + 1):
        expected = "0 up" if classes is None else f"0 to {classes - 1}"
        raise UsageError(f"class ids go from {int(y.min())} to {int(y.max())}; expected {expected}")
    if labels is not None and (y.is_floating_point() or any(y >= torch.tensor([len(own) for own in labels])[task])):
        raise UsageError("labels must name the classes of each task, and y be their numbers")
    bad = ~(torch.isfinite(x).flatten(1).all(1) & torch.isfinite(y).reshape(len(y), -1).all(1))
    if bad.any():
        row = int(bad.int().argmax())
        raise DataError(
            f"row {row}, of task {rows.names[task[row]]!r}, holds a number that is not finite; leave it out"
        )
