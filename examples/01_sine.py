"""Learn to learn sine curves: after meta-training, one gradient step on ten points fits a new one.

Prints the mean squared error on new curves before and after that step; a model that cannot adapt cannot go below 3.0.
Expected: before 3 to 6, after below 1.8 (half a minute; 35,000 steps reach 0.6).
"""

import torch

import headstart

torch.manual_seed(0)  # of the model's first weights
tasks = headstart.tasks.sinusoid(shots=10)
model = headstart.mlp(inputs=1, outputs=1)
learner = headstart.maml(model, loss="mse", steps=1, rate=0.01)

for record in headstart.fit(learner, tasks, steps=1000, tasks_per_step=25):
    if record.step % 250 == 0:
        print(f"step {record.step}: loss {record.loss:.2f}")
meta = record.state.meta

score = headstart.evaluate(learner, meta, tasks, episodes=200, steps=[0, 1])
for steps, interval in score.by_inner_step.items():
    print(f"after {steps} inner steps: mse {interval.mean:.2f} ± {interval.ci95:.2f}")

# The same, by hand: adapt to one curve, predict anywhere.
curve = tasks.sample("test", [7])
with torch.no_grad():
    adapted, _ = learner.adapt(meta, curve.support)
    print("y(0) of curve 7:", round(learner.predict(adapted, torch.zeros(1, 1, 1)).item(), 2))
