"""A Keras model that is meta-trained as others are trained: ``compile``, ``fit``, ``evaluate``, callbacks, files."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from headstart.core.rules import Rule
from headstart.errors import DataError, ShapeError, UsageError, check_known
from headstart.integrations.keras import rules
from headstart.integrations.keras.backend import get_random_seed, keras, tf
from headstart.integrations.keras.episodes import Order, episodes_of, is_episodes, of_arrays, of_family, turn
from headstart.integrations.keras.evaluation import handed_over
from headstart.integrations.keras.forward import dense, names_of
from headstart.integrations.keras.learner import Learner, judged
from headstart.integrations.keras.losses import refusing
from headstart.registry import keras_methods, load_target
from headstart.training.evaluate import Score, evaluate
from headstart.types import Batch, Episodes, Meta, Tasks


@keras.saving.register_keras_serializable(package="headstart")
class MetaModel(keras.Model):
    """A Keras model with a meta-learning method.

    ``fit`` meta-trains: the model's own weights are θ, and what the method learns about it, M, are weights beside them.
    Called, it is the model itself, not adapted to any task.

    Args:
        model: a built ``keras.Model``. `fit` changes its weights; nothing else does.
        method: ``"maml"``, ``"fomaml"``, ``"anil"``, ``"boil"``, ``"meta_sgd"``, ``"reptile"``, ``"prototypes"`` or
            ``"ridge"`` (``headstart list methods`` says which exist for Keras).
        seed: of what is random: where rates start that are drawn, dropout, and the order of tasks in arrays; by default
            what ``keras.utils.set_random_seed`` was last told, or 0.
        options: those of the method, such as ``steps`` and ``rate``; see `headstart.integrations.keras.maml`.

    ::

        model = MetaModel(keras_model, method="maml", steps=5, rate=0.01)
        model.compile("adam", loss="mse")
        model.fit(tasks, batch_size=4, steps_per_epoch=100, epochs=10)
        adapted = model.adapt(x_few, y_few)
    """

    def __init__(
        self, model: Any, method: str = "maml", *, seed: int | None = None, name: str | None = None, **options: Any
    ) -> None:
        # the model says in which precision it takes inputs
        super().__init__(name=name or f"meta_{getattr(model, 'name', 'model')}")
        self.autocast = False
        if tf.distribute.has_strategy():
            raise UsageError("a MetaModel trains on one device: make it outside of a tf.distribute strategy's scope")
        rows = keras_methods()
        check_known("method of Keras models", method, rows)
        self.method, self.seed = method, (get_random_seed() or 0) if seed is None else seed
        self._factory: Any = _Untracked(load_target(method, rows[method].keras))
        known = self._known()
        for option in options:
            if option in ("loss", "loss_weights"):
                raise UsageError(f"{option} is not said here: it goes to compile({option}=…)")
            check_known(f"option of {method}", option, set(known) - {"loss", "loss_weights"})
        self._options: Any = _Untracked(options)
        learner = self._factory.value(model, **options)
        self.model = model
        meta = learner.init(self.seed)
        self._structure = {
            key: self.add_weight(
                shape=value.shape, dtype=value.dtype.name, name=key.replace("/", "."), initializer=_Start(value)
            )
            for key, value in meta.structure.items()
        }
        self._take(learner)
        self.built = True

    def _known(self) -> list[str]:
        """Return the names of the method's options."""
        parameters = inspect.signature(self._factory.value).parameters.values()
        return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]

    def _take(self, learner: Learner) -> None:
        """Go by this learner from now on."""
        self._learner: Any = _Untracked(learner)
        self._trained = frozenset(self._params())
        # recorded once for each shape of a support set, however many tasks of it are adapted to
        recorded = tf.function(lambda *given: learner.adapt(*given)[0], autograph=False)
        self._adapting: Any = _Untracked(recorded)
        self._ranks: Any = _Untracked({})

    @property
    def learner(self) -> Learner:
        """The method as pure functions."""
        return self._learner.value

    @property
    def meta(self) -> Meta:
        """θ and M as they are now."""
        return Meta(
            {name: tf.convert_to_tensor(v) for name, v in self._params().items()},
            {name: tf.convert_to_tensor(v) for name, v in self._structure.items()},
        )

    @property
    def output_names(self) -> Any:
        """What metrics of several outputs are called by, as those of the model are."""
        return getattr(self.model, "output_names", None)

    def _params(self) -> dict[str, Any]:
        variables = self.model.trainable_variables
        return dict(zip(names_of(self.model, variables), variables))

    def compile(
        self,
        optimizer: Any = "adam",
        loss: Any = "cross_entropy",
        loss_weights: Any = None,
        metrics: Any = None,
        *,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        jit_compile: bool = False,
        **options: Any,
    ) -> None:
        """Say how it is meta-trained.

        Args:
            optimizer: of θ and M: a name, or a Keras optimizer.
            loss: of a task, in adaptation and on its query set: ``"cross_entropy"`` (class ids and logits), ``"mse"``,
                a Keras loss, its name, or a function ``(y_true, y_pred) -> one loss an example``; a list or dict for
                several outputs.
            loss_weights: of several losses.
            metrics: of the query sets: functions, and Keras's metrics that are means over examples.
            run_eagerly: run steps outside of ``tf.function``, to look into them: far slower.
            steps_per_execution: outer steps of a call.
            jit_compile: whether XLA compiles a step: a first call takes seconds more.
            options: others of Keras's ``compile``.

        Raises:
            UsageError: a metric that keeps more than a mean, a loss that is none, or an optimizer that scales losses.
        """
        for given in (metrics, options.get("weighted_metrics")):
            _refuse_pooled(given)
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            raise UsageError("a LossScaleOptimizer is for mixed precision, which is refused; give the optimizer in it")
        learner = self._factory.value(self.model, **self._options.value, **self._loss_options(loss, loss_weights))
        if set(learner.init(self.seed).structure) != set(self._structure):
            raise UsageError(
                "which variables of the model are trainable has changed since this MetaModel was made, and what is "
                "learned about them (M) no longer fits; freeze layers first, then make the MetaModel"
            )
        self._take(learner)
        super().compile(
            optimizer=optimizer,
            loss=loss,
            loss_weights=loss_weights,
            metrics=metrics,
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=jit_compile,
            **options,
        )

    def _loss_options(self, loss: Any, weights: Any) -> dict[str, Any]:
        known = self._known()
        if weights is not None and "loss_weights" not in known:
            raise UsageError(f"{self.method} has one output, and no loss_weights")
        if isinstance(self.model.output if hasattr(self.model, "output_names") else None, (list, tuple)):
            loss, weights = self._in_order("loss", loss), self._in_order("loss_weights", weights)
        return {"loss": loss} | ({"loss_weights": weights} if "loss_weights" in known else {})

    def _in_order(self, what: str, given: Any) -> Any:
        """Return what is given by the outputs' names in the order of the outputs."""
        if not isinstance(given, Mapping):
            return given
        if set(given) != set(self.output_names):
            raise UsageError(f"{what} is of {', '.join(given)}, and the model's outputs are {self.output_names}")
        return [given[name] for name in self.output_names]

    def compile_from_config(self, config: Any) -> None:
        """Compile as a ``.keras`` file says."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Return the outputs of the model as it is, not adapted."""
        return self.model(x, training=training) if self.model._call_has_training_arg else self.model(x)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Take an outer step on the episodes of B tasks; what Keras's ``fit`` calls."""
        episodes = self._seeded(episodes_of(data))
        gradient = self.learner.gradient(self.learner, self.meta, episodes)
        pairs = ((self._params(), gradient.meta.params), (self._structure, gradient.meta.structure))
        grads = {id(variable): values[name] for part, values in pairs for name, variable in part.items()}
        # in the order in which an optimizer that is read from a file has them
        variables = self.trainable_variables
        # not before the tasks are there: a family asks the step count which ones are next
        with tf.control_dependencies(tf.nest.flatten(data)):
            self.optimizer.apply([grads[id(variable)] for variable in variables], variables)
        return self._seen(gradient.info.query_loss, gradient.outputs, episodes.query)

    def test_step(self, data: Any) -> dict[str, Any]:
        """Adapt to the support sets, and judge on the query sets; what Keras's ``evaluate`` calls."""
        episodes = episodes_of(data)
        losses, _, outputs = judged(self.learner, self.meta, episodes)
        return self._seen(losses, outputs, episodes.query)

    def _seeded(self, episodes: Episodes) -> Episodes:
        """Return the episodes with seeds for their tasks, which go by the outer step, so that a run can go on."""
        first = tf.nest.flatten(episodes.support.y)[0]
        # every batch counts, where gradients are accumulated over several, too
        step = tf.cast(self.optimizer._iterations, tf.int64)
        seeds = (tf.range(tf.shape(first)[0], dtype=tf.int64) + (step + 1) * 7919) * 1_000_003 + self.seed
        seeds = tf.ensure_shape(seeds, [first.shape[0]])
        return Episodes(*(batch._replace(seed=seeds) for batch in episodes))

    def _seen(self, losses: Any, outputs: Any, query: Batch) -> dict[str, Any]:
        """Update the metrics, over all query examples that are there, and return them."""

        def flat(value: Any) -> Any:
            value = tf.convert_to_tensor(value)
            made = tf.reshape(value, tf.concat([[-1], tf.shape(value)[2:]], 0))
            made.set_shape([None, *value.shape[2:]])
            return made if query.mask is None else tf.boolean_mask(made, tf.reshape(query.mask, [-1]))

        y, predictions = (tf.nest.map_structure(flat, part) for part in (query.y, outputs))
        # a step that finds no more data must not count, as how many there are, which the shapes say, would
        with tf.control_dependencies([losses]):
            self._loss_tracker.update_state(tf.reduce_mean(losses), sample_weight=tf.shape(losses)[0])
            return self.compute_metrics(None, y, predictions)

    def fit(self, x: Any = None, *args: Any, batch_size: int | None = None, **options: Any) -> Any:
        """Meta-train.

        Args:
            x: a family of tasks (`headstart.types.Tasks`), whose training tasks begin where the optimizer's step count
                says, so that a restored run goes on as if it had not stopped; arrays ``((x, y), (x, y))`` of support
                and query sets, whose first axis is the task, and whose order goes by the seed and the step count, too;
                or a ``tf.data.Dataset`` of batches of such.
            batch_size: tasks of an outer step, of a family or arrays; by default 4.
            options: those of Keras's ``fit``; ``validation_data`` is of the same kinds: of a family, its validation
                tasks, ``validation_steps`` batches of them. ``shuffle=False`` takes the tasks of arrays as they stand;
                otherwise each epoch has another order, and what would be a short last batch waits for the next one.

        Returns:
            Keras's history.
        """
        if args:
            raise UsageError("fit takes episodes as its one positional argument; give the others by name")
        self._of_whole("fit", options)
        size = 4 if batch_size is None else batch_size
        validation = options.pop("validation_data", None)
        if isinstance(x, Tasks) and options.get("steps_per_epoch") is None:
            if x.counts is None:
                raise UsageError(
                    f"{x.name} has tasks without end: say how many outer steps an epoch has, steps_per_epoch="
                )
            options["steps_per_epoch"] = max(1, x.counts["train"] // size)
        if isinstance(validation, Tasks) and validation.counts is None and options.get("validation_steps") is None:
            raise UsageError(
                f"{validation.name} has tasks without end: say how many are validated on, validation_steps="
            )
        if validation is not None:
            own = options.pop("validation_batch_size", None) or size
            options["validation_data"] = self._dataset(validation, "validation", own)
        order = Order(self.seed, self._step, self._step(), bool(options.get("shuffle", True)))
        # arrays are shuffled here, and Keras would warn that it leaves datasets as they are
        options["shuffle"] = bool(options.get("shuffle")) and not is_episodes(x)
        x = self._dataset(x, "train", size, order=order)
        self._record_for(x, "train_function")
        with refusing():
            return super().fit(x, **options)

    def evaluate(
        self, x: Any = None, *args: Any, batch_size: int | None = None, split: str = "test", **options: Any
    ) -> Any:
        """Adapt to tasks' support sets, and return loss and metrics on their query sets.

        Args:
            x: episodes, as in `fit`.
            batch_size: tasks at a time, of a family or arrays; by default 4.
            split: of a family: 'train', 'validation' or 'test'.
            options: those of Keras's ``evaluate``; ``steps`` says how many batches.
        """
        if args:
            raise UsageError("evaluate takes episodes as its one positional argument; give the others by name")
        self._of_whole("evaluate", options)
        if isinstance(x, Tasks) and x.counts is None and options.get("steps") is None:
            raise UsageError(f"{x.name} has tasks without end: say how many batches are judged on, steps=")
        if "_use_cached_eval_dataset" not in options:
            x = self._dataset(x, split, 4 if batch_size is None else batch_size)
        self._record_for(x, "test_function")
        with refusing():
            return super().evaluate(x, **options)

    def _require_compiled(self, what: str) -> None:
        if not self.compiled:
            raise UsageError(f"compile the model before {what}: compile(optimizer, loss=…) says what a task's loss is")
        if changed := self._trained ^ set(self._params()):
            raise UsageError(
                f"what is trainable has changed since compile: {', '.join(sorted(changed))}; call compile again"
            )

    def _of_whole(self, what: str, options: Mapping[str, Any]) -> None:
        self._require_compiled(what)
        for name in ("y", "sample_weight", "class_weight", "validation_split"):
            if options.get(name) is not None:
                raise UsageError(f"{name} has no meaning for episodes, which hold their own targets; leave it out")

    def _step(self) -> int:
        """Return the number of the outer step that comes next; every batch counts, where gradients are accumulated."""
        return int(self.optimizer._iterations)

    def _dataset(self, x: Any, split: str, batch: int, *, order: Order | None = None) -> Any:
        if not isinstance(batch, int) or batch < 1:
            raise UsageError(f"batch_size is the number of tasks of a step, at least 1; got {batch!r}")
        if isinstance(x, Tasks):
            first = None if order is None else lambda: order.step() * batch
            return of_family(x, split, _turned(x, self.model), batch, first=first)
        if is_episodes(x):
            x = of_arrays(episodes_of(x), batch, order=order)
        if not isinstance(x, tf.data.Dataset):
            raise UsageError(
                "expected a family of tasks, arrays ((x, y), (x, y)) of support and query sets, or a tf.data.Dataset "
                f"of such; got {type(x).__name__}"
            )
        for name, part in zip(Episodes._fields, episodes_of(x.element_spec)):
            _check_set(name, part, self.model)
        return x.map(self._looked_at) if self.jit_compile else x

    @tf.autograph.experimental.do_not_convert
    def _looked_at(self, *element: Any) -> Any:
        """Look at labels before a step: XLA leaves out what would stop it."""
        self.learner.look(episodes_of(element))
        return element

    def _record_for(self, x: Any, function: str) -> None:
        """Let Keras record a step anew for arrays of other ranks: it would take one of no known rank for both."""
        ranks = tf.nest.map_structure(lambda leaf: leaf.shape.rank, x.element_spec)
        if self._ranks.value.setdefault(function, ranks) != ranks:
            setattr(self, function, None)
            self._ranks.value[function] = ranks

    def adapt(self, x: Any, y: Any, *, steps: int | None = None) -> Any:
        """Learn a new task from a few examples, and return an ordinary ``keras.Model`` of it.

        That model is not compiled; it can be called, saved, exported and trained on as any other, and shares nothing
        with this one, which is left as it is.

        Args:
            x: the examples' inputs ``(n, *features)``.
            y: their targets ``(n,)`` or ``(n, *targets)``.
            steps: inner steps in place of the method's own number.
        """
        dtype = _dtype(self.model)

        def one(value: Any) -> Any:
            value = np.asarray(value)
            if not value.ndim:
                raise ShapeError(f"x and y of a task are arrays, whose first axis is the examples; got {value!r}")
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                first = np.argwhere(~np.isfinite(value))[0][0]
                raise DataError(f"example {first} of the task holds numbers that are not finite; leave it out")
            return tf.constant(value[None], dtype if value.dtype.kind == "f" else None)

        self._require_compiled("adapt")
        x, y = (tf.nest.map_structure(one, dense(part, name)) for part, name in ((x, "inputs"), (y, "targets")))
        _check_set("support", Batch(x, y), self.model)
        if 0 in tf.nest.flatten(y)[0].shape[:2]:
            raise ShapeError("a task needs an example at least to be learned from; x and y have none")
        meta = self.meta
        with refusing():
            adapted = self._adapting.value(meta, Batch(x, y), steps)
        return self.learner.to_model(adapted._replace(meta=meta), x)

    def score(
        self, tasks: Tasks, *, episodes: int = 600, split: str = "test", steps: int | None = None, batch: int = 20
    ) -> Score:
        """Adapt to the first tasks of a split, and return the mean of their accuracies or errors, with its interval.

        What `headstart.training.evaluate.evaluate` says of a learner on PyTorch, of the same tasks.

        Args:
            tasks: a family of tasks.
            episodes: how many, at least 2; each task once where the split has fewer.
            split: 'train', 'validation' or 'test'.
            steps: inner steps in place of the method's own number.
            batch: tasks at a time.

        Raises:
            DataError: a task holds numbers that are not finite.
            DivergenceError: the predictions on some task are not finite.
        """
        self._require_compiled("score")
        turned = _turned(tasks, self.model)
        learner = handed_over(self.learner, self._adapting.value, turned, _dtype(self.model))
        with refusing():
            return evaluate(learner, self.meta, tasks, episodes=episodes, split=split, steps=steps, batch=batch)

    def get_config(self) -> dict[str, Any]:
        """Return what a ``.keras`` file holds beside the weights."""
        options = {
            name: {"rule": rules.to_config(value)} if isinstance(value, Rule) else value
            for name, value in self._options.value.items()
        }
        if functions := [name for name, value in options.items() if callable(value)]:
            raise UsageError(f"{functions[0]} is a function, and cannot be kept in a file; name one of headstart's")
        model = keras.saving.serialize_keras_object(self.model)
        return {"model": model, "method": self.method, "seed": self.seed, "name": self.name, "options": options}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "MetaModel":
        """Return the meta-model of such a configuration."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects=custom_objects)
        options = {
            name: rules.from_config(value["rule"]) if isinstance(value, Mapping) and set(value) == {"rule"} else value
            for name, value in config["options"].items()
        }
        return cls(model, config["method"], seed=config["seed"], name=config["name"], **options)


class _Untracked:
    """Something that Keras is not to look into for layers and weights."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _Start(keras.initializers.Initializer):
    """A weight that starts at given values."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        return tf.cast(self.value, dtype)


def _dtype(model: Any) -> str:
    """Return in which precision a model takes numbers."""
    taken = [one.dtype for one in getattr(model, "inputs", None) or [] if one.dtype.startswith("float")]
    return next(iter(taken), model.compute_dtype)


def _turned(tasks: Tasks, model: Any) -> Any:
    """Return how a family's inputs become the model's."""
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple):
        raise UsageError(
            "a family of tasks has one input, and the model has none that is known, or several; give a keras.Input, or "
            "a tf.data.Dataset of episodes"
        )
    formats = [layer.data_format for layer in model._flatten_layers() if getattr(layer, "data_format", None)]
    return turn(tasks, tuple(shape[1:]), next(iter(formats), keras.config.image_data_format()))


def _check_set(name: str, part: Batch, model: Any) -> None:
    """Refuse a set without a task axis, that the model cannot take, or of more inputs than targets."""
    inputs, wanted = tf.nest.flatten(part.x), [tuple(one.shape[1:]) for one in getattr(model, "inputs", None) or []]
    if len(wanted) not in (0, len(inputs)):
        raise ShapeError(f"the {name} set has {len(inputs)} inputs, and the model takes {len(wanted)}")
    for leaf, shape in zip(inputs, wanted):
        rank = leaf.shape.rank
        if rank is None or (rank == len(shape) + 2 and leaf.shape[2:].is_compatible_with(shape)):
            continue
        told = ", ".join(map(str, ("tasks", "examples", *shape)))
        raise ShapeError(
            f"{name} inputs have shape {tuple(leaf.shape)}; they should be ({told})"
            + "; a dataset of single episodes becomes one of batches by dataset.batch(4)" * (rank == len(shape) + 1)
        )
    sizes = {leaf.shape[1] for leaf in tf.nest.flatten((part.x, part.y)) if (leaf.shape.rank or 0) > 1} - {None}
    if len(sizes) > 1:
        raise ShapeError(f"x and y of the {name} set have to have as many examples; they have {sorted(sizes)}")


def _refuse_pooled(metrics: Any) -> None:
    for metric in tf.nest.flatten(metrics) if metrics is not None else []:
        try:
            kept = metric if metric in _BY_SHAPE else keras.metrics.get(metric)
        except ValueError as error:
            raise UsageError(str(error)) from error
        pooled = isinstance(kept, keras.metrics.Metric) and (
            not isinstance(kept, keras.metrics.Mean) or type(kept).result is not keras.metrics.Mean.result
        )
        if pooled:
            raise UsageError(
                f"the metric {kept.name!r} ({type(kept).__name__}) keeps more than a mean, so that it would mix tasks "
                "whose classes are not the same; take a mean over examples, such as 'accuracy' or 'mean_absolute_error'"
                ", or a function (y_true, y_pred) -> one value an example"
            )


#: Metrics that Keras chooses by the shapes of targets and outputs; all are means.
_BY_SHAPE = ("accuracy", "acc", "crossentropy", "ce")
