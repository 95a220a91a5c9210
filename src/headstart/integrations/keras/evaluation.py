"""A learner of Keras models for those who ask PyTorch's: what goes in and out are its tensors, by way of NumPy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from headstart.integrations.keras.backend import tf
from headstart.integrations.keras.learner import Learner
from headstart.types import Adapted, Batch, Info, Learner as TorchLearner, Meta


def handed_over(learner: Learner, adapting: Any, turned: Callable[[Any], Any], dtype: str) -> TorchLearner:
    """Return a learner that adapts, predicts and judges, without derivatives; what is between stays TensorFlow's.

    Args:
        learner: the method.
        adapting: its ``adapt`` as a ``tf.function``, ``(meta, support, steps) -> adapted``.
        turned: what the tasks' inputs become for the model.
        dtype: of the model, in which it is given numbers.
    """
    predicting = tf.function(learner.predict, autograph=False)

    def given(value: Any) -> Any:
        value = np.asarray(value)
        return tf.constant(value, dtype if value.dtype.kind == "f" else None)

    def batch(of: Batch) -> Batch:
        return Batch(given(turned(np.asarray(of.x))), given(of.y), None if of.mask is None else given(of.mask))

    def adapt(meta: Meta, support: Batch, /, steps: Any = None) -> tuple[Adapted, Info]:
        return adapting(meta, batch(support), steps), Info(torch.zeros(0, len(support.y)))

    def predict(adapted: Adapted, x: Any) -> torch.Tensor:
        return torch.from_numpy(predicting(adapted, given(turned(np.asarray(x)))).numpy())

    def loss(outputs: torch.Tensor, of: Batch) -> torch.Tensor:
        return torch.from_numpy(learner.loss(given(outputs), batch(of)).numpy())

    return TorchLearner(lambda generator: Meta({}, {}), adapt, predict, loss, None, learner.steps, exact=False)
