"""The inner loop on TensorFlow: T steps of a rule on the support loss, for B tasks at once.

``θᵢ ← θᵢ − rule(∇ support lossᵢ(θᵢ))``, T times. The gradient is that of the sum of the tasks' losses, outside of what
is mapped over tasks: task i's loss depends on task i's tensors alone, so it holds every task's own.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from headstart.core.rules import Rule
from headstart.errors import UsageError
from headstart.integrations.keras.backend import tf
from headstart.integrations.keras.forward import no_second

AdjointName: TypeAlias = Literal["unrolled", "checkpointed", "first_order"]
SupportLoss: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any], Any], tuple[Any, Any]]
"""``(given, params, statistics, step) -> (support losses (B,), statistics)``; all it is differentiated by is given."""

#: More steps than that are a loop of the graph, which then does not grow with them.
UNROLLED = 10


class Inner(NamedTuple):
    """What an inner step changes."""

    params: dict[str, Any]
    rule: Any
    statistics: dict[str, Any]


def gradients(losses: Any, tape: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return every task's own gradient of its loss, 0 where it does not depend on a variable.

    Raises:
        UsageError: it depends on none.
    """
    try:
        found = tape.gradient(losses, dict(params))
    except LookupError as error:
        raise no_second(error) from error
    if all(value is None for value in found.values()):
        raise UsageError(
            f"the support loss has no derivative with respect to any variable that moves: {', '.join(params)}; it does "
            "not depend on them, or by operations without one (argmax, rounding, what is computed outside TensorFlow)"
        )
    return {
        name: tf.zeros_like(params[name]) if value is None else tf.convert_to_tensor(value)
        for name, value in found.items()
    }


def solve(
    support_loss: SupportLoss,
    given: Mapping[str, Any],
    inner: Inner,
    rule: Rule,
    steps: int,
    adjoint: AdjointName,
) -> tuple[Inner, Any]:
    """Take the steps; return what they lead to, and the support losses ``(T, B)`` before each.

    Args:
        given: all else that the loss and the rule depend on and that derivatives flow to, by name; M's by theirs.
    """

    def step(given: Mapping[str, Any], inner: Inner, number: Any) -> tuple[Inner, Any]:
        with tf.GradientTape() as tape:
            tape.watch(inner.params)
            losses, statistics = support_loss(given, inner.params, inner.statistics, number)
            total = tf.reduce_sum(losses)
        grads = gradients(total, tape, inner.params)
        if adjoint == "first_order":
            grads, statistics = tf.nest.map_structure(tf.stop_gradient, (grads, statistics))
        moved, state = rule.update(dict(given), inner.rule, grads, inner.params, number)
        params = {name: value - moved[name] for name, value in inner.params.items()}
        return Inner(params, state, statistics), tf.stop_gradient(losses)

    def checkpointed(given: Mapping[str, Any], inner: Inner, number: Any) -> tuple[Inner, Any]:
        shape: Any = (dict(given), inner)
        form: list[Any] = []

        # all that a derivative flows to is handed in: to what is captured, none would
        @tf.custom_gradient
        def flat(*values: Any) -> Any:
            def again() -> list[Any]:
                given, inner = tf.nest.pack_sequence_as(shape, values)
                made = step(given, inner, number)
                form[:] = [tf.nest.map_structure(lambda leaf: 0, made)]
                return tf.nest.flatten(made)

            def backward(*slopes: Any) -> list[Any]:
                with tf.GradientTape() as tape:
                    tape.watch(values)
                    outputs = again()
                return tape.gradient(outputs, values, slopes, unconnected_gradients=tf.UnconnectedGradients.ZERO)

            return again(), backward

        found = flat(*tf.nest.flatten(shape))
        return tf.nest.pack_sequence_as(form[0], found)

    take = checkpointed if adjoint == "checkpointed" else step
    if steps == 0:
        return inner, None
    # in a loop, what is computed again cannot be taken from the first time
    if steps <= UNROLLED and (adjoint != "checkpointed" or steps == 1):
        losses = []
        for number in range(steps):
            inner, before = take(given, inner, number)
            losses.append(before)
        return inner, tf.stack(losses)

    def body(number: Any, inner: Inner, losses: Any) -> tuple[Any, Inner, Any]:
        inner, before = take(given, inner, number)
        return number + 1, inner, losses.write(number, before)

    first = tf.nest.flatten(inner.params)[0]
    losses = tf.TensorArray(first.dtype, steps, element_shape=[first.shape[0]])
    _, inner, losses = tf.while_loop(
        lambda number, *_: number < steps, body, (0, inner, losses), maximum_iterations=steps, parallel_iterations=1
    )
    return inner, losses.stack()
