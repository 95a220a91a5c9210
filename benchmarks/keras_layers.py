"""Second-order meta-gradients of Keras's layers against finite differences: ``python -m benchmarks.keras_layers``.

For each model of the table, three tasks that differ, in float64, adapted by T steps of gradient descent: how far the
meta-gradient along a random direction is from the central difference of the meta-loss, relative to it. "Keras as it is"
is the same computation with TensorFlow's own operations left in place. The tests hold the same table to a bound.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import keras
import numpy as np
import tensorflow as tf
from keras import layers as K, ops

from benchmarks.report import table
from headstart.errors import DifferentiationError
from headstart.integrations.keras import backprop, forward, maml
from headstart.integrations.keras.learner import Learner
from headstart.types import Batch, Episodes, Meta

TASKS, SUPPORT, QUERY, WAYS = 3, 3, 4, 3
STEP = 3e-5


class Case(NamedTuple):
    """A model, and what its tasks look like."""

    model: Any
    kind: str = "normal"
    """Of inputs: 'normal', 'ids' (0 to 5, of which 0 is padding) or 'images' (0 to 1)."""
    targets: Callable[[np.random.Generator, int], Any] = lambda random, n: random.integers(0, WAYS, (TASKS, n))
    options: dict[str, Any] = {}
    seeded: bool = False
    """Whether the model is run in training mode."""
    masked: bool = True
    """Whether tasks have different numbers of examples."""
    at_once: bool = True
    """Whether all of its operations can be run for all tasks at once."""
    inputs: Any = None
    """Shapes of inputs that have names."""
    steps: int = 3
    """T in the tests: fewer where the graph takes long to build."""


def around(shape: tuple[int, ...], *middle: Any) -> Any:
    """Return a model with weights on both sides of the layers in question."""
    return keras.Sequential([keras.Input(shape), K.Dense(shape[-1], "tanh"), *middle, K.Flatten(), K.Dense(WAYS)])


def sentences(*middle: Any) -> Any:
    """Return a model of sequences of four ids, of which 0 is masked."""
    return keras.Sequential([keras.Input((4,), dtype="int32"), K.Embedding(6, 3, mask_zero=True), *middle])


def branches(shape: tuple[int, ...], *layers: Any, ends: Any = None) -> Any:
    """Return a model in which each of the layers sees the same features, and all of them are read."""
    x = keras.Input(shape)
    features = K.Dense(shape[-1], "tanh")(x)
    read = [K.Flatten()(layer(features)) for layer in layers]
    return keras.Model(x, K.Dense(WAYS)(K.Concatenate()(read)))


def merges() -> Any:
    x = keras.Input((4,))
    a, b = K.Dense(3, "tanh")(x), K.Dense(3)(x)
    kinds = K.Add, K.Subtract, K.Multiply, K.Average, K.Maximum, K.Minimum
    read = [*(kind()([a, b]) for kind in kinds), K.Dot(axes=1)([a, b]), K.Dot(axes=1, normalize=True)([a, b])]
    return keras.Model(x, K.Dense(WAYS)(K.Concatenate()(read)))


def attention(layer: Any, *, keys: bool = False) -> Any:
    x = keras.Input((4, 3))
    a, b, c = (K.Dense(3)(x) for _ in range(3))
    return keras.Model(x, K.Dense(WAYS)(K.Flatten()(layer([a, b, c]) if keys else layer(a, b, c))))


def masked_attention() -> Any:
    ids = keras.Input((4,), dtype="int32")
    x = K.Embedding(6, 4, mask_zero=True)(ids)
    x = K.MultiHeadAttention(2, 2)(x, x, use_causal_mask=True)
    return keras.Model(ids, K.Dense(WAYS)(K.GlobalAveragePooling1D()(x)))


class Block(K.Layer):
    """A transformer block as keras-hub writes them."""

    def __init__(self, heads: int, width: int, **options: Any) -> None:
        super().__init__(**options)
        self.heads, self.width = heads, width
        self.attention = K.MultiHeadAttention(heads, width // heads, dropout=0.1)
        self.first, self.second = K.LayerNormalization(), K.LayerNormalization()
        self.wide, self.narrow = K.Dense(2 * width, activation="gelu"), K.Dense(width)
        self.dropout = K.Dropout(0.1)
        self.supports_masking = True

    def build(self, shape: Any) -> None:
        self.attention.build(shape, shape)
        for layer in (self.first, self.second, self.wide, self.dropout):
            layer.build(shape)
        self.narrow.build((*shape[:-1], 2 * self.width))

    def call(self, x: Any, mask: Any = None, training: bool = False) -> Any:
        near = self.first(x)
        allowed = None if mask is None else mask[:, None, :]
        x = x + self.dropout(self.attention(near, near, attention_mask=allowed, training=training), training=training)
        return x + self.narrow(self.wide(self.second(x)))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"heads": self.heads, "width": self.width}


class Places(K.Layer):
    """Learned embeddings of places, added."""

    def build(self, shape: Any) -> None:
        self.table = self.add_weight(shape=shape[1:], initializer="glorot_uniform", name="table")
        self.supports_masking = True

    def call(self, x: Any) -> Any:
        return x + self.table


def transformer() -> Any:
    ids = keras.Input((4,), dtype="int32")
    x = Places()(K.Embedding(6, 4, mask_zero=True)(ids))
    x = K.LayerNormalization()(Block(2, 4)(x))
    return keras.Model(ids, K.Dense(WAYS)(x[:, 0]))


class Subclassed(keras.Model):
    """A model that is written as a class."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.first, self.norm, self.last = K.Dense(4, "tanh"), K.BatchNormalization(), K.Dense(WAYS)

    def build(self, shape: Any) -> None:
        self.first.build(shape)
        self.norm.build((None, 4))
        self.last.build((None, 4))

    def call(self, x: Any, training: bool = False) -> Any:
        return self.last(self.norm(self.first(x), training=training))


def subclassed() -> Any:
    model = Subclassed()
    model.build((None, 4))
    return model


def used_twice() -> Any:
    x, layer = keras.Input((4,)), K.Dense(4, "tanh")
    norm = K.BatchNormalization()
    return keras.Model(x, K.Dense(WAYS)(norm(layer(norm(layer(x))))))


class Tied(K.Layer):
    """Reads with the transposed weights of another layer."""

    def __init__(self, of: Any, **options: Any) -> None:
        super().__init__(**options)
        self.of = of

    def call(self, x: Any) -> Any:
        return ops.matmul(x, ops.transpose(self.of.kernel))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"of": keras.saving.serialize_keras_object(self.of)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        of = keras.saving.deserialize_keras_object(config.pop("of"))
        of.build((None, 4))
        return cls(of, **config)


def tied() -> Any:
    x, layer = keras.Input((4,)), K.Dense(3, "tanh")
    return keras.Model(x, K.Dense(WAYS)(Tied(layer)(layer(x))))


def frozen() -> Any:
    model = keras.Sequential(
        [keras.Input((4,)), K.Dense(4, "tanh"), K.BatchNormalization(), K.Dense(4, "tanh"), K.Dense(WAYS)]
    )
    model.layers[0].trainable = model.layers[1].trainable = False
    return model


def nested() -> Any:
    x = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), K.Dense(4), K.BatchNormalization(), K.Activation("tanh")])
    outer = keras.Model(x, inner(inner(x)))
    return keras.Sequential([keras.Input((4,)), outer, K.Dense(WAYS)])


def lists() -> Any:
    a, b = keras.Input((4,)), keras.Input((2,))
    x = K.Concatenate()([K.Dense(3, "tanh")(a), b])
    return keras.Model([a, b], [K.Dense(WAYS)(x), K.Dense(1)(x)])


def dicts() -> Any:
    a, b = keras.Input((4,), name="a"), keras.Input((2,), name="b")
    x = K.Concatenate()([K.Dense(3, "tanh")(a), b])
    return keras.Model({"a": a, "b": b}, {"kind": K.Dense(WAYS)(x), "size": K.Dense(1)(x)})


def encoded() -> Any:
    ids = keras.Input((2,), dtype="int32")
    return keras.Model(ids, K.Dense(WAYS)(K.Dense(3, "tanh")(K.CategoryEncoding(6, output_mode="multi_hot")(ids))))


def two_targets(random: np.random.Generator, n: int) -> list[Any]:
    return [random.integers(0, WAYS, (TASKS, n)), random.normal(size=(TASKS, n, 1))]


def named_targets(random: np.random.Generator, n: int) -> dict[str, Any]:
    return dict(zip(("kind", "size"), two_targets(random, n)))


def one_hot(random: np.random.Generator, n: int) -> Any:
    return np.eye(WAYS)[random.integers(0, WAYS, (TASKS, n))]


def positive(random: np.random.Generator, n: int) -> Any:
    return random.uniform(0.1, 0.9, (TASKS, n, WAYS))


def signs(random: np.random.Generator, n: int) -> Any:
    return np.sign(random.normal(size=(TASKS, n, WAYS)))


def normalised(**options: Any) -> Case:
    return Case(around((4,), K.BatchNormalization(momentum=0.3), K.Activation("tanh")), options=options, masked=False)


def scored(loss: Any, targets: Any, last: str | None = None) -> Case:
    model = keras.Sequential([keras.Input((4,)), K.Dense(5, "tanh"), K.Dense(WAYS, last)])
    return Case(model, targets=targets, options={"loss": loss})


def images(*layers: Any, before: tuple[Any, ...] = ()) -> Case:
    convolved = [K.Conv2D(2, 3, activation="tanh"), K.Flatten(), K.Dense(WAYS)]
    return Case(
        keras.Sequential([keras.Input((6, 6, 1)), *before, *layers, *convolved]),
        kind="images",
        seeded=True,
        at_once=False,
    )


#: Activations with a derivative of its own in Keras or TensorFlow, or a kink.
ACTIVATIONS = (
    "relu leaky_relu relu6 softmax elu selu softplus soft_shrink sparse_plus silu squareplus gelu celu tanh "
    "tanh_shrink hard_tanh sigmoid exponential hard_sigmoid log_sigmoid sparse_sigmoid hard_silu linear "
    "mish log_softmax sparsemax softsign"
).split()
LOSSES = keras.losses

CASES: dict[str, Callable[[], Case]] = {
    "Dense, EinsumDense": lambda: Case(
        branches((4, 3), K.Dense(2, "tanh"), K.EinsumDense("abc,cd->abd", (4, 2), bias_axes="d", activation="tanh"))
    ),
    "Conv1D, its transpose, Depthwise, Separable": lambda: Case(
        branches(
            (5, 2),
            K.Conv1D(3, 3, activation="tanh", dilation_rate=2),
            K.Conv1DTranspose(2, 3, strides=2, activation="tanh"),
            K.DepthwiseConv1D(3, activation="tanh"),
            K.SeparableConv1D(2, 3, activation="tanh"),
        ),
        at_once=False,
        steps=2,
    ),
    "Conv2D, its transpose, Depthwise, Separable": lambda: Case(
        branches(
            (4, 4, 2),
            K.Conv2D(4, 3, strides=2, padding="same", activation="tanh", groups=2),
            K.Conv2DTranspose(1, 3, strides=2, activation="tanh"),
            K.DepthwiseConv2D(3, activation="tanh"),
            K.SeparableConv2D(2, 3, activation="tanh"),
        ),
        at_once=False,
        steps=2,
    ),
    "Conv3D, its transpose": lambda: Case(
        branches((2, 3, 3, 1), K.Conv3D(2, 2, activation="tanh"), K.Conv3DTranspose(1, 2, activation="tanh")),
        at_once=False,
        steps=2,
    ),
    "ConvLSTM2D": lambda: Case(around((2, 3, 2, 1), K.ConvLSTM2D(1, 2)), at_once=False, steps=1),
    "BatchNormalization, batch": lambda: normalised(),
    "BatchNormalization, frozen": lambda: normalised(buffers="frozen"),
    "BatchNormalization, task": lambda: normalised(buffers="task"),
    "BatchNormalization, convolutions": lambda: Case(
        around((3, 3, 2), K.Conv2D(2, 2), K.BatchNormalization(), K.Activation("tanh")), masked=False, at_once=False
    ),
    "BatchNormalization, axis 1": lambda: Case(
        around((3, 2, 4), K.BatchNormalization(axis=1), K.Activation("tanh")), masked=False
    ),
    "BatchNormalization, mask": lambda: Case(
        sentences(K.BatchNormalization(), K.Activation("tanh"), K.GlobalAveragePooling1D(), K.Dense(WAYS)),
        kind="ids",
        masked=False,
    ),
    "Layer-, Group-, RMS-, UnitNormalization": lambda: Case(
        branches((3, 4), K.LayerNormalization(), K.GroupNormalization(2), K.RMSNormalization(), K.UnitNormalization())
    ),
    "Normalization, Rescaling, penalties": lambda: Case(
        keras.Sequential(
            [
                keras.Input((4,)),
                K.Normalization(mean=0.3, variance=2.0),
                K.Rescaling(0.5, 0.1),
                K.Dense(4, "tanh"),
                K.Identity(),
                K.ActivityRegularization(l2=0.1),
                K.Dense(WAYS, kernel_regularizer="l2"),
            ]
        ),
        masked=False,
    ),
    "Embedding, mask": lambda: Case(
        sentences(K.GlobalAveragePooling1D(), K.Dense(4, "tanh"), K.Dense(WAYS)), kind="ids"
    ),
    "CategoryEncoding": lambda: Case(encoded(), kind="ids", at_once=False),
    "Masking": lambda: Case(
        keras.Sequential([keras.Input((4, 2)), K.Masking(), K.LSTM(2, unroll=True), K.Dense(WAYS)]), kind="gaps"
    ),
    "LSTM, mask": lambda: Case(sentences(K.LSTM(2), K.Dense(WAYS)), kind="ids", at_once=False, steps=2),
    "LSTM, GRU, SimpleRNN, unrolled": lambda: Case(
        branches((3, 2), K.LSTM(2, unroll=True), K.GRU(2, unroll=True), K.SimpleRNN(2, unroll=True))
    ),
    "Bidirectional, TimeDistributed": lambda: Case(
        sentences(K.TimeDistributed(K.Dense(3, "tanh")), K.Bidirectional(K.GRU(2, unroll=True)), K.Dense(WAYS)),
        kind="ids",
        steps=2,
    ),
    "RNN of cells": lambda: Case(around((3, 2), K.RNN([K.LSTMCell(2), K.GRUCell(2), K.SimpleRNNCell(2)], unroll=True))),
    "MultiHeadAttention": lambda: Case(attention(K.MultiHeadAttention(2, 3))),
    "MultiHeadAttention, mask": lambda: Case(masked_attention(), kind="ids"),
    "GroupQueryAttention": lambda: Case(attention(K.GroupQueryAttention(2, 4, 2))),
    "Attention": lambda: Case(attention(K.Attention(use_scale=True), keys=True)),
    "AdditiveAttention": lambda: Case(attention(K.AdditiveAttention(), keys=True)),
    "Transformer block": lambda: Case(transformer(), kind="ids", seeded=True, at_once=False, steps=2),
    "Dropout, AlphaDropout, Gaussian-": lambda: Case(
        branches((4,), K.Dropout(0.4), K.AlphaDropout(0.3), K.GaussianDropout(0.3), K.GaussianNoise(0.3)),
        seeded=True,
        at_once=False,
    ),
    "SpatialDropout": lambda: Case(
        keras.Sequential(
            [
                keras.Input((2, 2, 1, 3)),
                K.Dense(3, "tanh"),
                K.SpatialDropout3D(0.4),
                K.Reshape((2, 2, 3)),
                K.SpatialDropout2D(0.4),
                K.Reshape((4, 3)),
                K.SpatialDropout1D(0.4),
                K.Flatten(),
                K.Dense(WAYS),
            ]
        ),
        seeded=True,
        at_once=False,
    ),
    "Pooling in 1D": lambda: Case(
        branches((5, 2), K.AveragePooling1D(2), K.MaxPooling1D(2), K.GlobalAveragePooling1D(), K.GlobalMaxPooling1D())
    ),
    "Pooling in 2D": lambda: Case(
        branches(
            (4, 4, 2),
            K.AveragePooling2D(2),
            K.MaxPooling2D(3, 2, padding="same"),
            K.GlobalAveragePooling2D(),
            K.GlobalMaxPooling2D(),
        )
    ),
    "Pooling in 3D": lambda: Case(branches((2, 2, 4, 2), K.GlobalAveragePooling3D(), K.GlobalMaxPooling3D())),
    "AdaptivePooling": lambda: Case(branches((4, 2), K.AdaptiveAveragePooling1D(3), K.AdaptiveMaxPooling1D(3))),
    "Merges": lambda: Case(merges()),
    "Shapes in 1D": lambda: Case(
        around(
            (4, 2),
            K.ZeroPadding1D(1),
            K.UpSampling1D(2),
            K.Cropping1D(1),
            K.Permute((2, 1)),
            K.Reshape((20,)),
            K.RepeatVector(2),
            K.Activation("tanh"),
        )
    ),
    "Shapes in 2D": lambda: Case(
        branches((3, 3, 2), K.ZeroPadding2D(1), K.UpSampling2D(2), K.Cropping2D(1), K.Resizing(4, 5))
    ),
    "UpSampling2D, bilinear": lambda: Case(
        around((3, 3, 2), K.UpSampling2D(2, interpolation="bilinear"), K.Activation("tanh"))
    ),
    "Shapes in 3D": lambda: Case(
        branches((2, 2, 3, 2), K.ZeroPadding3D(1), K.UpSampling3D(2), K.Cropping3D(((0, 1), (0, 1), (1, 1))))
    ),
    "RandomTranslation, -Rotation, -Zoom of inputs": lambda: images(
        K.RandomTranslation(0.2, 0.2), K.RandomRotation(0.1), K.RandomZoom(0.2)
    ),
    "RandomFlip, -Contrast, -Brightness, -Crop, Resizing": lambda: images(
        K.RandomFlip(),
        K.RandomContrast(0.4, value_range=(0, 1)),
        K.RandomBrightness(0.2, value_range=(0, 1)),
        K.RandomCrop(5, 5),
        K.Resizing(6, 6),
        before=(K.Dense(1, "sigmoid"),),
    ),
    "PReLU, ReLU, ELU, Softmax": lambda: Case(
        branches((4,), K.PReLU(alpha_initializer="uniform"), K.ReLU(), K.LeakyReLU(), K.ELU(), K.Softmax())
    ),
    "Activations": lambda: Case(branches((4,), *map(K.Activation, ACTIVATIONS))),
    "used twice": lambda: Case(used_twice(), masked=False),
    "tied weights": lambda: Case(tied()),
    "frozen layers": lambda: Case(frozen()),
    "nested models": lambda: Case(nested(), masked=False),
    "subclassed model": lambda: Case(subclassed(), masked=False, inputs=(None, 4)),
    "lists of inputs and outputs": lambda: Case(
        lists(), targets=two_targets, options={"loss": ["cross_entropy", "mse"]}
    ),
    "dicts of inputs and outputs": lambda: Case(
        dicts(),
        inputs={"a": (None, 4), "b": (None, 2)},
        targets=named_targets,
        options={"loss": {"kind": "cross_entropy", "size": "mse"}},
    ),
}

SCORES: dict[str, Callable[[], Case]] = {
    "CategoricalCrossentropy": lambda: scored(
        LOSSES.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1), one_hot
    ),
    "CategoricalCrossentropy of probabilities": lambda: scored("categorical_crossentropy", one_hot, "softmax"),
    "SparseCategoricalCrossentropy of probabilities": lambda: scored(
        "sparse_categorical_crossentropy", lambda random, n: random.integers(0, WAYS, (TASKS, n)), "softmax"
    ),
    "BinaryCrossentropy": lambda: scored(LOSSES.BinaryCrossentropy(from_logits=True, label_smoothing=0.1), one_hot),
    "BinaryCrossentropy of probabilities": lambda: scored("binary_crossentropy", one_hot, "sigmoid"),
    "BinaryFocalCrossentropy": lambda: scored(LOSSES.BinaryFocalCrossentropy(from_logits=True), one_hot),
    "CategoricalFocalCrossentropy": lambda: scored(LOSSES.CategoricalFocalCrossentropy(from_logits=True), one_hot),
    "Huber": lambda: scored(LOSSES.Huber(0.4), positive),
    "LogCosh": lambda: scored("log_cosh", positive),
    "MeanSquaredError": lambda: scored("mse", positive),
    "MeanAbsoluteError": lambda: scored("mae", positive),
    "MeanAbsolutePercentageError": lambda: scored("mape", positive),
    "MeanSquaredLogarithmicError": lambda: scored("msle", positive, "softplus"),
    "Poisson": lambda: scored("poisson", positive, "softplus"),
    "KLDivergence": lambda: scored("kl_divergence", positive, "softmax"),
    "CosineSimilarity": lambda: scored("cosine_similarity", positive),
    "Hinge": lambda: scored("hinge", signs),
    "SquaredHinge": lambda: scored("squared_hinge", signs),
    "CategoricalHinge": lambda: scored("categorical_hinge", one_hot),
    "Tversky": lambda: scored(LOSSES.Tversky(axis=(1,)), one_hot, "sigmoid"),
    "Dice": lambda: scored(LOSSES.Dice(axis=(1,)), one_hot, "sigmoid"),
}


@contextmanager
def in_float64() -> Iterator[None]:
    """Make models in float64."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def made(make: Callable[[], Case], seed: int = 0) -> tuple[Case, Episodes]:
    """Return a case whose weights are nowhere special, and its tasks."""
    random = np.random.default_rng(seed)
    with in_float64():
        keras.utils.set_random_seed(seed)
        case = make()
    for variable in case.model.trainable_variables:
        variable.assign_add(0.3 * random.normal(size=variable.shape))
    seeds = tf.range(TASKS, dtype=tf.int64) if case.seeded else None

    def batch(n: int, fewest: int) -> Batch:
        x = _inputs(case, random, n)
        mask = None
        if case.masked:
            mask = np.arange(n) < np.array([n, fewest, n - 1])[:, None]
        return Batch(x, case.targets(random, n), mask, seeds)

    return case, Episodes(batch(SUPPORT, 1), batch(QUERY, 2))


def _inputs(case: Case, random: np.random.Generator, n: int) -> Any:
    def values(shape: Any) -> Any:
        shape = (TASKS, n, *shape[1:])
        if case.kind == "ids":
            made = random.integers(0, 6, shape)
            made[..., 0] = np.maximum(made[..., 0], 1)
            return made.astype("int32")
        if case.kind == "images":
            return random.uniform(size=shape)
        made = random.normal(size=shape)
        if case.kind == "gaps":
            made[:, 1:, 2:] = 0
        return made

    return keras.tree.map_shape_structure(values, case.inputs or case.model.input_shape)


def learner_of(case: Case, steps: int, **options: Any) -> Learner:
    """Return MAML for the case's model, without the check of layers, which is not what is judged here."""
    return maml(case.model, steps=steps, **{"rate": 0.1, "check": False, **case.options, **options})


def look(case: Case, episodes: Episodes, steps: int, **options: Any) -> tuple[float, Meta]:
    """Return the relative error of the meta-gradient along a direction, and the meta-gradient.

    The difference is of fourth order: (8 (f(h) − f(−h)) − (f(2h) − f(−2h))) / 12h.
    """
    learner = learner_of(case, steps, **{"taskmap": "vectorized" if case.at_once else "loop", **options})
    meta = learner.init(0)

    @tf.function(autograph=False)
    def differentiated(meta: Meta) -> tuple[Any, Meta]:
        found = backprop(learner, meta, episodes)
        return tf.reduce_mean(found.info.query_loss), found.meta

    def at(distance: float) -> float:
        moved = tf.nest.map_structure(lambda value, d: value + distance * d, meta, along)
        return float(differentiated(moved)[0])

    gradient = differentiated(meta)[1]
    random = np.random.default_rng(1)
    along = tf.nest.map_structure(lambda value: tf.constant(random.normal(size=value.shape), value.dtype), meta)
    expected = (8 * (at(STEP) - at(-STEP)) - (at(2 * STEP) - at(-2 * STEP))) / (12 * STEP)
    found = sum(float(tf.reduce_sum(a * b)) for a, b in zip(tf.nest.flatten(gradient), tf.nest.flatten(along)))
    return abs(found - expected) / abs(expected), gradient


def apart(a: Meta, b: Meta) -> float:
    """Return the greatest difference of two gradients."""
    return max(float(tf.reduce_max(tf.abs(x - y))) for x, y in zip(tf.nest.flatten(a), tf.nest.flatten(b)))


def as_it_is() -> Any:
    """Leave TensorFlow's own operations in place."""
    return patch.multiple(forward, exact=nullcontext, is_plain=lambda layer, x: False)


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="rows of the table; all by default")
    parser.add_argument("--steps", type=int, default=2, help="T")
    given = parser.parse_args()
    tf.get_logger().disabled = True
    headings = ("layers", f"Keras as it is, T = {given.steps}", "headstart")
    print(*table(headings, []), sep="\n")
    for name in given.names or CASES:
        told = []
        for mode in (as_it_is, nullcontext):
            case, episodes = made(CASES[name])
            try:
                with mode():
                    told.append(f"{look(case, episodes, given.steps, taskmap='loop')[0]:.0e}")
            except (DifferentiationError, LookupError):
                told.append("no second derivative")
        print(table(headings, [(name, *told)])[-1], flush=True)


if __name__ == "__main__":
    main()
