"""Your own inner update: a rule is a pure function, and the contract kit tells whether it is sound.

Sign descent as the inner update is not differentiable; a smooth sign is. Prints what the kit says, and the
meta-gradient's length.
Expected: "sound", and a length greater than 0.
"""

import torch

import headstart
from headstart import rules
from headstart.testing import check_rule


def soft_sign(sharpness: float) -> rules.Rule:
    """Step by tanh(sharpness · gradient)."""

    def update(structure, state, gradients, params, step):
        return {name: torch.tanh(sharpness * g) for name, g in gradients.items()}, state

    return rules.Rule(update)


rule = rules.chain(rules.clip(norm=10.0), soft_sign(5.0), rules.scale(0.05))
check_rule(rule)
print("the rule is sound")

learner = headstart.maml(headstart.mlp(1, 1), loss="mse", steps=2, rule=rule)
tasks = headstart.tasks.sinusoid(shots=10)
gradient, info = headstart.meta_gradient(learner, learner.init(None), tasks.sample("train", range(8)))
length = torch.stack([g.square().sum() for g in gradient.params.values()]).sum().sqrt()
print(f"meta-gradient of length {length:.2f} at query loss {info.query_loss.mean():.2f}")
