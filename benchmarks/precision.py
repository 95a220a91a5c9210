"""What bfloat16 products cost in accuracy: MAML on sine curves and on icons, everything else in single precision.

python -m benchmarks.precision
"""

import time

import torch

import headstart
from headstart import Learner, Tasks, tasks

SEEDS = (0, 1, 2)
TEST = 600


def score(learner: Learner, family: Tasks, steps: int, size: int, seed: int, rate: float) -> tuple[float, float]:
    """Meta-train, and return the mean score on test tasks and the seconds that training took."""
    state = headstart.start(learner, seed=seed, optimizer=lambda p: torch.optim.Adam(p, lr=rate))
    began = time.perf_counter()
    for _ in headstart.fit(learner, family, steps=steps, tasks_per_step=size, state=state, seed=seed):
        pass
    seconds = time.perf_counter() - began
    return headstart.evaluate(learner, state.meta, family, episodes=TEST).mean, seconds


def main() -> None:
    """Print both scores for every seed."""
    curves, pictures = tasks.sinusoid(), tasks.icons(ways=5, shots=1)
    for seed in SEEDS:
        for precision in ("full", "bf16"):
            torch.manual_seed(seed)
            network = headstart.mlp(1, 1)
            learner = headstart.maml(network, loss="mse", steps=1, rate=0.01, taskmap="vmap", precision=precision)
            found, seconds = score(learner, curves, 3000, 25, seed, 0.001)
            print(f"sine curves, seed {seed}, {precision}: mean squared error {found:.3f}, {seconds:.0f} s", flush=True)
    for seed in SEEDS:
        for precision in ("full", "bf16"):
            torch.manual_seed(seed)
            network = headstart.conv4(pictures.input_shape, ways=5, filters=8, downsample="stride")
            learner = headstart.maml(network, steps=3, rate=0.1, taskmap="vmap", precision=precision)
            found, seconds = score(learner, pictures, 300, 4, seed, 0.003)
            print(f"icons, seed {seed}, {precision}: accuracy {100 * found:.1f} %, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
