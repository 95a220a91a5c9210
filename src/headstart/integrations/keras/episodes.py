"""From families of tasks, arrays and datasets to batches of episodes for TensorFlow."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from headstart.errors import DataError, ShapeError, UsageError
from headstart.integrations.keras.backend import tf
from headstart.integrations.keras.forward import dense
from headstart.types import Batch, Episodes, Tasks

Element: TypeAlias = tuple[tuple[Any, ...], tuple[Any, ...]]
"""``((x, y), (x, y))`` of support and query sets, or ``((x, y, mask), (x, y, mask))``, with a task axis."""


def of_family(
    tasks: Tasks, split: str, turned: Callable[[Any], Any], batch: int, *, first: Callable[[], int] | None = None
) -> Any:
    """Return a dataset of a family's episodes, ``batch`` tasks at a time, prefetched.

    Where ``first`` is given they go on without end: a family with so many tasks begins again. Otherwise each of its
    tasks comes once, in order.

    Args:
        tasks: the family, whose tensors are handed over as NumPy arrays.
        split: 'train', 'validation' or 'test'.
        turned: what `turn` gave: how inputs become the model's.
        batch: B.
        first: the number of the task to begin with, asked when the dataset is begun.
    """
    counts, endless = tasks.counts or {}, tasks.counts is None
    count = int(counts.get(split, 0))
    if not endless and not count:
        listed = ", ".join(f"{number} {name}" for name, number in counts.items())
        raise UsageError(f"there is no task in split {split!r} of {tasks.name!r}; it has {listed}")
    once = not endless and first is None

    def draw(numbers: list[int]) -> Element:
        support, query = tasks.sample(split, numbers)
        return _element(support, turned), _element(query, turned)

    def generate() -> Iterator[Element]:
        place = 0 if first is None else first()
        while not once or place < count:
            numbers = [*range(place, place + batch)]
            if not endless:
                numbers = [n for n in numbers if n < count] if once else [n % count for n in numbers]
            yield draw(numbers)
            place += batch

    one = draw([0])
    last = None if once and count % batch else batch
    signature = tf.nest.map_structure(lambda leaf: tf.TensorSpec([last, *_free(leaf, tasks)], leaf.dtype), one)
    made = tf.data.Dataset.from_generator(generate, output_signature=signature)
    if once:
        made = made.apply(tf.data.experimental.assert_cardinality(-(-count // batch)))
    return made.prefetch(2)


def _free(leaf: Any, tasks: Tasks) -> list[int | None]:
    """Return the shape of a task's part: how many examples there are may differ where tasks are padded."""
    shape: list[int | None] = list(leaf.shape[1:])
    if tasks.counts is not None:
        shape[0] = None
    return shape


def _element(batch: Batch, turned: Callable[[Any], Any]) -> tuple[Any, ...]:
    x, y = turned(np.asarray(batch.x)), np.asarray(batch.y)
    return (x, y) if batch.mask is None else (x, y, np.asarray(batch.mask))


def turn(tasks: Tasks, shape: tuple[int | None, ...], data_format: str) -> Callable[[Any], Any]:
    """Return how a family's inputs become the model's: as they are, or with channels last.

    Args:
        tasks: the family.
        shape: that of the model's inputs.
        data_format: of the model, which tells where both fit: channels as many as an image is high and wide.

    Raises:
        ShapeError: neither fits.
    """
    own, last = tasks.input_shape, (*tasks.input_shape[1:], *tasks.input_shape[:1])
    fits = [len(shape) == len(s) and all(a is None or a == b for a, b in zip(shape, s)) for s in (own, last)]
    images = len(own) == 3
    if images and fits[1] and (not fits[0] or data_format == "channels_last"):
        return lambda x: np.moveaxis(x, -3, -1)
    if not fits[0]:
        also = f", or {last} with channels last" if images else ""
        raise ShapeError(
            f"the tasks' inputs have shape {own}{also}, and the model takes {shape}; give it such an Input"
        )
    return lambda x: x


class Order(NamedTuple):
    """In which order tasks in arrays are trained on: by the outer steps, so that a restored run goes on as it was."""

    seed: int
    """Of what is drawn."""
    step: Callable[[], int]
    """The outer step that comes next, asked at the beginning of each epoch."""
    first: int
    """The outer step at which the first pass over all tasks begins."""
    shuffle: bool
    """Whether each pass has an order of its own, and leaves out the tasks of a short last batch."""

    def rows(self, count: int, batch: int) -> Iterator[Any]:
        """Yield which of ``count`` tasks are each step's, for as many steps as a pass has."""
        steps = count // batch if self.shuffle else -(-count // batch)
        now = self.step()
        first = min(self.first, now)
        for place in range(now - first, now - first + steps):
            begun = first + place // steps * steps
            drawn = np.random.default_rng((self.seed % 2**63, begun)).permutation(count) if self.shuffle else None
            here = slice(place % steps * batch, (place % steps + 1) * batch)
            yield np.arange(count)[here] if drawn is None else drawn[here]


def of_arrays(episodes: Episodes, batch: int, *, order: Order | None = None) -> Any:
    """Return a dataset of episodes in arrays whose first axis is the task.

    Args:
        episodes: the arrays.
        batch: B.
        order: that of training; otherwise each task comes once, as they stand.

    Raises:
        ShapeError: they are not of as many tasks.
        DataError: numbers that are not finite.
    """
    parts = tuple(_arrays(tuple(part[:2] if part.mask is None else part[:3])) for part in episodes)
    for part in parts:
        if len(part) == 2:  # a mask leaves out what may be anything
            _check_finite(part)
    counts = {len(leaf) for leaf in tf.nest.flatten(parts)}
    if len(counts) != 1:
        raise ShapeError(f"all arrays of episodes begin with the task axis; they have {sorted(counts)} tasks")
    count = counts.pop()
    batch = min(batch, count)
    short = count % batch > 0
    if order is None:
        return tf.data.Dataset.from_tensor_slices(parts).batch(batch, drop_remainder=not short).prefetch(2)
    rows = tf.TensorSpec([None if short and not order.shuffle else batch], tf.int64)
    made = tf.data.Dataset.from_generator(lambda: order.rows(count, batch), output_signature=rows)
    steps = count // batch + (short and not order.shuffle)
    whole = tf.nest.map_structure(tf.convert_to_tensor, parts)

    @tf.autograph.experimental.do_not_convert
    def taken(rows: Any) -> Any:
        return tf.nest.map_structure(lambda leaf: tf.gather(leaf, rows), whole)

    return made.map(taken).apply(tf.data.experimental.assert_cardinality(steps)).prefetch(2)


def _arrays(value: Any) -> Any:
    """Return arrays, all of whose lists are tuples, since a dataset takes a list for an array."""
    if isinstance(value, dict):
        return {name: _arrays(part) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(map(_arrays, value))
    return dense(value, "episodes") if tf.is_tensor(value) else np.asarray(value)


def _check_finite(part: Any) -> None:
    for leaf in map(np.asarray, tf.nest.flatten(part)):
        if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
            task = np.argwhere(~np.isfinite(leaf))[0][0]
            raise DataError(f"task {task} holds numbers that are not finite (NaN or infinite); leave out such examples")


def is_episodes(value: Any) -> bool:
    """Return whether a value looks like ``((x, y), (x, y))``, perhaps with masks, or an `Episodes`."""
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(part, (tuple, list)) and len(part) in (2, 3, 4) for part in value)
    )


def episodes_of(element: Any) -> Episodes:
    """Return what a dataset yields as values.

    Raises:
        UsageError: it is no episodes.
    """
    if not is_episodes(element):
        raise UsageError(
            "a dataset of episodes yields ((x, y), (x, y)), the support and query sets of B tasks, each (tasks, "
            f"examples, …), perhaps with masks (tasks, examples) as third parts; this one yields {_told(element)}"
        )
    return Episodes(*(part if isinstance(part, Batch) else Batch(*part) for part in element))


def _told(element: Any) -> str:
    if isinstance(element, (tuple, list)):
        return f"({', '.join(map(_told, element))})"
    return (
        f"{{{', '.join(element)}}}"
        if isinstance(element, dict)
        else str(getattr(element, "shape", type(element).__name__))
    )
