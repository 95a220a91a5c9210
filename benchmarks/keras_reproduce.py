"""MAML on Keras models beside PyTorch: the same first weights, training tasks, settings and test tasks.

Sine curves: one inner step of 0.01 from 10 points, 25 tasks an outer step, Adam of rate 0.001. Omniglot, 5-way 1-shot:
conv4 with 32 filters and strides, one inner step of 0.4, 8 tasks an outer step, Adam of rate 0.003 by a cosine.
Settings are those of docs/results.md; weights are judged as they are after the last step.

    python -m benchmarks.keras_reproduce sine --library keras --seeds 3
    python -m benchmarks.keras_reproduce omniglot --library torch --data DIR --steps 10000
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import headstart
from headstart.data.curves.sinusoid import sinusoid
from headstart.data.images.omniglot import omniglot
from headstart.training.evaluate import Score
from headstart.training.kept_memory import kept_memory
from headstart.training.loop import fused
from headstart.types import Tasks


class Setting(NamedTuple):
    """What both libraries do."""

    tasks: Tasks
    module: nn.Module
    loss: str
    rate: float
    """Of the one inner step."""
    batch: int
    """Tasks of an outer step."""
    outer: float
    cosine: bool


def setting(name: str, data: Path | None, seed: int) -> Setting:
    """Return the setting of that name, its network with first weights by ``seed``."""
    torch.manual_seed(seed)
    if name == "sine":
        tasks = sinusoid(shots=10, queries=10)
        return Setting(tasks, headstart.mlp(1, 1), "mse", 0.01, 25, 1e-3, False)
    tasks = omniglot(data=data, ways=5, shots=1, queries=5)
    module = headstart.conv4((1, 28, 28), 5, filters=32, downsample="stride")
    return Setting(tasks, module, "cross_entropy", 0.4, 8, 3e-3, True)


def by_torch(given: Setting, steps: int) -> tuple[Score, float]:
    """Meta-train and judge on PyTorch; also return the seconds of training."""
    learner = headstart.maml(given.module, loss=given.loss, steps=1, rate=given.rate, taskmap="vmap")
    began = time.perf_counter()
    records = headstart.fit(
        learner,
        given.tasks,
        steps=steps,
        tasks_per_step=given.batch,
        optimizer=fused(torch.optim.Adam, lr=given.outer),
        schedule="cosine" if given.cosine else "constant",
    )
    for record in records:
        last = record
    seconds = time.perf_counter() - began
    return headstart.evaluate(learner, last.state.meta, given.tasks, episodes=600), seconds


def by_keras(given: Setting, steps: int) -> tuple[Score, float]:
    """The same on TensorFlow."""
    from headstart.integrations.keras import MetaModel, models
    from headstart.integrations.keras.backend import keras, tf
    from headstart.integrations.keras.weights import to_keras

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    made = models.mlp(1, 1) if given.loss == "mse" else models.conv4((28, 28, 1), 5, filters=32, downsample="stride")
    model = MetaModel(to_keras(given.module, made), "maml", steps=1, rate=given.rate)
    rate = keras.optimizers.schedules.CosineDecay(given.outer, steps) if given.cosine else given.outer
    model.compile(keras.optimizers.Adam(rate, epsilon=1e-8), loss=given.loss)
    began = time.perf_counter()
    with kept_memory():
        model.fit(given.tasks, batch_size=given.batch, steps_per_epoch=max(1, steps // 10), epochs=10, verbose=2)
    seconds = time.perf_counter() - began
    return model.score(given.tasks, episodes=600), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sine", "omniglot"))
    parser.add_argument("--library", choices=("keras", "torch"), default="keras")
    parser.add_argument("--data", type=Path, help="the folder of Omniglot's two zip files")
    parser.add_argument("--steps", type=int, help="outer steps; default: 30,000 of sine, 10,000 of Omniglot")
    parser.add_argument("--seeds", type=int, default=1, help="how many, of first weights")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    steps = asked.steps or {"sine": 30_000, "omniglot": 10_000}[asked.what]
    for seed in range(asked.seeds):
        train = partial(by_keras if asked.library == "keras" else by_torch, setting(asked.what, asked.data, seed))
        score, seconds = train(steps)
        told = f"{asked.what}, {asked.library}, seed {seed}: {score.metric} {score.mean:.4f} ± {score.ci95:.4f}"
        print(f"{told} on {score.episodes} test tasks, {steps} steps in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
