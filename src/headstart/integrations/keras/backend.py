"""Keras on TensorFlow, imported here alone and only when it is used."""

import os

from headstart.errors import UsageError


def _refuse_other(backend: str) -> None:
    if backend != "tensorflow":
        torch_too = "; for models of PyTorch's own, use headstart.maml and its siblings" * (backend == "torch")
        raise UsageError(
            f"Keras is set to run on {backend!r}, and headstart meta-learns Keras models on TensorFlow alone: set "
            f"KERAS_BACKEND=tensorflow before keras is imported{torch_too}"
        )


# said before Keras is imported, which would miss JAX first where it is not installed
_refuse_other(os.environ.get("KERAS_BACKEND") or "tensorflow")
# TensorFlow's notes on how it was built, on standard error; whoever wants them says so before
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

try:
    import keras as keras
    import tensorflow as tf
    from keras.src.utils.rng_utils import get_random_seed
except ImportError as error:
    raise UsageError(
        f"this needs Keras 3.15 and TensorFlow 2.21, or newer ({error}); pip install headstart[keras]"
    ) from error

_refuse_other(keras.backend.backend())

__all__ = ["get_random_seed", "keras", "tf"]
