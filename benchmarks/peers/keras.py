"""Keras on TensorFlow: headstart's outer step, in its forms, and the one that people write with ``tf.map_fn``."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from benchmarks.peers.case import OUTER_RATE, Case, arrays, case_of, module
from benchmarks.peers.prepared import Arrays, Prepare, Prepared


def _threads() -> None:
    """Hold TensorFlow to the threads that the process was given, where it has not begun."""
    import tensorflow as tf  # pyrefly: ignore

    threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    if tf.config.threading.get_inter_op_parallelism_threads() != threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


def _model(case: Case) -> Any:
    """Return the case's network with the weights that all contenders have."""
    import keras  # pyrefly: ignore

    from headstart.integrations.keras import models
    from headstart.integrations.keras.weights import to_keras

    keras.config.set_floatx(case.dtype)
    keras.config.set_dtype_policy(case.dtype)  # which holds what floats were when it was first asked for
    if case.model == "mlp":
        shape = (case.size, case.size, case.channels) if case.ways else 1
        made = models.mlp(shape, case.ways or 1, hidden=case.hidden)
    elif case.model == "conv4":
        made = models.conv4((case.size, case.size, case.channels), case.ways, filters=case.filters)
    else:
        raise ValueError(f"there is no {case.model} of Keras here")
    return to_keras(module(case), made)


def _named(case: Case, model: Any, slopes: list[Any]) -> Arrays:
    """Return gradients in the order of the model's variables by their names in PyTorch."""
    from headstart.integrations.keras.weights import to_torch

    before = model.get_weights()
    for variable, slope in zip(model.trainable_variables, slopes):
        variable.assign(slope)
    found = {name: value.detach().numpy().copy() for name, value in to_torch(model, module(case)).named_parameters()}
    model.set_weights(before)
    return found


def _data(case: Case) -> dict[str, Any]:
    import tensorflow as tf  # pyrefly: ignore

    images = case.ways and (lambda x: np.moveaxis(x, -3, -1))
    return {n: tf.constant(images(v) if images and n.endswith("x") else v) for n, v in arrays(case).items()}


def _stepping(case: Case, model: Any, gradient: Callable[[], list[Any]], xla: bool) -> Prepared:
    """Return what steps along ``gradient`` by Adam, all of it one graph that is made at the first step."""
    import keras  # pyrefly: ignore
    import tensorflow as tf  # pyrefly: ignore

    optimizer = keras.optimizers.Adam(OUTER_RATE, epsilon=1e-8)
    optimizer.build(model.trainable_variables)

    @tf.function(autograph=False, jit_compile=xla)
    def outer() -> None:
        optimizer.apply_gradients(zip(gradient(), model.trainable_variables))

    alone = tf.function(gradient, autograph=False, jit_compile=xla)
    return Prepared(outer, lambda: _named(case, model, alone()))


def _ours(values: Mapping[str, Any], xla: bool = False, **options: Any) -> Prepared:
    _threads()
    from headstart.integrations import keras as ours
    from headstart.types import Batch, Episodes

    case = case_of(values)
    model, data = _model(case), _data(case)
    loss = "cross_entropy" if case.ways else "mse"
    learner = ours.maml(model, loss=loss, steps=case.steps, rate=case.rate, **options)
    episodes = Episodes(*(Batch(data[f"{part}_x"], data[f"{part}_y"]) for part in ("support", "query")))

    def gradient() -> list[Any]:
        return [*learner.gradient(learner, learner.init(0), episodes).meta.params.values()]

    return _stepping(case, model, gradient, xla)


#: headstart on TensorFlow as it is, compiled by XLA, and with every step computed again on the way back.
prepare: Prepare = _ours
compiled: Prepare = partial(_ours, xla=True)
checkpointed: Prepare = partial(_ours, adjoint="checkpointed")


def map_fn(values: Mapping[str, Any]) -> Prepared:
    """Return the usual form: ``tf.map_fn`` over tasks, and in it tapes around the inner steps of one task.

    Raises:
        ValueError: a model other than the MLP of one output.
    """
    _threads()
    import tensorflow as tf  # pyrefly: ignore

    case = case_of(values)
    if case.model != "mlp" or case.ways:
        raise ValueError("the usual form is written for the regression of sine curves alone")
    model, data = _model(case), _data(case)

    def loss(weights: list[Any], x: Any, y: Any) -> Any:
        return tf.reduce_mean(tf.square(model.stateless_call(weights, [], x)[0] - y))

    def of_task(task: Any) -> Any:
        support_x, support_y, query_x, query_y = task
        weights = [tf.convert_to_tensor(variable) for variable in model.trainable_variables]
        for _ in range(case.steps):
            with tf.GradientTape() as tape:
                tape.watch(weights)
                value = loss(weights, support_x, support_y)
            weights = [w - case.rate * g for w, g in zip(weights, tape.gradient(value, weights))]
        return loss(weights, query_x, query_y)

    def gradient() -> list[Any]:
        given = tuple(data[name] for name in ("support_x", "support_y", "query_x", "query_y"))
        with tf.GradientTape() as tape:
            total = tf.reduce_mean(tf.map_fn(of_task, given, fn_output_signature=case.dtype))
        found: list[Any] = tape.gradient(total, [v.value for v in model.trainable_variables])
        return found

    return _stepping(case, model, gradient, xla=False)
