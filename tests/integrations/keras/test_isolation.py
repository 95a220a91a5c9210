"""No task sees another's, and nothing changes the model that is adapted."""

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import keras
import tensorflow as tf
from keras import layers as K

from headstart.integrations.keras import backprop, maml
from headstart.integrations.keras.forward import functional
from headstart.integrations.keras.learner import judged
from headstart.types import Batch, Episodes


def model_of(*middle):
    return keras.Sequential([keras.Input((3,)), K.Dense(4), *middle, K.Activation("tanh"), K.Dense(2)])


def episodes_of(tasks, seeds=None, *, scale=1.0):
    def batch(n):
        randoms = [np.random.default_rng((task, n)) for task in tasks]
        x = np.stack([scale * random.normal(size=(n, 3)) for random in randoms])
        y = np.stack([random.integers(0, 2, n) for random in randoms])
        return Batch(x.astype("float32"), y, None, None if seeds is None else tf.constant(seeds, tf.int64))

    return Episodes(batch(4), batch(5))


def differentiated(learner, episodes):
    """Return what tasks adapt to, and the meta-gradient of the first one's query loss."""

    @tf.function(autograph=False)
    def run(meta):
        with tf.GradientTape() as tape:
            tape.watch(meta.params)
            adapted, _ = learner.adapt(meta, episodes.support)
            loss = judged(learner, meta, episodes)[0][0]
        return adapted.params, tape.gradient(loss, meta.params), loss

    return run(learner.init(0))


def same(a, b):
    for x, y in zip(tf.nest.flatten(a), tf.nest.flatten(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


MIDDLES = {"BatchNormalization": K.BatchNormalization, "Dropout": lambda: K.Dropout(0.5)}


@pytest.mark.parametrize(
    "middle, buffers", [("BatchNormalization", "batch"), ("BatchNormalization", "task"), ("Dropout", "batch")]
)
def test_a_task_does_not_depend_on_others(middle, buffers):
    learner = maml(model_of(MIDDLES[middle]()), steps=1, rate=0.1, buffers=buffers)
    among = differentiated(learner, episodes_of([0, 1, 2], [5, 6, 7]))
    others = differentiated(learner, episodes_of([0, 8], [5, 1]))
    alone = differentiated(learner, episodes_of([0], [5]))
    for found in (others, alone):
        same(found[1:], among[1:])
        same([v[0] for v in found[0].values()], [v[0] for v in among[0].values()])


@pytest.mark.parametrize("buffers", ["batch", "frozen", "task"])
def test_the_model_is_left_as_it_is(buffers):
    model = model_of(K.BatchNormalization(), K.Dropout(0.5))
    before = [variable.numpy().copy() for variable in model.variables]
    learner = maml(model, steps=2, rate=0.1, buffers=buffers)
    meta, episodes = learner.init(0), episodes_of([0, 1], [3, 4])
    adapted, _ = learner.adapt(meta, episodes.support)
    learner.predict(adapted, episodes.query.x)
    tf.function(lambda meta: backprop(learner, meta, episodes).meta, autograph=False)(meta)
    for variable, value in zip(model.variables, before):
        assert np.array_equal(variable.numpy(), value), variable.path


def outputs_of(model, seeds, steps=0):
    learner = maml(model, steps=steps, rate=0.1)
    episodes = episodes_of([0] * 2, seeds)
    run = tf.function(lambda: learner.predict(learner.adapt(learner.init(0), episodes.support)[0], episodes.query.x))
    return run().numpy()


def test_dropout_goes_by_the_seed():
    model = model_of(K.Dropout(0.5))
    both, again, off = outputs_of(model, [1, 2]), outputs_of(model, [1, 2]), outputs_of(model, None)
    assert np.array_equal(both, again)
    assert np.abs(both[0] - both[1]).max() > 1e-3
    assert np.abs(both[0] - off[0]).max() > 1e-3
    np.testing.assert_allclose(off[0], off[1], atol=1e-6)
    np.testing.assert_allclose(off[0], model(episodes_of([0]).query.x[0]), atol=1e-6)


def test_dropout_differs_from_step_to_step_and_from_layer_to_layer():
    """The outputs are the masks themselves: of one layer, and of the next where the first is undone."""
    x = keras.Input((8,))
    ones = K.Rescaling(0.0, 1.0)
    model = keras.Model(x, K.Concatenate()([K.Dropout(0.5)(ones(x)), K.Dropout(0.5)(ones(x)), 0 * K.Dense(8)(x)]))
    function = functional(model, check=False, taskmap="loop")
    inputs, seed = tf.ones([1, 16, 8]), tf.constant([3], tf.int64)
    masks = [function.apply(function.params, {}, inputs, seed=seed, draw=draw)[0].numpy() for draw in (0, 1, 0)]
    first, second = masks[0][..., :8], masks[0][..., 8:16]
    assert np.array_equal(masks[0], masks[2])
    assert (masks[0][..., :16] != masks[1][..., :16]).mean() > 0.3
    assert (first != second).mean() > 0.3


def test_no_steps_give_the_models_own_outputs():
    model = model_of(K.BatchNormalization())
    learner = maml(model, steps=0, buffers="frozen")
    episodes = episodes_of([0, 1])
    adapted, info = learner.adapt(learner.init(0), episodes.support)
    assert info.support_loss.shape[0] == 0
    outputs = learner.predict(adapted, episodes.query.x)
    for task in range(2):
        np.testing.assert_allclose(outputs[task], model(episodes.query.x[task]), atol=1e-6)
