"""Your own many small data sets, in one call: each is a pair of tensors.

Here a task is a straight line through noisy points. Prints the error on unseen lines of one gradient step from the
meta-trained weights, and from weights trained on all lines pooled (what a loop of SGD over tasks gives).
Expected: meta-trained below 0.1, pooled above 1.
"""

import torch
from torch.nn.functional import mse_loss

import headstart

torch.manual_seed(0)


def line(slope: float) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(12, 1) * 2 - 1
    return x, slope * x + 0.05 * torch.randn(12, 1)


inputs, targets = zip(*(line(slope) for slope in torch.linspace(-3, 3, 60).tolist()))
trained = headstart.maml_train(
    torch.nn.Linear(1, 1), inputs, targets, learning_rate=0.05, iterations=200, inner_rate=1.0, inner_steps=1
)

pooled = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(pooled.parameters(), lr=0.05)
for _ in range(200):
    optimizer.zero_grad()
    mse_loss(pooled(torch.cat(inputs)), torch.cat(targets)).backward()
    optimizer.step()


def error_after_one_step(model: torch.nn.Module, rate: float) -> float:
    learner = headstart.maml(model, loss="mse", steps=1, rate=rate)
    new_x, new_y = zip(*(line(slope) for slope in (-2.5, -0.7, 0.4, 1.9)))
    x, y = torch.stack(new_x), torch.stack(new_y)
    with torch.no_grad():
        adapted, _ = learner.adapt(learner.init(None), headstart.Batch(x[:, :6], y[:, :6]))
        return float(mse_loss(learner.predict(adapted, x[:, 6:]), y[:, 6:]))


print(f"meta-trained: {error_after_one_step(trained, rate=1.0):.3f}")
print(f"pooled:       {error_after_one_step(pooled, rate=0.1):.3f}")
