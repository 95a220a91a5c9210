"""People's own data sets and loaders as tasks: anything with ``len`` and ``[…]``, and anything that gives episodes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from headstart.core.tree import mapped, tensors_of
from headstart.data.fewshot import GIVEN, ClassStore, Ways, class_splits, few_shot, fitted
from headstart.data.images.augment import Change, augmented
from headstart.data.random import SPLITS, size_range
from headstart.errors import DataError, ShapeError, UsageError, check_known
from headstart.schema import Size, extends
from headstart.types import Batch, Episodes, Tasks


@extends(few_shot, without=GIVEN)
def from_dataset(
    dataset: Any,
    *,
    ways: Ways | None = None,
    shots: Size | tuple[Size, Size] = 1,
    queries: Size | None = None,
    augment: Sequence[Change] = (),
    name: str = "dataset",
    **options: Any,
) -> Tasks:
    """Make few-shot tasks out of a data set of (example, label), such as those of torchvision and `torch.utils.data`.

    Every example is read once and kept in memory. The classes of one data set are shuffled by the SHA-256 of their
    names, and a fifth each is for validation and for test; a mapping of data sets says the splits itself.

    Args:
        dataset: anything with ``len(dataset)`` and ``dataset[i] -> (x, label)``, or such by 'train', 'validation' and
            'test'. ``x`` is a tensor, an array or a PIL image, of one shape and type; uint8 is seen as float in [0, 1].
            A label is a number or a text; ``dataset.classes``, where there is such a list, has the names of numbers.
        ways: classes of a task, by default 5, or as many as every split has.
        queries: query examples a class, by default 15, or as many as the smallest class has left.
        augment: how training images in [0, 1] are changed at random: any of crop, flip and colour.
        name: what the tasks are called.
        options: those of `few_shot`.

    Raises:
        UsageError: something without ``len`` and ``[…]``.
        DataError: items that are no pairs, examples that are no numbers or not finite.
        ShapeError: examples of different shapes or types.
        ShortClassError: too few classes for the ways, or too few examples in a class.
        LeakageError: a class in two splits.

    >>> pairs = [(torch.full((4,), float(i)), f"class {i % 10}") for i in range(40)]
    >>> from_dataset(pairs, ways=2).sample("train", [0]).support.x.shape
    torch.Size([1, 2, 4])
    """
    if isinstance(dataset, Mapping):
        for split in dataset:
            check_known("split", split, SPLITS)
        stores = {split: _store(dataset[split], f"dataset[{split!r}]") for split in SPLITS if split in dataset}
    else:
        every = _store(dataset, "the data set")
        split = class_splits("the data set", every.names, ways or 2, "give a data set for each split")
        stores = {part: _part(every, names) for part, names in split.items()}
    on_short, own_ways = options.get("on_short", "error"), options.get("train_ways")
    judged = {part: store for part, store in stores.items() if part != "train" or own_ways is None}
    ways, queries, notes = fitted(judged, size_range("shots", shots)[1], ways, queries, on_short)
    details = {"notes": tuple(notes), "class_names": {part: list(store.names) for part, store in stores.items()}}
    made = few_shot(name, stores, ways=ways, shots=shots, queries=queries, details=details, noun="examples", **options)
    return augmented(made, augment, options.get("seed", 0))


def _store(dataset: Any, told: str) -> ClassStore:
    """Read every example of a data set, and put those of a class beside each other; classes are sorted by name."""
    try:
        count = len(dataset)
    except TypeError as error:
        raise UsageError(
            f"{told} is a {type(dataset).__name__}, without len() and […]; expected a data set of (x, label), or"
            " give what is iterated over as episodes to headstart.data.from_episodes"
        ) from error
    if not count:
        raise DataError(f"{told} is empty; expected pairs of (x, label)")
    examples, labels, classes = torch.empty(0), list[str](), getattr(dataset, "classes", None)
    for place in range(count):
        x, label = _pair(dataset[place], f"item {place} of {told}")
        if not place:
            examples = torch.empty(count, *x.shape, dtype=x.dtype)
        if x.shape != examples.shape[1:] or x.dtype != examples.dtype:
            raise ShapeError(
                f"item {place} of {told} is {x.dtype} {tuple(x.shape)}, but item 0 is {examples.dtype}"
                f" {tuple(examples.shape[1:])}; make all alike, such as by the data set's transform"
            )
        examples[place] = x
        labels.append(_called(label, classes, f"item {place} of {told}"))
    if examples.dtype.is_floating_point and not bool(examples.isfinite().all()):
        place = int((~examples.flatten(1).isfinite().all(1)).nonzero()[0])
        raise DataError(f"item {place} of {told} has numbers that are not finite")
    names = sorted(set(labels))
    ids = torch.tensor([{own: at for at, own in enumerate(names)}[label] for label in labels])
    sizes = ids.bincount(minlength=len(names))
    return ClassStore(examples[ids.argsort(stable=True)], sizes.cumsum(0) - sizes, sizes, tuple(names))


def _pair(item: Any, told: str) -> tuple[Tensor, Any]:
    if not isinstance(item, Sequence) or isinstance(item, str) or len(item) != 2:
        raise DataError(f"{told} is a {type(item).__name__}, expected a pair (x, label)")
    x, label = item
    if isinstance(x, Image.Image):
        if x.mode == "F" or x.mode.startswith("I"):
            raise DataError(f"x of {told} is an image of mode {x.mode}, whose numbers go beyond 255; make it an array")
        kept = np.array(x if x.mode in ("L", "RGB") else x.convert("RGB"))
        return torch.from_numpy(kept[..., None] if kept.ndim == 2 else kept).movedim(-1, 0), label
    if isinstance(x, np.ndarray) and x.dtype.kind in "fiub":
        x = torch.from_numpy(np.ascontiguousarray(x, x.dtype.newbyteorder("=")))
    if not isinstance(x, Tensor):
        raise DataError(f"x of {told} is a {type(x).__name__}; expected a tensor, an array of numbers or a PIL image")
    if x.layout != torch.strided or x.is_complex() or not x.dim():
        what = f"{tuple(x.shape)} of {x.dtype}, {x.layout}"
        raise DataError(f"x of {told} is {what}; expected a dense tensor of real numbers with one axis or more")
    return x.detach().cpu(), label


def _called(label: Any, classes: Any, told: str) -> str:
    """Return what a label is called."""
    single = (
        isinstance(label, Tensor)
        and label.numel() == 1
        or isinstance(label, np.generic | np.ndarray)
        and label.size == 1
    )
    value = label.item() if single else label
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(f"the label of {told} is {label!r:.100}; expected a whole number or a text")
    known = isinstance(classes, Sequence) and not isinstance(classes, str) and 0 <= value < len(classes)
    return str(classes[value]) if known else str(value)


def _part(store: ClassStore, names: Sequence[str]) -> ClassStore:
    places = [store.names.index(name) for name in sorted(names)]
    return store._replace(starts=store.starts[places], sizes=store.sizes[places], names=tuple(sorted(names)))


def from_episodes(
    sources: Mapping[str, Iterable[Any]],
    *,
    outputs: int | None = None,
    name: str = "episodes",
    details: Mapping[str, Any] | None = None,
) -> Tasks:
    """Make tasks of what other people's loaders give: by split, anything that can be iterated over for episodes.

    Task ``t`` of a split is the ``t``-th that an iteration gives; asked for an earlier one, the source is iterated over
    anew. So a source that shuffles gives other tasks each time, and what is said of runs that go on holds for a source
    that always gives the same. Lists, ``DataLoader`` and anything with ``__iter__`` can be iterated over again;
    generators cannot.

    Args:
        sources: by 'train', 'validation' and 'test', or some of them. An item is `Episodes`, or a pair of pairs
            ``((support x, support y), (query x, query y))``, of any number of tasks, which all tensors' first axis is.
        outputs: number of ways, or of target values; by default as the first item has it.
        name: what the tasks are called.
        details: more for the model card.

    Raises:
        UsageError: no source, or an unknown split.
        DataError: a source that is empty, and when they are sampled: items that are no episodes, labels that are no
            class, a source that ends, or cannot be iterated over again.

    >>> from headstart.testing import random_episodes
    >>> made = from_episodes({"train": [random_episodes((6,), outputs=3) for _ in range(5)]})
    >>> made.kind, made.output_size, made.sample("train", [2, 3, 4]).query.x.shape[0]
    ('classification', 3, 3)
    """
    if not sources:
        raise UsageError(f"no source of episodes; expected one of {', '.join(SPLITS)}")
    for split, source in sources.items():
        check_known("split", split, SPLITS)
        if not isinstance(source, Iterable):
            raise UsageError(f"the source of {split!r} is a {type(source).__name__}, which cannot be iterated over")
    streams = {split: _Stream(split, source) for split, source in sources.items()}
    firsts = {split: stream.take(0, 1) for split, stream in streams.items()}
    first = firsts[next(split for split in SPLITS if split in firsts)]
    classes = not first.query.y.is_floating_point()
    own = 1 + int(max(first.support.y.max(), first.query.y.max())) if classes else first.query.y[0, 0].numel()
    size = outputs or own

    def sample(split: str, numbers: Sequence[int]) -> Episodes:
        check_known("split", split, streams)
        wanted = [int(number) for number in numbers]
        runs = [place for place in range(len(wanted)) if not place or wanted[place] != wanted[place - 1] + 1]
        spans = zip(runs, [*runs[1:], len(wanted)])
        found = _joined([streams[split].take(wanted[start], end - start) for start, end in spans], split)
        for part in found if classes else ():
            if not 0 <= int(part.y.min()) <= int(part.y.max()) < size:
                raise DataError(
                    f"tasks {wanted[0]} to {wanted[-1]} of {split!r} have labels from {int(part.y.min())} to"
                    f" {int(part.y.max())}; expected 0 to {size - 1} (say outputs= where the first task has fewer)"
                )
        return found

    kind = cast(Any, "classification" if classes else "regression")
    shape = tuple(first.support.x.shape[2:]) if isinstance(first.support.x, Tensor) else ()
    return Tasks(name, sample, kind, shape, size, dict(details or {}))


class _Stream:
    """Where an iteration of a source stands."""

    def __init__(self, split: str, source: Iterable[Any]):
        self.split, self.source = split, source
        self.again()

    def again(self) -> None:
        """Begin an iteration."""
        items: Iterator[Any] = iter(self.source)
        self.items, self.read = items, 0
        self.held: Episodes | None = None
        self.begun = 0

    def take(self, first: int, count: int) -> Episodes:
        """Return tasks ``first`` to ``first + count - 1``."""
        if first < self.begun:
            if iter(self.source) is self.source:
                raise DataError(
                    f"task {first} of {self.split!r} was asked for after task {self.read - 1}, but its source can be"
                    " iterated over once only; give one that can be again, such as a list or a DataLoader"
                )
            self.again()
        parts, place = list[Episodes](), first
        while place < first + count:
            while self.held is None or place >= self.read:
                self._next()
            start = place - self.begun
            parts.append(_tasks(self.held, start, min(first + count, self.read) - self.begun))
            place = min(first + count, self.read)
        return _joined(parts, self.split)

    def _next(self) -> None:
        try:
            item = next(self.items)
        except StopIteration:
            raise DataError(
                f"the source of {self.split!r} ended after {self.read} tasks, and more were asked for; ask for fewer"
                " (steps, episodes), or give one without an end"
            ) from None
        self.held = _episodes(item, f"item after {self.read} tasks of {self.split!r}")
        self.begun, self.read = self.read, self.read + len(self.held.query.y)


def _tasks(episodes: Episodes, start: int, end: int) -> Episodes:
    """Return the tasks ``start`` to ``end - 1`` of episodes."""
    return cast(Episodes, mapped(lambda leaf: leaf[start:end] if isinstance(leaf, Tensor) else leaf, episodes))


def _episodes(item: Any, told: str) -> Episodes:
    sound = False
    try:
        support, query = item
        found = Episodes(*(part if isinstance(part, Batch) else Batch(*part) for part in (support, query)))
        sound = len({len(leaf) for leaf in tensors_of(found)}) == 1 and all(part.y.dim() >= 2 for part in found)
    except (AttributeError, TypeError, ValueError):
        found = None
    if found is not None and sound:
        if not all(bool(leaf.isfinite().all()) for leaf in tensors_of(found)):
            raise DataError(f"{told} has numbers that are not finite")
        return found
    raise DataError(
        f"{told} is no episodes: expected headstart.Episodes, or ((x, y), (x, y)) of a support and a query set, all"
        " tensors (tasks, examples, …) of as many tasks"
    )


def _joined(parts: Sequence[Episodes], split: str) -> Episodes:
    """Return the tasks of several episodes as one."""
    if len(parts) == 1:
        return parts[0]
    leaves, shape = zip(*(tree_flatten(part) for part in parts))
    try:
        every = [torch.cat(own) if isinstance(own[0], Tensor) else own[0] for own in zip(*leaves, strict=True)]
    except (RuntimeError, ValueError, TypeError) as error:
        raise DataError(
            f"tasks of {split!r} that were asked for together have different sizes: {error}. Let every item of the"
            " source hold as many tasks as are learned from at a time (tasks_per_step), or pad them, with a mask"
        ) from error
    return cast(Episodes, tree_unflatten(every, shape[0]))
