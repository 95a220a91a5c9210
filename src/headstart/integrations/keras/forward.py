"""A Keras model as a pure function of all tasks' variables.

Only the forward pass is mapped over tasks; gradients are taken outside, of the sum of the tasks' losses, with respect
to tensors that have a task axis. The model itself is never changed: its variables are read, and a pass takes others in
their places (``stateless_call``).
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from unittest.mock import patch

from torch.nn import Module

from headstart.core.parameters import Leaf
from headstart.errors import ShapeError, UsageError, check_known
from headstart.integrations.keras.backend import keras, tf
from headstart.integrations.keras.batch_norm import batch_norm, is_plain
from headstart.integrations.keras.exact import REPLACING, check_layers, exact, missing
from headstart.integrations.keras.task_map import TaskMap, TaskMapName, at_once, resolve

Buffers: TypeAlias = Literal["batch", "frozen", "task"]
Phase: TypeAlias = Literal["support", "query", "statistics"]

#: The dropout pass of the query set; inner step t is pass t.
QUERY_DRAW = 2**15
#: So many random layers and calls of one have numbers of their own.
_GENERATORS, _CALLS = 2**8, 2**8
#: So many examples are enough to see whether second derivatives are right.
FEW = 4


def names_of(model: Any, variables: list[Any]) -> list[str]:
    """Return the variables' names: their paths without the model's own, such as ``dense.kernel``.

    Raises:
        UsageError: two have the same path.
    """
    paths = [variable.path.split("/") for variable in variables]
    if paths and all(len(path) > 1 and path[0] == model.name for path in paths):
        paths = [path[1:] for path in paths]
    names = [".".join(path) for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two variables of the model are called {twice[0]!r}; give their layers names of their own")
    return names


@dataclass(frozen=True)
class Functional:
    """A model, and how it is run."""

    model: Any
    buffers: Buffers
    task_map: TaskMap
    training: bool
    check: bool
    masked: bool
    checked: list[bool] = field(default_factory=list)
    penalties: list[str] = field(default_factory=list)

    @property
    def params(self) -> dict[str, Any]:
        """θ: the trainable variables by name."""
        variables = self.model.trainable_variables
        return dict(zip(names_of(self.model, variables), variables))

    @property
    def own(self) -> dict[str, Any]:
        """The statistics of which every task has its own copy."""
        if self.buffers != "task":
            return {}
        layers = [layer for layer in self.normalising() if layer.trainable]
        variables = [v for layer in layers for v in (layer.moving_mean, layer.moving_variance)]
        return dict(zip(names_of(self.model, variables), variables))

    @property
    def leaves(self) -> dict[str, Leaf]:
        """What is known of each trainable variable: its shape, and the type of the layer that holds it."""
        holders = {
            id(v): type(layer)
            for layer in self.model._flatten_layers()
            for v in (*layer._trainable_variables, *layer._non_trainable_variables)
        }
        return {
            name: Leaf(name, tuple(v.shape), holders.get(id(v), type(self.model))) for name, v in self.params.items()
        }

    @property
    def batch_statistics(self) -> str:
        """The path of a layer that normalises by the examples of a batch together; empty where there is none."""
        if self.buffers == "frozen":
            return ""
        return next((layer.path or layer.name for layer in self.normalising() if layer.trainable), "")

    def example_penalties(self, x: Any) -> str:
        """Return the path of a layer that adds a penalty for examples like ``x``; empty where there is none."""
        if not self.penalties:
            self.penalties.append(penalised(self.model, x))
        return self.penalties[0]

    def normalising(self) -> list[Any]:
        """Return the batch normalisation layers."""
        return [x for x in self.model._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)]

    def certify(self, x: Any) -> None:
        """Check once, on inputs like a task's, that second derivatives are right."""
        if not self.check or self.checked:
            return
        # a thread of its own is outside of what is being recorded; so is tf.init_scope, in which no tape sees anything
        with ThreadPoolExecutor(1) as apart:
            apart.submit(lambda: check_layers(self.model, tf.nest.map_structure(_like, x))).result()
        self.checked.append(True)

    def constants(self) -> list[Any]:
        """Return the values of all that is not trained, in the model's order."""
        return [tf.convert_to_tensor(variable) for variable in self.model.non_trainable_variables]

    def apply(
        self,
        params: Mapping[str, Any],
        own: Mapping[str, Any],
        x: Any,
        *,
        fixed: Sequence[Any] | None = None,
        seed: Any = None,
        draw: Any = 0,
        phase: Phase = "support",
    ) -> tuple[Any, dict[str, Any], Any]:
        """Run B tasks.

        Args:
            params: all of θ, each ``(*shape)`` (shared) or ``(B, *shape)``.
            own: the tasks' own statistics, each ``(B, *shape)``.
            x: inputs ``(B, n, *features)``, or a list or dict of them.
            fixed: what `constants` gave, where variables are not to be read now.
            seed: ``(B,)`` switches training mode on, in which dropout drops; ``draw`` counts the passes.
            phase: which set is passed, for statistics.

        Returns:
            Outputs ``(B, n, *outputs)``, the tasks' statistics, and the model's own penalties ``(B,)``.
        """
        model, names = self.model, list(self.params)
        shapes = {name: len(variable.shape) for name, variable in self.params.items()}
        each = {name: value for name, value in params.items() if len(value.shape) > shapes[name]}
        variables, fixed = model.non_trainable_variables, self.constants() if fixed is None else fixed
        fixed_names = {id(v): name for name, v in self._statistics().items()}
        generators = {id(v): place for place, v in enumerate(_seeds(model))}
        training = seed is not None and self.training
        states = _states(seed, draw, len(generators)) if training else {}

        def one(task: Any) -> tuple[Any, Any, Any]:
            mine, statistics, inputs, drawn = task
            trainable = [mine.get(name, params[name]) for name in names]
            constants = []
            for variable, value in zip(variables, fixed):
                if id(variable) in generators and drawn:
                    constants.append(tf.cast(drawn[str(generators[id(variable)])], variable.dtype))
                else:
                    constants.append(statistics.get(fixed_names.get(id(variable), ""), value))
            with self._mode(phase):
                outputs, after, penalties = model.stateless_call(
                    trainable, constants, inputs, return_losses=True, **_training(model, training)
                )
            if not self.masked and any(
                getattr(leaf, "_keras_mask", None) is not None for leaf in tf.nest.flatten(outputs)
            ):
                raise UsageError(
                    f"outputs of {model.name!r} are marked as padding by the mask that it makes of its inputs "
                    "(mask_zero=True, Masking), and losses of tasks would count them: end the model by what takes the "
                    "mask in, such as GlobalAveragePooling1D; maml and its siblings count them where check=False"
                )
            kept = {
                fixed_names[id(v)]: value
                for v, value in zip(variables, after)
                if fixed_names.get(id(v)) in (self._statistics() if phase == "statistics" else statistics)
            }
            like = tf.nest.flatten(outputs)[0]
            penalty = tf.add_n([tf.cast(p, like.dtype) for p in penalties]) if penalties else tf.zeros((), like.dtype)
            return outputs, kept, penalty

        try:
            return self.task_map(one, (each, dict(own), x, states))
        except LookupError as error:
            raise missing("an operation of the model", error) from error

    def blank(self, x: Any) -> Any:
        """Return zeros in the place of outputs for inputs ``(B, n, *features)``: the model is run for sizes alone."""
        like = tf.nest.map_structure(lambda leaf: keras.KerasTensor((None, *leaf.shape[2:]), leaf.dtype.name), x)
        outputs = self.model.compute_output_spec(like)
        if any(None in out.shape[1:] for out in tf.nest.flatten(outputs)):
            outputs = self.model(
                tf.nest.map_structure(lambda leaf: tf.reshape(leaf, tf.concat([[-1], tf.shape(leaf)[2:]], 0)), x)
            )
        first = tf.shape(tf.nest.flatten(x)[0])[:2]

        def zeros(out: Any) -> Any:
            sizes = tf.shape(out)[1:] if tf.is_tensor(out) else [*out.shape[1:]]
            return tf.ensure_shape(tf.zeros(tf.concat([first, sizes], 0), out.dtype), [None, None, *out.shape[1:]])

        return tf.nest.map_structure(zeros, outputs)

    def _statistics(self) -> dict[str, Any]:
        variables = [v for layer in self.normalising() for v in (layer.moving_mean, layer.moving_variance)]
        return dict(zip(names_of(self.model, variables), variables))

    @contextmanager
    def _mode(self, phase: Phase) -> Iterator[None]:
        """Let normalisation layers go by what the policy says, whatever the mode of the rest; with exact moments."""
        by_batch = self.buffers == "batch" or phase == "statistics" or (self.buffers == "task" and phase == "support")
        kind, original = keras.layers.BatchNormalization, keras.layers.BatchNormalization.call

        def call(layer: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
            if by_batch and self.buffers == "batch" and not at_once() and mask is None and is_plain(layer, inputs):
                return batch_norm(inputs, layer.gamma, layer.beta, layer.epsilon)
            if phase != "statistics":
                return original(layer, inputs, training=by_batch, mask=mask)
            with patch.object(layer, "momentum", 0.0):
                return original(layer, inputs, training=True, mask=mask)

        with REPLACING, exact(), patch.object(kind, "call", call):
            yield


def _like(leaf: Any) -> Any:
    """Return a few examples of the kind of ``leaf`` ``(B, n, *features)``, with values of their own."""
    shape = [FEW, *(size or FEW for size in leaf.shape[2:])]
    if leaf.dtype.is_floating:
        return tf.random.stateless_normal(shape, (0, 0), dtype=leaf.dtype)
    # of ids, 0 is often padding
    return tf.cast(tf.ones(shape), leaf.dtype)


def penalised(model: Any, x: Any) -> str:
    """Return the path of a layer that adds a penalty which is computed from inputs like ``x`` ``(B, n, *features)``."""
    added: list[tuple[Any, Any]] = []

    def add_loss(layer: Any, loss: Any) -> None:
        added.extend((layer, value) for value in tf.nest.flatten(loss))

    def run(inputs: Any, training: bool) -> Any:
        values = ([*map(tf.convert_to_tensor, v)] for v in (model.trainable_variables, model.non_trainable_variables))
        return model.stateless_call(*values, inputs, **_training(model, training))[0]

    like = tf.nest.map_structure(lambda leaf: tf.TensorSpec([None, *leaf.shape[2:]], leaf.dtype), x)
    for training in (True, False):
        added.clear()
        with REPLACING, patch.object(keras.Layer, "add_loss", add_loss):
            graph = tf.function(run, autograph=False).get_concrete_function(like, training).graph
        for layer, value in added:
            if _reads(value, graph):
                return layer.path or layer.name
    return ""


def _reads(value: Any, graph: Any) -> bool:
    """Return whether a value is computed from what a graph is given, what it captures apart."""
    given = {one.op for one in graph.inputs} - {one.op for one in graph.internal_captures}
    left, seen = [value.op], set()
    while left:
        op = left.pop()
        if op in given or op.graph is not graph:
            return True
        if op not in seen:
            seen.add(op)
            left += [one.op for one in op.inputs]
    return False


def _training(model: Any, training: bool) -> dict[str, bool]:
    return {"training": training} if model._call_has_training_arg else {}


def _seeds(model: Any) -> list[Any]:
    return [generator.state for layer in model._flatten_layers() for generator in layer._seed_generators]


def _states(seed: Any, draw: Any, count: int) -> dict[str, Any]:
    """Return the state of every random layer for each task, ``(B, 2)``: what it draws goes by seed, pass and layer."""
    seed, draw = tf.cast(seed, tf.int64), tf.cast(draw, tf.int64)
    # both halves of a seed count
    key = tf.bitwise.bitwise_and(
        tf.bitwise.bitwise_xor(seed, tf.bitwise.right_shift(seed, tf.constant(32, tf.int64))), 2**32 - 1
    )
    return {
        str(place): tf.stack([key, tf.zeros_like(key) + (draw * _GENERATORS + place) * _CALLS % 2**32], -1)
        for place in range(count)
    }


def functional(
    model: Any,
    *,
    taskmap: TaskMapName | TaskMap = "auto",
    buffers: Buffers = "batch",
    training: bool = True,
    check: bool = True,
    masked: bool = False,
) -> Functional:
    """Return a Keras model as a function of all tasks' variables.

    Args:
        model: any built ``keras.Model`` or layer; its trainable variables are θ.
        taskmap: how the tasks of a step go through the model: at once (``"vectorized"``), one by one (``"loop"``), one
            by one in a loop of the graph (``"while"``), or at once where all of its operations can be, and else one by
            one (``"auto"``).
        buffers: what `BatchNormalization` goes by: the batch at hand (``"batch"``: the query set by its own
            statistics, as in the paper), the model's moving statistics (``"frozen"``), or those of each task's support
            set (``"task"``), kept with the layer's own ``momentum``: 0 for those of the support set alone.
        training: whether meta-training runs the model in training mode, in which dropout drops.
        check: whether to refuse layers whose second derivatives are not right; without a check, derivatives are those
            of the operations as they are.
        masked: whether outputs may be marked as padding, which counts like any other here.

    Raises:
        UsageError: no Keras model, one that is not built, or that holds what cannot be meta-learned.
    """
    check_known("buffers", buffers, ("batch", "frozen", "task"))
    _refuse(model)
    made = Functional(model, buffers, resolve(taskmap), training, check, masked)
    if len(_seeds(model)) > _GENERATORS:
        raise UsageError(f"the model has more than {_GENERATORS} random layers")
    names_of(model, model.trainable_variables)  # refuses names that clash
    return made


def _refuse(model: Any) -> None:
    if not isinstance(model, keras.layers.Layer):
        way = (
            "; PyTorch's modules are meta-learned by headstart.maml and its siblings"
            if isinstance(model, Module)
            else ""
        )
        raise UsageError(f"expected a keras.Model, got a {type(model).__module__}.{type(model).__name__}{way}")
    layers = model._flatten_layers()
    if unbuilt := [layer for layer in layers if not layer.built]:
        raise UsageError(
            f"the layer {unbuilt[0].path or unbuilt[0].name!r} is not built, so it has no weights yet: give the model "
            f"an Input, call model.build(input_shape), or call it on some data first"
        )
    for layer in layers:
        where = f"the layer {layer.path or layer.name!r} ({type(layer).__name__})"
        if getattr(layer, "stateful", False):
            raise UsageError(
                f"{where} is stateful: what it saw of one task would go into the next; make it with stateful=False"
            )
        if isinstance(layer, keras.layers.SpectralNormalization):
            raise UsageError(
                f"{where} writes a normalised kernel over its own in training mode, which no task's copy can keep: "
                "evaluation would go by another function than training; take UnitNormalization or LayerNormalization"
            )
        policy = layer.dtype_policy
        if policy.quantization_mode is not None:
            raise UsageError(f"{where} is quantized, and has no derivatives; take it as it was before quantize()")
        if policy.compute_dtype != policy.variable_dtype:
            raise UsageError(
                f"{where} computes in {policy.compute_dtype} with variables in {policy.variable_dtype}; inner gradients"
                f" would be lost in rounding: make the model with keras.config.set_dtype_policy('float32')"
            )


def dense(x: Any, what: str) -> Any:
    """Return inputs or targets as tensors, or refuse those that are ragged or sparse.

    Raises:
        ShapeError: they are.
    """

    def leaf(value: Any) -> Any:
        if isinstance(value, tf.RaggedTensor | tf.SparseTensor):
            kind = "ragged" if isinstance(value, tf.RaggedTensor) else "sparse"
            way = "x.to_tensor() and a mask" if kind == "ragged" else "tf.sparse.to_dense(x)"
            raise ShapeError(f"{what} are {kind}, and tasks are run as dense tensors (tasks, examples, …): take {way}")
        return tf.convert_to_tensor(value)

    return tf.nest.map_structure(leaf, x, expand_composites=False)
