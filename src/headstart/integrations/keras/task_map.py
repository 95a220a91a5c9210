"""How B tasks go through a model: at once, one by one, or one by one in a loop of the graph."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias, get_args
from unittest.mock import patch

from headstart.errors import DifferentiationError, check_known
from headstart.integrations.keras.backend import tf

TaskMapName: TypeAlias = Literal["auto", "vectorized", "loop", "while"]
OneTask: TypeAlias = Callable[[Any], Any]
"""``(a task's part of the elements) -> what is made of it``, trees of tensors."""
TaskMap: TypeAlias = Callable[[OneTask, Any], Any]
"""``(of one task, elements with a task axis) -> results with a task axis``."""

#: More tasks than that one after another make a graph that takes long to build.
UNROLLED = 8

_AT_ONCE = ContextVar("at_once", default=False)


def at_once() -> bool:
    """Return whether a task is run for all of them at once, where custom gradients have no part in it."""
    return _AT_ONCE.get()


def vectorized(of_one: OneTask, elements: Any) -> Any:
    """Run all tasks at once: every operation is replaced by one that takes the task axis along."""
    before = _AT_ONCE.set(True)
    try:
        return tf.vectorized_map(of_one, elements, fallback_to_while_loop=False)
    except (ValueError, NotImplementedError) as error:
        failed = error
    finally:
        _AT_ONCE.reset(before)
    _results_of_one(of_one, elements)  # what cannot be run for one task either says so in its own words
    told = next((line.strip() for line in reversed(str(failed).splitlines()) if line.strip()), "")
    raise DifferentiationError(
        f"an operation of the model cannot be run for all tasks at once: {told}; take taskmap='auto' or 'loop'"
    ) from failed


def _results_of_one(of_one: OneTask, elements: Any) -> Any:
    """Return what is made of one task, recorded for tensors of its shapes."""
    one = tf.nest.map_structure(lambda leaf: tf.TensorSpec(leaf.shape[1:], leaf.dtype), elements)
    return tf.function(of_one, autograph=False).get_concrete_function(one).structured_outputs


def loop(of_one: OneTask, elements: Any) -> Any:
    """Run the tasks one by one: the oracle of `vectorized`, and the faster one where a task keeps the machine busy.

    Where the shapes do not say how many there are (a last batch may be short), that is a loop of the graph.
    """
    tasks = tf.nest.flatten(elements)[0].shape[0]
    if tasks is None:
        return in_graph(of_one, elements)
    # recorded once for all tasks, so that its derivatives are, too
    recorded = tf.function(of_one, autograph=False)
    # its derivative is one stack, where those of slices are as many sums of all tasks' size
    apart = [tf.unstack(leaf) for leaf in tf.nest.flatten(elements)]
    results = [recorded(tf.nest.pack_sequence_as(elements, leaves)) for leaves in zip(*apart)]
    return tf.nest.map_structure(lambda *leaves: tf.stack(leaves), *results)


def in_graph(of_one: OneTask, elements: Any) -> Any:
    """Run the tasks one by one in a loop of the graph, whose size does not depend on how many there are."""
    made = _results_of_one(of_one, elements)
    signature = tf.nest.map_structure(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), made)
    return tf.map_fn(of_one, elements, fn_output_signature=signature)


def auto() -> TaskMap:
    """Return the map that takes tasks at once if it can, else one by one; it finds out once for each kind of call."""
    can: dict[Any, bool] = {}

    def mapped(of_one: OneTask, elements: Any) -> Any:
        leaves = tf.nest.flatten(elements)
        key = tuple((leaf.shape.rank, leaf.dtype) for leaf in leaves)
        if key not in can:
            can[key] = _vectorizable(of_one, elements)
        if can[key]:
            return vectorized(of_one, elements)
        tasks = leaves[0].shape[0]
        return (loop if tasks is not None and tasks <= UNROLLED else in_graph)(of_one, elements)

    return mapped


def _vectorizable(of_one: OneTask, elements: Any) -> bool:
    spec = tf.nest.map_structure(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), elements)
    try:
        with patch.object(tf.get_logger(), "disabled", True):  # pages on what cannot be, as errors
            tf.function(lambda given: vectorized(of_one, given), autograph=False).get_concrete_function(spec)
    except DifferentiationError:
        return False
    return True


MAPS: dict[str, TaskMap] = {"vectorized": vectorized, "loop": loop, "while": in_graph}


def resolve(taskmap: str | TaskMap) -> TaskMap:
    """Return the map of that name, or ``taskmap`` itself."""
    if not isinstance(taskmap, str):
        return taskmap
    check_known("taskmap", taskmap, get_args(TaskMapName))
    return auto() if taskmap == "auto" else MAPS[taskmap]
