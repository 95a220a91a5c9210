"""The inner loop gives the same numbers however it is run: unrolled, in a loop of the graph, computed again."""

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from headstart.errors import UsageError
from headstart.integrations import keras as on_keras
from headstart.integrations.keras import inner, models, rules
from headstart.integrations.keras.backend import keras, tf
from headstart.types import Batch, Episodes

TASKS, CLOSE = 3, 1e-10


@pytest.fixture(autouse=True)
def double_precision():
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


def episodes(seeded=True):
    random = np.random.default_rng(0)
    seed = tf.constant([3, 1, 4], tf.int64) if seeded else None
    x = [tf.constant(random.normal(size=(TASKS, n, 4))) for n in (5, 6)]
    y = [tf.constant(random.normal(size=(TASKS, n, 1))) for n in (5, 6)]
    return Episodes(*(Batch(a, b, None, seed) for a, b in zip(x, y)))


def gradient_of(model, given, jit=False, **how):
    learner = on_keras.maml(model, loss="mse", **how)
    run = tf.function(lambda meta: learner.gradient(learner, meta, given), autograph=False, jit_compile=jit)
    return run(learner.init(0))


def same(found, expected, within=CLOSE):
    for one, other in zip(tf.nest.flatten(found.meta), tf.nest.flatten(expected.meta), strict=True):
        np.testing.assert_allclose(one, other, rtol=within, atol=within)
    np.testing.assert_allclose(found.outputs, expected.outputs, rtol=within, atol=within)
    np.testing.assert_allclose(found.info.query_loss, expected.info.query_loss, rtol=within)
    np.testing.assert_allclose(found.info.support_loss, expected.info.support_loss, rtol=within)
    assert max(float(tf.reduce_max(tf.abs(value))) for value in expected.meta.params.values()) > 1e-6


def plain():
    return models.mlp(4, 1, hidden=(5,))


def normalised():
    """Return a model whose tasks keep statistics over the steps."""
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((4,)), layers.Dense(5), layers.BatchNormalization(momentum=0.7), layers.ReLU(), layers.Dense(1)]
    )


def dropping():
    layers = keras.layers
    return keras.Sequential([keras.Input((4,)), layers.Dense(16, "tanh"), layers.Dropout(0.5), layers.Dense(1)])


#: A model, and how it is adapted: states, rates and random numbers that go by the step.
CASES = {
    "rate": (plain, lambda: {"rate": 0.05}),
    "rates of steps": (plain, lambda: {"rule": rules.per_tensor(0.05, steps=2)}),
    "states": (plain, lambda: {"rule": rules.chain(rules.momentum(), rules.clip(norm=0.5), rules.scale(0.05))}),
    "adam": (plain, lambda: {"rule": rules.chain(rules.adam(), rules.scale(0.05))}),
    "a part": (plain, lambda: {"rule": rules.chain(rules.only("head"), rules.per_weight(0.05))}),
    "statistics": (normalised, lambda: {"rate": 0.05, "buffers": "task"}),
    "dropout": (dropping, lambda: {"rate": 0.05}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_computed_again_is_the_same(case):
    made, how = CASES[case]
    model, given = made(), episodes()
    unrolled = gradient_of(model, given, steps=3, **how())
    same(gradient_of(model, given, steps=3, adjoint="checkpointed", **how()), unrolled)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_any_number_of_steps_is_computed_again(steps, monkeypatch):
    """Those that no whole number of segments has, too."""
    monkeypatch.setattr(inner, "UNROLLED", 100)
    model, given = plain(), episodes()
    unrolled = gradient_of(model, given, steps=steps, rate=0.05)
    assert unrolled.info.support_loss.shape == (steps, TASKS)
    same(gradient_of(model, given, steps=steps, rate=0.05, adjoint="checkpointed"), unrolled)


@pytest.mark.parametrize("adjoint", ["unrolled", "first_order"])
@pytest.mark.parametrize("steps", [inner.UNROLLED, inner.UNROLLED + 1])
def test_a_loop_of_the_graph_is_the_same(adjoint, steps, monkeypatch):
    model, given = plain(), episodes()
    found = gradient_of(model, given, steps=steps, rate=0.05, adjoint=adjoint)
    monkeypatch.setattr(inner, "UNROLLED", 0 if steps <= inner.UNROLLED else 100)
    same(found, gradient_of(model, given, steps=steps, rate=0.05, adjoint=adjoint))


def test_more_steps_make_no_larger_graph():
    model, given = plain(), episodes()

    def size(steps, adjoint):
        learner = on_keras.maml(model, loss="mse", steps=steps, adjoint=adjoint)
        run = tf.function(lambda meta: learner.gradient(learner, meta, given).meta, autograph=False)
        graph = run.get_concrete_function(learner.init(0)).graph.as_graph_def()
        return len(graph.node) + sum(len(function.node_def) for function in graph.library.function)

    for adjoint in ("unrolled", "checkpointed"):
        few, many = (size(steps, adjoint) for steps in (20, 400))
        assert many <= 1.02 * few


@pytest.mark.parametrize("adjoint", ["unrolled", "checkpointed", "first_order"])
def test_no_step_gives_the_gradient_of_the_model_as_it_is(adjoint):
    model, given = plain(), episodes(seeded=False)
    found = gradient_of(model, given, steps=0, adjoint=adjoint)
    assert found.info.support_loss.shape == (0, TASKS)
    x, y = (tf.reshape(value, [-1, value.shape[-1]]) for value in (given.query.x, given.query.y))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x) - y))
    expected = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    for one, other in zip(found.meta.params.values(), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize(("adjoint", "steps"), [("unrolled", 2), ("unrolled", 11), ("checkpointed", 5)])
def test_a_compiled_step_is_the_same(adjoint, steps):
    model, given = plain(), episodes()
    how = {"steps": steps, "rate": 0.05, "adjoint": adjoint}
    same(gradient_of(model, given, jit=True, **how), gradient_of(model, given, **how), within=1e-8)


def test_first_order_takes_inner_gradients_for_constants():
    model, given = plain(), episodes()
    how = {"steps": 3, "rate": 0.05}
    first, second = (gradient_of(model, given, adjoint=adjoint, **how) for adjoint in ("first_order", "unrolled"))
    np.testing.assert_allclose(first.outputs, second.outputs, rtol=CLOSE)
    assert not np.allclose(first.meta.params["head.kernel"], second.meta.params["head.kernel"], rtol=1e-3)


def test_a_loss_without_derivative_is_refused():
    learner = on_keras.maml(plain(), loss=lambda y, outputs: tf.round(outputs) * 0 + y, steps=1)
    with pytest.raises(UsageError, match="no derivative with respect to any variable that moves"):
        tf.function(lambda meta: learner.adapt(meta, episodes().support)[0].params, autograph=False)(learner.init(0))
