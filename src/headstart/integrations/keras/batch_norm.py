"""Batch normalisation whose second derivative takes a few passes over the feature maps, as on PyTorch.

By elementary operations it takes half of the time of conv4's outer step. `headstart.forward.batch_norm` has the
derivation: with x̂ = (x − mean) · r and r = 1 / √(variance + eps), slopes g of the outputs become slopes w · r · P g of
the inputs, where P g = g − mean(g) − x̂ · mean(x̂ · g), and the derivative of that in g is of the same form again.
"""

from collections.abc import Callable, Sequence
from typing import Any

from headstart.integrations.keras.backend import tf


def batch_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    """Return w · x̂ + b for ``x`` ``(n, …, channels)``, normalised over all axes but the last, with all derivatives.

    ``weight`` and ``bias``: ``(channels,)``, or ``None`` for ones and zeros.
    """
    weight = tf.ones(x.shape[-1:], x.dtype) if weight is None else tf.convert_to_tensor(weight)
    bias = tf.zeros(x.shape[-1:], x.dtype) if bias is None else tf.convert_to_tensor(bias)

    @tf.custom_gradient
    def normalised(rows: Any, weight: Any, bias: Any) -> Any:
        out, *kept = _forward(rows, weight, bias, eps)
        # the slopes of what is kept are counted in those of x: zeros would go back through all of it
        kept = [tf.stop_gradient(part) for part in kept]
        return out, lambda g: slopes(*_here(g, rows, weight, *kept))

    # w · r · P g, Σ x̂ · g and Σ g
    @tf.custom_gradient
    def slopes(g: Any, rows: Any, weight: Any, *kept: Any) -> Any:
        def back(*towards: Any) -> Any:
            return *second(*_here(g, rows, weight, *towards, *kept)), *(None for _ in kept)

        return _slopes(g, rows, weight, kept, eps), back

    # the slopes for g, x and w of ⟨h, w · r · P g⟩ + ⟨to_w, Σ x̂ · g⟩ + ⟨to_b, Σ g⟩
    @tf.custom_gradient
    def second(*given: Any) -> Any:
        parts, kept = given[:6], given[6:]

        def back(*ways: Any) -> Any:
            return *_by_tape(_elementary, _here(*parts), ways, eps), *(None for _ in kept)

        return _second(parts, kept, eps), back

    return tf.reshape(normalised(tf.reshape(x, [-1, x.shape[-1]]), weight, bias), tf.shape(x))


def is_plain(layer: Any, x: Any) -> bool:
    """Return whether a `BatchNormalization` layer does no more to a batch than `batch_norm`."""
    last = layer.axis in (-1, len(x.shape) - 1) and x.dtype in (tf.float32, tf.float64)
    return bool(last and layer.trainable and not layer.renorm and not layer.synchronized)


def _here(*tensors: Any) -> list[Any]:
    """Return tensors of the graph that is being made; derivatives of it find no others."""
    return [tf.identity(tensor) for tensor in tensors]


def _forward(rows: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, ...]:
    """Return w · x̂ + b, mean and r, and what TensorFlow's derivative in float32 takes."""
    if rows.dtype != tf.float32:
        mean, scale = _statistics(rows, eps)
        return (rows - mean) * (scale * weight) + bias, mean, scale
    made = tf.raw_ops.FusedBatchNormV3(
        x=_as_image(rows), scale=weight, offset=bias, mean=[], variance=[], epsilon=eps, is_training=True
    )
    count = _count(rows)
    scale = tf.math.rsqrt(made.batch_variance * tf.maximum(count - 1, 1) / count + eps)  # it is the unbiased one
    return tf.reshape(made.y, tf.shape(rows)), made.batch_mean, scale, *made[3:]


def _as_image(rows: Any) -> Any:
    return tf.reshape(rows, [-1, 1, 1, rows.shape[-1]])


def _statistics(rows: Any, eps: float) -> tuple[Any, Any]:
    mean = tf.reduce_mean(rows, 0)
    return mean, tf.math.rsqrt(tf.reduce_mean(tf.square(rows - mean), 0) + eps)


def _count(rows: Any) -> Any:
    return tf.cast(tf.shape(rows)[0], rows.dtype)


def _slopes(g: Any, rows: Any, weight: Any, kept: Sequence[Any], eps: float) -> tuple[Any, Any, Any]:
    if rows.dtype != tf.float32:
        return _by_means(g, rows, weight, *kept)
    made = tf.raw_ops.FusedBatchNormGradV3(
        y_backprop=_as_image(g),
        x=_as_image(rows),
        scale=weight,
        **{f"reserve_space_{i}": held for i, held in enumerate(kept[2:], 1)},
        epsilon=eps,
        is_training=True,
    )
    return tf.reshape(made.x_backprop, tf.shape(rows)), made.scale_backprop, made.offset_backprop


def _by_means(g: Any, rows: Any, weight: Any, mean: Any, scale: Any) -> tuple[Any, Any, Any]:
    normalised = (rows - mean) * scale
    along = normalised * g
    back = (g - tf.reduce_mean(g, 0) - normalised * tf.reduce_mean(along, 0)) * (scale * weight)
    return back, tf.reduce_sum(along, 0), tf.reduce_sum(g, 0)


def _second(parts: Sequence[Any], kept: Sequence[Any], eps: float) -> tuple[Any, Any, Any]:
    (g, rows, weight, h, to_w, to_b), (mean, scale) = parts, kept[:2]
    ones = tf.ones_like(weight)
    back_g, along_g, _ = _slopes(g, rows, ones, kept, eps)  # r · P g
    back_h, along_h, _ = _slopes(h, rows, ones, kept, eps)
    along_both = tf.reduce_sum(h * back_g, 0)
    each = weight * scale / _count(rows)
    to_g = rows * (to_w * scale) + (to_b - to_w * scale * mean) + back_h * weight
    slope = -each * scale * along_both
    to_x = rows * slope - slope * mean - back_h * (each * along_g) + back_g * (to_w - each * along_h)
    return to_g, to_x, along_both


def _elementary(g: Any, rows: Any, weight: Any, h: Any, to_w: Any, to_b: Any, eps: float) -> Any:
    """Return what `_second` gives from operations that can be differentiated as often as one likes."""

    def slopes(g: Any, rows: Any, weight: Any, eps: float) -> Any:
        return _by_means(g, rows, weight, *_statistics(rows, eps))

    return _by_tape(slopes, (g, rows, weight), (h, to_w, to_b), eps)


def _by_tape(function: Callable[..., Any], parts: Sequence[Any], ways: Sequence[Any], eps: float) -> Any:
    """Return the slopes for ``parts`` of ⟨ways, function(*parts, eps)⟩."""
    with tf.GradientTape() as tape:
        tape.watch(parts)
        made = function(*parts, eps)
    return tape.gradient(made, parts, ways, unconnected_gradients=tf.UnconnectedGradients.ZERO)
