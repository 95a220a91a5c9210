"""Handwritten characters, five ways from one drawing each: prototypes on four convolutional blocks, in Keras.

    python examples/09_keras_omniglot.py FOLDER

FOLDER holds images_background.zip and images_evaluation.zip of Omniglot. Prints the accuracy on 100 unseen tasks,
untrained and trained for a few steps. Expected: better by at least 10 points. It needs headstart[keras].
"""

import sys

import keras

import headstart
from headstart.integrations.keras import MetaModel

if len(sys.argv) < 2:
    sys.exit(__doc__)

keras.utils.set_random_seed(0)
tasks = headstart.tasks.omniglot(data=sys.argv[1], ways=5, shots=1, queries=5)
layers: list[keras.layers.Layer] = [keras.Input((28, 28, 1))]
for _ in range(4):
    layers += [keras.layers.Conv2D(16, 3, strides=2, padding="same"), keras.layers.BatchNormalization()]
    layers += [keras.layers.ReLU()]
model = MetaModel(keras.Sequential([*layers, keras.layers.Flatten()]), method="prototypes", ways=5)
model.compile(keras.optimizers.Adam(0.003), metrics=["accuracy"])

untrained = model.score(tasks, episodes=100)
model.fit(tasks, batch_size=8, steps_per_epoch=50, epochs=3, verbose=2)
trained = model.score(tasks, episodes=100)
print(f"untrained: {untrained.mean:.1%} ± {untrained.ci95:.1%}")
print(f"trained:   {trained.mean:.1%} ± {trained.ci95:.1%}")
