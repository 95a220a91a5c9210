"""A meta-model is compiled, fitted, evaluated, adapted and kept as other Keras models are."""

import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed here; `make test-keras` has it")

import keras
import numpy as np

from headstart.integrations.keras import MetaModel


def mlp(units=8, **options):
    layers = [keras.Input((1,)), keras.layers.Dense(units, "tanh", **options), keras.layers.Dense(1, **options)]
    return keras.Sequential(layers)


def test_it_learns():
    random = np.random.default_rng(0)
    slope, x = random.normal(size=(40, 1, 1)), random.uniform(-1, 1, size=(40, 8, 1))
    model = MetaModel(mlp(), steps=1, rate=0.1)
    model.compile("adam", loss="mse")
    history = model.fit(((x[:, :4], (slope * x)[:, :4]), (x[:, 4:], (slope * x)[:, 4:])), epochs=3, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
