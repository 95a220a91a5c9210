"""Layers that are not Keras's own are right, or refused by their path with a way on."""

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import keras
import tensorflow as tf
from keras import layers as K, ops

from headstart.errors import DifferentiationError, UsageError
from headstart.integrations.keras import backprop, fomaml, maml
from headstart.integrations.keras.exact import check_layers
from headstart.types import Batch, Episodes


class Scaled(K.Layer):
    """Right: weights, a training and a mask argument."""

    supports_masking = True

    def build(self, shape):
        self.factor = self.add_weight(shape=shape[-1:], initializer="ones", name="factor")

    def call(self, x, mask=None, training=False):
        x = ops.tanh(x * self.factor) * (2.0 if training else 1.0)
        return x if mask is None else x * ops.cast(mask, x.dtype)[..., None]


class Centred(K.Layer):
    """Wrong: the mean is taken for a constant, though it does not leave the output's derivative as it is."""

    def call(self, x):
        return ops.square(x) * ops.stop_gradient(ops.mean(x, -1, keepdims=True))


class CentredInTraining(K.Layer):
    """Wrong in training mode alone."""

    def call(self, x, training=False):
        return ops.square(x) * ops.stop_gradient(ops.mean(x, -1, keepdims=True)) if training else x


class Straight(K.Layer):
    """Wrong: rounding whose derivative is said to be 1."""

    def call(self, x):
        @tf.custom_gradient
        def rounded(value):
            return tf.round(value), lambda slope: slope

        return rounded(x)


class NoSecond(K.Layer):
    """TensorFlow has no second derivative of it."""

    def call(self, x):
        return tf.raw_ops.Softsign(features=x)


class Halting(K.Layer):
    """Wrong: the derivative is right, and taken for a constant."""

    def call(self, x):
        @tf.custom_gradient
        def sine(value):
            return tf.sin(value), lambda slope: slope * tf.stop_gradient(tf.cos(value))

        return sine(x)


class NoFirst(K.Layer):
    """TensorFlow has no derivative of it."""

    def call(self, x):
        return tf.cast(tf.raw_ops.ResizeArea(images=x[..., None, None], size=[3, 1])[..., 0, 0], x.dtype)


class Single(K.Layer):
    """Right, and for one precision alone."""

    def call(self, x):
        return tf.tanh(x) * tf.constant(2.0)


class NoConfig(K.Layer):
    """Cannot be made again, and has weights."""

    def __init__(self, dense, **options):
        super().__init__(**options)
        self.dense = dense

    def get_config(self):
        raise NotImplementedError("no configuration of mine")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x)


class Counting(K.Layer):
    """Keeps something from call to call."""

    def build(self, shape):
        self.mean = self.add_weight(shape=(), initializer="zeros", trainable=False, name="mean")

    def call(self, x):
        self.mean.assign(0.9 * self.mean + 0.1 * ops.mean(x))
        return ops.tanh(x - self.mean)


class Looked(K.Layer):
    """Right, of integer inputs, with a mask for what follows."""

    def build(self, shape):
        self.table = self.add_weight(shape=(6, 3), name="table")

    def call(self, ids):
        return ops.take(self.table, ids, axis=0)

    def compute_mask(self, ids, mask=None):
        return ops.not_equal(ids, 0)


class Root(K.Layer):
    """Right where it is finite: of inputs that are positive."""

    def call(self, x):
        return ops.sqrt(x)


class OwnDense(K.Dense):
    """A known layer that does one thing more."""

    def call(self, x, training=None):
        return super().call(x, training=training) ** 2


class OwnNorm(K.BatchNormalization):
    """Batch normalisation, scaled."""

    def call(self, x, training=None, mask=None):
        return 2.0 * super().call(x, training=training, mask=mask)


def around(*layers):
    return keras.Sequential([keras.Input((3,)), K.Dense(3, "tanh"), *layers, K.Dense(2)])


def nested(layer):
    inner = keras.Sequential([keras.Input((3,)), K.Dense(3), layer], name="inner")
    return keras.Sequential([keras.Input((3,)), inner, K.Dense(2)])


def computed(operation):
    x = keras.Input((3,))
    return keras.Model(x, K.Dense(2)(operation(K.Dense(3, "tanh")(x))))


def rotated(*before):
    """Right of inputs; of features it is not known, and its operation has no float64 to check it in."""
    rotation = K.RandomRotation(0.1, fill_mode="constant", name="mine")
    return keras.Sequential([keras.Input((5, 5, 1)), *before, rotation, K.Flatten(), K.Dense(2)])


def own_activation(x):
    return ops.tanh(x) + 0.1 * x


def halting_activation(x):
    return x * ops.stop_gradient(ops.sigmoid(x))


def few(model):
    shape = (4, *model.input_shape[1:])
    if model.inputs[0].dtype.startswith("int"):
        return tf.ones(shape, "int32")
    return tf.random.stateless_normal(shape, (0, 0))


RIGHT = {
    "a layer with training and mask": lambda: around(Scaled()),
    "after a mask": lambda: keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            K.Embedding(6, 3, mask_zero=True),
            Scaled(),
            K.GlobalAveragePooling1D(),
            K.Dense(2),
        ]
    ),
    "of integers": lambda: keras.Sequential(
        [keras.Input((4,), dtype="int32"), Looked(), K.GlobalAveragePooling1D(), K.Dense(2)]
    ),
    "of positive inputs": lambda: around(K.Activation("softplus"), Root()),
    "behind a kink": lambda: around(K.ReLU(), Scaled()),
    "a subclass of Dense": lambda: around(OwnDense(3)),
    "a subclass of BatchNormalization": lambda: around(OwnNorm()),
    "Lambda": lambda: around(K.Lambda(lambda x: ops.sin(x) * x)),
    "an activation of one's own": lambda: around(K.Dense(3, activation=own_activation)),
    "rotated inputs": lambda: rotated(),
    "an operation": lambda: computed(lambda x: ops.softplus(x) + ops.sin(x)[:, :1]),
    "moments in an operation": lambda: computed(lambda x: x / ops.sqrt(ops.moments(x, axes=[0])[1] + 0.1)),
}

WRONG = {
    "a mean taken for a constant": (lambda: around(Centred(name="mine")), "mine"),
    "a derivative that is halted": (lambda: around(Halting(name="mine")), "mine"),
    "in training mode alone": (lambda: around(CentredInTraining(name="mine")), "mine"),
    "inside a nested model": (lambda: nested(Centred(name="mine")), "inner/mine"),
    "a straight-through gradient": (lambda: around(Straight(name="mine")), "mine"),
    "no second derivative": (lambda: around(NoSecond(name="mine")), "mine"),
    "no derivative at all": (lambda: around(NoFirst(name="mine")), "mine"),
    "Lambda": (lambda: around(K.Lambda(lambda x: x * tf.stop_gradient(x), name="mine")), "mine"),
    "an activation of one's own": (lambda: around(K.Dense(3, activation=halting_activation, name="mine")), "mine"),
    "rotated features": (lambda: rotated(K.Dense(1)), "mine"),
    "a part that is stopped": (lambda: computed(K.Lambda(ops.stop_gradient, name="mine")), "mine"),
    "batch renormalisation": (lambda: around(K.BatchNormalization(renorm=True, name="mine")), "mine"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right(name):
    model = RIGHT[name]()
    check_layers(model, few(model))


#: Those whose first derivative is right, so that first-order methods are a way on; or of whom nobody knows.
OF_SECOND = ("no second derivative", "a derivative that is halted", "rotated features")


@pytest.mark.parametrize("name", WRONG)
def test_refused_by_its_path_with_ways_on(name):
    make, path = WRONG[name]
    model = make()
    with pytest.raises(DifferentiationError, match=f"'(.*/)?{path}'.*derivative.*(take|Take|check=False)") as caught:
        check_layers(model, few(model))
    assert ("method='fomaml'" in str(caught.value)) == (name in OF_SECOND)


def support():
    random = np.random.default_rng(0)
    return Batch(random.normal(size=(2, 4, 3)).astype("float32"), random.integers(0, 2, (2, 4)))


@pytest.mark.parametrize("layer", [Centred, Halting])
def test_the_ways_on_work(layer):
    model = around(layer(name="mine"))
    learner = maml(model, steps=1)
    with pytest.raises(DifferentiationError, match="mine"):
        learner.adapt(learner.init(0), support())
    for way in (maml(model, steps=1, check=False), fomaml(model, steps=1)):
        adapted, _ = way.adapt(way.init(0), support())
        assert all(np.isfinite(value).all() for value in adapted.params.values())


@pytest.mark.parametrize("taskmap", ["vectorized", "loop"])
def test_an_operation_that_is_not_looked_at_and_has_no_derivative(taskmap):
    def gradient(layer, method, **options):
        learner = method(around(layer()), steps=1, taskmap=taskmap, **options)
        episodes = Episodes(support(), support())
        return tf.function(lambda meta: backprop(learner, meta, episodes).meta, autograph=False)(learner.init(0))

    with pytest.raises(DifferentiationError, match="no second derivative in TensorFlow.*SoftsignGrad.*'fomaml'"):
        gradient(NoSecond, maml, check=False)
    gradient(NoSecond, fomaml)
    if taskmap == "loop":  # it cannot be run for all tasks at once either
        with pytest.raises(DifferentiationError, match="no derivative in TensorFlow.*ResizeArea.*another layer in its"):
            gradient(NoFirst, fomaml)


def test_what_has_one_precision_cannot_be_checked():
    model = around(Single(name="mine"))
    with pytest.raises(DifferentiationError, match="mine.*cannot be checked.*expected to be a double.*check=False"):
        check_layers(model, few(model))


def test_without_a_config_a_layer_with_weights_cannot_be_checked():
    model = around(NoConfig(K.Dense(3), name="mine"))
    with pytest.raises(DifferentiationError, match="mine.*no configuration of mine.*get_config.*check=False"):
        check_layers(model, few(model))


def test_what_is_kept_from_call_to_call_is_refused():
    model = around(Counting(name="mine"))
    with pytest.raises(DifferentiationError, match="mine.*keeps '.*mine/mean'.*check=False"):
        check_layers(model, few(model))


def test_what_gives_nan_is_refused():
    model = around(Root(name="mine"))
    with pytest.raises(DifferentiationError, match="mine.*not finite"):
        check_layers(model, few(model))


def test_a_subclassed_model_is_checked_as_one_layer():
    class Wrong(keras.Model):
        def __init__(self, **options):
            super().__init__(**options)
            self.dense = K.Dense(2)

        def build(self, shape):
            self.dense.build(shape)

        def call(self, x):
            return self.dense(x) * ops.stop_gradient(ops.sigmoid(self.dense(x)))

    class Right(Wrong):
        def call(self, x):
            return self.dense(x) * ops.sigmoid(x[:, :2])

    right, wrong = Right(), Wrong(name="whole")
    for model in (right, wrong):
        model.build((None, 3))
    x = tf.random.stateless_normal((4, 3), (0, 0))
    check_layers(right, x)
    with pytest.raises(DifferentiationError, match="'whole'"):
        check_layers(wrong, x)


def test_spectral_normalisation_is_refused_by_its_path():
    with pytest.raises(UsageError, match="mine'.*UnitNormalization"):
        fomaml(around(K.SpectralNormalization(K.Dense(3), name="mine")))


def test_settings_of_precision_are_left_as_they_were():
    before = keras.config.floatx(), keras.config.dtype_policy().name
    model = around(Scaled())
    check_layers(model, few(model))
    assert (keras.config.floatx(), keras.config.dtype_policy().name) == before
