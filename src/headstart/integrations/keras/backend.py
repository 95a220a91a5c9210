"""Keras on TensorFlow, imported here alone and only when it is used."""

import os

from headstart.errors import UsageError

# TensorFlow's notes on how it was built, on standard error; whoever wants them says so before
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

try:
    import keras as keras
except ImportError as error:
    raise UsageError("this needs Keras 3.15 and TensorFlow 2.21, or newer; pip install headstart[keras]") from error

if keras.backend.backend() != "tensorflow":
    torch_too = keras.backend.backend() == "torch"
    raise UsageError(
        f"Keras runs on {keras.backend.backend()!r}, and headstart meta-learns Keras models on TensorFlow alone: set "
        "KERAS_BACKEND=tensorflow before keras is imported"
        + ("; for models of PyTorch's own, use headstart.maml and its siblings" if torch_too else "")
    )

try:
    import tensorflow as tf
except ImportError as error:
    raise UsageError("Keras has no TensorFlow to run on; pip install headstart[keras]") from error

__all__ = ["keras", "tf"]
