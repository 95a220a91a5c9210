"""Second derivatives that TensorFlow gets right, and a check for those of layers that nobody has looked at.

``tf.nn.moments`` takes the mean for a constant where it computes the variance. That changes no first derivative, since
the deviations from the mean add up to zero, but it changes the second: Keras's `BatchNormalization` on TensorFlow gives
second-order meta-gradients that are off by 4e-3 with one inner step and 1e-2 to 3e-2 with two, and nothing says so.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from headstart.errors import DifferentiationError
from headstart.integrations.keras.backend import keras, tf

#: What is put in the place of others' functions is there for all threads, so one at a time.
REPLACING = threading.RLock()


def moments(x: Any, axes: Any, shift: Any = None, keepdims: bool = False, name: str | None = None) -> tuple[Any, Any]:
    """Return mean and variance over ``axes`` as ``tf.nn.moments`` does, with all of their derivatives."""
    mean = tf.reduce_mean(x, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(x - mean), axes, keepdims=keepdims)
    return (mean if keepdims else tf.squeeze(mean, axes)), variance


@contextmanager
def exact() -> Iterator[None]:
    """Put `moments` in the place of TensorFlow's while operations are recorded inside."""
    with REPLACING, patch.object(tf.nn, "moments", moments):
        yield


#: Keras's layers whose second derivatives are right here, each shown by finite differences in the tests.
KNOWN = (
    "Activation ActivityRegularization Add AdditiveAttention AlphaDropout Attention Average AveragePooling1D "
    "AveragePooling2D AveragePooling3D BatchNormalization Bidirectional CategoryEncoding Concatenate Conv1D "
    "Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose Cropping1D Cropping2D Cropping3D Dense "
    "DepthwiseConv1D DepthwiseConv2D Dot Dropout ELU EinsumDense Embedding Flatten GRU GRUCell GaussianDropout "
    "GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D "
    "GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization GroupQueryAttention Identity InputLayer LSTM LSTMCell "
    "LayerNormalization LeakyReLU Masking MaxPooling1D MaxPooling2D MaxPooling3D Maximum Minimum MultiHeadAttention "
    "Multiply Normalization PReLU Permute RMSNormalization RandomBrightness RandomContrast RandomFlip RandomRotation "
    "RandomTranslation RandomZoom ReLU RepeatVector Rescaling Reshape SeparableConv1D SeparableConv2D SimpleRNN "
    "SimpleRNNCell Softmax SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization StackedRNNCells "
    "Subtract TimeDistributed UnitNormalization UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D "
    "ZeroPadding3D RNN"
).split()

#: Relative error of a layer's second derivative, in float64, from which on it is refused; right ones stay below 1e-7.
TOLERANCE = 1e-5
STEP = 1e-5


def is_known(layer: Any) -> bool:
    """Return whether a layer is one of Keras's own that are shown to be right, with an activation that is, too."""
    kind = type(layer)
    if kind in (keras.Sequential, keras.Model) or kind.__name__ == "Functional":
        return kind.__module__.startswith("keras.")
    known = kind.__module__.startswith("keras.") and kind.__name__ in KNOWN
    functions = [getattr(layer, name, None) for name in ("activation", "recurrent_activation")]
    own = [f for f in functions if f is not None and not _of_keras(f)]
    return known and not own and not getattr(layer, "renorm", False)


def _of_keras(function: Any) -> bool:
    return getattr(function, "__module__", type(function).__module__).startswith("keras.")


class Call:
    """What a layer was called with: tensors have their values."""

    def __init__(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = tuple(args), dict(kwargs)


def unknown_calls(model: Any, x: Any) -> dict[int, tuple[Any, Call]]:
    """Return the layers that are not known, each with its first call, by running the model on ``x`` once."""
    unknown = {id(layer) for layer in model._flatten_layers() if not is_known(layer)}
    found: dict[int, tuple[Any, Call]] = {}
    original = keras.layers.Layer.__call__

    def called(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if id(layer) in unknown and id(layer) not in found:
            found[id(layer)] = layer, Call(args, kwargs)
        return original(layer, *args, **kwargs)

    if unknown:
        if id(model) in unknown:
            found[id(model)] = model, Call((x,), {})
        with REPLACING, patch.object(keras.layers.Layer, "__call__", called):
            model.stateless_call([*model.trainable_variables], [*model.non_trainable_variables], x)
    return found


def check_layers(model: Any, x: Any) -> None:
    """Refuse the first layer whose second derivative is not right: those that nobody knows are looked at.

    Raises:
        DifferentiationError: with the layer's path and the way on.
    """
    calls = unknown_calls(model, x)
    # the innermost first, so that a wrong layer is named and not the model around it
    for layer, call in sorted(calls.values(), key=lambda one: len(one[0]._flatten_layers())):
        try:
            twin, args, kwargs = _in_float64(layer, call)
        except Exception as error:
            raise DifferentiationError(
                f"the layer {layer.path or layer.name!r} ({type(layer).__name__}) is not one of Keras's own, and its "
                f"second derivatives cannot be checked, since no copy of it can be made in float64: {_first(error)}. "
                f"Give it a get_config that its class can be made from again, or say check=False to take its "
                f"derivatives as they are"
            ) from error
        try:
            off = second_derivative_error(twin, args, kwargs)
        except LookupError as error:
            raise DifferentiationError(
                f"the layer {layer.path or layer.name!r} ({type(layer).__name__}) has no second derivative: "
                f"{_first(error)}; take another layer, or method='fomaml', which needs none"
            ) from error
        if not off < TOLERANCE:
            raise DifferentiationError(
                f"the layer {layer.path or layer.name!r} ({type(layer).__name__}) has a wrong second derivative: it "
                f"differs by {off:.0e} of its size from the differences of its first, as where tf.stop_gradient, a "
                f"custom gradient or what is computed outside of TensorFlow stands in it. Take method='fomaml', which "
                f"uses first derivatives alone, or say check=False if that is meant"
            )


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _in_float64(layer: Any, call: Call) -> tuple[Any, Any, Any]:
    """Return a copy of a layer that computes in float64, with the same weights, and inputs for it."""
    twin = type(layer).from_config(_doubled(layer.get_config()))
    random = np.random.default_rng(0)

    def value(leaf: Any) -> Any:
        if not tf.is_tensor(leaf) or not leaf.dtype.is_floating:
            return leaf
        return tf.constant(random.normal(size=leaf.shape), tf.float64)

    args, kwargs = tf.nest.map_structure(value, (call.args, call.kwargs))
    twin(*args, **kwargs)
    for own, theirs in zip(twin.variables, layer.variables, strict=True):
        own.assign(tf.cast(theirs, own.dtype))
    return twin, args, kwargs


def _doubled(config: Any) -> Any:
    if isinstance(config, dict):
        made = {name: _doubled(value) for name, value in config.items()}
        if made.get("class_name") == "DTypePolicy":
            return made | {"config": {"name": "float64"}}
        return made | (
            {"dtype": "float64"} if isinstance(config.get("dtype"), str | None) and "dtype" in config else {}
        )
    return [_doubled(value) for value in config] if isinstance(config, (list, tuple)) else config


def second_derivative_error(layer: Any, args: Any, kwargs: Any) -> float:
    """Return how far H d is from differences of the gradient along d, relative to its size; all in float64.

    The gradient is that of a smooth function of the layer's outputs, by its weights and inputs.
    """
    fixed = [tf.convert_to_tensor(v) for v in layer.non_trainable_variables]
    leaves = tf.nest.flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if tf.is_tensor(leaf) and leaf.dtype.is_floating]
    weights = [tf.convert_to_tensor(v) for v in layer.trainable_variables]
    start = weights + [leaves[i] for i in places]
    random = np.random.default_rng(1)
    along = [tf.constant(random.normal(size=value.shape), value.dtype) for value in start]

    def total(values: list[Any]) -> Any:
        given = list(leaves)
        for place, value in zip(places, values[len(weights) :]):
            given[place] = value
        own, named = tf.nest.pack_sequence_as((args, kwargs), given)
        with exact():
            outputs, _ = layer.stateless_call(values[: len(weights)], fixed, *own, **named)
        outs = [tf.reshape(out, [-1]) for out in tf.nest.flatten(outputs) if out.dtype.is_floating]
        draw = np.random.default_rng(2)
        return tf.add_n(
            [tf.reduce_sum(tf.sin(out + draw.normal(size=out.shape)) * draw.normal(size=out.shape)) for out in outs]
        )

    def gradient(values: list[Any]) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch(values)
            value = total(values)
        return _filled(tape.gradient(value, values), values)

    @tf.function(autograph=False)
    def curvature(values: list[Any]) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch(values)
            slope = tf.add_n([tf.reduce_sum(g * d) for g, d in zip(gradient(values), along)])
        return _filled(tape.gradient(slope, values), values)

    slopes = tf.function(gradient, autograph=False)
    there, back = (slopes([v + sign * STEP * d for v, d in zip(start, along)]) for sign in (1, -1))
    expected = np.concatenate([np.ravel((a - b) / (2 * STEP)) for a, b in zip(there, back)])
    found = np.concatenate([np.ravel(value) for value in curvature(start)])
    size = max(float(np.linalg.norm(expected)), float(np.linalg.norm(found)))
    return float(np.linalg.norm(found - expected)) / size if size > 1e-9 else 0.0


def _filled(grads: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    return [tf.zeros_like(v) if g is None else tf.convert_to_tensor(g) for g, v in zip(grads, values)]
