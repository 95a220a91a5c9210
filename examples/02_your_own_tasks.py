"""Your own many small data sets, in one call: each is a pair of tensors.

Here a task is twenty points of one sine curve. Prints the error on unseen curves after one gradient step on ten
points, from the meta-trained weights and from weights trained on all curves pooled (what a loop of SGD over tasks
gives).
Expected: meta-trained below 2, pooled above 2.5.
"""

import math

import torch
from torch.nn.functional import mse_loss

import headstart

torch.manual_seed(0)


def curve() -> tuple[torch.Tensor, torch.Tensor]:
    amplitude, phase = 0.1 + 4.9 * torch.rand(1), math.pi * torch.rand(1)
    x = 10 * torch.rand(20, 1) - 5
    return x, amplitude * torch.sin(x - phase)


inputs, targets = zip(*(curve() for _ in range(500)))
trained = headstart.maml_train(
    headstart.mlp(1, 1), inputs, targets, learning_rate=0.002, iterations=400, inner_rate=0.01, tasks_per_step=25
)

pooled = headstart.mlp(1, 1)
optimizer = torch.optim.Adam(pooled.parameters(), lr=0.002)
for _ in range(250):
    optimizer.zero_grad()
    mse_loss(pooled(torch.cat(inputs)), torch.cat(targets)).backward()
    optimizer.step()


def error_after_one_step(model: torch.nn.Module) -> float:
    learner = headstart.maml(model, loss="mse", steps=1, rate=0.01)
    x, y = (torch.stack(values) for values in zip(*unseen))
    with torch.no_grad():
        adapted, _ = learner.adapt(learner.init(None), headstart.Batch(x[:, :10], y[:, :10]))
        return float(mse_loss(learner.predict(adapted, x[:, 10:]), y[:, 10:]))


unseen = [curve() for _ in range(200)]
print(f"meta-trained: {error_after_one_step(trained):.2f}")
print(f"pooled:       {error_after_one_step(pooled):.2f}")
