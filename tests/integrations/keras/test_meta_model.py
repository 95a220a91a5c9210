"""A meta-model is compiled, fitted, evaluated, adapted and kept as other Keras models are."""

import json
import warnings
import zipfile

import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed here; `make test-keras` has it")

import keras
import numpy as np
import tensorflow as tf
import torch

from headstart.data.curves.sinusoid import sinusoid
from headstart.data.tables.table import table
from headstart.errors import UsageError
from headstart.integrations.keras import MetaModel, SupportStatisticsWarning, rules
from headstart.registry import keras_methods, load
from headstart.types import Batch

RANDOM = np.random.default_rng(0)
HEADS = ("prototypes", "ridge")


def lines(tasks=8, support=5, query=6):
    """Lines through 0 whose slopes differ."""
    slope, x = RANDOM.normal(size=(tasks, 1, 1)), RANDOM.uniform(-1, 1, size=(tasks, support + query, 1))
    y = slope * x
    return (x[:, :support], y[:, :support]), (x[:, support:], y[:, support:])


def blobs(tasks=8, shots=2, ways=3):
    """Clouds of points about centres of each task's own."""
    y = np.tile(np.arange(ways), shots * 2)[None].repeat(tasks, 0)
    x = RANDOM.normal(size=(tasks, ways, 2))[np.arange(tasks)[:, None], y] + RANDOM.normal(size=(*y.shape, 2)) / 3
    return (x[:, : ways * shots], y[:, : ways * shots]), (x[:, ways * shots :], y[:, ways * shots :])


LINES, BLOBS = lines(), blobs()


def mlp(inputs=1, outputs=1, *between):
    first = keras.layers.Dense(4, "tanh")
    last = [keras.layers.Dense(outputs)] if outputs else []
    return keras.Sequential([keras.Input((inputs,)), first, *between, *last])


def meta(model, *, loss="mse", optimizer="adam", metrics=None, compiled=None, **options):
    made = MetaModel(model, **{"steps": 1, "rate": 0.1, **options})
    made.compile(optimizer, loss=loss, metrics=metrics, **(compiled or {}))
    return made


def own_predictions(model, x, y, query):
    """What the method itself predicts for a task, without a model made of it."""

    @tf.function(autograph=False)
    def predicted(x, y, query):
        adapted, _ = model.learner.adapt(model.meta, Batch(x, y))
        return model.learner.predict(adapted, query)[0]

    return predicted(*(v[None].astype("float32") if v.dtype.kind == "f" else v[None] for v in (x, y, query))).numpy()


@pytest.mark.parametrize("method", keras_methods())
def test_every_method_is_trained_judged_adapted_kept_and_trained_on(method, tmp_path):
    options = {} if method in HEADS else {"steps": 1, "taskmap": "vectorized"}
    model = MetaModel(mlp(2, 0 if method in HEADS else 3), method, **options)
    model.compile("adam", metrics=["accuracy"])
    history = model.fit(BLOBS, batch_size=3, epochs=2, validation_data=BLOBS, verbose=0).history
    assert history.keys() == {"loss", "accuracy", "val_loss", "val_accuracy"} and len(history["loss"]) == 2
    judged = model.evaluate(BLOBS, batch_size=3, verbose=0, return_dict=True)
    assert judged == pytest.approx({k: history[f"val_{k}"][-1] for k in judged}, rel=1e-6)

    (x, y), (query, _) = ((part[0] for part in batch) for batch in BLOBS)
    before = model.get_weights()
    adapted = model.adapt(x, y)
    assert all(map(np.array_equal, before, model.get_weights()))
    found = adapted.predict(query, verbose=0)
    own = own_predictions(model, x, y, query)
    if method == "prototypes":  # up to what all classes share
        own, found = (v - v[:, :1] for v in (own, found))
    np.testing.assert_allclose(found, own, rtol=1e-4, atol=1e-5)
    assert isinstance(adapted, keras.Model) and (method in HEADS or isinstance(adapted, keras.Sequential))

    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        again.adapt(x, y).predict(query, verbose=0), adapted.predict(query, verbose=0), rtol=1e-5
    )
    if method not in ("meta_sgd", "reptile", "ridge"):  # one with M, one of each kind
        return
    for one in (model, again):
        one.fit(BLOBS, batch_size=3, shuffle=False, verbose=0)
    assert any(not np.array_equal(a, b) for a, b in zip(before, model.get_weights()))
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_an_adapted_model_is_a_model_of_its_own(tmp_path):
    model = meta(mlp(), taskmap="vectorized")
    (x, y), (query, _) = ((part[0] for part in batch) for batch in LINES)
    adapted = model.adapt(x, y)
    found = adapted.predict(query, verbose=0)
    adapted.save(tmp_path / "adapted.keras")
    np.testing.assert_allclose(
        keras.saving.load_model(tmp_path / "adapted.keras").predict(query, verbose=0), found, rtol=1e-6
    )
    adapted.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(served.serve(tf.constant(query, tf.float32)), found, rtol=1e-6)
    start = model.get_weights()
    adapted.compile("sgd", loss="mse")
    adapted.fit(x, y, verbose=0)
    assert not np.array_equal(adapted.predict(query, verbose=0), found)
    assert all(map(np.array_equal, start, model.get_weights()))
    np.testing.assert_allclose(model.adapt(x, y, steps=0).predict(query, verbose=0), model(query), rtol=1e-5)


@pytest.mark.parametrize("buffers", ["task", "frozen", "batch"])
def test_an_adapted_model_normalises_as_its_method_does(buffers):
    model = meta(mlp(1, 1, keras.layers.BatchNormalization(momentum=0.0)), buffers=buffers, taskmap="vectorized")
    (x, y), (query, _) = ((part[0] for part in batch) for batch in LINES)
    if buffers == "batch":
        with pytest.warns(SupportStatisticsWarning, match="normalises by its support set"):
            adapted = model.adapt(x, y)
    else:
        adapted = model.adapt(x, y)
    off = np.abs(adapted.predict(query, verbose=0) - own_predictions(model, x, y, query)).max()
    assert (off > 1e-3) if buffers == "batch" else (off < 1e-6)


def test_a_family_of_images_is_turned_channels_last():
    tasks = load("task", "icons")(ways=2, shots=1, queries=2)
    layers = [keras.Input((28, 28, 1)), keras.layers.AveragePooling2D(7), keras.layers.Flatten(), keras.layers.Dense(2)]
    model = meta(keras.Sequential(layers), loss="cross_entropy", metrics=["accuracy"], taskmap="vectorized")
    history = model.fit(tasks, batch_size=2, steps_per_epoch=2, validation_data=tasks, validation_steps=1, verbose=0)
    found = model.evaluate(tasks, split="validation", batch_size=2, steps=1, verbose=0)
    assert found[0] == pytest.approx(history.history["val_loss"][0])
    episodes = tasks.sample("validation", [0, 1])
    arrays = tuple((np.moveaxis(np.asarray(part.x), -3, -1), np.asarray(part.y)) for part in episodes)
    assert model.evaluate(arrays, batch_size=2, verbose=0) == pytest.approx(found)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_images_with_as_many_channels_as_rows_are_turned_as_the_models_layers_say(data_format):
    def batch(numbers, n):
        x = np.random.default_rng(n).normal(size=(len(numbers), n, 3, 3, 3))
        return Batch(torch.tensor(x, dtype=torch.float32), torch.zeros(len(numbers), n, 1))

    tasks = sinusoid()._replace(input_shape=(3, 3, 3), sample=lambda split, n: (batch(n, 2), batch(n, 4)))
    pool = keras.layers.GlobalAveragePooling2D(data_format=data_format)
    network = keras.Sequential([keras.Input((3, 3, 3)), pool, keras.layers.Dense(1, kernel_initializer="ones")])
    model = meta(network, steps=0, taskmap="vectorized")
    expected = np.square(batch([0], 4).x.numpy().mean((-1, -2)) @ [1, 2, 3]).mean()
    network.layers[-1].kernel.assign([[1], [2], [3]])
    assert model.evaluate(tasks, batch_size=1, steps=1, verbose=0) == pytest.approx(expected, rel=1e-5)


def test_the_first_step_is_on_the_first_tasks():
    """Asking the step count for the first tasks, and counting that step, have no order of their own."""
    tasks, drawn = sinusoid(shots=5, queries=5), []

    def sample(split, numbers):
        drawn.append([*numbers])
        return tasks.sample(split, numbers)

    model = meta(mlp(), taskmap="vectorized", optimizer=keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    for start in (0, 6):
        drawn.clear()
        model.fit(tasks._replace(sample=sample), batch_size=3, steps_per_epoch=2, verbose=0)
        assert drawn[1:3] == [[start, start + 1, start + 2], [start + 3, start + 4, start + 5]]


@pytest.fixture(scope="module")
def visits(tmp_path_factory):
    """A table of 12 patients, of whom each has been there more or less often."""
    path = tmp_path_factory.mktemp("table") / "visits.csv"
    rows = [f"{p},{v},{p * v + (v % 3)}.5" for p in range(12) for v in range(6 + p % 4)]
    path.write_text("patient,visit,pressure\n" + "\n".join(rows))
    return table(data=path, task_column="patient", target="pressure", shots=3)


def test_a_family_whose_tasks_differ_in_size(visits):
    model = meta(mlp(*visits.input_shape), taskmap="vectorized")
    model.fit(visits, batch_size=2, epochs=2, verbose=0)
    # one by one no task is padded, so that masks have to leave no trace
    one, two = (model.evaluate(visits, split="train", batch_size=b, verbose=0) for b in (1, 4))
    assert one == pytest.approx(two, rel=1e-5)


def test_a_score_is_that_of_the_evaluation_of_pytorch(visits):
    for tasks in (sinusoid(shots=5, queries=5), visits):
        model = meta(mlp(*tasks.input_shape), metrics=["mean_squared_error"], taskmap="vectorized")
        score = model.score(tasks, episodes=6, batch=4, split="validation")
        assert score.metric == "mse" and score.episodes == len(score.values) <= 6 and score.ci95 > 0
        own = {} if tasks.counts else {"steps": 6}
        loss = model.evaluate(tasks, split="validation", batch_size=1, verbose=0, return_dict=True, **own)["loss"]
        assert score.mean == pytest.approx(loss * tasks.unit**2, rel=1e-4)


def test_a_last_batch_may_be_short():
    """8 tasks are 3 and 3 and 2; and one by one, no step takes another number of them than the shapes say."""
    network = mlp()
    expected = meta(network, taskmap="vectorized").evaluate(LINES, batch_size=1, verbose=0)
    for taskmap in ("vectorized", "loop", "while"):
        model = meta(network, taskmap=taskmap)
        assert model.evaluate(LINES, batch_size=3, verbose=0) == pytest.approx(expected, rel=1e-5)


def test_datasets_and_arrays_are_the_same():
    model = meta(mlp(), taskmap="vectorized")
    dataset = tf.data.Dataset.from_tensor_slices(LINES).batch(4)
    assert model.evaluate(dataset, verbose=0) == pytest.approx(model.evaluate(LINES, verbose=0))
    assert np.isfinite(model.fit(dataset, verbose=0).history["loss"][0])


def test_a_dataset_that_does_not_say_when_it_ends_is_judged_by_what_it_has():
    """The step that finds nothing more must not count."""
    like = tf.data.Dataset.from_tensor_slices(LINES).batch(4, drop_remainder=True)
    endless = tf.data.Dataset.from_generator(lambda: iter(like), output_signature=like.element_spec)
    model = meta(mlp(), optimizer=keras.optimizers.SGD(0.0), metrics=["mae"], taskmap="vectorized")
    for judged in (lambda x: model.evaluate(x, verbose=0), lambda x: [*model.fit(x, verbose=0).history.values()]):
        expected = judged(like)
        with warnings.catch_warnings(action="ignore"):  # Keras says that it ran out of data
            assert judged(endless) == [pytest.approx(value) for value in expected]


def test_kerass_own_callbacks(tmp_path, capsys):
    model = meta(mlp(), optimizer=keras.optimizers.SGD(0.1), taskmap="vectorized", compiled={"steps_per_execution": 2})
    rates = [0.05, 0.05, -0.5, 0.05, 0.05]  # the third epoch climbs
    history = model.fit(
        LINES,
        batch_size=4,
        epochs=5,
        validation_data=LINES,
        verbose=1,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch]),
            keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="val_loss", save_best_only=True),
            keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True),
        ],
    ).history
    assert len(history["val_loss"]) == 3 and history["learning_rate"] == pytest.approx(rates[:3])
    best = min(history["val_loss"])
    assert best == history["val_loss"][1] < history["val_loss"][0]
    for one in (model, keras.saving.load_model(tmp_path / "best.keras")):
        assert one.evaluate(LINES, verbose=0) == pytest.approx(best)
    printed = capsys.readouterr().out
    assert "Epoch 3/5" in printed and "2/2" in printed and "val_loss" in printed


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    meta(mlp()).fit(LINES, verbose=0, callbacks=[keras.callbacks.TensorBoard(tmp_path, update_freq=1)])
    assert list(tmp_path.rglob("*tfevents*"))


def test_however_it_is_run_it_learns_the_same():
    weights = []
    for way in ({}, {"steps_per_execution": 2}, {"jit_compile": True}, {"run_eagerly": True}):
        keras.utils.set_random_seed(0)
        model = meta(mlp(), optimizer="sgd", taskmap="vectorized", compiled=way)
        model.fit(tuple((x[:4], y[:4]) for x, y in LINES), batch_size=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for others in weights[1:]:
        for a, b in zip(weights[0], others):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_xla_takes_sequences_whose_length_the_shapes_do_not_say():
    """Labels are looked at before a step, of as many outputs as there are."""
    x, y = RANDOM.normal(size=(2, 3, 5, 2)), RANDOM.integers(0, 3, (2, 3, 5))
    free = (tf.TensorSpec((2, 3, None, 2)), tf.TensorSpec((2, 3, None), tf.int64))
    given = tf.data.Dataset.from_generator(lambda: iter([((x, y),) * 2]), output_signature=(free, free))
    network, found = keras.Sequential([keras.Input((None, 2)), keras.layers.Dense(3)]), []
    for jit_compile in (False, True):
        model = meta(
            network, loss="cross_entropy", steps=0, taskmap="vectorized", compiled={"jit_compile": jit_compile}
        )
        found.append(model.evaluate(given, steps=1, verbose=0))
    assert found[1] == pytest.approx(found[0])


def test_an_outer_step_is_the_optimizers_by_the_meta_gradient():
    model = meta(mlp(), method="meta_sgd", optimizer=keras.optimizers.SGD(0.5), taskmap="vectorized")
    rows = tuple((x[:4].astype("float32"), y[:4].astype("float32")) for x, y in LINES)
    start = model.meta

    @tf.function(autograph=False)
    def gradient(episodes):
        from headstart.types import Episodes

        own = Episodes(*(Batch(*part) for part in episodes))
        return model.learner.gradient(model.learner, start, own).meta

    slopes = gradient(rows)
    model.fit(rows, batch_size=4, shuffle=False, verbose=0)
    for before, slope, after in zip(start, slopes, model.meta):
        for name in before:
            np.testing.assert_allclose(after[name], before[name] - 0.5 * slope[name], rtol=1e-5, atol=1e-6)


def test_moments_are_read_from_a_file_for_the_variables_that_they_are_of(tmp_path):
    """Meta-SGD's rates have the weights' shapes, so nothing else would tell one's moments from the other's."""
    model = meta(mlp(), method="meta_sgd", taskmap="vectorized")
    model.fit(LINES, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")

    def moments(of):
        optimizer = of.optimizer
        return [optimizer._momentums[optimizer._get_variable_index(v)].numpy() for v in of.trainable_variables]

    assert all(map(np.array_equal, moments(model), moments(again)))
    assert len({value.tobytes() for value in moments(model)}) == 8


def test_losses_are_said_as_keras_says_them():
    model = MetaModel(mlp(), steps=1, rate=0.1, taskmap="vectorized")
    found = []
    for loss in (
        "mse",
        "mean_squared_error",
        keras.losses.MeanSquaredError(),
        lambda y, p: tf.reduce_mean((y - p) ** 2, -1),
    ):
        model.compile("sgd", loss=loss)
        found.append(model.evaluate(LINES, verbose=0))
    assert found == pytest.approx([found[0]] * 4)
    model.compile("sgd", loss="mean_absolute_error")
    assert abs(model.evaluate(LINES, verbose=0) - found[0]) > 1e-3


@pytest.mark.parametrize("loss", ["hinge", "binary_crossentropy", lambda y, p: tf.reduce_mean((y - p) ** 2, -1)])
def test_targets_without_a_last_axis_are_those_with_it(loss):
    network = mlp()
    given = (tuple((x, np.sign(y)[place]) for x, y in LINES) for place in ((..., 0), (...,)))
    one, two = (meta(network, loss=loss, taskmap="vectorized").evaluate(episodes, verbose=0) for episodes in given)
    assert one == pytest.approx(two)


@pytest.mark.parametrize(
    ("loss", "metric", "episodes"), [("mse", "mae", LINES), ("cross_entropy", "accuracy", BLOBS)], ids=["mse", "ids"]
)
def test_one_model_takes_targets_with_and_without_a_last_axis(loss, metric, episodes):
    given = [tuple((x, y.reshape(*y.shape[:2], *last)) for x, y in episodes) for last in ((), (1,))]
    network = mlp(episodes[0][0].shape[-1], 1 if loss == "mse" else 3)
    model = meta(network, loss=loss, metrics=[metric], optimizer=keras.optimizers.SGD(0.0), taskmap="vectorized")
    found = [model.evaluate(one, verbose=0) for one in given]
    kept = [model.fit(one, verbose=0, validation_data=given[1], shuffle=False).history for one in given]
    assert found[1] == pytest.approx(found[0])
    assert [[one["loss"][0], one[metric][0]] for one in kept] == [pytest.approx(found[0])] * 2
    assert [[one["val_loss"][0], one[f"val_{metric}"][0]] for one in kept] == [pytest.approx(found[0])] * 2


@pytest.mark.parametrize("method", ["maml", "prototypes"])
def test_labels_of_any_type(method):
    model = MetaModel(mlp(2, 3), method, taskmap="vectorized")
    model.compile("sgd")
    expected = model.evaluate(BLOBS, verbose=0)
    for kind in ("uint16", "int8"):
        assert model.evaluate(tuple((x, y.astype(kind)) for x, y in BLOBS), verbose=0) == pytest.approx(expected)
    assert np.isfinite(model.evaluate(tuple((x, y > 0) for x, y in BLOBS), verbose=0))


class Doubled(keras.layers.Layer):
    """A layer that nobody registered."""

    def call(self, x):
        return 2 * x


@pytest.mark.parametrize("between", [Doubled, lambda: keras.layers.Lambda(lambda x: tf.tanh(x) * len(LINES))])
def test_what_a_file_could_not_hold_is_copied(between):
    network = keras.Sequential([keras.Input((1,)), mlp(1, 2, between())])
    network.add(keras.layers.Dense(1))
    adapted = meta(network).adapt(LINES[0][0][0], LINES[0][1][0], steps=0)
    np.testing.assert_allclose(adapted(LINES[1][0][0]), network(LINES[1][0][0]), rtol=1e-6)
    assert not {id(layer) for layer in adapted._flatten_layers()} & {id(layer) for layer in network._flatten_layers()}


def test_the_models_own_precision_counts():
    layers = [keras.layers.Dense(4, "tanh", dtype="float64"), keras.layers.Dense(1, dtype="float64")]
    network = keras.Sequential([keras.Input((1,), dtype="float64"), *layers])
    model, (x, y) = meta(network), (part[0] for part in LINES[0])
    assert np.array_equal(model(x), network(x))
    adapted = keras.models.clone_model(network)
    adapted.set_weights(network.get_weights())
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((adapted(x) - y) ** 2)
    for variable, slope in zip(adapted.trainable_variables, tape.gradient(loss, adapted.trainable_variables)):
        variable.assign_sub(0.1 * slope)
    np.testing.assert_allclose(model.adapt(x, y)(x), adapted(x), rtol=1e-13)


def branching():
    x, z = keras.Input((2,), name="x"), keras.Input((1,), name="z")
    joined = keras.layers.Dense(4, "tanh")(keras.layers.Concatenate()([x, z]))
    return keras.Model([x, z], [keras.layers.Dense(1, name="size")(joined), keras.layers.Dense(3, name="kind")(joined)])


def test_several_inputs_and_outputs():
    (x, kind), (xq, kindq) = BLOBS
    sizes = [np.abs(v).sum(-1, keepdims=True) for v in (x, xq)]
    episodes = ([x, x[..., :1]], [sizes[0], kind]), ([xq, xq[..., :1]], [sizes[1], kindq])
    model = MetaModel(branching(), "reptile", steps=1, taskmap="vectorized")
    model.compile("adam", loss=["mse", "cross_entropy"], loss_weights=[1.0, 0.5], metrics=[["mae"], ["accuracy"]])
    history = model.fit(episodes, batch_size=4, validation_data=episodes, verbose=0).history
    assert {"loss", "size_mae", "kind_accuracy", "val_loss"} <= history.keys()
    model.compile("adam", loss={"kind": "cross_entropy", "size": "mse"}, loss_weights={"kind": 0.5, "size": 1.0})
    assert model.evaluate(episodes, verbose=0, return_dict=True)["loss"] == pytest.approx(
        history["val_loss"][0], rel=1e-5
    )
    with pytest.raises(UsageError, match=r"loss is of kind, and the model's outputs are \['size', 'kind'\]"):
        model.compile("adam", loss={"kind": "cross_entropy"})
    adapted = model.adapt([x[0], x[0, :, :1]], [sizes[0][0], kind[0]])
    size, logits = adapted.predict([xq[0], xq[0, :, :1]], verbose=0)
    assert size.shape == (6, 1) and logits.shape == (6, 3)


def test_a_file_holds_no_code_and_all_options(tmp_path):
    rule = rules.chain(rules.only("dense*"), rules.clip(norm=1.0), rules.per_tensor(0.05, steps=2))
    model = MetaModel(mlp(), steps=2, rule=rule, buffers="frozen", seed=3, name="mine")
    model.compile(keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(1e-3, 10)), loss="mse")
    model.fit(LINES, verbose=0)
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        assert {*file.namelist()} == {"metadata.json", "config.json", "model.weights.h5"}
        json.loads(file.read("config.json"))
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert (again.name, again.seed, again.learner.steps) == ("mine", 3, 2)
    assert again.get_config()["options"] == model.get_config()["options"]
    assert again.evaluate(LINES, verbose=0) == pytest.approx(model.evaluate(LINES, verbose=0))
    assert isinstance(again.optimizer, keras.optimizers.AdamW)
    model = MetaModel(mlp(), "meta_sgd", rate=(0.01, 0.02))
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").get_config()["options"]["rate"] == [0.01, 0.02]


def test_what_a_file_cannot_hold_is_refused_by_name(tmp_path):
    plain = rules.scale(0.1)
    own = plain._replace(update=lambda m, state, grads, params, step: (grads, state))
    with pytest.raises(UsageError, match="a rule of your own"):
        meta(mlp(), rule=own).save(tmp_path / "model.keras")
    with pytest.raises(UsageError, match="taskmap is a function, and cannot be kept in a file"):
        meta(mlp(), taskmap=lambda of_one, elements: tf.map_fn(of_one, elements)).save(tmp_path / "model.keras")
    lambdas = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1), keras.layers.Lambda(lambda x: x)])
    meta(lambdas, method="fomaml").save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="safe_mode|unsafe"):
        keras.saving.load_model(tmp_path / "model.keras")
