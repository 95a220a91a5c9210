"""Few-shot classification tasks out of the examples of many classes: images, texts, or features of either.

A task is ``ways`` classes, and of each class some examples to learn from (the support set, ``shots`` a class)
and others to be judged on (the query set, ``queries`` a class). All examples stay as one tensor on the
training device; a batch of tasks is one computation of indices and one gather.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from annotated_types import Ge, Le
from torch import Tensor

from headstart.data.encoder import Encoded, Examples, encoded as encode
from headstart.data.meta_dataset import LEAST_WAYS, MOST_SUPPORT, draw_sizes, draw_ways
from headstart.data.random import SPLITS, below, bits, check_seed, check_sizes, distinct, size_range, streams
from headstart.data.rows import OnShort
from headstart.errors import DataError, LeakageError, ShapeError, ShortClassError, UsageError, check_known, check_text
from headstart.schema import Size
from headstart.types import Batch, Episodes, Pool, Tasks

Ways: TypeAlias = Annotated[int, Ge(2), Le(1000)]
Sampler: TypeAlias = Literal["balanced", "meta_dataset"]
Draw: TypeAlias = Callable[[str, Sequence[int]], tuple[Tensor, ...]]
"""Of a split and task numbers, tensors whose first axis is the task."""

_TASKS, _WORDS = 256, 2**17  # of a block, at most
_BLOCKS = 4  # kept: two of training, while validation uses others

_MOST_ON_DEVICE = 2**32  # bytes of a split; of more, what a batch of tasks needs is moved

_HELD_OUT = 0.2  # of the classes for validation, and as many for test

_TURN = re.compile(r"@(90|180|270)$")


class ClassStore(NamedTuple):
    """Examples of one split, grouped by class."""

    examples: Tensor
    """``(N, *shape)``, those of a class beside each other: images as uint8, texts as ids, features as floats."""
    starts: Tensor
    """``(K,)`` int64, where each class starts."""
    sizes: Tensor
    """``(K,)`` int64, the number of examples of each class."""
    names: tuple[str, ...]
    """K class names."""


def class_store(classes: Mapping[str, Tensor]) -> ClassStore:
    """Build a store from each class's examples, ``(n, *shape)`` of one type and shape; classes are sorted by name.

    Raises:
        DataError: no class.
        ShapeError: examples of different types or shapes.

    >>> class_store({"b": torch.zeros(3, 1, 2, 2, dtype=torch.uint8),
    ...              "a": torch.zeros(5, 1, 2, 2, dtype=torch.uint8)}).starts
    tensor([0, 5])
    """
    if not classes:
        raise DataError("no class to build a store from; expected at least one")
    names = tuple(sorted(classes))
    first = classes[names[0]]
    for name in names:
        own = classes[name]
        if own.dtype != first.dtype or own.dim() < 1 or own.shape[1:] != first.shape[1:]:
            raise ShapeError(
                f"examples of class {name!r} are {own.dtype} {tuple(own.shape)}; expected {first.dtype} (n,"
                f" {', '.join(map(str, first.shape[1:]))}), as those of class {names[0]!r}"
            )
    sizes = torch.tensor([len(classes[name]) for name in names])
    return ClassStore(torch.cat([classes[name] for name in names]), sizes.cumsum(0) - sizes, sizes, names)


def of_names(store: ClassStore) -> dict[str, Examples]:
    """Return each class's examples, by name: parts of the store's own tensor."""
    spans = zip(store.starts.tolist(), store.sizes.tolist())
    return {name: store.examples[start : start + size] for name, (start, size) in zip(store.names, spans)}


def rotated(store: ClassStore, keep: Sequence[bool] | None = None) -> ClassStore:
    """Add copies turned by 90, 180 and 270 degrees (counter-clockwise) as classes of their own.

    Class ``a`` gains ``a@90``, ``a@180`` and ``a@270``, after all original classes (Santoro et al. 2016,
    arXiv:1605.06065). To `few_shot`, which lets no two splits share a class, they are the class ``a``.

    Args:
        store: images as high as they are wide.
        keep: which classes to turn, one value a class; ``None``: all.

    Raises:
        ShapeError: images that are not square, or a ``keep`` of the wrong length.
    """
    height, width = store.examples.shape[-2:]
    if height != width:
        raise ShapeError(f"images are {height} x {width}; only square images can be turned by 90 degrees")
    keep = [True] * len(store.names) if keep is None else keep
    if len(keep) != len(store.names):
        raise ShapeError(f"keep has {len(keep)} values for {len(store.names)} classes; expected one a class")
    turned = [place for place, kept in enumerate(keep) if kept]
    if not turned:
        return store
    spans = zip(store.starts[turned].tolist(), store.sizes[turned].tolist())
    originals = torch.cat([store.examples[start : start + size] for start, size in spans])
    copies = [originals.rot90(quarter, (-2, -1)) for quarter in (1, 2, 3)]
    sizes = store.sizes[turned].repeat(3)
    return ClassStore(
        torch.cat((store.examples, *copies)),
        torch.cat((store.starts, len(store.examples) + sizes.cumsum(0) - sizes)),
        torch.cat((store.sizes, sizes)),
        store.names + tuple(f"{store.names[i]}@{angle}" for angle in (90, 180, 270) for i in turned),
    )


def original(name: str) -> str:
    """Return the name of the class that a class is a rotated copy of, or its own.

    >>> original("key@90"), original("key")
    ('key', 'key')
    """
    return _TURN.sub("", name)


def scaled(images: Tensor) -> Tensor:
    """Return uint8 images as models see them: float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


def shuffled(names: Iterable[str]) -> list[str]:
    """Return the names ordered by their SHA-256: a shuffle that no seed and no library version changes."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


_HELD_OUT = 0.2  # of the classes for validation, and as many for test


def class_splits(source: str, names: Collection[str], ways: int, otherwise: str) -> dict[str, list[str]]:
    """Return which classes each split has: `shuffled`, and a fifth each for validation and for test.

    Args:
        source: where the classes are, for the error.
        names: what they are called.
        ways: classes of a task.
        otherwise: how to say which class is in which split, for the error.

    Raises:
        ShortClassError: fewer classes in a split than ways.
    """
    for name in names:
        check_text(f"{source} has a class whose name", name)
    order = shuffled(names)
    held_out = max(round(_HELD_OUT * len(order)), 2 if len(order) >= 6 else 0)  # two at least are told apart
    found = dict(zip(SPLITS, (order[2 * held_out :], order[held_out : 2 * held_out], order[:held_out])))
    if held_out < ways:
        counts = ", ".join(f"{len(part)} for {split}" for split, part in found.items())
        raise ShortClassError(
            f"{source} has {len(order)} class{'es' * (len(order) > 1)} ({counts}), but {ways} ways need {ways} in each"
            f" split. {f'--ways {held_out} works; or' if held_out > 1 else 'Six classes are the fewest:'} add classes,"
            f" or {otherwise}. To learn these classes themselves, and train on none: `headstart adapt NETWORK"
            f" {source} --out FOLDER`, by a pretrained network, such as hf:FOLDER, or, for texts, ngrams."
        )
    return found


def _check_splits(name: str, stores: Mapping[str, ClassStore]) -> None:
    if not stores:
        raise DataError(f"{name} has no split; expected one of {', '.join(SPLITS)}")
    owner = dict[str, str]()
    shapes = {split: (store.examples.dtype, *store.examples.shape[1:]) for split, store in stores.items()}
    for split, store in stores.items():
        check_known("split", split, SPLITS)
        for called in store.names:
            check_text(f"{name} has a class whose name", called)
        if len(set(store.names)) < len(store.names):
            twice = Counter(store.names).most_common(1)[0][0]
            raise DataError(f"class {twice!r} is twice in split {split!r} of {name}; names must be unique")
        originals = {original(name) for name in store.names}
        shared = sorted(originals & owner.keys())
        if shared:
            more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
            raise LeakageError(
                f"splits {owner[shared[0]]!r} and {split!r} of {name} share class {shared[0]!r}{more}"
                " (a rotated copy is the same class). Every class must be in one split only."
            )
        owner |= dict.fromkeys(originals, split)
    if len(set(shapes.values())) > 1:
        raise ShapeError(f"the splits of {name} have examples of different types or shapes: {shapes}")


def _usable(
    name: str,
    stores: Mapping[str, ClassStore],
    split: str,
    ways: int,
    shots: int,
    queries: int,
    on_short: str,
    noun: str,
) -> ClassStore:
    """Return a split's store without short classes, or raise where that is not allowed or leaves too few."""
    store = stores[split]
    needed, sizes = shots + queries, store.sizes.tolist()
    kept, short = ([place for place, size in enumerate(sizes) if (size < needed) is less] for less in (False, True))
    if short and on_short == "error":
        raise ShortClassError(
            f"class {store.names[short[0]]!r} of split {split!r} has {sizes[short[0]]} {noun}, but {shots} support +"
            f" {queries} query {noun} need {needed}"
            + (f" (so do {len(short) - 1} other classes)" if len(short) > 1 else "")
            + f". {_what_works(stores, shots, needed)}"
        )
    if len(kept) < ways:
        raise ShortClassError(
            f"split {split!r} of {name} has {len(kept)} classes"
            + (f" ({len(short)} more were skipped: fewer than {needed} {noun})" if short else "")
            + f", but {ways} ways need {ways}. "
            + (f"--ways {most} works in every split." if (most := _most_ways(stores, needed)) > 1 else "Add classes.")
        )
    return ClassStore(store.examples, store.starts[kept], store.sizes[kept], tuple(store.names[i] for i in kept))


def _most_ways(stores: Mapping[str, ClassStore], needed: int) -> int:
    """Return how many classes every split has that are of so many examples."""
    return min(int((store.sizes >= needed).sum()) for store in stores.values())


def _what_works(stores: Mapping[str, ClassStore], shots: int, needed: int) -> str:
    sizes = torch.cat([store.sizes for store in stores.values()])
    left, least = int((sizes >= needed).sum()), int(sizes.min())
    told = f"--on-short skip leaves short classes out, and {left} of {len(sizes)}"
    if least < 2:
        return told
    fitting = f"--queries {least - shots}" if least > shots else f"--shots {least - 1} --queries 1"
    return f"{fitting} works for all {len(sizes)} classes; {told}"


def fitted(
    stores: Mapping[str, ClassStore], shots: int, ways: int | None, queries: int | None, on_short: OnShort
) -> tuple[int, int, list[str]]:
    """Return ways and queries, what is ``None`` fitted to the classes that there are, and what there is to say of it.

    Args:
        stores: the splits that are to have so many classes.
        shots: support examples a class, at most.
        ways: by default 5, or as many as every split has.
        queries: by default 15, or as many as the smallest class has left; where short classes are skipped, as many as
            leave enough classes.
    """
    notes, counts = list[str](), [len(store.names) for store in stores.values()]
    enough, why = min(ways or _WAYS, *counts), "the smallest class"
    if queries is None:
        most = min(int(store.sizes.min()) for store in stores.values()) - shots
        if on_short == "skip":
            why = f"{enough} classes of each split"
            most = next((n for n in range(_QUERIES, 0, -1) if _most_ways(stores, shots + n) >= enough), 1)
        queries = max(1, min(_QUERIES, most))
        if queries < _QUERIES:
            notes.append(f"queries: {queries} a class, as many as {why} can give")
    if ways is None:
        ways = max(2, min(_WAYS, _most_ways(stores, shots + queries)))
        if ways < _WAYS:
            notes.append(f"ways: {ways}, as many classes as every split has")
    few = min(counts)
    if few < _FEW:
        notes.append(
            f"the smallest split has {few} classes only: what is learned or judged there is of these alone; with other"
            " classes a score may differ by more than its interval says"
        )
    return ways, queries, notes


_WAYS, _QUERIES = 5, 15  # where nobody says
_FEW = 10  # classes
_CLASSES, _IMAGES, _SHOTS, _WAYS_OF_TASK = 0, 1, 2, 3  # streams of random numbers

#: What of `few_shot` a family says of its data, and no user.
GIVEN = ("details", "view", "noun")


def few_shot(
    name: str,
    stores: Mapping[str, ClassStore],
    *,
    ways: Ways = 5,
    shots: Size | tuple[Size, Size] = 1,
    queries: Size = 15,
    seed: int = 0,
    device: str | torch.device = "cpu",
    on_short: OnShort = "error",
    train_ways: Ways | None = None,
    sampler: Sampler = "balanced",
    encoder: str | None = None,
    encoded: Encoded = "features",
    details: Mapping[str, Any] | None = None,
    view: Callable[[Tensor], Tensor] | None = None,
    noun: str = "images",
) -> Tasks:
    """Make few-shot classification tasks out of stores of examples (Vinyals et al. 2016, arXiv:1606.04080).

    Every task draws ``ways`` classes of its split uniformly without replacement, in random order (a class's place is
    its label), and of each class examples alike, so support and query never share one. Examples are ordered by class:
    ``x`` is ``(B, n, *shape)``, ``y`` int64 ``(B, n)`` in ``0 … ways - 1``.

    Args:
        name: what the tasks are called.
        stores: by split: 'train', 'validation', 'test', or some of them.
        ways: classes of a task.
        shots: support examples a class, or a range ``(low, high)`` that each task draws one number for all its classes
            from; its support set has room for ``high``, and ``mask`` is false (``x`` zero) where there is no example.
        queries: query examples a class.
        seed: in ``[0, 2**32)``; decides the tasks.
        device: where the tasks are made, and the examples kept, unless a split takes over 4 GiB.
        on_short: what to do with a class of fewer than shots + queries examples: an error, or leave it out (counted in
            ``details['skipped_classes']``).
        train_ways: classes of a training task, where they differ from ``ways``.
        sampler: as many classes and shots in every task (``"balanced"``), or Meta-Dataset's unbalanced tasks of 5 to
            ``ways`` classes, with ``queries`` query examples a class at most and at most 500 support examples, to which
            a class adds no more than ``shots`` (``"meta_dataset"``; the paper has 50 ways, 100 shots and 10 queries).
        encoder: a pretrained network for images, such as ``hf:FOLDER`` or ``FILE.py:factory``, frozen: examples are its
            features, which are computed once and kept on disk.
        encoded: whether they are its features, or what it takes, for a model that is the network itself.
        details: more for the model card.
        view: ``(kept) -> x``: what models see of examples as they are kept; by default `scaled` where those are uint8,
            and else the same.
        noun: what examples are called in errors.

    Raises:
        UsageError: a number out of range.
        LeakageError: two splits share a class; a rotated copy counts as its original.
        ShortClassError: a class with too few examples, or a split with fewer classes than ways.
    """
    low, high = size_range("shots", shots)
    fewest = ways if train_ways is None else min(ways, train_ways)
    if fewest < 2:
        raise UsageError(f"ways must be at least 2 (there is nothing to tell apart in fewer), got {fewest}")
    check_sizes(queries=queries)
    check_known("on_short", on_short, get_args(OnShort))
    check_seed(seed)
    if encoder is not None:
        sources = {split: of_names(store) for split, store in stores.items()}
        shape = next(iter(stores.values())).examples.shape[1:]
        seen = encode(encoder, encoded, sources, "images")
        stores, view = {split: ClassStore(*store) for split, store in seen.stores.items()}, seen.view
        details = {**(details or {}), "encoder": seen.encoder._asdict(), "image_shape": tuple(shape)}
    ways_of = {split: train_ways if train_ways and split == "train" else ways for split in stores}
    _check_splits(name, stores)
    check_known("sampler", sampler, get_args(Sampler))
    if sampler == "meta_dataset":
        if low < high or high < 2 or max(ways_of.values()) > MOST_SUPPORT:
            raise UsageError(
                "the sampler meta_dataset draws the shots of each class, so --shots says what a class may add at most,"
                f" as one number from 2 up, and --ways is at most {MOST_SUPPORT}; got --shots {shots} --ways"
                f" {max(ways_of.values())} (the paper has --ways 50 --shots 100 --queries 10)"
            )
        usable = {s: _usable(name, stores, s, min(ways_of[s], LEAST_WAYS), 1, 1, on_short, noun) for s in stores}
        ways_of = {split: min(most, len(usable[split].names)) for split, most in ways_of.items()}
    else:
        usable = {s: _usable(name, stores, s, ways_of[s], high, queries, on_short, noun) for s in stores}
    # rows are gathered: channels that lie last would be moved at every batch
    held = {split: _held(store.examples, torch.device(device)) for split, store in usable.items()}
    count, shown = high + queries, view or (scaled if next(iter(held.values())).dtype == torch.uint8 else torch.clone)

    def draw(split: str, numbers: Sequence[int]) -> tuple[Tensor, ...]:
        """Draw the rows of examples ``(B, ways, count)``, and, where shots vary, the support sets' masks."""
        store, ways = usable[split], ways_of[split]
        class_words, words = streams(seed, split, numbers, {_CLASSES: 2 * ways, _IMAGES: 2 * ways * count})
        classes = _classes(store, class_words)
        places = distinct(words.reshape(len(numbers), ways, 2 * count), store.sizes[classes], count)
        rows = store.starts[classes][..., None] + places
        if low == high:
            return (rows,)
        shots = low + below(bits(seed, split, numbers, _SHOTS, 1), high - low + 1)
        return rows, (torch.arange(high) < shots).repeat(1, ways)

    def draw_unbalanced(split: str, numbers: Sequence[int]) -> tuple[Tensor, ...]:
        """Draw the rows of examples, their labels and masks: ``(B, n)`` each, of the support and of the query sets."""
        store, most = usable[split], ways_of[split]
        largest = int(store.sizes.max())
        class_words, words = streams(seed, split, numbers, {_CLASSES: 2 * most, _IMAGES: most * largest})
        classes = _classes(store, class_words)
        images, drawn_ways = store.sizes[classes], draw_ways(seed, split, numbers, _WAYS_OF_TASK, most)
        sizes = draw_sizes(seed, split, numbers, _SHOTS, drawn_ways, images, high, queries)
        # a class's examples in random order: first those of the support set, then those of the query set
        keys = torch.where(torch.arange(largest) < images[..., None], words.view(*images.shape, largest), 2**32)
        rows = (store.starts[classes][..., None] + keys.argsort(dim=-1, stable=True)).flatten(1)
        place, shots = torch.arange(largest), sizes.shots[..., None]
        asked = (place >= shots) & (place < shots + sizes.queries[:, None, None]) & (shots > 0)
        labels = torch.arange(most)[:, None].expand(most, largest).flatten().expand_as(rows)
        widths = (
            min(MOST_SUPPORT, int((store.sizes - 1).clamp(max=high).topk(most).values.sum())),
            most * min(queries, largest // 2),
        )
        return (
            *_beside(rows, labels, (place < shots).flatten(1), widths[0]),
            *_beside(rows, labels, asked.flatten(1), widths[1]),
        )

    balanced = sampler == "balanced"
    largest = max(int(store.sizes.max()) for store in usable.values())
    words = 2 * max(ways_of.values()) * (count if balanced else largest)
    drawn = drawn_ahead(draw if balanced else draw_unbalanced, words)

    def sample(split: str, numbers: Sequence[int]) -> Episodes:
        check_known("split", split, held)
        rows, *more = drawn(split, list(numbers))
        if balanced:
            return _episodes(held[split], torch.device(device), shown, rows, high, *more)
        return Episodes(
            *(_padded(held[split], torch.device(device), shown, *part) for part in ((rows, *more[:2]), more[2:]))
        )

    def classes(split: str, numbers: Sequence[int]) -> Tensor:
        (words,) = streams(seed, split, numbers, {_CLASSES: 2 * ways_of[split]})
        return _classes(usable[split], words)

    def names(split: str, number: int) -> tuple[str, ...]:
        places = classes(split, [number])[0].tolist()
        own = ways_of[split] if balanced else int(draw_ways(seed, split, [number], _WAYS_OF_TASK, ways_of[split])[0])
        return tuple(usable[split].names[place] for place in places[:own])

    return Tasks(
        name=name,
        sample=sample,
        kind="classification",
        input_shape=tuple(next(iter(held.values())).shape[1:]),
        output_size=ways,
        details={
            "ways": ways if balanced else (min(ways, LEAST_WAYS), ways),
            "shots": shots,
            "queries": queries,
            "sampler": sampler,
            "seed": seed,
            "class_names": {split: store.names for split, store in stores.items()},
            "classes": {split: len(store.names) for split, store in usable.items()},
            noun: {split: int(store.sizes.sum()) for split, store in usable.items()},
            "skipped_classes": sum(len(stores[s].names) - len(usable[s].names) for s in stores),
            **({} if train_ways is None else {"train_ways": train_ways}),
            **(details or {}),
        },
        names=names,
        pool=Pool(len(usable["train"].names), partial(classes, "train")) if "train" in usable else None,
        integers=not shown(next(iter(held.values()))[:1]).is_floating_point(),
    )


def _classes(store: ClassStore, words: Tensor) -> Tensor:
    """Return the classes of tasks ``(B, ways)`` that two random words each decide."""
    return distinct(words, torch.full((len(words),), len(store.names)), words.shape[1] // 2)


def _held(examples: Tensor, device: torch.device) -> Tensor:
    """Return examples on the device, and where they are too many for that, as they are."""
    return (examples if examples.nbytes > _MOST_ON_DEVICE else examples.to(device)).contiguous()


def _episodes(
    kept: Tensor,
    device: torch.device,
    view: Callable[[Tensor], Tensor],
    rows: Tensor,
    shots: int,
    mask: Tensor | None = None,
) -> Episodes:
    """Gather examples and labels; indices are computed on the CPU (many small operations) and copied once."""
    tasks, ways, count = rows.shape
    sizes = (shots, count - shots)
    wanted = torch.cat([rows[:, :, :shots].flatten(), rows[:, :, shots:].flatten()])
    wanted, flat = wanted.to(kept.device, non_blocking=True), kept.flatten(1)
    if flat.dtype == torch.uint8 and not flat.shape[1] % 8 and not flat.storage_offset() % 8:
        flat = flat.view(torch.int64)  # rows of long words, of which there are fewer to copy
    chosen = view(
        flat.index_select(0, wanted).view(kept.dtype).unflatten(1, kept.shape[1:]).to(device, non_blocking=True)
    )
    first = tasks * ways * shots
    halves = zip((chosen[:first], chosen[first:]), sizes)
    x_support, x_query = (half.view(tasks, ways * n, *chosen.shape[1:]) for half, n in halves)
    if mask is not None:
        mask = mask.to(device, non_blocking=True, copy=True)
        x_support.mul_(mask.view(tasks, ways * shots, *(1,) * (chosen.dim() - 1)))
    labels = torch.arange(ways, device=device)[:, None]
    spread = (labels.expand(tasks, ways, n).clone(memory_format=torch.contiguous_format) for n in sizes)
    y_support, y_query = (labels.flatten(1) for labels in spread)
    return Episodes(Batch(x_support, y_support, mask), Batch(x_query, y_query))


def _beside(rows: Tensor, labels: Tensor, chosen: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the chosen rows and labels of each task beside each other, ``(B, width)``, and which of them are there."""
    places = (~chosen).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
    mask = chosen.gather(1, places)
    rows, labels = (torch.where(mask, part.gather(1, places), 0) for part in (rows, labels))
    return rows, labels, mask


def _padded(
    kept: Tensor,
    device: torch.device,
    view: Callable[[Tensor], Tensor],
    rows: Tensor,
    labels: Tensor,
    mask: Tensor,
) -> Batch:
    labels, mask = (part.to(device, non_blocking=True, copy=True) for part in (labels, mask))
    chosen = kept.index_select(0, rows.to(kept.device, non_blocking=True).flatten()).to(device, non_blocking=True)
    x = view(chosen)
    x = x.view(*rows.shape, *x.shape[1:])
    return Batch(x.mul_(mask.view(*mask.shape, *(1,) * (x.dim() - 2))), labels, mask)


def drawn_ahead(draw: Draw, words: int) -> Draw:
    """Return what ``draw`` computes, and keep what it will be asked for next.

    Numbers that follow each other are cut from blocks of up to 256 tasks: the time of small draws goes into starting
    operations. ``draw`` must draw a task by its number alone, and nothing may write into what is returned.

    Args:
        draw: what to compute.
        words: about how many numbers a task takes; blocks are smaller where it is large.
    """
    size = min(_TASKS, _WORDS // max(words, 1))

    @lru_cache(maxsize=_BLOCKS)
    def block(split: str, number: int) -> tuple[Tensor, ...]:
        return draw(split, range(number * size, min((number + 1) * size, 2**63)))

    def cut(split: str, numbers: Sequence[int]) -> tuple[Tensor, ...]:
        count, first = len(numbers), int(numbers[0]) if numbers else -1  # numpy's integers may be too short
        if not 0 <= first < 2**63 - count or count >= size or list(numbers) != list(range(first, first + count)):
            return draw(split, numbers)
        low, high = first // size, (first + count - 1) // size
        parts = block(split, low)
        if high > low:
            parts = tuple(map(torch.cat, zip(parts, block(split, high))))
        start = first - low * size
        return tuple(part[start : start + count] for part in parts)

    return cut
