"""The inner loop on TensorFlow: T steps of a rule on the support loss, for B tasks at once.

``θᵢ ← θᵢ − rule(∇ support lossᵢ(θᵢ))``, T times. The gradient is that of the sum of the tasks' losses, outside of what
is mapped over tasks: task i's loss depends on task i's tensors alone, so it holds every task's own.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

from headstart.core.rules import Rule
from headstart.errors import UsageError
from headstart.integrations.keras.backend import tf
from headstart.integrations.keras.exact import missing

AdjointName: TypeAlias = Literal["unrolled", "checkpointed", "first_order"]
SupportLoss: TypeAlias = Callable[[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any], Any], tuple[Any, Any]]
"""``(given, params, statistics, step) -> (support losses (B,), statistics)``; all it is differentiated by is given."""

ZERO = tf.UnconnectedGradients.ZERO

#: More steps than that are a loop of the graph, which then does not grow with them.
UNROLLED = 10


class Inner(NamedTuple):
    """What an inner step changes."""

    params: dict[str, Any]
    rule: Any
    statistics: dict[str, Any]


Step: TypeAlias = Callable[[Mapping[str, Any], Inner, Any], tuple[Inner, Any]]
"""``(given, state, number) -> (state after the step, losses (B,) before it)``."""


def gradients(losses: Any, tape: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return every task's own gradient of its loss, 0 where it does not depend on a variable.

    Raises:
        UsageError: it depends on none.
    """
    try:
        found = tape.gradient(losses, dict(params))
    except LookupError as error:
        raise missing("an operation of the model", error) from error
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

    if steps == 0:
        return inner, None
    if adjoint == "checkpointed" and steps > 1:
        return _checkpointed(step, given, inner, steps)
    if steps > UNROLLED:
        return _run(partial(step, given), inner, steps)[:2]
    losses = []
    for number in range(steps):
        inner, before = step(given, inner, number)
        losses.append(before)
    return inner, tf.stack(losses)


def _run(
    take: Callable[[Inner, Any], tuple[Inner, Any]], inner: Inner, steps: int, *, keep: bool = False
) -> tuple[Inner, Any, list[Any]]:
    """Take the steps in a loop of the graph.

    Returns:
        The state after them, the losses ``(T, B)`` before each, and arrays of the states before each, if kept.
    """
    like = tf.nest.flatten(inner.params)[0]
    losses = tf.TensorArray(like.dtype, steps, element_shape=like.shape[:1])
    leaves = tf.nest.flatten(inner) if keep else []
    kept = [tf.TensorArray(leaf.dtype, steps, element_shape=leaf.shape) for leaf in leaves]

    def body(number: Any, inner: Inner, losses: Any, kept: list[Any]) -> tuple[Any, Inner, Any, list[Any]]:
        kept = [array.write(number, leaf) for array, leaf in zip(kept, tf.nest.flatten(inner))]
        inner, before = take(inner, number)
        return number + 1, inner, losses.write(number, before), kept

    _, inner, losses, kept = tf.while_loop(
        lambda number, *_: number < steps,
        body,
        (tf.constant(0), inner, losses, kept),
        maximum_iterations=steps,
        parallel_iterations=1,
    )
    return inner, losses.stack(), kept


def _checkpointed(step: Step, given: Mapping[str, Any], inner: Inner, steps: int) -> tuple[Inner, Any]:
    """Take the steps and keep the states before them; on the way back each is taken once more, to be differentiated.

    A loop of its own goes back: TensorFlow's derivative of a loop holds three copies of the states.
    """
    form: Any = (dict(given), inner)

    # all that a derivative flows to is handed in: to what is captured, none would
    @tf.custom_gradient
    def flat(*values: Any) -> Any:
        given, inner = tf.nest.pack_sequence_as(form, values)
        end, losses, kept = _run(partial(step, given), inner, steps, keep=True)

        def backward(*slopes: Any) -> list[Any]:
            def back(left: Any, slopes: list[Any], totals: list[Any]) -> tuple[Any, list[Any], list[Any]]:
                number = left - 1
                before = tf.nest.pack_sequence_as(inner, [array.read(number) for array in kept])
                with tf.GradientTape() as tape:
                    tape.watch((given, before))
                    after = tf.nest.flatten(step(given, before, number)[0])
                found = tape.gradient(after, (given, before), slopes, unconnected_gradients=ZERO)
                more = [total + slope for total, slope in zip(totals, tf.nest.flatten(found[0]))]
                return number, tf.nest.flatten(found[1]), more

            zeros = [tf.zeros_like(value) for value in tf.nest.flatten(given)]
            start = (tf.constant(steps), [*slopes[:-1]], zeros)
            _, slopes, totals = tf.while_loop(lambda left, *_: left > 0, back, start, parallel_iterations=1)
            return [*totals, *slopes]

        return [*tf.nest.flatten(end), losses], backward

    *found, losses = flat(*tf.nest.flatten(form))
    return tf.nest.pack_sequence_as(inner, found), losses
