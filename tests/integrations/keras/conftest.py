from importlib.util import find_spec

import pytest


@pytest.fixture(autouse=True)
def fixed_keras_seed():
    """Keras draws weights and dropout from a generator of its own; every test starts it at the same place."""
    if find_spec("tensorflow") is not None:
        import keras

        keras.utils.set_random_seed(0)
