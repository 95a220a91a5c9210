"""The same weights and episodes give the same numbers here and in PyTorch, in float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tensorflow")

import headstart
from headstart.algorithms.reptile import joined
from headstart.core.objective import query_losses
from headstart.errors import DifferentiationError, ShapeError, UnknownNameError, UsageError
from headstart.forward.batch_norm import TaskStatistics
from headstart.integrations import keras as on_keras
from headstart.integrations.keras import models, task_map
from headstart.integrations.keras.backend import keras, tf
from headstart.integrations.keras.weights import to_keras, to_torch
from headstart.models.conv4 import conv4
from headstart.models.mlp import mlp
from headstart.types import Batch, Episodes

CLOSE = 1e-9
IMAGE = (2, 18, 21)  # odd sizes are pooled


@pytest.fixture(autouse=True)
def double_precision():
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)


def close(found, expected, told=""):
    """Show that two arrays are the same but for rounding."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, told
    error, size = (np.abs(value).max(initial=0) for value in (found - expected, expected))
    assert error <= CLOSE * size, (told, error, size)


class Both:
    """A network in PyTorch and in Keras, with the same weights."""

    def __init__(self, module, model, to_keras=to_keras, to_torch=to_torch):
        self.module, self.model, self.to_torch = module.double(), model, to_torch
        for norm in (one for one in module.modules() if isinstance(one, nn.BatchNorm2d)):
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 2)
        for name, value in module.named_parameters():
            if value.ndim == 1:  # biases and scales begin as 0 and 1, which would hide mistakes
                nn.init.normal_(value, 1.0 if name.endswith("norm.weight") else 0.0, 0.3)
        to_keras(module, model)

    def weights(self):
        return [tf.convert_to_tensor(variable) for variable in self.model.variables]

    def as_torch(self, values, prefix=""):
        """Return values like Keras's variables, by PyTorch's names and in its order."""
        names = on_keras.methods.names_of(self.model, self.model.trainable_variables)
        kept = self.weights()
        for name, variable in zip(names, self.model.trainable_variables):
            variable.assign(values.get(f"{prefix}{name}", tf.zeros_like(variable)))
        made = self.to_torch(self.model, copy.deepcopy(self.module))
        for variable, value in zip(self.model.variables, kept):
            variable.assign(value)
        return {f"{prefix}{name}": value.detach() for name, value in made.named_parameters()}


def images_of(random, tasks=2, ways=3, shots=2, queries=2):
    """Return image episodes as arrays of PyTorch's order."""

    def batch(count):
        x = random.normal(size=(tasks, ways * count, *IMAGE))
        return x, np.tile(np.repeat(np.arange(ways), count), (tasks, 1))

    return batch(shots), batch(queries)


def points_of(random, tasks=3, examples=5):
    def batch(count):
        return random.normal(size=(tasks, count, 4)), random.normal(size=(tasks, count, 2))

    return batch(examples), batch(examples + 2)


def masked(arrays):
    """Return episodes in which tasks have different numbers of examples, and NaN where there is none."""
    parts = []
    for x, y in arrays:
        mask = np.arange(y.shape[1]) < (y.shape[1] - np.arange(len(y)))[:, None]
        x = np.where(mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), x, np.nan)
        parts.append((x, y, mask))
    return parts


def in_torch(arrays):
    return Episodes(*(Batch(*map(torch.from_numpy, part)) for part in arrays))


def in_keras(arrays):
    turned = [(np.moveaxis(x, -3, -1) if x.ndim == 5 else x, *rest) for x, *rest in arrays]
    return Episodes(*(Batch(*map(tf.constant, part)) for part in turned))


def same(both, ours, theirs, arrays, structure=None, seen=lambda episodes: episodes.support):
    """Show that outputs, losses and meta-gradients of two learners are the same.

    Args:
        structure: M by its names in PyTorch, and by those in Keras; by default where both learners start.
        seen: what is adapted to.
    """
    meta, keras_meta = ours.init(torch.Generator().manual_seed(0)), theirs.init(0)
    if structure is not None:
        meta, keras_meta = meta._replace(structure=structure[0]), keras_meta._replace(structure=structure[1])
    episodes = in_torch(arrays)
    adapted, info = ours.adapt(meta, seen(episodes))
    outputs = ours.predict(adapted, episodes.query.x.nan_to_num())
    losses = query_losses(ours, adapted, episodes.query)
    gradient, _ = headstart.meta_gradient(ours, meta, episodes)

    run = tf.function(lambda meta, episodes: theirs.gradient(theirs, meta, episodes), autograph=False)
    found = run(keras_meta, in_keras(arrays))

    there = np.ones(outputs.shape[:2], bool) if episodes.query.mask is None else episodes.query.mask.numpy()
    close(np.asarray(found.outputs)[there], outputs.detach().numpy()[there], "outputs")
    close(found.info.query_loss, losses.detach(), "query losses")
    close(found.info.support_loss, info.support_loss.detach(), "support losses")
    params = both.as_torch(found.meta.params)
    assert params.keys() == gradient.params.keys()
    whole = max(float(value.abs().max()) for value in gradient.params.values())
    assert whole > 0
    for name, value in gradient.params.items():
        error = float((params[name] - value).abs().max())
        assert error <= CLOSE * whole, (name, error / whole)
    return gradient.structure, found.meta.structure


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def network(random):
    return Both(mlp(4, 2, hidden=(6, 5)), models.mlp(4, 2, hidden=(6, 5)))


def convolutional(norm="none", ways=3, downsample="pool"):
    options = {"filters": 3, "norm": norm, "downsample": downsample}
    return Both(conv4(IMAGE, ways, **options), models.conv4((*IMAGE[1:], IMAGE[0]), ways, **options))


# networks and converters


@pytest.mark.parametrize("norm", ["batch", "instance", "layer", "group", "none"])
@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_conv4_is_the_same_function_and_its_weights_come_back(norm, downsample, random):
    options = {"filters": 16, "norm": norm, "downsample": downsample}
    shape = (2, 34, 37)  # 2 × 2 pixels are flattened
    module, model = conv4(shape, 3, **options), models.conv4((34, 37, 2), 3, **options)
    both = Both(module, model)
    x = random.normal(size=(4, *shape))
    for training in (True, False):
        expected = copy.deepcopy(module.train(training))(torch.from_numpy(x)).detach()
        close(model(np.moveaxis(x, 1, -1), training=training), expected)
        to_keras(module, model)  # as running in training mode changed the statistics
    other = conv4(shape, 3, **options).double()
    assert not torch.equal(other.head.weight, module.head.weight)
    to_torch(both.model, other)
    for name, value in module.state_dict().items():
        if "num_batches" not in name:
            assert torch.equal(other.state_dict()[name], value), name


def test_channels_may_stand_first(random):
    kept = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        module = conv4((2, 34, 37), 3, filters=4).double()
        model = to_keras(module, models.conv4((2, 34, 37), 3, filters=4))
        assert model.input_shape == (None, 2, 34, 37)
        assert model.get_layer("flatten").data_format == "channels_first"
        for name, variable in (("head", "kernel"), ("block1_conv", "kernel")):
            own = getattr(model.get_layer(name), variable).value.numpy()
            weight = module.head.weight if name == "head" else module.block1.conv.weight
            expected = weight.detach().numpy()
            expected = expected.T if name == "head" else expected.transpose(2, 3, 1, 0)
            assert np.array_equal(own, expected)
    finally:
        keras.config.set_image_data_format(kept)


def test_mlp_of_images_is_the_same_function(random):
    module, model = mlp((2, 3, 4), 5, hidden=(6,)).double(), models.mlp((3, 4, 2), 5, hidden=(6,))
    x = random.normal(size=(7, 2, 3, 4))
    to_keras(module, model)
    close(model(np.moveaxis(x, 1, -1)), module(torch.from_numpy(x)).detach())
    other = to_torch(model, mlp((2, 3, 4), 5, hidden=(6,)).double())
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), module.parameters()))


def test_an_embedding_has_no_head():
    assert models.conv4((16, 16, 1), None, filters=4).output_shape == (None, 4)
    assert models.mlp(3, None, hidden=(7,)).output_shape == (None, 7)


def test_networks_that_differ_are_refused_and_nothing_is_set():
    model = models.conv4((28, 28, 1), 5, filters=4)
    before = [value.value.numpy() for value in model.variables]
    for module in (
        conv4((1, 28, 28), 5, filters=8),
        conv4((1, 28, 28), 7, filters=4),
        conv4((3, 28, 28), 5, filters=4),
        conv4((1, 28, 28), 5, filters=4, norm="group"),
        conv4((1, 28, 28), 5, filters=4, downsample="stride"),
    ):
        with pytest.raises(ShapeError, match="make both of the same layers"):
            to_keras(module, model)
        with pytest.raises(ShapeError, match="make both of the same layers"):
            to_torch(model, module)
    with pytest.raises(ShapeError, match="3 layers of the PyTorch network"):
        to_keras(mlp(3, 1), model)
    with pytest.raises(ShapeError, match="Embedding"):
        to_keras(nn.Sequential(nn.Embedding(3, 4)), models.mlp(3, 4, hidden=()))
    wide = conv4((1, 28, 28), 5, filters=4)
    wide.block3.norm.eps = 1e-3
    with pytest.raises(ShapeError, match="epsilon 0.001"):
        to_keras(wide, model)
    assert all(np.array_equal(a, b) for a, b in zip(before, [v.value.numpy() for v in model.variables]))


def test_models_refuse_what_they_cannot_be():
    with pytest.raises(ShapeError, match="height, width, channels"):
        models.conv4((28, 28), 5)
    with pytest.raises(ShapeError, match="16 x 16"):
        models.conv4((15, 28, 1), 5)
    with pytest.raises(UsageError, match="positive filters"):
        models.conv4((28, 28, 1), 0)
    with pytest.raises(UnknownNameError, match="'batch'"):
        models.conv4((28, 28, 1), 5, norm="batsh")
    with pytest.raises(UnknownNameError, match="'pool'"):
        models.conv4((28, 28, 1), 5, downsample="pol")
    with pytest.raises(UsageError, match="positive widths"):
        models.mlp(3, 1, hidden=(0,))


def test_what_cannot_be_run_at_once_is_found_out_in_silence(random, caplog):
    """Convolutions with kernels of each task's own cannot, and the tasks go one by one."""
    x, kernels = tf.constant(random.normal(size=(2, 3, 5, 5, 1))), tf.constant(random.normal(size=(2, 3, 3, 1, 4)))
    one = lambda task: tf.nn.conv2d(task[0], task[1], 1, "SAME")  # noqa: E731
    run = tf.function(lambda given: task_map.auto()(one, given), autograph=False)
    found = run((x, kernels))
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    close(found, [one((x[task], kernels[task])) for task in range(2)])
    with pytest.raises(DifferentiationError, match="take taskmap='auto' or 'loop'"):
        tf.function(lambda given: task_map.vectorized(one, given), autograph=False)((x, kernels))


# meta-gradients


@pytest.mark.parametrize("steps", [1, 3])
def test_maml_of_numbers(steps, network, random):
    how = {"loss": "mse", "steps": steps, "rate": 0.1}
    same(network, headstart.maml(network.module, **how), on_keras.maml(network.model, **how), points_of(random))


def test_fomaml(network, random):
    how = {"loss": "mse", "steps": 2, "rate": 0.1}
    same(network, headstart.fomaml(network.module, **how), on_keras.fomaml(network.model, **how), points_of(random))


@pytest.mark.parametrize("method", ["anil", "boil"])
def test_maml_of_a_part(method, network, random):
    how = {"loss": "mse", "steps": 2, "rate": 0.1}
    ours, theirs = (getattr(where, method) for where in (headstart, on_keras))
    same(network, ours(network.module, **how), theirs(network.model, **how), points_of(random))


def test_meta_sgd(network, random):
    how = {"loss": "mse", "steps": 2}
    ours, theirs = headstart.meta_sgd(network.module, **how), on_keras.meta_sgd(network.model, **how)
    rates = theirs.init(3).structure
    own = network.as_torch(rates, "rate.")
    assert {name: value.shape for name, value in ours.init(None).structure.items()} == {
        name: value.shape for name, value in own.items()
    }
    slopes, found = same(network, ours, theirs, points_of(random), (own, rates))
    found = network.as_torch(found, "rate.")
    for name, value in slopes.items():
        close(found[name], value, name)


def test_reptile(network, random):
    how = {"loss": "mse", "steps": 3, "rate": 0.01}
    same(
        network,
        headstart.reptile(network.module, **how),
        on_keras.reptile(network.model, **how),
        points_of(random),
        seen=joined,
    )


@pytest.mark.parametrize(("method", "seen"), [("maml", lambda episodes: episodes.support), ("reptile", joined)])
def test_tasks_of_different_sizes(method, seen, network, random):
    how = {"loss": "mse", "steps": 2, "rate": 0.01}
    ours, theirs = getattr(headstart, method)(network.module, **how), getattr(on_keras, method)(network.model, **how)
    same(network, ours, theirs, masked(points_of(random)), seen=seen)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_conv4_whose_tasks_have_different_sizes(norm, random):
    both = convolutional(norm)
    how = {"steps": 1, "rate": 0.1}
    ours, theirs = headstart.maml(both.module, **how), on_keras.maml(both.model, **how)
    same(both, ours, theirs, masked(images_of(random)))


@pytest.mark.parametrize("buffers", ["batch", "frozen"])
def test_conv4_with_batch_normalisation(buffers, random):
    both = convolutional("batch")
    how = {"steps": 2, "rate": 0.1, "buffers": buffers}
    same(both, headstart.maml(both.module, **how), on_keras.maml(both.model, **how), images_of(random))


def test_conv4_whose_tasks_keep_their_statistics(random, monkeypatch):
    original = TaskStatistics.forward

    def as_in_keras(layer, x):
        """PyTorch's running variance is n / (n − 1) times Keras's, which is that of the batch."""
        out, count = original(layer, x), x.numel() // x.shape[1]
        if layer.training:
            layer.updated["running_var"] = layer.updated["running_var"] * ((count - 1) / count)
        return out

    monkeypatch.setattr(TaskStatistics, "forward", as_in_keras)
    both = convolutional("batch")
    how = {"steps": 2, "rate": 0.1, "buffers": "task"}
    same(both, headstart.maml(both.module, **how), on_keras.maml(both.model, **how), images_of(random))


# heads


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("padded", [False, True])
def test_prototypes(distance, padded, random):
    both = convolutional("group", ways=None)
    ours, theirs = (
        where.prototypes(one, distance=distance, ways=3)
        for where, one in ((headstart, both.module), (on_keras, both.model))
    )
    arrays = images_of(random)
    same_head(both, ours, theirs, arrays, padded)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("examples", [2, 4])
def test_ridge_of_classes(examples, padded, random):
    both = convolutional("none", ways=None)
    how = {"ways": 3, "regularisation": 0.3, "scale": 2.0}
    arrays = images_of(random, shots=examples)
    same_head(both, headstart.ridge(both.module, **how), on_keras.ridge(both.model, **how), arrays, padded)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("examples", [4, 9])
def test_ridge_of_numbers(examples, padded, random):
    both = Both(mlp(4, None, hidden=(6, 5)), models.mlp(4, None, hidden=(6, 5)))
    how = {"loss": "mse", "regularisation": 0.3}
    ours, theirs = headstart.ridge(both.module, intercept=True, **how), on_keras.ridge(both.model, **how)
    same_head(both, ours, theirs, points_of(random, examples=examples), padded)


def same_head(both, ours, theirs, arrays, padded):
    start = theirs.init(0).structure
    in_both = {name: torch.tensor(start[name].numpy()) for name in ours.init(None).structure}
    slopes, found = same(both, ours, theirs, masked(arrays) if padded else arrays, (in_both, start))
    if slopes:  # together, since the softmax does not see the bias
        close([found[name] for name in slopes], list(slopes.values()), "M")
    # those of classes, where numbers are fitted
    assert all(float(tf.abs(found[name])) == 0 for name in found.keys() - slopes.keys())


# attention


class Block(nn.Module):
    """A transformer block over tokens ``(n, 3, 4)`` with two heads of size 2, its mean, and a head."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4, eps=1e-3)
        self.query, self.key, self.value, self.output = (nn.Linear(4, 4) for _ in range(4))
        self.wide, self.narrow, self.head = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        y = self.norm(x)
        q, k, v = (one(y).unflatten(-1, (2, 2)).transpose(-2, -3) for one in (self.query, self.key, self.value))
        mixed = (q @ k.mT / 2**0.5).softmax(-1) @ v
        x = x + self.output(mixed.transpose(-2, -3).flatten(-2))
        x = x + self.narrow(nn.functional.silu(self.wide(x)))
        return self.head(x.mean(-2))


def block():
    """Return the same block of Keras's layers."""
    x = keras.Input((3, 4))
    y = keras.layers.LayerNormalization(epsilon=1e-3, name="norm")(x)
    attended = keras.layers.MultiHeadAttention(2, 2, name="attention")(y, y)
    z = keras.layers.Add()([x, attended])
    wide = keras.layers.Dense(6, activation=keras.activations.silu, name="wide")(z)
    z = keras.layers.Add()([z, keras.layers.Dense(4, name="narrow")(wide)])
    z = keras.layers.GlobalAveragePooling1D()(z)
    return keras.Model(x, keras.layers.Dense(3, name="head")(z))


def block_pairs(module, model):
    attention = model.get_layer("attention")
    for part in ("query", "key", "value", "output"):
        layer = getattr(attention, f"_{part}_dense")
        yield getattr(module, part).weight, layer.kernel
        yield getattr(module, part).bias, layer.bias
    for name in ("wide", "narrow", "head"):
        yield getattr(module, name).weight, model.get_layer(name).kernel
        yield getattr(module, name).bias, model.get_layer(name).bias
    yield module.norm.weight, model.get_layer("norm").gamma
    yield module.norm.bias, model.get_layer("norm").beta


def block_to_keras(module, model):
    for tensor, variable in block_pairs(module, model):
        variable.assign(tensor.detach().numpy().T.reshape(variable.shape))


def block_to_torch(model, module):
    with torch.no_grad():
        for tensor, variable in block_pairs(module, model):
            tensor.copy_(torch.tensor(variable.value.numpy().reshape(tuple(reversed(tensor.shape))).T))
    return module


def test_a_transformer_block(random):
    both = Both(Block(), block(), block_to_keras, block_to_torch)
    x = [random.normal(size=(2, n, 3, 4)) for n in (4, 6)]
    y = [random.integers(3, size=(2, n)) for n in (4, 6)]
    how = {"steps": 2, "rate": 0.1}
    ours, theirs = headstart.maml(both.module, **how), on_keras.maml(both.model, **how)
    same(both, ours, theirs, list(zip(x, y)))
