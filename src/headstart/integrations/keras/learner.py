"""What a meta-learning method is on TensorFlow: pure functions over values whose first axis is the task.

`Batch`, `Episodes`, `Meta`, `Adapted` and `Info` are those of `headstart.types`, holding TensorFlow's tensors. The
outer gradient is taken of a whole method, where PyTorch's core has estimators to choose from.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from headstart.integrations.keras.backend import tf
from headstart.integrations.keras.exact import missing
from headstart.integrations.keras.forward import dense
from headstart.types import Adapted, Batch, Episodes, Info, Meta


class Gradient(NamedTuple):
    """An estimate of ∂L/∂θ and ∂L/∂M, for the mean over tasks, and what was seen on the way."""

    meta: Meta
    """Of gradients."""
    info: Info
    outputs: Any
    """Of the query sets, ``(B, n, *outputs)``."""


class Learner(NamedTuple):
    """A method for one Keras model."""

    init: Callable[[int], Meta]
    """``seed -> Meta`` to start from."""
    adapt: Callable[..., tuple[Adapted, Info]]
    """``(meta, support, steps=None) -> (adapted, info)``: pure and differentiable."""
    predict: Callable[[Adapted, Any], Any]
    """Outputs ``(B, n, *outputs)`` for inputs ``(B, n, *features)``."""
    loss: Callable[[Any, Batch], Any]
    """One loss a task, ``(B,)``."""
    gradient: "Callable[[Learner, Meta, Episodes], Gradient]"
    to_model: Callable[[Adapted, Any], Any]
    """``(adapted to one task, its support inputs) -> an ordinary keras.Model`` of that task."""
    look: Callable[[Episodes], None]
    """Stop at labels that are no classes, as `adapt` and `loss` do, without running the model."""
    steps: int | None = None
    """Number of inner steps; ``None`` for a method that takes none."""
    shown: Callable[[Meta], dict[str, Any]] = lambda meta: dict(meta.structure)
    """M in the units in which it acts."""


def tensors(batch: Batch) -> Batch:
    """Return a batch of dense tensors, with copies of each task's first example where its mask leaves examples out.

    What is left out counts for nothing, and still goes through the model: of zeros, a layer may make NaN (the mean of a
    sequence that is all padding), which would come into the gradient.
    """
    x, y = dense(batch.x, "inputs"), dense(batch.y, "targets")
    if batch.mask is None:
        return batch._replace(x=x, y=y)
    mask = tf.cast(batch.mask, tf.bool)
    first = tf.argmax(tf.cast(mask, tf.int32), 1)

    def filled(leaf: Any) -> Any:
        there = tf.reshape(mask, tf.concat([tf.shape(mask), tf.ones([leaf.shape.rank - 2], tf.int32)], 0))
        return tf.where(there, leaf, tf.gather(leaf, first, batch_dims=1)[:, None])

    x, y = tf.nest.map_structure(filled, (x, y))
    return Batch(x, y, mask, batch.seed)


def backprop(learner: Learner, meta: Meta, episodes: Episodes) -> Gradient:
    """Differentiate the query losses after adapting, L(θ, M) = meanᵢ loss(θᵢ, Qᵢ), through the adaptation.

    Raises:
        DifferentiationError: an operation has no derivative of the order that it takes.
    """
    with tf.GradientTape() as tape:
        tape.watch(meta)
        losses, info, outputs = judged(learner, meta, episodes)
        total = tf.reduce_mean(losses)
    try:
        found = tape.gradient(total, meta, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    except LookupError as error:
        raise missing("an operation of the model", error) from error
    return Gradient(tf.nest.map_structure(tf.convert_to_tensor, found), info, outputs)


def judged(learner: Learner, meta: Meta, episodes: Episodes, steps: int | None = None) -> tuple[Any, Info, Any]:
    """Return the query losses ``(B,)`` after adapting to the support sets, and the outputs."""
    query = tensors(episodes.query)
    adapted, info = learner.adapt(meta, episodes.support, steps=steps)
    outputs = learner.predict(adapted, query.x)
    losses = learner.loss(outputs, query)
    return losses, info._replace(query_loss=tf.stop_gradient(losses)), outputs
