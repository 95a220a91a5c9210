"""A large frozen network and what little of it learns: low-rank adapters and a head, meta-learned on its features.

The network has the shape of one of keras.applications, with random weights, so that nothing is downloaded; in its place
stands one that has seen images. Five unseen icons are to be told apart from one drawing each. Prints the accuracy on
100 such tasks, untrained and trained (guessing gives 20 %), and how many numbers learn. It needs headstart[keras].
"""

import keras

import headstart
from headstart.integrations.keras import MetaModel

keras.utils.set_random_seed(0)
tasks = headstart.tasks.icons(ways=5, shots=1, queries=3)
trunk = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, include_top=False, weights=None)
trunk = keras.Model(trunk.input, trunk.get_layer("block_3_expand_relu").output)
trunk.trainable = False

image = keras.Input((28, 28, 1))
wide = keras.layers.Concatenate()([keras.layers.ZeroPadding2D(2)(image)] * 3)
features = keras.layers.LayerNormalization()(keras.layers.Flatten()(trunk(wide)))
adapted = keras.layers.Dense(64, "relu", name="adapted")
outputs = keras.layers.Dense(5, name="head")(adapted(features))
adapted.enable_lora(4)  # its kernel stays as it is, but for a product of two thin matrices

network = keras.Model(image, outputs)
model = MetaModel(network, method="maml", steps=3, rate=0.05)
model.compile(keras.optimizers.Adam(0.002), metrics=["accuracy"])
untrained = model.score(tasks, episodes=100)
model.fit(tasks, batch_size=8, steps_per_epoch=40, epochs=3, verbose=2)
trained = model.score(tasks, episodes=100)
learn, there = (
    sum(int(v.shape.num_elements() or 1) for v in part) for part in (network.trainable_variables, network.variables)
)
print(f"untrained: {untrained.mean:.1%} ± {untrained.ci95:.1%}")
print(f"trained:   {trained.mean:.1%} ± {trained.ci95:.1%}")
print(f"{learn} numbers of {there} learn")
