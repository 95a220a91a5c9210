"""A learned inner loss: the outer loop learns what adaptation should lower."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from headstart.algorithms.adaptation import InnerLoss, Now, uniform
from headstart.core import losses
from headstart.core.values import in_range, one_hot
from headstart.errors import ShapeError, UsageError
from headstart.types import Batch, Params


def learned_loss(
    outputs: int, *, base: str | losses.TaskLoss | None = None, hidden: Sequence[int] = (40, 40), name: str = "loss"
) -> InnerLoss:
    """Return the inner loss ``ℓ_φ(y, f(x)) = softplus(network_φ(f(x), y))``, averaged over a task's examples; M = φ.

    The network is fully connected with ReLU; it reads an example's outputs and its target, a class id as one-hot. φ is
    learned by the query loss, which stays the learner's own. With ``base`` the loss is ``base + ℓ_φ − log 2``, and the
    last layer starts at zero, so that adaptation starts as without ℓ_φ; the paper has ℓ_φ alone.

    Args:
        outputs: number of the model's output values for one example.
        base: ``"cross_entropy"``, ``"mse"``, ``(outputs, batch) -> (B,)``, or nothing.
        hidden: widths of the hidden layers, at least one.
        name: of the part of M.

    Reference: Bechtle, Molchanov, Chebotar, Grefenstette, Righetti, Sukhatme, Meier 2021, arXiv:1906.05374 (ML³). As in
    their code, weights are drawn by Glorot and Bengio, and the last layer has no bias. There θ is not learned.

    >>> import headstart
    >>> net = headstart.mlp(1, 1)
    >>> learner = headstart.maml(net, loss="mse", inner_loss=learned_loss(1, base="mse", hidden=(8,)))
    >>> list(learner.init(None).structure)
    ['loss.0.weight', 'loss.0.bias', 'loss.1.weight']
    """
    widths = [2 * outputs, *hidden, 1]
    if not hidden or min(outputs, *widths) < 1:
        raise UsageError(f"learned_loss needs positive sizes, got outputs {outputs} and hidden {tuple(hidden)}")
    known = None if base is None else losses.resolve(base)

    last = len(hidden)

    def structure(params: Params, generator: Generator | None) -> Params:
        like = next(iter(params.values()))
        found: Params = {}
        for index, (width_in, width_out) in enumerate(pairwise(widths)):
            # the numbers are drawn even where they count for nothing, so that what follows is the same
            bound = 0 if known is not None and index == last else math.sqrt(6 / (width_out + width_in))
            found[f"{name}.{index}.weight"] = uniform((width_out, width_in), bound, like, generator)
            if index < last:
                found[f"{name}.{index}.bias"] = like.new_zeros(width_out)
        return found

    def loss(m: Params, predicted: Tensor, batch: Batch, step: int, now: Now | None = None) -> Tensor:
        x = _pairs(predicted, batch.y, outputs)
        for index in range(last):
            x = torch.relu(x @ m[f"{name}.{index}.weight"].T + m[f"{name}.{index}.bias"])
        score = x @ m[f"{name}.{last}.weight"].T
        learned = losses.masked_mean(F.softplus(score.squeeze(-1)), batch.mask)
        return learned if known is None else known(predicted, batch) + learned - math.log(2)

    return InnerLoss(loss, structure)


def _pairs(predicted: Tensor, y: Tensor, outputs: int) -> Tensor:
    real = y.is_floating_point()
    if predicted.shape[2:].numel() != outputs or (predicted.shape if real else predicted.shape[:2]) != y.shape:
        raise ShapeError(
            f"the learned loss was made for {outputs} output values an example, and targets shaped as the outputs or "
            f"class ids (tasks, examples); got outputs {tuple(predicted.shape)} and y {tuple(y.shape)} of {y.dtype}"
        )
    if real:
        return torch.cat([each.reshape(*each.shape[:2], outputs) for each in (predicted, y)], -1)
    target = one_hot(in_range(y, outputs, f"the model has {outputs} outputs"), outputs, predicted)
    return torch.cat([predicted.flatten(2), target], -1)
