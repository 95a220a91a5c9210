"""A large frozen network and what little of it learns: a low-rank adapter and a head, by Meta-SGD.

The network has the shape of one of keras.applications, with random weights, so that nothing is downloaded; in its place
stands one that has seen images. A task is a device that answers a picture by a mix of its colours of its own; five
pictures with their answers are there to learn it from. Prints the mean squared error on 40 unseen devices, untrained
and trained, and how many numbers learn. Expected: less than half of it. It needs headstart[keras].
"""

import keras
import numpy as np

from headstart.integrations.keras import MetaModel

keras.utils.set_random_seed(0)
random = np.random.default_rng(0)
colour, mix = random.uniform(-1, 1, (640, 15, 1, 1, 3)), random.normal(size=(640, 1, 3))
x = (colour + random.normal(size=(640, 15, 16, 16, 3)) / 4).astype("float32")
y = (colour[:, :, 0, 0] * mix).sum(-1, keepdims=True)
training, unseen = (((x[t, :5], y[t, :5]), (x[t, 5:], y[t, 5:])) for t in (slice(600), slice(600, None)))

trunk = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, include_top=False, weights=None)
trunk = keras.Model(trunk.input, trunk.get_layer("block_1_project_BN").output)
trunk.trainable = False
image = keras.Input((16, 16, 3))
raw = keras.Model(image, keras.layers.Flatten()(trunk(keras.layers.UpSampling2D(2)(image))))
# of the size that layers are made for, as the features of a trained network are
features = keras.layers.Rescaling(1 / raw.predict(training[0][0][0], verbose=0).std())(raw(image))
adapter = keras.layers.Dense(64, "relu")
network = keras.Model(image, keras.layers.Dense(1)(adapter(features)))
adapter.enable_lora(8)  # its kernel stays as it is, but for a product of two thin matrices

model = MetaModel(network, method="meta_sgd", steps=1, rate=0.01)
model.compile(keras.optimizers.Adam(0.003), loss="mse")
untrained = model.evaluate(unseen, batch_size=10, verbose=0)
model.fit(training, batch_size=10, epochs=5, verbose=2)
trained = model.evaluate(unseen, batch_size=10, verbose=0)
learn, there = (sum(v.numpy().size for v in part) for part in (network.trainable_variables, network.variables))
print(f"untrained: {untrained:.3f}")
print(f"trained:   {trained:.3f}")
print(f"{learn} numbers of {there} learn")
