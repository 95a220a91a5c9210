"""MAML++: what makes MAML train stably and adapt further, put together."""

import copy
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from headstart.algorithms import objectives
from headstart.algorithms.maml import Rate, maml
from headstart.core.adjoints import Adjoint, AdjointName, FirstOrder
from headstart.core.parameters import Stepped, Structural
from headstart.core.rules import per_tensor
from headstart.errors import UsageError
from headstart.forward.skeleton import refuse_untwiceable
from headstart.forward.surgery import replaced
from headstart.schema import Probability, extends
from headstart.types import Learner


@extends(maml, without=("rule",))
def maml_plus_plus(
    module: nn.Module,
    *,
    steps: Annotated[int, Ge(1), Le(1000)] = 5,
    rate: Rate = 0.1,
    multi_step_until: Probability = 0.1,
    first_order_until: Probability = 1 / 3,
    adjoint: AdjointName | Adjoint = "unrolled",
    **options: Any,
) -> Learner:
    """MAML++: `maml` with learned step sizes per tensor and step, a multi-step loss and per-step normalisation.

    - Every tensor has a learned step size for each inner step (LSLR): `headstart.rules.per_tensor`.
    - The query loss counts after every step at first, then after the last: `multi_step`.
    - Gradients are first order at first, then exact (derivative-order annealing): `first_order_until`.
    - Batch normalisation goes by the batch at hand, with learned weights and biases for each inner step that no inner
      step moves: `per_step_norm`. Left out where the module has no such layer.
    - The outer rate falls by a cosine: ``schedule="cosine"`` of the trainer (to 0; the authors' code stops before).

    The outer gradient is not clipped (the authors' code clips it at 10 for miniImageNet).

    Args:
        rate: where every step size starts; 0.1 for Omniglot and 0.01 for miniImageNet in the authors' code.
        multi_step_until: the fraction of the outer steps with the multi-step loss; 0 for none.
        first_order_until: the fraction of the outer steps with first-order gradients; 0 for none. The paper takes 50
            of its 150 epochs; its code's configurations take none.
        adjoint: how to differentiate through the steps after that, as for `maml`.
        options: those of `maml`.

    Reference: Antoniou, Edwards, Storkey 2018, arXiv:1810.09502.

    >>> import headstart
    >>> learner = maml_plus_plus(headstart.conv4((1, 16, 16), ways=5, filters=4), steps=3)
    >>> meta = learner.init(None)
    >>> meta.structure["block1.norm.weight"].shape, meta.structure["rate.head.weight"].shape
    (torch.Size([4, 4]), torch.Size([3]))
    """
    body = per_step_norm(module, steps) if has_batch_norm(module) else module
    rule = per_tensor(rate, steps=steps)
    return annealed(body, adjoint, first_order_until, multi_step_until, steps=steps, rule=rule, **options)


def annealed(
    module: nn.Module, adjoint: AdjointName | Adjoint, first_order_until: float, multi_step_until: float, **options: Any
) -> Learner:
    """Return `maml`, first order and with the multi-step loss for these fractions of the outer steps; 0 for never."""
    learner = maml(module, adjoint=adjoint, **options)
    if first_order_until:
        cheap = maml(module, adjoint=FirstOrder(), **options)
        learner = objectives.first_order_until(learner, first_order=cheap, fraction=first_order_until)
    return objectives.multi_step(learner, until=multi_step_until) if multi_step_until else learner


class StepBatchNorm(Structural, Stepped):
    """Batch normalisation whose weights and biases are part of M and have a row for every inner step.

    A pass after t steps computes ``γ[t] · normalised(x) + β[t]``; the support set of step t goes by row t (from 0), the
    query set after T steps by row T, and steps beyond T by the last row.

    ``x`` is normalised as the learner's ``buffers`` say: by the statistics of the batch at hand, at every step anew
    (``"batch"``); by the layer's (``"frozen"``); or, for the query set, by those that the task's support set left in
    its last passes, by the layer's momentum (``"task"``).

    Reference: Antoniou, Edwards, Storkey 2018, arXiv:1810.09502, section 4. There the query set goes by the row of the
    support pass before it, so that T rows do; here it has its own.

    Args:
        layer: what to start from; its weights and biases are where every row starts. It is not changed.
        steps: T, at least 1.

    >>> norm = StepBatchNorm(nn.BatchNorm2d(8), steps=5)
    >>> norm.weight.shape, norm(torch.zeros(4, 8, 3, 3)).shape
    (torch.Size([6, 8]), torch.Size([4, 8, 3, 3]))
    """

    def __init__(self, layer: _BatchNorm, steps: int) -> None:
        if steps < 1:
            raise UsageError(f"steps must be at least 1, got {steps}")
        # the statistics stay those of an ordinary layer, so that the buffer policies find them
        plain = copy.deepcopy(layer)
        plain.affine = False
        plain.register_parameter("weight", None)
        plain.register_parameter("bias", None)
        super().__init__(plain)
        like = torch.empty(layer.num_features) if layer.running_mean is None else layer.running_mean
        self.weight = _rows(torch.ones_like(like) if layer.weight is None else layer.weight, steps)
        self.bias = _rows(torch.zeros_like(like) if layer.bias is None else layer.bias, steps)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Normalise ``x`` ``(n, channels, *space)`` and scale it by this step's weights and biases."""
        row = min(self.step, len(self.weight) - 1)
        shape = (1, -1, *(1,) * (x.ndim - 2))
        return self.layer(x) * self.weight[row].view(shape) + self.bias[row].view(shape)


def _rows(values: Tensor, steps: int) -> nn.Parameter:
    learned = values.requires_grad or not isinstance(values, nn.Parameter)
    return nn.Parameter(values.detach().repeat(steps + 1, 1), requires_grad=learned)


def per_step_norm(module: nn.Module, steps: int) -> nn.Module:
    """Return a copy of ``module`` with a `StepBatchNorm` for ``steps`` ≥ 1 in place of every batch normalisation layer.

    Raises:
        UsageError: there is no BatchNorm1d, BatchNorm2d or BatchNorm3d in it.

    >>> import headstart
    >>> per_step_norm(headstart.conv4((1, 28, 28), ways=5), steps=5).block1.norm.weight.shape
    torch.Size([6, 64])
    """
    refuse_untwiceable(module, check=False)
    found: list[str] = []

    def make(path: str, layer: nn.Module) -> nn.Module | None:
        if not isinstance(layer, (_BatchNorm, StepBatchNorm)):
            return None
        found.append(path)
        return layer if isinstance(layer, StepBatchNorm) else StepBatchNorm(layer, steps)

    body = replaced(module, make)
    if not found:
        norms = ", ".join(
            f"{at} ({type(m).__name__})" for at, m in module.named_modules() if "Norm" in type(m).__name__
        )
        raise UsageError(
            f"{type(module).__name__} has no BatchNorm1d, BatchNorm2d or BatchNorm3d to make per step; "
            f"its normalisation layers are: {norms or 'none'}"
        )
    return body


def has_batch_norm(module: nn.Module) -> bool:
    """Whether `per_step_norm` finds a layer to replace."""
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())
