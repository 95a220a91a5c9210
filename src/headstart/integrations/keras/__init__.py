"""Meta-learning for Keras models on TensorFlow: MAML and its siblings with exact second-order gradients.

::

    model = MetaModel(keras_model, method="maml", steps=5, rate=0.01)
    model.compile("adam", loss="mse")
    model.fit(tasks, batch_size=4, steps_per_epoch=100, epochs=10)     # across tasks
    adapted = model.adapt(x_few, y_few)                                # an ordinary keras.Model of a new task
    adapted.predict(x_rest)

Importing it imports TensorFlow.
"""

from headstart.integrations.keras import models as models, rules as rules, weights as weights
from headstart.integrations.keras.clones import SupportStatisticsWarning as SupportStatisticsWarning
from headstart.integrations.keras.heads import prototypes as prototypes, ridge as ridge
from headstart.integrations.keras.learner import Learner as Learner, backprop as backprop
from headstart.integrations.keras.meta_model import MetaModel as MetaModel
from headstart.integrations.keras.methods import (
    anil as anil,
    boil as boil,
    fomaml as fomaml,
    maml as maml,
    meta_sgd as meta_sgd,
    reptile as reptile,
)
