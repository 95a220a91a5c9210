"""Learn about the model beside its initial weights: L(θ, M) = Σ Lᵢ(θ, M), with M proposed from the layers.

Prints what `aware` proposes for a small network, the mean squared error on new sine curves after one gradient step of
plain MAML (where M is empty) and of the proposal after as many outer steps, and the step sizes that were learned.
Expected: the proposal below 1.5 and below MAML, which is above 1.8; step sizes of both signs, spread out from 0.01.
"""

from functools import partial

import torch

import headstart

STEPS = 300

tasks = headstart.tasks.sinusoid(shots=10)
torch.manual_seed(0)
model = headstart.mlp(inputs=1, outputs=1)
plain = headstart.maml(model, loss="mse", steps=1, rate=0.01)
aware = headstart.aware(model, loss="mse", steps=1, rate=0.01, explain=lambda line: print(f"  {line}"))


def trained(learner: headstart.Learner) -> headstart.Meta:
    adam = partial(torch.optim.Adam, lr=0.002)
    *_, last = headstart.fit(learner, tasks, steps=STEPS, tasks_per_step=10, optimizer=adam)
    return last.state.meta


for name, learner in {"maml": plain, "aware": aware}.items():
    meta = trained(learner)
    score = headstart.evaluate(learner, meta, tasks, episodes=200)
    print(f"{name}: mse {score.mean:.2f} ± {score.ci95:.2f} after {STEPS} outer steps")

print("step sizes of each tensor, lowest to highest, all from 0.01:")
for name, rates in aware.shown(meta).items():
    if name.startswith("rate."):
        print(f"  {name}: {rates.min():.4f} to {rates.max():.4f}")
