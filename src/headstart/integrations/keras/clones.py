"""Ordinary Keras models of one task."""

import warnings
from collections.abc import Mapping
from typing import Any

from headstart.errors import UsageError
from headstart.integrations.keras.backend import keras, tf
from headstart.integrations.keras.forward import Functional


class SupportStatisticsWarning(UserWarning):
    """An adapted model normalises by its support set, where training normalised each batch by its own statistics."""


def copied(model: Any) -> Any:
    """Return a model of the same layers and weights that shares nothing with ``model``.

    Raises:
        UsageError: its class cannot be made again from its configuration.
    """
    kinds = {type(layer).__name__: type(layer) for layer in model._flatten_layers()}
    try:
        # classes that nobody registered are at hand, since it is no file that is read
        with keras.saving.custom_object_scope(
            {n: k for n, k in kinds.items() if not k.__module__.startswith("keras.")}
        ):
            made = _again(model)
        if not made.built and getattr(model, "_build_shapes_dict", None):
            made.build_from_config(model.get_build_config())
        made.set_weights(model.get_weights())
    except Exception as error:
        raise UsageError(
            f"{type(model).__name__} cannot be copied: {str(error).splitlines()[0]}; give it a get_config that its "
            "class can be made from again, and a build that makes its weights"
        ) from error
    return made


def _again(layer: Any) -> Any:
    """Return a layer or model of the same configuration."""
    if type(layer) is keras.Sequential or type(layer).__name__ == "Functional":
        return keras.models.clone_model(layer, clone_function=_again)
    if type(layer) is not keras.layers.Lambda:
        return type(layer).from_config(layer.get_config())
    # its configuration holds code, which Keras refuses to read, and which has lost what it refers to
    kept = {name: getattr(layer, name) for name in ("name", "dtype", "trainable")}
    return keras.layers.Lambda(
        layer.function, output_shape=layer._output_shape, mask=layer.mask, arguments=layer.arguments, **kept
    )


def adapted_model(function: Functional, params: Mapping[str, Any], statistics: Mapping[str, Any], x: Any) -> Any:
    """Return a copy of a model with the weights of one task.

    An ordinary model has one set of moving statistics: where training went by each batch's own, or by those of a task's
    support set, they are the support set's, under the adapted weights.

    Args:
        function: the model, and its policy for statistics.
        params: all of θ, each ``(*shape)``, or ``(1, *shape)`` where adapted.
        statistics: the task's own, each ``(1, *shape)``.
        x: the support inputs ``(1, n, *features)``.
    """
    model = function.model
    own = dict(statistics)
    if function.buffers == "batch" and function.batch_statistics:
        _, own, _ = function.apply(params, {}, x, phase="statistics")
        warnings.warn(
            "the adapted model normalises by its support set, and in meta-training each set was normalised by itself "
            "(buffers='batch'); with buffers='task' and BatchNormalization(momentum=0.0) both are the same",
            SupportStatisticsWarning,
            stacklevel=4,
        )
    made = copied(model)
    values = {**params, **own}
    shapes = {**function.params, **function._statistics()}
    for name, target in {**_by_name(function, made)}.items():
        if name in values:
            value = values[name]
            target.assign(value[0] if len(value.shape) > len(shapes[name].shape) else value)
    return made


def _by_name(function: Functional, made: Any) -> dict[str, Any]:
    """Return the copy's variables by the names of the original's, which stand in the same order."""
    names = {id(v): name for name, v in {**function.params, **function._statistics()}.items()}
    pairs = zip(function.model.variables, made.variables, strict=True)
    return {names[id(old)]: new for old, new in pairs if id(old) in names}


def head_model(
    function: Functional, params: Mapping[str, Any], statistics: Mapping[str, Any], x: Any, kernel: Any, bias: Any
) -> Any:
    """Return an ordinary Keras model: a copy of an embedding as `adapted_model` makes it, flattened, and a dense layer.

    Args:
        function, params, statistics, x: as in `adapted_model`.
        kernel, bias: of the layer, ``(features, outputs)`` and ``(outputs,)``.
    """
    body = adapted_model(function, params, statistics, x)
    head = keras.layers.Dense(kernel.shape[-1], name="head", dtype=body.dtype_policy)
    inputs = tf.nest.map_structure(lambda leaf: keras.Input(leaf.shape[2:], dtype=leaf.dtype.name), x)
    made = keras.Model(inputs, head(keras.layers.Flatten()(body(inputs))))
    head.set_weights([kernel, bias])
    return made
