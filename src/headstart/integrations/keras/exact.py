"""Second derivatives that TensorFlow gets right, and a check for those of layers that nobody has looked at.

``tf.nn.moments`` takes the mean for a constant where it computes the variance. That changes no first derivative, since
the deviations from the mean add up to zero, but it changes the second: Keras's `BatchNormalization` on TensorFlow gives
second-order meta-gradients that are off by 1e-3 to more than half of their size (``python -m
benchmarks.keras_layers``), and nothing says so; layer and group normalisation use the same function.
Bilinear resizing (``UpSampling2D``) loses its part of the second derivative altogether: of the operation that gives the
first, TensorFlow says that it has none.
"""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
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


def softsign(features: Any, name: str | None = None) -> Any:
    """Return x / (1 + |x|); TensorFlow's own operation has no second derivative."""
    return features / (1 + tf.abs(features))


_RESIZE = tf.image.resize


def resize(images: Any, size: Any, method: Any = "bilinear", *args: Any, **options: Any) -> Any:
    """Return images ``(…, height, width, channels)`` resized as ``tf.image.resize`` does, with all derivatives.

    Every output is a fixed linear combination of rows and of columns, which resizing those of a unit matrix shows.
    TensorFlow's bilinear operation has the second derivative 0, where it is not, and its others have none.
    """
    if not images.dtype.is_floating or args or options.get("preserve_aspect_ratio"):
        return _RESIZE(images, size, method, *args, **options)

    def shares(new: Any, old: Any) -> Any:
        unit = tf.eye(old)[..., None]
        return tf.cast(_RESIZE(unit, tf.stack([new, old]), method, **options)[..., 0], images.dtype)

    height, width = (images.shape[axis] or tf.shape(images)[axis] for axis in (-3, -2))
    rows, columns = shares(size[0], height), shares(size[1], width)
    return tf.einsum("ah,bw,...hwc->...abc", rows, columns, images)


@contextmanager
def exact() -> Iterator[None]:
    """Put the functions here in the places of TensorFlow's while operations are recorded inside."""
    with (
        REPLACING,
        patch.multiple(tf.nn, moments=moments, softsign=softsign),
        patch.object(tf.image, "resize", resize),
    ):
        yield


#: Keras's layers whose second derivatives are right here, each shown by finite differences in the tests.
KNOWN = (
    "Activation ActivityRegularization AdaptiveAveragePooling1D AdaptiveMaxPooling1D Add AdditiveAttention "
    "AlphaDropout Attention Average AveragePooling1D AveragePooling2D AveragePooling3D BatchNormalization "
    "Bidirectional CategoryEncoding Concatenate Conv1D Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose "
    "ConvLSTM2D ConvLSTMCell "
    "Cropping1D Cropping2D Cropping3D Dense DepthwiseConv1D DepthwiseConv2D Dot Dropout ELU EinsumDense Embedding "
    "Flatten GRU GRUCell GaussianDropout GaussianNoise GlobalAveragePooling1D GlobalAveragePooling2D "
    "GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization "
    "GroupedQueryAttention Identity InputLayer LSTM LSTMCell LayerNormalization LeakyReLU Masking MaxPooling1D "
    "MaxPooling2D MaxPooling3D Maximum Minimum MultiHeadAttention Multiply Normalization PReLU Permute "
    "RMSNormalization RNN RandomBrightness RandomContrast RandomCrop RandomFlip "
    "ReLU RepeatVector Rescaling Reshape Resizing SeparableConv1D SeparableConv2D SimpleRNN SimpleRNNCell "
    "Softmax SpatialDropout1D SpatialDropout2D SpatialDropout3D StackedRNNCells Subtract TimeDistributed "
    "UnitNormalization UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D"
).split()

#: Operations of ``keras.ops`` in functional models that need no look.
KNOWN_OPERATIONS = "Add Cast Concatenate ExpandDims GetItem Matmul Mean Multiply Reshape Subtract Sum Transpose".split()

#: Relative error of a layer's second derivative, in float64, from which on it is refused; right ones stay below 1e-7.
TOLERANCE = 1e-5
STEP = 1e-5


def is_known(layer: Any) -> bool:
    """Return whether a layer is one of Keras's own that are shown to be right, whatever its activation function."""
    kind = type(layer)
    if not kind.__module__.startswith("keras."):
        return False
    if not isinstance(layer, keras.Layer):  # what keras.ops recorded in a model
        return kind.__name__ in KNOWN_OPERATIONS
    if kind in (keras.Sequential, keras.Model) or kind.__name__ == "Functional":
        return True
    return kind.__name__ in KNOWN and not getattr(layer, "renorm", False)


def own_functions(layer: Any) -> list[Any]:
    """Return the activation functions of a layer that are not Keras's, and no layers themselves."""
    functions = [getattr(layer, name, None) for name in ("activation", "recurrent_activation")]
    return [f for f in functions if f is not None and not _of_keras(f) and not isinstance(f, keras.Layer)]


def _of_keras(function: Any) -> bool:
    return getattr(function, "__module__", type(function).__module__).startswith("keras.")


class Call(NamedTuple):
    """What a layer, or its activation function, was called with."""

    layer: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    function: Any = None
    """What is called where that is not the layer."""
    fixed: bool = False
    """Whether its inputs depend on no weights, so that nothing is derived by them."""


def unknown_calls(model: Any, x: Any) -> list[Call]:
    """Return the first call of each layer and operation that is not known, by running the model on ``x`` once."""
    parts = {id(part): part for layer in model._flatten_layers() for part in (layer, *getattr(layer, "operations", ()))}
    unknown = {key for key, part in parts.items() if not is_known(part)}
    found: dict[int, Call] = {}

    def listening(kind: Any) -> Any:
        original = kind.__call__

        def called(part: Any, *args: Any, **kwargs: Any) -> Any:
            if id(part) in unknown and id(part) not in found:
                found[id(part)] = Call(part, args, {**_mask(part, args, kwargs), **kwargs})
            return original(part, *args, **kwargs)

        return patch.object(kind, "__call__", called)

    values = tf.random.stateless_normal([4, 5], (0, 0))
    functions = [Call(part, (values,), {}, function) for part in parts.values() for function in own_functions(part)]
    if not unknown:
        return functions
    if id(model) in unknown:
        found[id(model)] = Call(model, (x,), {})
    weights = [tf.convert_to_tensor(v) for v in model.trainable_variables]
    with REPLACING, listening(keras.Layer), listening(keras.Operation), tf.GradientTape(persistent=True) as tape:
        tape.watch(weights)
        model.stateless_call(weights, [*model.non_trainable_variables], x)
    return functions + [call._replace(fixed=not _depends(call, tape, weights)) for call in found.values()]


def _depends(call: Call, tape: Any, weights: Sequence[Any]) -> bool:
    """Return whether what a layer was called with depends on weights."""
    floats = [
        leaf for leaf in tf.nest.flatten((call.args, call.kwargs)) if tf.is_tensor(leaf) and leaf.dtype.is_floating
    ]
    try:
        return any(value is not None for value in tape.gradient(floats, [*weights])) if floats else False
    except LookupError:
        return True


def _mask(part: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mask that Keras hands to a layer by itself."""
    if not getattr(part, "_call_has_mask_arg", False) or "mask" in kwargs or len(args) != 1:
        return {}
    masks = tf.nest.map_structure(lambda leaf: getattr(leaf, "_keras_mask", None), args[0])
    return {} if all(mask is None for mask in tf.nest.flatten(masks)) else {"mask": masks}


def check_layers(model: Any, x: Any) -> None:
    """Refuse the first layer whose second derivative is not right: those that nobody knows are looked at.

    Raises:
        DifferentiationError: with the layer's path and the way on.
    """
    # the innermost first, so that a wrong layer is named and not the model around it
    for call in sorted(unknown_calls(model, x), key=lambda call: len(_inside(call.layer))):
        by_mode = call.function is None and getattr(call.layer, "_call_has_training_arg", False)
        for mode in (True, False) if by_mode else (None,):
            _check(call if mode is None else call._replace(kwargs={**call.kwargs, "training": mode}))


def _inside(part: Any) -> list[Any]:
    return part._flatten_layers() if isinstance(part, keras.Layer) else []


def _check(call: Call) -> None:
    layer = call.layer
    if call.fixed and not getattr(layer, "trainable_variables", ()):
        return  # no derivative goes through it, as through the augmentation of inputs
    named = f"the layer {getattr(layer, 'path', '') or layer.name!r} ({type(layer).__name__})"
    try:
        twin = _in_float64(call)
    except Exception as error:
        raise DifferentiationError(
            f"{named} is not one of those whose derivatives are known to be right, and they cannot be checked, since "
            f"no copy of it can be made and run in float64: {_first(error)}. Give it a get_config that its class can "
            "be made from again, take method='fomaml', which goes by first derivatives alone, as ordinary training "
            "does, or say check=False to take its derivatives as they are"
        ) from error
    try:
        first, second, kept = derivative_error(twin)
    except LookupError as error:
        raise missing(named, error) from error
    if not first < TOLERANCE:
        raise DifferentiationError(
            f"{named} has a wrong first derivative: it {_told(first)} differences, as where tf.stop_gradient, a custom "
            "gradient or what is computed outside of TensorFlow stands in it. All methods go by it, so take another "
            "layer in its place, or say check=False if that is meant"
        )
    if not second < TOLERANCE:
        raise DifferentiationError(
            f"{named} has a wrong second derivative: it {_told(second)} differences of the first, which is right. Take "
            "method='fomaml', which needs no second derivatives, or say check=False if that is meant"
        )
    if kept:
        raise DifferentiationError(
            f"{named} keeps {kept[0]!r} from one call to the next, and of tasks, which are run apart, nothing is kept. "
            "Take BatchNormalization, whose statistics are followed, or say check=False to run it on the values it has"
        )


def _told(off: float) -> str:
    return f"differs by {off:.0e} of its size from" if np.isfinite(off) else "is not finite, or neither are"


def missing(what: str, error: BaseException) -> DifferentiationError:
    """Return what to say of a derivative that TensorFlow does not have: of an operation, or of its derivative."""
    # operations that derivatives are made of are called so: SoftsignGrad, Conv2DBackpropInput
    kind = re.search(r"(?:op type|no entry for): *(\w+)", str(error))
    if kind and re.search("Grad|Backprop", kind[1]):
        told = "no second derivative in TensorFlow", "take another layer, or method='fomaml', which needs none"
    else:
        told = "no derivative in TensorFlow", "take another layer in its place"
    return DifferentiationError(f"{what} has {told[0]}: {_first(error)}; {told[1]}")


def _first(error: BaseException) -> str:
    """Return the first line of a message that says more than which layer was called."""
    lines = [re.sub(r"\x1b\[\d*m", "", line).strip(" .") for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception encountered when calling")]
    return (said or [type(error).__name__])[0]


def _in_float64(call: Call) -> Call:
    """Return a copy of a layer that computes in float64, with the same weights, and inputs for it."""
    random = np.random.default_rng(0)

    def value(leaf: Any) -> Any:
        if not tf.is_tensor(leaf) or not leaf.dtype.is_floating:
            return leaf
        # a little more than it is: not in the kink of a ReLU at 0
        return tf.constant(leaf.numpy() + 0.01 * np.abs(random.normal(size=leaf.shape)), tf.float64)

    layer = call.layer
    args, kwargs = tf.nest.map_structure(value, (call.args, call.kwargs))
    if call.function is not None or not getattr(layer, "variables", ()):
        # needs no copy, nor the layer's cast of inputs
        made = call._replace(args=args, kwargs=kwargs, function=call.function or layer.call)
        made.function(*args, **kwargs)
        return made
    before = keras.config.dtype_policy(), keras.config.floatx()
    with REPLACING:
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")
        try:
            twin = type(layer).from_config(_doubled(layer.get_config()))
            twin(*args, **kwargs)
        finally:
            keras.config.set_floatx(before[1])
            keras.config.set_dtype_policy(before[0])
    for own, theirs in zip(twin.variables, layer.variables, strict=True):
        own.assign(tf.cast(theirs, own.dtype))
    return call._replace(layer=twin, args=args, kwargs=kwargs)


def _doubled(config: Any) -> Any:
    if isinstance(config, dict):
        made = {name: _doubled(value) for name, value in config.items()}
        if made.get("class_name") == "DTypePolicy":
            return made | {"config": {"name": "float64"}}
        return made | (
            {"dtype": "float64"} if isinstance(config.get("dtype"), str | None) and "dtype" in config else {}
        )
    return [_doubled(value) for value in config] if isinstance(config, (list, tuple)) else config


def derivative_error(call: Call) -> tuple[float, float, list[str]]:
    """Return how far first and second derivatives are from differences, and the variables that the call changes.

    They are those of a smooth function of the outputs, by weights and inputs, along a direction d: g · d against
    differences of the function, and H d against those of g, each relative to its size, all in float64.
    """
    layer, args, kwargs, function, still = call
    trained, rest = ((), ()) if function else (layer.trainable_variables, layer.non_trainable_variables)
    fixed = [tf.convert_to_tensor(v) for v in rest]
    leaves = tf.nest.flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if tf.is_tensor(leaf) and leaf.dtype.is_floating and not still]
    weights = [tf.convert_to_tensor(v) for v in trained]
    start = weights + [leaves[i] for i in places]
    random = np.random.default_rng(1)
    along = [tf.constant(random.normal(size=value.shape), value.dtype) for value in start]
    kept: list[str] = []

    def total(values: list[Any]) -> Any:
        given = list(leaves)
        for place, value in zip(places, values[len(weights) :]):
            given[place] = value
        own, named = tf.nest.pack_sequence_as((args, kwargs), given)
        with exact():
            if function is not None:
                outputs = function(*own, **named)
            else:
                outputs, after = layer.stateless_call(values[: len(weights)], fixed, *own, **named)
                changed = [v for v, old, new in zip(rest, fixed, after) if new is not old]
                kept[:] = [v.path for v in changed if id(v) not in _followed(layer)]
        outs = [tf.reshape(out, [-1]) for out in tf.nest.flatten(outputs) if out.dtype.is_floating]
        draw = np.random.default_rng(2)
        return tf.add_n(
            [tf.reduce_sum(tf.sin(out + draw.normal(size=out.shape)) * draw.normal(size=out.shape)) for out in outs]
        )

    def gradient(values: list[Any]) -> tuple[Any, list[Any]]:
        with tf.GradientTape() as tape:
            tape.watch(values)
            value = total(values)
        return value, _filled(tape.gradient(value, values), values)

    def slope_along(values: list[Any]) -> Any:
        return tf.add_n([tf.reduce_sum(g * d) for g, d in zip(gradient(values)[1], along)])

    @tf.function(autograph=False)
    def curvature(values: list[Any]) -> tuple[Any, list[Any]]:
        with tf.GradientTape() as tape:
            tape.watch(values)
            slope = slope_along(values)
        return slope, _filled(tape.gradient(slope, values), values)

    if not start:
        return 0.0, 0.0, kept
    both = tf.function(gradient, autograph=False)
    (up, there), (down, back) = (both([v + sign * STEP * d for v, d in zip(start, along)]) for sign in (1, -1))
    slope, found = curvature(start)
    expected = np.concatenate([np.ravel((a - b) / (2 * STEP)) for a, b in [(up, down), *zip(there, back)]])
    derived = np.concatenate([np.ravel(value) for value in (slope, *found)])
    return _relative(derived[:1], expected[:1]), _relative(derived[1:], expected[1:]), kept


def _relative(found: Any, expected: Any) -> float:
    size = max(float(np.linalg.norm(expected)), float(np.linalg.norm(found)))
    return 0.0 if size <= 1e-9 else float(np.linalg.norm(found - expected)) / size


def _followed(layer: Any) -> set[int]:
    """Return the ids of variables whose changes have a meaning here: statistics, and the numbers of random draws."""
    inside = layer._flatten_layers()
    norms = [one for one in inside if isinstance(one, keras.layers.BatchNormalization)]
    return {id(v) for norm in norms for v in (norm.moving_mean, norm.moving_variance)} | {
        id(generator.state) for one in inside for generator in one._seed_generators
    }


def _filled(grads: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    return [tf.zeros_like(v) if g is None else tf.convert_to_tensor(g) for g, v in zip(grads, values)]
