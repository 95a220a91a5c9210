import pytest

tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed (pip install headstart[keras])")
from headstart.integrations.keras.batch_norm import batch_norm  # noqa: E402

EPS = 1e-3


def by_means(x, weight, bias, eps):
    axes = list(range(len(x.shape) - 1))
    mean = tf.reduce_mean(x, axes)
    variance = tf.reduce_mean(tf.square(x - mean), axes)
    return (x - mean) / tf.sqrt(variance + eps) * weight + bias


def derivatives(function, order):
    """Return what gives the derivative of a number that is made of the derivative of a number …, that many times."""

    def number(values):
        return tf.add_n([tf.reduce_sum(tf.sin(value / 5 + i + tf.ones_like(value))) for i, value in enumerate(values)])

    def of(*given):
        if order == 0:
            return [function(*given, EPS)]
        with tf.GradientTape() as tape:
            tape.watch(given)
            made = number(derivatives(function, order - 1)(*given))
        return tape.gradient(made, given)

    return of


def eager(of, *given):
    return of(*given)


def recorded(of, *given):
    return tf.function(of, autograph=False)(*given)


def compiled(of, *given):
    return tf.function(of, autograph=False, jit_compile=True)(*given)


def in_a_loop(of, *given):
    each = [tf.stack([value, 2 * value]) for value in given]
    types = [value.dtype for value in given]
    mapped = tf.function(lambda: tf.map_fn(lambda one: list(of(*one)), each, fn_output_signature=types))
    return [value[0] for value in mapped()]


def inputs(shape, dtype, seed=1):
    draw = tf.random.Generator.from_seed(seed)
    made = (draw.normal(shape, mean=3.0), draw.normal(shape[-1:], 1.0), draw.normal(shape[-1:]))
    return [tf.cast(value, dtype) for value in made]


@pytest.mark.parametrize("way", [eager, recorded, compiled, in_a_loop])
@pytest.mark.parametrize(("dtype", "off"), [("float64", 1e-11), ("float32", 1e-3)])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2, 3)])
def test_first_second_and_third_derivatives(shape, dtype, off, way):
    given = inputs(shape, dtype)
    for order in (1, 2, 3) if way in (eager, recorded) else (2,):
        found, expected = way(derivatives(batch_norm, order), *given), derivatives(by_means, order)(*given)
        for one, other in zip(found, expected, strict=True):
            size = tf.reduce_max(tf.abs(other))
            assert tf.reduce_max(tf.abs(one - other)) <= off * size, order


def test_recorded_within_a_recording():
    """As one task's forward pass is, whose derivatives are taken outside of it, and those of these."""
    given = inputs((5, 2, 3), "float64")
    inner = tf.function(lambda *values: batch_norm(*values, EPS), autograph=False)
    found = recorded(derivatives(lambda *values: inner(*values[:3]), 2), *given)
    for one, other in zip(found, derivatives(by_means, 2)(*given), strict=True):
        assert tf.reduce_max(tf.abs(one - other)) < 1e-11


def test_without_weight_and_bias():
    x, *_ = inputs((6, 3), "float64")
    zero, one = tf.zeros(3, tf.float64), tf.ones(3, tf.float64)
    assert tf.reduce_max(tf.abs(batch_norm(x, None, None, EPS) - by_means(x, one, zero, EPS))) < 1e-12
