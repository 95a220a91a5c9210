"""Keras's layers and losses have the meta-gradients of finite differences, whichever way the tasks go through them."""

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import keras
import tensorflow as tf
from keras import layers as K

from benchmarks.keras_layers import ACTIVATIONS, CASES, SCORES, Case, apart, around, as_it_is, branches, look, made
from headstart.errors import UsageError
from headstart.integrations.keras import backprop, maml
from headstart.integrations.keras.exact import KNOWN, Call, derivative_error
from headstart.types import Batch, Episodes

BOUND = 1e-6
#: Those that are also looked at with fewer steps, and with the tasks going through them in other ways.
IMPORTANT = (
    "Dense, EinsumDense",
    "BatchNormalization, batch",
    "BatchNormalization, task",
    "MultiHeadAttention, mask",
    "Layer-, Group-, RMS-, UnitNormalization",
)
#: Whose kernels are for 32 bits, and who have a test of their own.
ELSEWHERE = {"AveragePooling3D", "MaxPooling3D"}


@pytest.mark.parametrize("name", CASES)
def test_layers(name):
    case, episodes = made(CASES[name])
    error, _ = look(case, episodes, case.steps)
    assert error < BOUND


@pytest.mark.parametrize("name", SCORES)
def test_losses(name):
    case, episodes = made(SCORES[name])
    error, _ = look(case, episodes, 2)
    assert error < BOUND


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", IMPORTANT)
def test_fewer_steps(name, steps):
    case, episodes = made(CASES[name])
    error, gradient = look(case, episodes, steps)
    assert error < BOUND
    if steps == 1:
        for way in ("loop", "while"):
            assert apart(look(case, episodes, steps, taskmap=way)[1], gradient) < 1e-10


def test_every_layer_that_is_known_is_shown():
    shown = set()
    for make in CASES.values():
        case, _ = made(make)
        shown |= {type(layer).__name__ for layer in case.model._flatten_layers()}
    assert set(KNOWN) - shown == ELSEWHERE


@pytest.mark.parametrize("name", ["BatchNormalization, batch", "UpSampling2D, bilinear"])
def test_the_table_tells_wrong_from_right(name):
    case, episodes = made(CASES[name])
    with as_it_is():
        error, _ = look(case, episodes, 1, taskmap="loop")
    assert error > 1e-4


@pytest.mark.parametrize("name", [*ACTIVATIONS, "hard_shrink"])
def test_activations(name):
    x = tf.constant(0.5 * np.random.default_rng(0).normal(size=(4, 6)))
    first, second, _ = derivative_error(Call(None, (x,), {}, getattr(keras.activations, name)))
    assert max(first, second) < 1e-7


def test_pooling_in_3d_agrees_with_what_it_is_made_of():
    """Its kernels are for 32 bits, in which finite differences say little."""

    def halved(reduce):
        return K.Lambda(lambda x: reduce(tf.reshape(x, [-1, 1, 2, 1, 2, 2, 2, 2]), axis=[2, 4, 6]))

    random = np.random.default_rng(0)
    episodes = Episodes(
        *(
            Batch(random.normal(size=(3, n, 2, 2, 4, 2)).astype("float32"), random.integers(0, 3, (3, n)))
            for n in (3, 4)
        )
    )
    found = []
    for pools in ((K.AveragePooling3D(2), K.MaxPooling3D(2)), (halved(tf.reduce_mean), halved(tf.reduce_max))):
        keras.utils.set_random_seed(0)
        model = branches((2, 2, 4, 2), *pools)
        learner = maml(model, steps=2, rate=0.1, taskmap="loop", check=False)
        found.append(tf.function(lambda meta, own=learner: backprop(own, meta, episodes).meta)(learner.init(0)))
    assert apart(*found) < 1e-6


def pooled_loss(y, outputs):
    return keras.ops.mean((y - outputs) ** 2)


def centred_loss(y, outputs):
    return keras.ops.mean((outputs - keras.ops.mean(outputs, 0)) ** 2, -1)


@pytest.mark.parametrize("loss", [pooled_loss, centred_loss, "dice"])
def test_a_loss_that_mixes_examples_is_refused(loss):
    case = Case(around((4,)), options={"loss": loss}, targets=lambda random, n: random.uniform(size=(3, n, 3)))
    case, episodes = made(lambda: case)
    learner = maml(case.model, loss=loss, steps=1)
    with pytest.raises(UsageError, match="example alone"):
        backprop(learner, learner.init(0), episodes)


class Penalised(K.Layer):
    """Adds a penalty for the examples in training, or for its weight alone."""

    def __init__(self, of_weight=False, **options):
        super().__init__(**options)
        self.of_weight = of_weight

    def build(self, shape):
        self.factor = self.add_weight(shape=(), initializer="ones", name="factor")

    def call(self, x, training=False):
        if training or self.of_weight:  # the hinge is 0 for most examples
            self.add_loss(0.1 * keras.ops.sum(keras.ops.relu((1.0 if self.of_weight else x) * self.factor - 0.5)))
        return x * self.factor

    def get_config(self):
        return super().get_config() | {"of_weight": self.of_weight}


@pytest.mark.parametrize(
    "penalty", [lambda: K.ActivityRegularization(l2=0.1, name="mine"), lambda: Penalised(name="mine")]
)
def test_a_penalty_that_would_go_by_padding_is_refused(penalty):
    case, episodes = made(lambda: Case(around((4,), penalty())))
    learner = maml(case.model, steps=1)
    with pytest.raises(UsageError, match="mine.*adds a penalty"):
        backprop(learner, learner.init(0), episodes)
    # what is adapted to is whole; what is judged on has no penalty
    whole = episodes._replace(support=episodes.support._replace(mask=None))
    assert np.isfinite(backprop(learner, learner.init(0), whole).info.query_loss).all()


def test_a_penalty_for_weights_goes_by_no_padding():
    case, episodes = made(lambda: Case(around((4,), Penalised(of_weight=True)), seeded=True))
    error, _ = look(case, episodes, 1)
    assert error < BOUND
