"""Losses of B tasks at once, ``(outputs, batch) -> (B,)``, of those that Keras knows: means over a task's examples."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from headstart.errors import DataError, ShapeError, UsageError
from headstart.integrations.keras.backend import keras, tf
from headstart.types import Batch

TaskLoss: TypeAlias = Callable[[Any, Batch], Any]

#: What headstart calls the losses that it names on PyTorch.
NAMES = {
    "cross_entropy": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "mse": lambda: keras.losses.MeanSquaredError(),
}
#: Losses of numbers, which take class ids for numbers.
OF_NUMBERS = (
    "mean_squared_error mean_absolute_error mean_absolute_percentage_error mean_squared_logarithmic_error huber "
    "log_cosh MeanSquaredError MeanAbsoluteError MeanAbsolutePercentageError MeanSquaredLogarithmicError Huber LogCosh"
).split()
#: How what is said of labels out of range begins.
LABELS = "integer labels"
OF_CLASS_IDS = ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy")


def resolve(loss: Any, weights: Any = None) -> TaskLoss:
    """Return a Keras loss as one loss a task.

    Args:
        loss: a name of Keras's or of headstart's (``"cross_entropy"``: class ids and logits; ``"mse"``), a
            ``keras.losses.Loss``, a function ``(y_true, y_pred) -> one loss an example``, or a list or dict of these
            for a model of several outputs.
        weights: of several losses, which are added.
    """
    if isinstance(loss, (list, tuple, Mapping)):
        return _several(loss, weights)
    return _of_one(_found(loss))


def is_of_class_ids(loss: Any) -> bool:
    """Return whether a loss, as `resolve` takes one, is of class ids and logits."""
    return not isinstance(loss, (list, tuple, Mapping)) and _name(_found(loss)) in OF_CLASS_IDS


def _found(loss: Any) -> Any:
    if isinstance(loss, str) and loss in NAMES:
        return NAMES[loss]()
    try:
        found = keras.losses.get(loss)
    except ValueError as error:
        raise UsageError(f"{str(error).strip()}; or name one of headstart's: {', '.join(NAMES)}") from error
    if found is None:
        raise UsageError("a loss is missing: compile(optimizer, loss=…), such as loss='cross_entropy' or 'mse'")
    return found


def _name(loss: Any) -> str:
    return getattr(loss, "__name__", type(loss).__name__)


def _several(losses: Any, weights: Any) -> TaskLoss:
    keys = list(losses) if isinstance(losses, Mapping) else range(len(losses))
    parts = {key: resolve(losses[key]) for key in keys}
    scales = {key: 1.0 if weights is None else weights[key] for key in keys}

    def total(outputs: Any, batch: Batch) -> Any:
        if not isinstance(outputs, (list, tuple, Mapping)) or len(outputs) != len(parts):
            count = len(outputs) if isinstance(outputs, (list, tuple, Mapping)) else 1
            raise ShapeError(f"there are {len(parts)} losses for {count} outputs of the model; give one for each")
        return tf.add_n(
            [scales[key] * part(outputs[key], batch._replace(y=batch.y[key])) for key, part in parts.items()]
        )

    return total


def _of_one(loss: Any) -> TaskLoss:
    name = _name(loss)
    of_examples = loss.call if isinstance(loss, keras.losses.Loss) else loss
    added = getattr(loss, "reduction", None) == "sum"
    looked: list[bool] = []

    def task_loss(outputs: Any, batch: Batch) -> Any:
        y = batch.y
        _check(name, outputs, y)
        tasks, examples = tf.shape(outputs)[0], tf.shape(outputs)[1]
        flat, targets = (tf.reshape(v, tf.concat([[-1], tf.shape(v)[2:]], 0)) for v in (outputs, y))
        flat.set_shape([None, *outputs.shape[2:]])
        targets.set_shape([None, *y.shape[2:]])
        if name in OF_CLASS_IDS:
            targets = class_ids(targets, outputs.shape[-1] or tf.shape(outputs)[-1])
        else:
            # of one rank, as Keras has them: else (n,) and (n, 1) would make (n, n)
            flat, targets = (_ranked(v, w) for v, w in ((flat, targets), (targets, flat)))
            targets = tf.cast(numbers(targets), flat.dtype)
        if not looked:
            _check_apart(name, of_examples, targets, flat)
            looked.append(True)
        values = tf.convert_to_tensor(of_examples(targets, flat))
        values = tf.reshape(values, [tasks, examples, -1])
        values = tf.reduce_sum(values, -1) if added else tf.reduce_mean(values, -1)
        if batch.mask is None:
            return tf.reduce_sum(values, 1) if added else tf.reduce_mean(values, 1)
        there = tf.cast(batch.mask, values.dtype)
        # where, not a product: a masked example may be NaN or infinite
        total = tf.reduce_sum(tf.where(batch.mask, values, tf.zeros_like(values)), 1)
        return total if added else total / tf.maximum(tf.reduce_sum(there, 1), 1)

    return task_loss


def _ranked(value: Any, like: Any) -> Any:
    """Return ``value`` with a last axis of size 1 where ``like`` has one more axis, and that is it."""
    return value[..., None] if like.shape.rank == value.shape.rank + 1 and like.shape[-1] == 1 else value


def numbers(labels: Any) -> Any:
    """Return labels, unless they are strings."""
    if labels.dtype == tf.string:
        raise DataError(
            "labels are strings, and losses are of numbers: number the classes of a task, as does "
            "np.unique(y, return_inverse=True)[1]"
        )
    return labels


def class_ids(labels: Any, ways: Any) -> Any:
    """Return labels as integers; one that is not among 0 … ways − 1 stops what runs (`refusing` says so)."""
    given, labels = labels, tf.cast(numbers(labels), tf.int64)
    if given.dtype.is_floating:
        whole = tf.debugging.assert_equal(tf.cast(labels, given.dtype), given, f"{LABELS} must be whole numbers")
        with tf.control_dependencies([whole]):
            labels = tf.identity(labels)
    told = f"{LABELS} must be 0 to {ways - 1}: the model tells {ways} classes apart"
    if tf.is_tensor(ways):
        told = f"{LABELS} must be those of the support set"
    low = tf.debugging.assert_non_negative(labels, told)
    with tf.control_dependencies([low, tf.debugging.assert_less(labels, tf.cast(ways, labels.dtype), told)]):
        return tf.identity(labels)


@contextmanager
def refusing() -> Iterator[None]:
    """Say of labels that stopped what ran inside what is wrong with them.

    Raises:
        DataError: a label was not among the classes.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(rf"{LABELS} must be [^\]\n]*", str(error))
        if found is None:
            raise
        raise DataError(found[0]) from error


def _check_apart(name: str, of_examples: Callable[[Any, Any], Any], y: Any, outputs: Any) -> None:
    """Refuse a loss in which examples go into one another's: all tasks' are handed to it together."""
    with tf.init_scope():
        drawn = tf.random.stateless_uniform([4, *(n or 4 for n in outputs.shape[1:])], (0, 0), 0.1, 0.9, outputs.dtype)
        shape = [4, *(n or 4 for n in y.shape[1:])]
        if y.dtype.is_floating:
            targets = tf.random.stateless_uniform(shape, (0, 1), 0.1, 0.9, y.dtype)
        else:
            targets = tf.zeros(shape, y.dtype)
        all_four, two = (tf.convert_to_tensor(of_examples(targets[:n], drawn[:n])) for n in (4, 2))
        apart = all_four.shape.rank and all_four[:2].shape == two.shape
        if apart and np.allclose(all_four[:2], two, rtol=1e-4, equal_nan=True):
            return
    gives = "lets examples go into one another's" if all_four.shape.rank else "gives one number for all examples"
    raise UsageError(
        f"the loss {name!r} {gives}, and is given those of all tasks together; it has to give one number an example, "
        "which depends on that example alone"
    )


def _check(name: str, outputs: Any, y: Any) -> None:
    """Refuse targets that do not fit, and that Keras would stretch, or take for something else."""
    if not tf.is_tensor(outputs):
        raise ShapeError(f"the model gives {len(outputs)} outputs; give a loss for each, as a list or dict")
    shapes = f"got outputs {_shape(outputs)} and y {_shape(y)} of {y.dtype.name}, each (tasks, examples, …)"
    if name in OF_NUMBERS:
        if not y.dtype.is_floating:
            raise UsageError(
                f"{name} is a loss of numbers, and y holds integers, as class ids do: take loss='cross_entropy' for "
                f"classes, or y as floats; {shapes}"
            )
        a, b = ([*v.shape[2:]] for v in (outputs, y))
        a, b = (v[:-1] if v and v[-1] == 1 and len(v) != len(w) else v for v, w in ((a, b), (b, a)))
        if len(a) != len(b) or any(None not in pair and pair[0] != pair[1] for pair in zip(a, b)):
            raise ShapeError(f"{name} needs outputs and targets of one shape; {shapes}")
    if name in OF_CLASS_IDS and (
        y.shape.rank not in (outputs.shape.rank - 1, outputs.shape.rank)
        or (y.shape.rank == outputs.shape.rank and y.shape[-1] != 1)
    ):
        raise ShapeError(f"{name} needs logits (tasks, examples, ways) and integer labels (tasks, examples); {shapes}")


def _shape(value: Any) -> tuple[int | None, ...]:
    return tuple(value.shape)
