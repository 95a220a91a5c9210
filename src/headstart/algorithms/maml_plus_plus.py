"""MAML++: what makes MAML train stably and adapt further, put together."""

from typing import Any

from torch import nn

from headstart.algorithms import objectives
from headstart.algorithms.maml import maml
from headstart.algorithms.step_norm import has_batch_norm, per_step_norm
from headstart.core.adjoints import Adjoint, FirstOrder, Unrolled
from headstart.core.rules import per_tensor
from headstart.types import Learner


def maml_plus_plus(
    module: nn.Module,
    *,
    steps: int = 5,
    rate: float = 0.1,
    multi_step_until: float = 0.1,
    first_order_until: float = 1 / 3,
    adjoint: Adjoint = Unrolled(),
    **options: Any,
) -> Learner:
    """MAML++: `maml` with learned step sizes per tensor and step, a multi-step loss and per-step normalisation.

    - Every tensor has a learned step size for each inner step (LSLR): `headstart.rules.per_tensor`.
    - The query loss counts after every step at first, then after the last: `multi_step`.
    - Gradients are first order at first, then exact (derivative-order annealing): `first_order_until`.
    - Batch normalisation has weights and biases for each inner step, which the outer loop learns and the inner loop
      does not move, and goes by the batch at hand: `per_step_norm`. Left out where the module has no such layer.
    - The outer rate falls by a cosine: ``schedule="cosine"`` of the trainer (to 0, where the authors' code stops at
      1e-5 or higher).

    The outer gradient is not clipped (the authors' code clips it at 10 for miniImageNet).

    Args:
        module: the model.
        steps: T, at least 1.
        rate: where every step size starts; 0.1 for Omniglot and 0.01 for miniImageNet in the authors' code.
        multi_step_until: the fraction of the outer steps with the multi-step loss; 0 for none.
        first_order_until: the fraction of the outer steps with first-order gradients; 0 for none. The paper takes 50
            of its 150 epochs; the configurations that came with its code take none.
        adjoint: how to differentiate afterwards.
        options: those of `maml`, but for ``rule``.

    Reference: Antoniou, Edwards, Storkey 2018, arXiv:1810.09502.

    >>> import headstart
    >>> learner = maml_plus_plus(headstart.conv4((1, 16, 16), ways=5, filters=4), steps=3)
    >>> meta = learner.init(None)
    >>> meta.structure["block1.norm.weight"].shape, meta.structure["rate.head.weight"].shape
    (torch.Size([4, 4]), torch.Size([3]))
    """
    body = per_step_norm(module, steps) if has_batch_norm(module) else module
    rule = per_tensor(rate, steps=steps)
    learner = maml(body, steps=steps, rule=rule, adjoint=adjoint, **options)
    if first_order_until:
        cheap = maml(body, steps=steps, rule=rule, adjoint=FirstOrder(), **options)
        learner = objectives.first_order_until(learner, cheap, first_order_until)
    return objectives.multi_step(learner, until=multi_step_until) if multi_step_until else learner
