"""Bad input is refused before anything is computed, by name and with the way on."""

import warnings

import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed here; `make test-keras` has it")

import keras
import numpy as np
import tensorflow as tf
import torch

from headstart.data.curves.sinusoid import sinusoid
from headstart.errors import DataError, ShapeError, UnknownNameError, UsageError
from headstart.integrations.keras import MetaModel

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(4, 6, 2)).astype("float32"), RANDOM.normal(size=(4, 6, 1)).astype("float32")
IDS = np.tile(np.arange(3), (4, 2))


def mlp(outputs=1, **options):
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(outputs, name="only", **options)])


def compiled(model=None, loss="mse", method="maml", **options):
    made = MetaModel(mlp() if model is None else model, method, **{"steps": 1, "taskmap": "vectorized"} | options)
    made.compile("sgd", loss=loss)
    return made


def recurrent():
    layers = [keras.Input((3, 2), batch_size=6), keras.layers.SimpleRNN(2, stateful=True, name="memory")]
    return keras.Sequential(layers)


def quantized():
    model = mlp()
    with warnings.catch_warnings(action="ignore"):  # of the input layer, which has nothing to quantize
        model.quantize("int8")
    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: keras.Sequential([keras.layers.Dense(1, name="first")]), "not built.*give the model an Input"),
        (recurrent, "/memory' \\(SimpleRNN\\) is stateful.*stateful=False"),
        (lambda: mlp(dtype="mixed_float16"), "/only' \\(Dense\\) computes in float16.*set_dtype_policy"),
        (lambda: torch.nn.Linear(1, 1), "expected a keras.Model, got a torch.nn.*headstart.maml"),
        (lambda: "conv4", "expected a keras.Model, got a builtins.str"),
        (quantized, "only' \\(Dense\\) is quantized.*as it was before"),
    ],
    ids=["not built", "stateful", "mixed precision", "torch", "no model", "quantized"],
)
def test_models(model, words):
    with pytest.raises(UsageError, match=words):
        MetaModel(model())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "mmal"}, "unknown method of Keras models 'mmal'; did you mean 'maml'"),
        ({"stesp": 3}, "unknown option of maml 'stesp'; did you mean 'steps'"),
        ({"taskmap": "vectorised"}, "unknown taskmap 'vectorised'; did you mean 'vectorized'"),
        ({"buffers": "tasks"}, "unknown buffers 'tasks'; did you mean 'task'"),
    ],
)
def test_names(options, words):
    with pytest.raises(UnknownNameError, match=words):
        MetaModel(mlp(), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "mse"}, r"loss is not said here: it goes to compile\(loss=…\)"),
        ({"steps": -1}, "steps is a whole number from 0 up, got -1"),
        ({"rate": -0.1}, "rate must be"),
        ({"method": "anil"}, "no head apart from its body"),
    ],
)
def test_options(options, words):
    with pytest.raises(UsageError, match=words):
        MetaModel(mlp(), **options)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"metrics": ["AUC"]}, r"'auc' \(AUC\) keeps more than a mean"),
        ({"metrics": {"only": keras.metrics.RootMeanSquaredError()}}, "keeps more than a mean"),
        ({"weighted_metrics": [keras.metrics.Precision()]}, "keeps more than a mean"),
        ({"metrics": ["acuracy"]}, "acuracy"),
        ({"loss": "mze"}, "mze.*headstart's: cross_entropy, mse"),
        ({"loss": None}, "a loss is missing"),
        ({"optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())}, "for mixed precision"),
    ],
)
def test_what_is_compiled(given, words):
    with pytest.raises(UsageError, match=words):
        MetaModel(mlp()).compile(**{"optimizer": "sgd", "loss": "mse", **given})


def test_layers_that_are_frozen_later():
    model = mlp()
    made = MetaModel(model, "meta_sgd")
    model.layers[0].trainable = False
    with pytest.raises(UsageError, match="no trainable|nothing|has changed since this MetaModel was made"):
        made.compile("sgd", loss="mse")


@pytest.mark.parametrize("what", ["fit", "evaluate", "adapt", "score"])
def test_before_compile(what):
    arguments = {"adapt": (X[0], Y[0]), "score": (sinusoid(),)}.get(what, (((X, Y), (X, Y)),))
    with pytest.raises(UsageError, match=rf"compile the model before {what}: compile\(optimizer, loss=…\)"):
        getattr(MetaModel(mlp()), what)(*arguments)


SLICES = tf.data.Dataset.from_tensor_slices
RAGGED = tf.RaggedTensor.from_row_lengths(X.reshape(-1, 2), [5, 7, 6, 6])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: SLICES(((X, Y), (X, Y))), r"support inputs have shape \(6, 2\).*dataset.batch\(4\)"),
        (lambda: SLICES((X, Y)).batch(2), r"a dataset of episodes yields \(\(x, y\), \(x, y\)\).*this one yields"),
        (lambda: (X, Y), "expected a family of tasks, arrays"),
        (lambda: [1, 2], "expected a family of tasks, arrays"),
        (lambda: ((X, Y[:, :5]), (X, Y)), r"x and y of the support set have to have as many examples.*\[5, 6\]"),
        (lambda: ((X, Y), (X[:3], Y[:3])), r"begin with the task axis; they have \[3, 4\] tasks"),
        (lambda: (([X, X], Y), ([X, X], Y)), "the support set has 2 inputs, and the model takes 1"),
        (lambda: SLICES(((RAGGED, Y), (X, Y))).batch(2), "ragged.*to_tensor"),
        (lambda: ((X[..., 0], Y), (X[..., 0], Y)), "support inputs have shape"),
        (lambda: sinusoid(), r"inputs have shape \(1,\), and the model takes \(2,\)"),
    ],
    ids=["unbatched", "no episodes", "pair", "list", "y", "tasks", "inputs", "ragged", "rank", "family"],
)
def test_episodes(given, words):
    for call in (compiled().fit, compiled().evaluate):
        with pytest.raises(UsageError, match=words):
            call(given(), **({"steps_per_epoch": 1} if call.__name__ == "fit" else {"steps": 1}), verbose=0)


def test_numbers_that_are_not_finite():
    bad = X.copy()
    bad[2, 1, 0] = np.nan
    with pytest.raises(DataError, match="task 2 holds numbers that are not finite"):
        compiled().fit(((bad, Y), (X, Y)), verbose=0)
    with pytest.raises(DataError, match="example 1 of the task holds numbers that are not finite"):
        compiled().adapt(bad[2], Y[2])


@pytest.mark.parametrize(
    ("loss", "outputs", "y", "words"),
    [
        ("mse", 3, IDS, "MeanSquaredError is a loss of numbers, and y holds integers.*loss='cross_entropy'"),
        ("mse", 3, Y, "MeanSquaredError needs outputs and targets of one shape"),
        ("cross_entropy", 3, IDS[..., None].repeat(2, -1), "needs logits .* and integer labels"),
        (lambda y, p: tf.reduce_mean((y - p) ** 2), 1, Y, "gives one number for all examples"),
        (["mse", "mse"], 1, Y, "2 losses for 1 outputs"),
    ],
    ids=["ids", "shape", "labels", "number", "losses"],
)
def test_targets_that_do_not_fit(loss, outputs, y, words):
    with pytest.raises(UsageError, match=words):
        compiled(mlp(outputs), loss).evaluate(((X, y), (X, y)), verbose=0)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("method", ["maml", "prototypes"])
def test_labels_out_of_range(method, jit_compile):
    made = MetaModel(mlp(3), method, **({"ways": 3} if method == "prototypes" else {"steps": 1}))
    made.compile("sgd", jit_compile=jit_compile)
    told = "integer labels must be 0 to 2"
    with pytest.raises(DataError, match=told):
        made.fit(((X, IDS + 1), (X, IDS)), verbose=0)
    with pytest.raises(DataError, match=told):
        made.evaluate(((X, IDS - 1), (X, IDS)), verbose=0)
    with pytest.raises(DataError, match=told):
        made.adapt(X[0], IDS[0] + 1)


def test_labels_that_xla_would_not_look_at():
    def refused(made, y, words, query=IDS):
        made.compile("sgd", jit_compile=True)
        with pytest.raises(DataError, match=words):
            made.evaluate(SLICES(((X, y), (X, query))).batch(2), verbose=0)

    refused(MetaModel(mlp(3), steps=0), np.where(IDS == 1, np.nan, IDS).astype("float32"), "must be whole numbers")
    refused(MetaModel(mlp(3), "ridge"), IDS, "must be those of the support set", IDS + 1)
    x, z = keras.Input((2,), name="x"), keras.layers.Dense(3)
    several = keras.Model(x, {"size": keras.layers.Dense(1)(x), "kind": z(x)})
    made = MetaModel(several, steps=0)
    made.compile("sgd", loss={"size": "mse", "kind": "cross_entropy"}, jit_compile=True)
    with pytest.raises(DataError, match="0 to 2"):
        made.evaluate(((X, {"size": Y, "kind": IDS}), (X, {"size": Y, "kind": IDS + 1})), verbose=0)


@pytest.mark.parametrize("y", [IDS.astype("float32"), Y], ids=["ids", "numbers"])
def test_numbers_with_a_loss_of_class_ids(y):
    made = MetaModel(mlp(3), "ridge")
    made.compile("sgd")
    for what in (lambda: made.evaluate(((X, y), (X, y)), verbose=0), lambda: made.adapt(X[0], y[0])):
        with pytest.raises(UsageError, match=r"y holds numbers \(float32\).*y.astype\('int64'\).*loss='mse'"):
            what()


def test_labels_that_are_no_numbers():
    made = compiled(mlp(3), "cross_entropy")
    with pytest.raises(DataError, match=r"strings.*np.unique\(y, return_inverse=True\)"):
        made.adapt(X[0], IDS[0].astype(str))
    with pytest.raises(DataError, match="must be whole numbers"):
        made.adapt(X[0], IDS[0] + 0.5)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "let go"])
def test_what_is_trainable_changes_by_compile(frozen):
    network = keras.Sequential([mlp(4), keras.layers.Dense(3)])
    network.layers[0].trainable = frozen
    made = compiled(network, "cross_entropy")
    network.layers[0].trainable = not frozen
    for what in (lambda: made.fit(((X, IDS), (X, IDS)), verbose=0), lambda: made.adapt(X[0], IDS[0])):
        with pytest.raises(UsageError, match="what is trainable has changed since compile: .*kernel; call compile"):
            what()
    made.compile("sgd", "cross_entropy")
    before = network.layers[0].get_weights()[0]
    made.fit(((X, IDS), (X, IDS)), batch_size=len(X), verbose=0)
    assert np.array_equal(before, network.layers[0].get_weights()[0]) == frozen


class Shapeless(keras.Model):
    """A model that says nothing of its inputs, so that Keras finds out what does not fit when it is run."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def build(self, shape):
        self.dense.build((None, 2))

    def call(self, x):
        return self.dense(x)


@pytest.mark.parametrize("taskmap", ["auto", "vectorized", "loop", "while"])
def test_what_keras_refuses_is_told_in_its_own_words(taskmap):
    model = Shapeless()
    model.build((None, 2))
    made = compiled(model, taskmap=taskmap, check=False)
    with pytest.raises(ValueError, match="incompatible with the layer") as caught:
        made.evaluate(((X[..., :1], Y), (X, Y)), verbose=0)
    assert "all tasks at once" not in str(caught.value)


def test_what_is_adapted_to():
    made = compiled()
    for x, y, words in (
        (X[0], Y[0, :5], r"as many examples; they have \[5, 6\]"),
        (X[0, :0], Y[0, :0], "x and y have none"),
        (1.0, 2.0, "whose first axis is the examples"),
        (RAGGED, Y[0], "ragged.*to_tensor"),
        (tf.sparse.from_dense(X[0]), Y[0], "sparse.*to_dense"),
        (X[0, :, :1], Y[0], r"shape \(1, 6, 1\); they should be \(tasks, examples, 2\)"),
    ):
        with pytest.raises(ShapeError, match=words):
            made.adapt(x, y)


def test_what_has_no_meaning_for_episodes():
    made = compiled()
    with pytest.raises(UsageError, match="class_weight has no meaning for episodes"):
        made.fit(((X, Y), (X, Y)), class_weight={0: 1.0})
    with pytest.raises(UsageError, match="one positional argument"):
        made.fit(X, Y)
    with pytest.raises(UsageError, match="how many outer steps an epoch has, steps_per_epoch="):
        compiled(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])).fit(sinusoid())
    with pytest.raises(UsageError, match="tf.distribute"), tf.distribute.OneDeviceStrategy("cpu:0").scope():
        MetaModel(mlp())


def test_outputs_marked_as_padding():
    layers = [keras.Input((3,), dtype="int32"), keras.layers.Embedding(5, 2, mask_zero=True), keras.layers.Dense(1)]
    model = keras.Sequential(layers, name="tags")
    ids = np.tile(np.array([2, 1, 0], dtype="int32"), (4, 6, 1))
    task = (ids, np.zeros((4, 6, 3, 1), dtype="float32"))
    with pytest.raises(UsageError, match="outputs of 'tags' are marked as padding.*GlobalAveragePooling1D"):
        compiled(model).evaluate((task, task), verbose=0)
    assert np.isfinite(compiled(model, check=False).evaluate((task, task), verbose=0))
